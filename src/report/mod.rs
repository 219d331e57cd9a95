//! Pages that people read in a browser: self-contained HTML with inline SVG, nothing fetched from anywhere. Knows numbers and words, never
//! what they are about.
//!
//! ```
//! use socius::report::{Page, Table};
//!
//! let mut page = Page::new("Two numbers");
//! page.text("What was <measured>.");
//! page.table(&Table { head: vec!["what", "how much"], rows: vec![vec!["a".into(), "1.5".into()]] });
//! let html = page.finish();
//! assert!(html.contains("What was &lt;measured&gt;.") && !html.contains("http"));
//! ```

mod flow;
mod heat;
mod lines;
mod loglog;
mod page;
mod png;
mod svg;

pub use flow::{Flow, Stream};
pub use heat::Heat;
pub use lines::{Bars, Line, Lines};
pub use loglog::{Curve, LogLog};
pub use page::{Drawing, Page, Table, escape};
pub use png::{PaintError, Painter};
