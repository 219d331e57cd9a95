//! The `socius` binary: nothing but the command line.

fn main() -> std::process::ExitCode {
    socius::cli::main()
}
