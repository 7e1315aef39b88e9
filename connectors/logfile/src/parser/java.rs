//! `parser = "java"`: common layouts of log4j and logback. The lines after the first one are the
//! stack trace.
//!
//! - `2026-03-01 10:00:00,123 [main] INFO  org.example.Main - message` (log4j, logback)
//! - `2026-03-01 10:00:00,123 INFO [main] org.example.Main: message` (Hadoop)
//! - `[2026-03-01 10:00:00,123] INFO message (org.example.Main)` (Kafka)
//! - `2026-03-01T10:00:00.123Z  INFO 123 --- [app] [main] o.example.Main : message` (Spring Boot)

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use memchr::memchr;
use trunkline_connector::Schema;

use super::scan::{Object, Scanner};
use super::time::{Clock, Instant, date_time, offset, write_time};
use super::{Event, Expected, FileStart, LineParser, schema_of, text, timestamp};

const LEVELS: [&str; 13] = [
    "TRACE", "DEBUG", "INFO", "WARNING", "WARN", "ERROR", "FATAL", "SEVERE", "CONFIG", "FINEST", "FINER", "FINE", "OFF",
];
const TIME: &str = "a time such as `2026-03-01 10:00:00,123`";

/// The columns.
pub(super) fn schema() -> Option<Arc<Schema>> {
    schema_of(vec![
        timestamp(TimeUnit::Microsecond),
        text("level"),
        Field::new("pid", DataType::Int64, true),
        text("thread"),
        text("logger"),
        text("message"),
        text("stack_trace"),
    ])
}

/// The parser.
pub(super) struct JavaParser {
    pub(super) clock: Clock,
}

/// The parts of a line between its time and its message.
#[derive(Default)]
struct Parts<'a> {
    level: Option<&'a str>,
    pid: Option<&'a str>,
    thread: Option<&'a str>,
    logger: Option<&'a str>,
    message: &'a str,
}

impl LineParser for JavaParser {
    fn code(&self) -> &'static str {
        "parse.java"
    }

    fn begin_file(&mut self, start: &FileStart<'_>) {
        self.clock.begin_file(start);
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        let (first, stack_trace) = match memchr(b'\n', line.as_bytes()) {
            Some(end) => (line[..end].trim_end_matches('\r'), Some(&line[end + 1..])),
            None => (line, None),
        };
        let mut scanner = Scanner::new(first);
        let is_bracketed = scanner.eat("[");
        let at = scanner.at;
        let (instant, len) = self.time(scanner.rest().as_bytes());
        let mut object = Object::new(out);
        let time = write_time(&mut object, instant, 6, at, TIME)?;
        scanner.at += len;
        if is_bracketed {
            scanner.require("]", "`]` after the time")?;
        }
        scanner.require(" ", "a space after the time")?;
        let parts = parts(&mut scanner, is_bracketed)?;
        object.optional("level", parts.level);
        object.number("pid", parts.pid);
        object.optional("thread", parts.thread);
        object.optional("logger", parts.logger);
        object.text("message", parts.message);
        object.optional("stack_trace", stack_trace);
        object.end();
        Ok(Event::Record(Some(time)))
    }
}

impl JavaParser {
    fn time(&mut self, bytes: &[u8]) -> (Option<Instant>, usize) {
        let Some((civil, len)) = date_time(bytes, b'-') else { return (None, 0) };
        match offset(&bytes[len..]) {
            Some((east, more)) => {
                let seconds = civil.seconds().map(|seconds| seconds - east);
                (seconds.map(|seconds| Instant { seconds, nanos: civil.nanos }), len + more)
            }
            None => (self.clock.instant(civil), len),
        }
    }
}

fn parts<'a>(scanner: &mut Scanner<'a>, is_bracketed: bool) -> Result<Parts<'a>, Expected> {
    let mut parts = Parts::default();
    loop {
        scanner.skip_spaces();
        let rest = scanner.rest();
        if parts.level.is_none()
            && let Some(level) = LEVELS.iter().find(|level| rest.starts_with(**level))
            && matches!(rest.as_bytes().get(level.len()), Some(b' ' | b':') | None)
        {
            parts.level = Some(&rest[..level.len()]);
            scanner.at += level.len();
            scanner.eat(":");
            if is_bracketed {
                break;
            }
        } else if !is_bracketed && scanner.eat("[") {
            let thread = scanner.until(b']', "a thread and `]`")?.trim();
            // Spring Boot writes the application's name before the thread.
            parts.thread = Some(thread).filter(|thread| !thread.is_empty());
        } else if parts.level.is_some() && parts.pid.is_none() && rest.starts_with(|digit: char| digit.is_ascii_digit())
        {
            let pid = scanner.digits("a process id")?;
            scanner.require(" ---", "` ---` after the process id")?;
            parts.pid = Some(pid);
        } else {
            break;
        }
    }
    if parts.level.is_none() {
        return Err(scanner.expected("a level such as `INFO`"));
    }
    scanner.skip_spaces();
    let rest = scanner.rest();
    if is_bracketed {
        // The logger is the last word in parentheses.
        let logger = rest.strip_suffix(')').and_then(|rest| rest.rsplit_once(" ("));
        (parts.message, parts.logger) = match logger {
            Some((message, logger)) if is_logger(logger) => (message, Some(logger)),
            _ => (rest, None),
        };
        return Ok(parts);
    }
    let end = rest.bytes().position(|byte| matches!(byte, b' ' | b':')).unwrap_or(rest.len());
    let (logger, after) = rest.split_at(end);
    let after = after.trim_start_matches(' ');
    let message = after.strip_prefix("- ").or_else(|| after.strip_prefix(':')).or((after == "-").then_some(""));
    (parts.message, parts.logger) = match message {
        Some(message) if is_logger(logger) => (message.trim_start_matches(' '), Some(logger)),
        _ => (rest.strip_prefix("- ").unwrap_or(rest), None),
    };
    Ok(parts)
}

/// Whether a word can be the name of a class, as far as its characters show.
fn is_logger(word: &str) -> bool {
    let legal =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'$' | b'-' | b'[' | b']' | b'/');
    !word.is_empty() && word.bytes().all(legal)
}
