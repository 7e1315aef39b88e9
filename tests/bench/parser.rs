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
    measure("combined", parser, &lines, sampling, 2.5e6)
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
    rows.push(worst_line(sampling));
    rows
}

/// The longest time that any parser takes for a line of a mebibyte, which repeats a text that its
/// format gives a meaning.
fn worst_line(sampling: Sampling) -> Row {
    const STARTS: [&str; 8] = [
        "",
        "<34>1 2003-10-11T22:14:15Z h a - - ",
        "2026/03/01 10:00:00 [error] 1#1: ",
        "2016-10-06T00:17:09Z stdout F ",
        "[2026-03-01 10:00:00,123] INFO ",
        "192.0.2.1 - - [17/May/2015:10:05:03 +0000] \"",
        "# Query_time: 1.0\n",
        "{\"log\":\"",
    ];
    const REPEATED: [&str; 12] =
        ["a", " ", "\"", "\\", "[id a=\"", "a=\"", "\"\",", "::", "a1=b ", "{\"a\":", "# Time: \n", ", client: "];
    let mut parsers: Vec<Parser> = ParserKind::named().into_iter().map(|(_, kind)| kind.parser()).collect();
    parsers.extend(ParserKind::grok("%{COMBINEDAPACHELOG}").map(|kind| kind.parser()));
    let mut time_of = |start: &str, repeated: &str| {
        let line = [start, &repeated.repeat((1 << 20) / repeated.len())].concat();
        let mut slowest = 0.0_f64;
        for parser in &mut parsers {
            let mut out = Vec::new();
            let started = Instant::now();
            let _ = black_box(parser.parse(&line, &mut out));
            slowest = slowest.max(started.elapsed().as_secs_f64() * 1e3);
        }
        slowest
    };
    let lines: Vec<(&str, &str)> =
        STARTS.iter().flat_map(|start| REPEATED.map(|repeated| (*start, repeated))).collect();
    let mut slowest = || lines.iter().map(|(start, repeated)| time_of(start, repeated)).fold(0.0, f64::max);
    let measured = (0..sampling.rounds).map(|_| slowest()).collect();
    Row {
        name: "worst line of 1 MiB, all parsers".to_owned(),
        unit: "ms",
        reference: Vec::new(),
        measured,
        target: Target::AtMost(50.0),
    }
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
