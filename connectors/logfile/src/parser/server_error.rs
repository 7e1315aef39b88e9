//! `parser = "nginx_error"` and `parser = "apache_error"`: the error logs of both servers.
//!
//! nginx: `2026/03/01 10:00:00 [error] 12#34: *56 message, client: 192.0.2.1, server: _, request:
//! "GET / HTTP/1.1", host: "example.com"`.
//!
//! Apache 2.4: `[Fri Sep 09 10:42:29.902022 2011] [core:error] [pid 35708:tid 43286] [client
//! 192.0.2.1:56] AH00128: message`, and 2.2: `[Fri Sep 09 10:42:29 2011] [error] [client 192.0.2.1]
//! message`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use memchr::memmem;
use trunkline_connector::Schema;

use super::scan::{Object, Scanner};
use super::syslog::month_day_time;
use super::time::{Clock, date_time, write_time};
use super::{Event, Expected, FileStart, LineParser, schema_of, text, timestamp};

/// What nginx appends to a message, in its order.
const CONTEXT: [(&str, &str); 8] = [
    ("client", ", client: "),
    ("server", ", server: "),
    ("request", ", request: "),
    ("subrequest", ", subrequest: "),
    ("upstream", ", upstream: "),
    ("login", ", login: "),
    ("host", ", host: "),
    ("referrer", ", referrer: "),
];

/// The columns of `nginx_error`.
pub(super) fn nginx_schema() -> Option<Arc<Schema>> {
    let number = |name: &str| Field::new(name, DataType::Int64, true);
    let mut fields = vec![timestamp(TimeUnit::Millisecond), text("level"), number("pid"), number("tid")];
    fields.extend([number("connection"), text("message")]);
    fields.extend(CONTEXT.iter().map(|(name, _)| text(name)));
    schema_of(fields)
}

/// The columns of `apache_error`.
pub(super) fn apache_schema() -> Option<Arc<Schema>> {
    let number = |name: &str| Field::new(name, DataType::Int64, true);
    schema_of(vec![
        timestamp(TimeUnit::Microsecond),
        text("module"),
        text("level"),
        number("pid"),
        number("tid"),
        text("client"),
        text("code"),
        text("message"),
    ])
}

/// The parser `nginx_error`.
pub(super) struct NginxErrorParser {
    pub(super) clock: Clock,
}

impl LineParser for NginxErrorParser {
    fn code(&self) -> &'static str {
        "parse.nginx_error"
    }

    fn begin_file(&mut self, start: &FileStart<'_>) {
        self.clock.begin_file(start);
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        const TIME: &str = "a time such as `2026/03/01 10:00:00`";
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        let mut scanner = Scanner::new(line);
        let mut object = Object::new(out);
        let (civil, len) = date_time(line.as_bytes(), b'/').ok_or_else(|| scanner.expected(TIME))?;
        let time = write_time(&mut object, self.clock.instant(civil), 3, 0, TIME)?;
        scanner.at = len;
        scanner.require(" [", "a level such as ` [error]`")?;
        object.text("level", scanner.until(b']', "a level such as ` [error]`")?);
        scanner.require(" ", "a space after the level")?;
        object.number("pid", Some(scanner.digits("a process id")?));
        scanner.require("#", "`#` and a thread id")?;
        object.number("tid", Some(scanner.digits("a thread id")?));
        scanner.require(": ", "`: ` after the thread id")?;
        let connection = if scanner.eat("*") {
            let connection = scanner.digits("the number of a connection")?;
            scanner.require(" ", "a space after the connection")?;
            Some(connection)
        } else {
            None
        };
        object.number("connection", connection);
        let rest = scanner.rest();
        let (message, values) = context(rest);
        object.text("message", message);
        for ((name, _), value) in CONTEXT.iter().zip(values) {
            object.optional(name, value);
        }
        object.end();
        Ok(Event::Record(Some(time)))
    }
}

/// Splits the context off a message: known names in nginx's order, up to the end of the line.
fn context(rest: &str) -> (&str, [Option<&str>; 8]) {
    /// A message can contain the text of a context, from a request.
    const TRIES: usize = 4;
    let starts = commas(rest).filter(|at| rest[*at..].starts_with(CONTEXT[0].1));
    for at in starts.take(TRIES) {
        if let Some(values) = context_values(&rest[at..]) {
            return (&rest[..at], values);
        }
    }
    (rest, [None; 8])
}

/// The positions at which a name may begin. One pass over all of them is cheaper than a search
/// for each name.
fn commas(text: &str) -> impl Iterator<Item = usize> + '_ {
    memchr::memchr_iter(b',', text.as_bytes())
}

fn context_values(text: &str) -> Option<[Option<&str>; 8]> {
    let mut values = [None; 8];
    let mut commas = commas(text);
    // The text begins with a name.
    let mut start = commas.next()?;
    let mut next = 0;
    loop {
        let (index, after) = name_at(text, start, next)?;
        next = index + 1;
        // The value ends where the next known name begins, so that it may contain commas and
        // quotes.
        let end = commas.find(|at| name_at(text, *at, next).is_some());
        let value = &text[after..end.unwrap_or(text.len())];
        // These have no spaces: such a text is a part of the message.
        if index < 2 && value.contains(' ') {
            return None;
        }
        let unquoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        values[index] = Some(unquoted.unwrap_or(value));
        match end {
            Some(end) => start = end,
            None => return Some(values),
        }
    }
}

/// The name, from `first` on, that begins at a comma, and the position of its value.
fn name_at(text: &str, comma: usize, first: usize) -> Option<(usize, usize)> {
    (first..CONTEXT.len())
        .find(|index| text[comma..].starts_with(CONTEXT[*index].1))
        .map(|index| (index, comma + CONTEXT[index].1.len()))
}

/// The parser `apache_error`.
pub(super) struct ApacheErrorParser {
    pub(super) clock: Clock,
}

impl LineParser for ApacheErrorParser {
    fn code(&self) -> &'static str {
        "parse.apache_error"
    }

    fn begin_file(&mut self, start: &FileStart<'_>) {
        self.clock.begin_file(start);
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        const TIME: &str = "a time such as `[Fri Sep 09 10:42:29.902022 2011]`";
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        let mut scanner = Scanner::new(line);
        let mut object = Object::new(out);
        let civil = apache_time(line.as_bytes());
        let (instant, len) = civil.map_or((None, 0), |(civil, len)| (self.clock.instant(civil), len));
        let time = write_time(&mut object, instant, 6, 0, TIME)?;
        scanner.at = len;
        scanner.require(" [", "a module and a level such as ` [core:error]`")?;
        let level = scanner.until(b']', "a module and a level such as ` [core:error]`")?;
        let (module, level) = level.split_once(':').map_or((None, level), |(module, level)| (Some(module), level));
        object.optional("module", module.filter(|module| !matches!(*module, "" | "-")));
        object.text("level", level);
        let (mut pid, mut tid, mut client) = (None, None, None);
        if scanner.eat(" [pid ") {
            pid = Some(scanner.digits("a process id")?);
            if scanner.eat(":tid ") {
                tid = Some(scanner.digits("a thread id")?);
            }
            scanner.require("]", "`]` after the process")?;
        }
        object.number("pid", pid);
        object.number("tid", tid);
        // An error of the system may stand before the client: `(13)Permission denied: [client ..]`.
        let rest = scanner.rest();
        let mut before = "";
        if rest.starts_with(" (")
            && let Some(at) = memmem::find(rest.as_bytes(), b": [client ")
        {
            before = &rest[1..at + 2];
            scanner.at += at + 1;
        }
        if scanner.eat(" [client ") || scanner.eat(" [remote ") {
            client = Some(scanner.until(b']', "the address of a client and `]`")?);
        }
        object.optional("client", client);
        scanner.require(" ", "a space and a message")?;
        let message = scanner.rest();
        let code = message.split_once(": ").map(|(code, _)| code).filter(|code| {
            code.strip_prefix("AH")
                .is_some_and(|digits| digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        });
        object.optional("code", code);
        let message = code.map_or(message, |code| &message[code.len() + 2..]);
        if before.is_empty() {
            object.text("message", message);
        } else {
            object.text("message", &format!("{before}{message}"));
        }
        object.end();
        Ok(Event::Record(Some(time)))
    }
}

/// `[Fri Sep 09 10:42:29.902022 2011]`.
fn apache_time(bytes: &[u8]) -> Option<(super::time::Civil, usize)> {
    let named = bytes.first() == Some(&b'[')
        && bytes.get(1..4)?.iter().all(u8::is_ascii_alphabetic)
        && bytes.get(4) == Some(&b' ');
    let (mut civil, len) = month_day_time(bytes.get(5..)?).filter(|_| named)?;
    let year = bytes.get(5 + len..5 + len + 6)?;
    let [b' ', digits @ .., b']'] = year else { return None };
    civil.year = std::str::from_utf8(digits).ok()?.parse::<u16>().ok()?.into();
    Some((civil, 5 + len + 6))
}
