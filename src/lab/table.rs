//! The measurements of runs as one flat table, for programs that do not read JSON lines: as CSV and as Parquet. Never knows what they mean.

use super::Run;
use parquet::{
    basic::{LogicalType, Repetition, Type as Physical},
    data_type::{ByteArray, ByteArrayType, DoubleType},
    errors::ParquetError,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::types::Type,
};
use serde_json::Value;
use std::{collections::HashMap, sync::Arc};

/// A row a measurement: run, cell, values and cost. What is nested has its names joined by dots.
pub(super) struct Flat {
    /// Each name once, in the order in which they come up.
    head: Vec<String>,
    /// By name; no containers among the values.
    rows: Vec<HashMap<String, Value>>,
}

impl Flat {
    /// Everything that was measured in cells that are through.
    pub(super) fn of(runs: &[Run]) -> Self {
        let mut table = Self { head: Vec::new(), rows: Vec::new() };
        for run in runs {
            let name = run.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for measurement in run.measurements() {
                let cost = serde_json::to_value(&measurement.cost).expect("a cost is plain data");
                table.push([
                    ("run", Value::String(name.clone())),
                    ("cell", Value::Object(measurement.cell.parameters().clone())),
                    ("found", Value::Object(measurement.values.clone())),
                    ("cost", cost),
                ]);
            }
        }
        table
    }

    fn push<'a>(&mut self, parts: impl IntoIterator<Item = (&'a str, Value)>) {
        let mut row = HashMap::new();
        parts.into_iter().for_each(|(name, value)| self.flatten(name, value, &mut row));
        self.rows.push(row);
    }

    fn flatten(&mut self, name: &str, value: Value, row: &mut HashMap<String, Value>) {
        match value {
            Value::Object(map) => {
                map.into_iter().for_each(|(key, value)| self.flatten(&format!("{name}.{key}"), value, row));
            }
            Value::Array(items) => {
                items.into_iter().enumerate().for_each(|(i, value)| self.flatten(&format!("{name}.{i}"), value, row));
            }
            leaf => {
                if !self.head.iter().any(|known| known == name) {
                    self.head.push(name.to_owned());
                }
                row.insert(name.to_owned(), leaf);
            }
        }
    }

    /// A column's values, none where a row has none.
    fn column<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Option<&'a Value>> + Clone {
        self.rows.iter().map(move |row| row.get(name).filter(|value| !value.is_null()))
    }

    /// Comma-separated, the names in the first line.
    pub(super) fn csv(&self) -> String {
        let quoted = |text: &str| {
            let plain = !text.contains(['"', ',', '\n']);
            if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
        };
        let line = |cells: &mut dyn Iterator<Item = String>| cells.collect::<Vec<_>>().join(",") + "\n";
        let mut text = line(&mut self.head.iter().map(|name| quoted(name)));
        for row in &self.rows {
            let cell = |name: &String| row.get(name).map(|value| quoted(&words(value))).unwrap_or_default();
            text += &line(&mut self.head.iter().map(cell));
        }
        text
    }

    /// The same in Parquet: columns of nothing but numbers as DOUBLE, others as UTF-8, all optional.
    pub(super) fn parquet(&self) -> Result<Vec<u8>, ParquetError> {
        let numbers: Vec<bool> =
            self.head.iter().map(|name| self.column(name).flatten().all(Value::is_number)).collect();
        let field = |(name, number): (&String, &bool)| {
            let (physical, logical) =
                if *number { (Physical::DOUBLE, None) } else { (Physical::BYTE_ARRAY, Some(LogicalType::String)) };
            let field = Type::primitive_type_builder(name, physical).with_logical_type(logical);
            field.with_repetition(Repetition::OPTIONAL).build().map(Arc::new)
        };
        let fields = self.head.iter().zip(&numbers).map(field).collect::<Result<_, _>>()?;
        let schema = Arc::new(Type::group_type_builder("measurements").with_fields(fields).build()?);
        let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::default()))?;
        let mut group = file.next_row_group()?;
        for (name, number) in self.head.iter().zip(numbers) {
            let mut column = group.next_column()?.expect("a column for each name");
            let there: Vec<i16> = self.column(name).map(|value| i16::from(value.is_some())).collect();
            let values = self.column(name).flatten();
            if number {
                let values: Vec<f64> = values.filter_map(Value::as_f64).collect();
                column.typed::<DoubleType>().write_batch(&values, Some(&there), None)?;
            } else {
                let values: Vec<ByteArray> = values.map(|value| words(value).into_bytes().into()).collect();
                column.typed::<ByteArrayType>().write_batch(&values, Some(&there), None)?;
            }
            column.close()?;
        }
        group.close()?;
        file.into_inner()
    }
}

/// A value without quotes.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::{
        file::{reader::FileReader, serialized_reader::SerializedFileReader},
        record::{Field, Row},
    };
    use serde_json::json;
    use std::io::Write;

    fn table() -> Flat {
        let mut table = Flat { head: Vec::new(), rows: Vec::new() };
        table.push([
            ("run", json!("a")),
            ("cell", json!({"n": 16, "arm": "x,y"})),
            ("found", json!({"f": [0.5, 1.5]})),
        ]);
        table.push([("run", json!("b")), ("cell", json!({"n": 32, "arm": null})), ("found", json!({"ok": true}))]);
        table
    }

    #[test]
    fn what_is_nested_is_named_by_dots_and_what_is_missing_is_empty() {
        let expected = "run,cell.n,cell.arm,found.f.0,found.f.1,found.ok\na,16,\"x,y\",0.5,1.5,\nb,32,,,,true\n";
        assert_eq!(table().csv(), expected);
    }

    #[test]
    fn parquet_holds_the_same_numbers_as_numbers_and_nothing_where_nothing_was() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&table().parquet().unwrap()).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let rows: Vec<Row> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        let cells: Vec<Vec<(&str, Field)>> = rows
            .iter()
            .map(|row| row.get_column_iter().map(|(name, field)| (name.as_str(), field.clone())).collect())
            .collect();
        let (text, number) = (|text: &str| Field::Str(text.into()), Field::Double);
        let names = ["run", "cell.n", "cell.arm", "found.f.0", "found.f.1", "found.ok"];
        let expected = [
            [text("a"), number(16.0), text("x,y"), number(0.5), number(1.5), Field::Null],
            [text("b"), number(32.0), Field::Null, Field::Null, Field::Null, text("true")],
        ];
        for (found, expected) in cells.into_iter().zip(expected) {
            assert_eq!(found, names.into_iter().zip(expected).collect::<Vec<_>>());
        }
    }
}
