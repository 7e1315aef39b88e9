//! Parsers alone: lines in memory to JSON in memory, on one thread.

use std::hint::black_box;
use std::time::Instant;

use trunkline_logfile::{CombinedVariant, Parser, ParserKind};

use crate::measure::Sampling;
use crate::pipeline::SAMPLE;
use crate::records::Lines;
use crate::table::{Row, Target};

/// Lines whose JSON is collected before it is dropped, as in a batch.
const BATCH: usize = 1000;
/// Lines of the other formats.
const LINES: usize = 20_000;

pub(crate) fn row(sampling: Sampling) -> Row {
    let lines = Lines::generate(1, SAMPLE);
    let lines: Vec<&str> = lines.text().lines().collect();
    let parser = ParserKind::Combined(CombinedVariant::Combined).parser();
    measure("combined", parser, &lines, sampling, 1.5e6)
}

/// The other parsers, each with lines of its format.
pub(crate) fn rows(sampling: Sampling) -> Vec<Row> {
    let access = Lines::generate(1, SAMPLE);
    let access: Vec<&str> = access.text().lines().collect();
    let mut rows = Vec::new();
    for (name, least) in [
        ("json", 1e6),
        ("logfmt", 1e6),
        ("syslog", 1e6),
        ("cri", 1e6),
        ("csv", 1e6),
        ("nginx_error", 1e6),
        ("java", 1e6),
    ] {
        let text: Vec<String> = (0..LINES).map(|number| line_of(name, number)).collect();
        let lines: Vec<&str> = text.iter().map(String::as_str).collect();
        let kind = ParserKind::named().into_iter().find(|(known, _)| *known == name).map(|(_, kind)| kind);
        let mut parser = kind.unwrap_or(ParserKind::None).parser();
        if name == "csv" {
            assert!(parser.parse_first("time,host,level,status,message", &mut Vec::new()).is_ok());
        }
        rows.push(measure(name, parser, &lines, sampling, least));
    }
    let pattern = r#"^(?P<address>\S+) \S+ (?P<user>\S+) \[(?P<time>[^\]]+)\] "(?P<request>[^"]*)" (?P<status>\d+)"#;
    for (name, kind, least) in [
        ("regex", ParserKind::regex(pattern), 3e5),
        ("grok COMBINEDAPACHELOG", ParserKind::grok("%{COMBINEDAPACHELOG}"), 2e5),
    ] {
        let kind = kind.unwrap_or_else(|error| panic!("{name}: {error}"));
        rows.push(measure(name, kind.parser(), &access, sampling, least));
    }
    rows
}

/// A line of about 150 bytes.
fn line_of(name: &str, number: usize) -> String {
    let (second, millis) = (number / 1000 % 60, number % 1000);
    let message = format!("request {number} of the shop was served in {millis} ms by the third instance");
    let time = format!("10:00:{second:02}");
    match name {
        "json" => {
            format!(
                "{{\"time\":\"2026-03-01T{time}Z\",\"level\":\"info\",\"status\":200,\"n\":{number},\"message\":\"{message}\"}}"
            )
        }
        "logfmt" => format!("time=2026-03-01T{time}Z level=info status=200 n={number} msg=\"{message}\""),
        "syslog" => format!("<34>1 2026-03-01T{time}.{millis:03}Z web-3 shop 123 - [a@1 n=\"{number}\"] {message}"),
        "cri" => format!("2026-03-01T{time}.{millis:03}456789Z stdout F {message}"),
        "csv" => format!("2026-03-01T{time}Z,web-3,info,200,\"{message}\""),
        "nginx_error" => format!(
            "2026/03/01 {time} [error] 12#34: *{number} open() \"/srv/{number}\" failed (2: No such file or directory), \
             client: 192.0.2.1, server: _, request: \"GET /{number} HTTP/1.1\", host: \"example.com\""
        ),
        _ => format!("2026-03-01 {time},{millis:03} [main] INFO  org.example.shop.Server - {message}"),
    }
}

fn measure(name: &str, mut parser: Parser, lines: &[&str], sampling: Sampling, least: f64) -> Row {
    let mut out = Vec::new();
    let mut measured = Vec::new();
    for _ in 0..sampling.rounds {
        let started = Instant::now();
        let mut parsed = 0;
        for batch in lines.chunks(BATCH).cycle() {
            out.clear();
            for line in batch {
                assert!(parser.parse(line, &mut out).is_ok(), "not parsed: {line}");
            }
            black_box(&out);
            parsed += batch.len();
            if started.elapsed() >= sampling.run {
                break;
            }
        }
        measured.push(parsed as f64 / started.elapsed().as_secs_f64());
    }
    Row {
        name: format!("{name} parser alone, one core"),
        unit: "lines/s",
        reference: Vec::new(),
        measured,
        target: Target::AtLeast(least),
    }
}
