//! `date`: a date as computers write it. All that is asked for is in the question; what is learned is the form.

use super::{
    super::{
        Draw, Info, Level, grade,
        task::{Task, fill},
    },
    info,
};
use serde::{Deserialize, Serialize};

/// A day, and how the question writes it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Day {
    year: u32,
    month: usize,
    day: u32,
    style: u32,
}

/// Dates.
#[derive(Clone)]
pub(crate) struct Date;

const WORDINGS: [&str; 5] = [
    "Write as an ISO date: {}",
    "Convert to YYYY-MM-DD: {}",
    "Give this date as year-month-day: {}",
    "Write this date for a computer: {}",
    "Turn this into an ISO date: {}",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Task for Date {
    type Content = Day;

    fn info(&self) -> Info {
        let levels = vec![
            Level::new("day, month, year", 14),
            Level::new("month, day, year", 14),
            Level::new("either, or all in digits, the day first", 14),
        ];
        info("date", "Writes a date as year, month and day in digits, with dashes.", levels)
    }

    /// Days up to 28 exist in every month.
    fn candidate(&self, level: u32, draw: Draw) -> Day {
        let rng = &mut draw.rng();
        let style = if level < 3 { level - 1 } else { rng.below(3) as u32 };
        let (year, day) = (1900 + rng.below(150) as u32, 1 + rng.below(28) as u32);
        Day { year, month: 1 + rng.below(12), day, style }
    }

    fn prompt(&self, content: &Day, wording: usize) -> String {
        let Day { year, month, day, style } = *content;
        // A content may come from outside.
        let name = MONTHS.get(month.wrapping_sub(1)).unwrap_or(&"a month that does not exist");
        let date = match style {
            0 => format!("{day} {name} {year}"),
            1 => format!("{name} {day}, {year}"),
            _ => format!("{day}/{month}/{year}"),
        };
        fill(WORDINGS[wording], &[&date])
    }

    fn answer(&self, content: &Day) -> String {
        format!("{:04}-{:02}-{:02}", content.year, content.month, content.day)
    }

    fn lenient(&self, answer: &str, reply: &str) -> bool {
        grade::dashed(reply).as_deref() == Some(answer)
    }
}
