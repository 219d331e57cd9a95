//! The learning loop, closed here and nowhere else: a subagent is born, acts, is graded, trains, is judged on fresh items,
//! passes the gate and becomes a skill; the router brings skills back. Never sees flags or terminals.

mod base;
mod budget;
mod card;
mod compress;
mod course;
mod divergence;
mod error;
mod evaluate;
mod experience;
mod gate;
mod generate;
mod judge;
mod learn;
mod marks;
mod measure;
mod merge;
mod method;
mod play;
mod publish;
mod recipe;
mod replay;
mod route;
mod run;
mod score;
mod session;
mod stream;

pub use base::{Base, BaseChoice, Outline};
pub use budget::Budget;
pub use card::model_card;
pub use compress::{Arm, Compressed, Compression, Nats, PassedOver, Price, Quality, Query, Reading, compress, restudy};
pub use course::{Course, Taught};
pub use divergence::divergence;
pub use error::AgentError;
pub use evaluate::{Evaluation, evaluate};
pub use experience::{Experience, examples};
pub use gate::{Decision, Gate};
pub use generate::{Answer, Prompt, Question, SkillChoice};
pub use judge::{fixed_items, fixed_items_of, forms_apart, judge};
pub use learn::{Class, Learned, Lesson, learn, learn_best, learn_together};
pub use marks::{Mark, Marks};
pub use measure::{Grades, improvement, wilson};
pub use merge::{MergeRequest, merge};
pub use play::{Place, Play, play, reveal};
pub use recipe::{Method, Recipe, UnknownMethod};
pub use replay::{Replayed, replay};
pub use route::{LoggedDecision, RouteBench, RouteTimings, Routed, Routing, routing_features};
pub use run::Point;
pub use score::Scored;
pub use session::Session;
pub use stream::{
    ArmRun, Baseline, Cell, Life, Metrics, Outcome, Spent, Spread, Stream, StreamError, Summary, Task, metrics,
    run_stream, spread,
};
pub use stream::{forward_rows as forward_flops, training as training_flops};
