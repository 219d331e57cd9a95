//! Tasks, graders and the process protocol: text in, reward out. Never sees tokens or models.
//!
//! ```
//! use socius::{common::Seed, envs::{self, Outcome, Query, Split}};
//!
//! let env = envs::find("reverse")?;
//! let item = envs::item(&*env, &Query::new(Split::Train, 1), Seed::new(1), 0)?;
//! let mut session = env.start(&item)?;
//! let reply = session.teacher().unwrap();
//! let Outcome::Done(grade) = session.act(&reply)? else { unreachable!("one turn") };
//! assert!(grade.strict && grade.lenient && grade.reward == 1.0);
//! # Ok::<(), envs::EnvError>(())
//! ```

mod builtin;
mod documents;
mod environment;
mod error;
mod examples;
mod grade;
mod item;
mod process;
mod registry;
mod task;
#[cfg(test)]
mod tests;
mod words;

pub use documents::{Document, DocumentError, Documents, Passage, documents, informed};
pub use environment::{Draw, Environment, Grade, Info, Level, Outcome, Session, answer};
pub use error::EnvError;
pub use examples::{ExampleError, Examples, prompts};
pub use item::{Form, HeldOut, Item, Phrasing, Query, Split, Wordings, canonical, item, items};
#[cfg(fuzzing)]
pub use process::read_line;
pub use process::{Limits, ProcessEnvironment, ProcessError};
pub use registry::{Example, NAMES, all, example, find};
