//! JSON as Python's `json.dumps(…, ensure_ascii=False)` spaces it. Knows nothing else.

use serde_json::{
    Serializer, Value,
    ser::{CompactFormatter, Formatter, PrettyFormatter},
};
use std::io::{self, Write};

/// Without `indent`, a space after commas and colons.
pub(super) fn dumps(value: &Value, indent: Option<usize>) -> serde_json::Result<String> {
    use serde::Serialize;
    let mut bytes = Vec::new();
    match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced(CompactFormatter)))?,
        Some(width) => {
            let indent = " ".repeat(width.min(16));
            value.serialize(&mut Serializer::with_formatter(
                &mut bytes,
                PrettyFormatter::with_indent(indent.as_bytes()),
            ))?;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Spaced(CompactFormatter);

impl Spaced {
    fn comma(writer: &mut (impl ?Sized + Write), first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }
}

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        Self::comma(writer, first)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        Self::comma(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}
