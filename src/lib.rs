//! socius: many small learners share one frozen transformer.
//!
//! ```text
//! task ──► router ──► subagent ──► engine ⇄ environment
//!           ▲                          │ episode (tokens, logprobs, reward, feedback)
//!           │                          ▼
//!        catalogue ◄── library ◄── gate ◄── trainer ──► candidate adapter
//! ```
//!
//! Values move along this loop. A module imports only modules of strictly lower rank (`tests/layers.rs` enforces it):
//!
//! | rank | modules |
//! |---|---|
//! | 0 | crate `socius-kernels` |
//! | 1 | crate `socius-models` |
//! | 2 | `common`, `episode`, `report` |
//! | 3 | `text`, `envs`, `lora`, `fetch` |
//! | 4 | `engine`, `train`, `library` |
//! | 5 | `router`, `bench` |
//! | 6 | `agent` |
//! | 7 | `lab`, `server` |
//! | 8 | `cli` |
#![forbid(unsafe_code)]

pub mod agent;
pub mod bench;
pub mod cli;
pub mod common;
pub mod engine;
pub mod envs;
pub mod episode;
pub mod fetch;
pub mod lab;
pub mod library;
pub mod lora;
pub mod report;
pub mod router;
pub mod server;
pub mod text;
pub mod train;
