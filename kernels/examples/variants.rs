//! What `SOCIUS_SIMD` takes on this machine, one name a line, fastest first.

fn main() {
    for variant in socius_kernels::variants() {
        println!("{}", variant.name());
    }
}
