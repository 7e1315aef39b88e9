//! `parser = "postgres"` and `parser = "mysql_slow"`: the log of PostgreSQL's server, and the slow
//! query log of MySQL and MariaDB.
//!
//! PostgreSQL: `2026-03-01 10:00:00.123 UTC [1234] anna@shop LOG:  message`, the default
//! `log_line_prefix`, with and without user and database. A zone in letters other than UTC and GMT
//! is ambiguous: it needs `timestamp = { zone = ".." }`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use trunkline_connector::Schema;

use super::scan::{Object, Scanner};
use super::time::{Clock, Instant, date_time, offset, rfc3339, time_of_day, write_time};
use super::{Event, Expected, FileStart, LineParser, schema_of, text, timestamp};

const LEVELS: [&str; 19] = [
    "DEBUG5",
    "DEBUG4",
    "DEBUG3",
    "DEBUG2",
    "DEBUG1",
    "DEBUG",
    "LOG",
    "INFO",
    "NOTICE",
    "WARNING",
    "ERROR",
    "FATAL",
    "PANIC",
    "DETAIL",
    "HINT",
    "QUERY",
    "CONTEXT",
    "STATEMENT",
    "LOCATION",
];

/// The columns of `postgres`.
pub(super) fn postgres_schema() -> Option<Arc<Schema>> {
    schema_of(vec![
        timestamp(TimeUnit::Millisecond),
        Field::new("pid", DataType::Int64, true),
        text("user"),
        text("database"),
        text("level"),
        text("message"),
    ])
}

/// The parser `postgres`.
pub(super) struct PostgresParser {
    pub(super) clock: Clock,
}

impl LineParser for PostgresParser {
    fn code(&self) -> &'static str {
        "parse.postgres"
    }

    fn begin_file(&mut self, start: &FileStart<'_>) {
        self.clock.begin_file(start);
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        const TIME: &str = "a time such as `2026-03-01 10:00:00.123 UTC`";
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        let mut scanner = Scanner::new(line);
        let mut object = Object::new(out);
        let (civil, len) = date_time(line.as_bytes(), b'-').ok_or_else(|| scanner.expected(TIME))?;
        scanner.at = len;
        scanner.require(" ", "a space and a zone such as `UTC`")?;
        let zone_at = scanner.at;
        let zone = scanner.until(b' ', "a zone such as `UTC` and a space")?;
        let instant = match (zone, offset(zone.as_bytes())) {
            ("UTC" | "GMT", _) => civil.seconds().map(|seconds| Instant { seconds, nanos: civil.nanos }),
            (_, Some((east, len))) if len == zone.len() => {
                civil.seconds().map(|seconds| Instant { seconds: seconds - east, nanos: civil.nanos })
            }
            _ if self.clock.zone_is_set => self.clock.instant(civil),
            _ => {
                let what = "UTC, GMT or an offset; for another zone set `timestamp = { zone = \"..\" }`";
                return Err(Expected { at: zone_at, what: what.to_owned() });
            }
        };
        let time = write_time(&mut object, instant, 3, 0, TIME)?;
        scanner.require("[", "a process id in brackets")?;
        object.number("pid", Some(scanner.digits("a process id")?));
        if scanner.eat("-") {
            scanner.digits("the number of the line in the session")?;
        }
        scanner.require("]", "`]` after the process id")?;
        scanner.eat(":");
        scanner.require(" ", "a space after the process id")?;
        scanner.skip_spaces();
        let (mut user, mut database) = (None, None);
        if level(&scanner).is_none()
            && let Some((word, _)) = scanner.rest().split_once(' ')
            && let Some((name, of)) = word.split_once('@')
        {
            (user, database) = (Some(name), Some(of));
            scanner.at += word.len();
            scanner.skip_spaces();
        }
        let known = |name: &&str| !matches!(*name, "" | "[unknown]");
        object.optional("user", user.filter(known));
        object.optional("database", database.filter(known));
        let level = level(&scanner).ok_or_else(|| scanner.expected("a level such as `LOG:`"))?;
        object.text("level", level);
        scanner.at += level.len() + 1;
        scanner.skip_spaces();
        object.text("message", scanner.rest());
        object.end();
        Ok(Event::Record(Some(time)))
    }
}

/// The level that is next.
fn level(scanner: &Scanner<'_>) -> Option<&'static str> {
    let rest = scanner.rest();
    let is_next = |level: &&&str| rest.strip_prefix(**level).is_some_and(|after| after.starts_with(':'));
    LEVELS.iter().find(is_next).copied()
}

/// The columns of `mysql_slow`.
pub(super) fn mysql_schema() -> Option<Arc<Schema>> {
    let float = |name: &str| Field::new(name, DataType::Float64, true);
    let number = |name: &str| Field::new(name, DataType::Int64, true);
    schema_of(vec![
        timestamp(TimeUnit::Microsecond),
        text("user"),
        text("host"),
        text("ip"),
        number("connection_id"),
        text("database"),
        float("query_time"),
        float("lock_time"),
        number("rows_sent"),
        number("rows_examined"),
        text("query"),
    ])
}

/// The parser `mysql_slow`.
pub(super) struct MysqlSlowParser {
    pub(super) clock: Clock,
}

/// The values of an entry, as written.
#[derive(Default)]
struct Entry<'a> {
    time: Option<Instant>,
    user: Option<&'a str>,
    host: Option<&'a str>,
    ip: Option<&'a str>,
    connection_id: Option<&'a str>,
    database: Option<&'a str>,
    query_time: Option<&'a str>,
    lock_time: Option<&'a str>,
    rows_sent: Option<&'a str>,
    rows_examined: Option<&'a str>,
}

impl LineParser for MysqlSlowParser {
    fn code(&self) -> &'static str {
        "parse.mysql_slow"
    }

    fn begin_file(&mut self, start: &FileStart<'_>) {
        self.clock.begin_file(start);
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        // The server writes three lines when it opens the log.
        let is_banner = !line.starts_with('#') && (line.contains(", Version: ") || line.starts_with("Tcp port: "));
        if line.trim().is_empty() || is_banner || line.starts_with("Time  ") {
            return Ok(Event::Blank);
        }
        let mut entry = Entry::default();
        let mut at = 0;
        let mut query_at = None;
        for part in line.split_inclusive('\n') {
            let text = part.trim_end_matches(['\n', '\r']);
            if let Some(header) = text.strip_prefix("# ") {
                self.header(&mut entry, header, at + 2)?;
            } else if let Some(name) = text.strip_prefix("use ").and_then(|name| name.strip_suffix(';')) {
                entry.database = Some(name.trim_matches('`'));
            } else if let Some(value) = text.strip_prefix("SET timestamp=").and_then(|value| value.strip_suffix(';')) {
                let seconds = value.split('.').next().and_then(|seconds| seconds.parse().ok());
                let wrong = || Expected { at: at + 14, what: "seconds since the Unix epoch".to_owned() };
                let seconds: i64 = seconds.ok_or_else(wrong)?;
                entry.time = entry.time.or(Some(Instant { seconds, nanos: 0 }));
            } else {
                query_at = Some(at);
                break;
            }
            at += part.len();
        }
        if entry.query_time.is_none() {
            return Err(Expected { at, what: "a line `# Query_time: ..` before the query".to_owned() });
        }
        let query = query_at.map_or("", |at| line[at..].trim_end());
        let mut object = Object::new(out);
        let time = write_time(&mut object, entry.time, 6, 0, "a line `# Time: ..` or `SET timestamp=..;`")?;
        object.optional("user", entry.user);
        object.optional("host", entry.host);
        object.optional("ip", entry.ip);
        object.number("connection_id", entry.connection_id);
        object.optional("database", entry.database);
        object.name("query_time").extend_from_slice(entry.query_time.unwrap_or("null").as_bytes());
        object.name("lock_time").extend_from_slice(entry.lock_time.unwrap_or("null").as_bytes());
        object.number("rows_sent", entry.rows_sent);
        object.number("rows_examined", entry.rows_examined);
        object.text("query", query);
        object.end();
        Ok(Event::Record(Some(time)))
    }
}

impl MysqlSlowParser {
    /// Reads a line after `# `.
    fn header<'a>(&mut self, entry: &mut Entry<'a>, header: &'a str, at: usize) -> Result<(), Expected> {
        if let Some(time) = header.strip_prefix("Time: ") {
            let bytes = time.trim_start().as_bytes();
            let instant = match rfc3339(bytes) {
                Some((instant, _)) => Some(instant),
                None => old_time(bytes).and_then(|civil| self.clock.instant(civil)),
            };
            let what = "a time such as `2026-03-01T10:00:00.123456Z` or `260301 10:00:00`";
            entry.time = Some(instant.ok_or_else(|| Expected { at: at + 6, what: what.to_owned() })?);
            return Ok(());
        }
        if let Some(account) = header.strip_prefix("User@Host: ") {
            // `root[root] @ localhost [127.0.0.1]  Id:     8`
            let (user, rest) = account.split_once(" @ ").unwrap_or((account, ""));
            entry.user = user.split('[').next().filter(|user| !user.is_empty());
            let (host, rest) = rest.split_once('[').unwrap_or((rest, ""));
            entry.host = Some(host.trim()).filter(|host| !host.is_empty());
            let (ip, rest) = rest.split_once(']').unwrap_or((rest, ""));
            entry.ip = Some(ip).filter(|ip| !ip.is_empty());
            entry.connection_id = rest.trim().strip_prefix("Id:").map(str::trim).filter(|id| is_number(id));
            return Ok(());
        }
        let mut words = header.split_ascii_whitespace();
        while let Some(name) = words.next() {
            // MySQL with `log_slow_extra` and MariaDB write more pairs.
            let Some(name) = name.strip_suffix(':') else { continue };
            let target = match name {
                "Query_time" => &mut entry.query_time,
                "Lock_time" => &mut entry.lock_time,
                "Rows_sent" => &mut entry.rows_sent,
                "Rows_examined" => &mut entry.rows_examined,
                "Thread_id" => &mut entry.connection_id,
                "Schema" => &mut entry.database,
                _ => continue,
            };
            let rest = words.clone().next().filter(|value| !value.ends_with(':'));
            let is_valid = match name {
                "Query_time" | "Lock_time" => rest.is_some_and(is_decimal),
                "Schema" => true,
                _ => rest.is_some_and(is_number),
            };
            if !is_valid {
                let offset = header.find(name).map_or(0, |found| found + name.len() + 1);
                return Err(Expected { at: at + offset, what: format!("a number as `{name}`") });
            }
            if rest.is_some() {
                words.next();
                *target = rest;
            }
        }
        Ok(())
    }
}

fn is_number(text: &str) -> bool {
    (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a text is a number in JSON, without sign and exponent.
fn is_decimal(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let no_zeros_before = whole == "0" || !whole.starts_with('0');
    is_number(whole) && is_number(fraction) && no_zeros_before
}

/// `260301 10:00:00`, with a space before an hour of one digit.
fn old_time(bytes: &[u8]) -> Option<super::time::Civil> {
    let two = |at: usize| {
        Some(u32::from(bytes.get(at)?.checked_sub(b'0')?) * 10 + u32::from(bytes.get(at + 1)?.checked_sub(b'0')?))
    };
    if !bytes.get(..6)?.iter().all(u8::is_ascii_digit) || bytes.get(6) != Some(&b' ') {
        return None;
    }
    let mut time = [0; 8];
    time.copy_from_slice(bytes.get(7..15)?);
    if time[0] == b' ' {
        time[0] = b'0';
    }
    let (second_of_day, nanos, _) = time_of_day(&time)?;
    Some(super::time::Civil { year: 2000 + i64::from(two(0)?), month: two(2)?, day: two(4)?, second_of_day, nanos })
}
