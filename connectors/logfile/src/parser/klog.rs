//! `parser = "klog"`: lines of Kubernetes' components, `I0102 15:04:05.067890    1234
//! server.go:123] message`: severity, month and day, time, thread id, file and line.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use trunkline_connector::Schema;

use super::scan::{Object, Scanner};
use super::time::{Civil, Clock, time_of_day, write_time};
use super::{Event, Expected, FileStart, LineParser, schema_of, text, timestamp};

const TIME: &str = "a date and a time such as `0102 15:04:05.067890`";

/// The columns.
pub(super) fn schema() -> Option<Arc<Schema>> {
    schema_of(vec![
        text("level"),
        timestamp(TimeUnit::Microsecond),
        Field::new("thread_id", DataType::Int64, true),
        text("file"),
        Field::new("line", DataType::Int64, true),
        text("message"),
    ])
}

/// The parser.
pub(super) struct KlogParser {
    pub(super) clock: Clock,
}

impl LineParser for KlogParser {
    fn code(&self) -> &'static str {
        "parse.klog"
    }

    fn begin_file(&mut self, start: &FileStart<'_>) {
        self.clock.begin_file(start);
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        let mut scanner = Scanner::new(line);
        let level = match scanner.peek() {
            Some(b'I') => "INFO",
            Some(b'W') => "WARNING",
            Some(b'E') => "ERROR",
            Some(b'F') => "FATAL",
            _ => return Err(scanner.expected("a severity: `I`, `W`, `E` or `F`")),
        };
        scanner.at = 1;
        let mut object = Object::new(out);
        object.text("level", level);
        let civil = month_day(scanner.rest().as_bytes());
        let (instant, len) = civil.map_or((None, 0), |(civil, len)| (self.clock.without_year(civil), len));
        let time = write_time(&mut object, instant, 6, scanner.at, TIME)?;
        scanner.at += len;
        scanner.require(" ", "a space after the time")?;
        scanner.skip_spaces();
        object.number("thread_id", Some(scanner.digits("a thread id")?));
        scanner.require(" ", "a space after the thread id")?;
        object.text("file", scanner.until(b':', "a file and a line such as `server.go:123`")?);
        object.number("line", Some(scanner.digits("the number of a line")?));
        scanner.require("]", "`]` after the line")?;
        let message = scanner.rest();
        object.text("message", message.strip_prefix(' ').unwrap_or(message));
        object.end();
        Ok(Event::Record(Some(time)))
    }
}

/// `0102 15:04:05.067890`.
fn month_day(bytes: &[u8]) -> Option<(Civil, usize)> {
    let [a @ b'0'..=b'1', b @ b'0'..=b'9', c @ b'0'..=b'3', d @ b'0'..=b'9', b' '] = bytes.get(..5)? else {
        return None;
    };
    let two = |tens: &u8, ones: &u8| u32::from(tens - b'0') * 10 + u32::from(ones - b'0');
    let (second_of_day, nanos, len) = time_of_day(&bytes[5..])?;
    Some((Civil { year: 0, month: two(a, b), day: two(c, d), second_of_day, nanos }, 5 + len))
}
