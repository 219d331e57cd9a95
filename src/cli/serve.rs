//! `socius serve`: the engine behind HTTP.

use super::{Terminal, flags::BaseFlags, interrupt};
use crate::{
    common::Report,
    engine::Limits,
    server::{self, Config},
};
use serde_json::{Value, json};
use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, time::Duration};

/// Serve the base and its skills over HTTP, to clients of OpenAI, vLLM and llama-server
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  socius serve
  socius serve --bind 127.0.0.1:9000 --parallel 32
  SOCIUS_API_KEY=secret socius serve --bind 0.0.0.0:8080
  curl localhost:8080/v1/chat/completions -d '{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}'

`model` in a request is the base, a skill, base:skill, or auto for the router's choice; the answer says
who gave it. GET /openapi.json describes everything. Ctrl-C or SIGTERM ends the server once running
requests have ended; learners are resumable.")]
pub(super) struct Args {
    /// Address and port; any but a loopback address needs a key
    #[arg(long, default_value = "127.0.0.1:8080")]
    bind: SocketAddr,
    /// What clients must send as `Authorization: Bearer KEY`
    #[arg(long, env = "SOCIUS_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// The folder that adapters may be loaded from by path; `adapters` in the home without
    #[arg(long, value_name = "DIR")]
    adapters: Option<PathBuf>,
    /// Samples that decode together
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    parallel: u32,
    /// Requests that may run or wait; more are told to try again
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    queue: u32,
    /// Tokens whose keys and values are kept, over all requests
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(256..))]
    cache_tokens: u32,
    /// Of those, tokens kept after their request for others that begin alike
    #[arg(long, default_value_t = 16_384)]
    prefix_tokens: u32,
    /// Memory for adapters, in MiB; the least recently used leave and are read again when needed
    #[arg(long, default_value_t = 2048)]
    adapter_memory: usize,
    /// Tokens of an answer where a request does not say
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// KiB of a request's body
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    body_max: u32,
    /// Seconds that a request may take
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Seconds that requests may go on after the server was asked to end
    #[arg(long, default_value_t = 30)]
    drain: u32,
    /// Learners that run at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    learners: u32,
    #[command(flatten)]
    base: BaseFlags,
}

pub(super) fn run(args: Args, terminal: &mut Terminal) -> anyhow::Result<Value> {
    let logs = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let _ = logs.with_max_level(tracing::Level::INFO).try_init();
    let session = args.base.open(terminal)?.with_adapter_memory(args.adapter_memory << 20);
    let adapters = args.adapters.unwrap_or_else(|| session.home.root().join("adapters"));
    let rows_max = args.parallel as usize;
    let limits = Limits {
        rows_max,
        tokens_per_step: Limits::default().tokens_per_step.max(2 * rows_max),
        cache_tokens_max: args.cache_tokens as usize,
        prefix_tokens_max: args.prefix_tokens as usize,
    };
    let config = Config {
        bind: args.bind,
        api_key: args.api_key,
        adapters,
        limits,
        requests_max: args.queue as usize,
        body_bytes_max: (args.body_max as usize) << 10,
        tokens_default: args.max_tokens as usize,
        time_max: Duration::from_secs(args.timeout.into()),
        drain_max: Duration::from_secs(args.drain.into()),
        learners_max: args.learners as usize,
    };
    let mut bound = args.bind;
    let listening = |address: SocketAddr| {
        bound = address;
        terminal.note(&format!("listening on http://{address}"));
    };
    server::serve(session, config, listening, server::until(interrupt::asked))?;
    Ok(json!({ "address": bound.to_string() }))
}
