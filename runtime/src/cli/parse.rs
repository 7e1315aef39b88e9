//! `trunkline parse`: tries a parser of the source `logfile` on files.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write as _, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use trunkline_connector::config::{Node, Report, Section, Value};
use trunkline_connector::{Error, Result, io_error};
use trunkline_logfile::{Event, FileStart, LogfileOptions, Multiline, Parser, ParserKind};

use super::output::{Exit, print_data, print_error, report_error};

/// A longer line is shown by its beginning.
const SHOWN: usize = 200;

/// `trunkline parse`.
#[derive(Args)]
pub(super) struct ParseArgs {
    /// Files; without one, standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The parser, as in a pipeline file
    #[arg(long, value_name = "NAME", required_unless_present_any = ["pattern", "detect"])]
    parser: Option<String>,
    /// The pattern of the parser `regex` (without --parser) or `grok`
    #[arg(long, value_name = "PATTERN")]
    pattern: Option<String>,
    /// Other options of the source, as in a pipeline file: 'types = { n = "int" }'
    #[arg(long, value_name = "TOML")]
    options: Option<String>,
    /// Try all parsers, and print how many lines each of them accepts
    #[arg(long, conflicts_with_all = ["parser", "pattern", "options"])]
    detect: bool,
    /// Print only the counts
    #[arg(long)]
    stats: bool,
}

/// The lines that a parser accepted and rejected.
#[derive(Default)]
struct Counts {
    accepted: u64,
    /// Lines of the accepted events that look like the format, see [`fits`].
    fitting_lines: u64,
    rejected: u64,
    blank: u64,
}

/// Runs the verb. The exit code is 1 if a line was rejected.
pub(super) fn parse(args: &ParseArgs) -> Exit {
    let outcome = if args.detect { detect(args) } else { parse_with_one(args) };
    outcome.unwrap_or_else(|error| report_error(&error))
}

fn parse_with_one(args: &ParseArgs) -> Result<Exit> {
    let options = chosen(args)?;
    let mut parser = options.parser.parser();
    let mut events = Events::new(options.multiline);
    let mut counts = Counts::default();
    let mut json = Vec::new();
    let mut reader_is_gone = false;
    each_line(&args.files, |place, line| {
        events.add(place, line, &mut |place, event| {
            json.clear();
            if !try_line(&mut parser, place, event, &mut json, &mut counts) && !args.stats {
                show_rejected(&mut parser, place, event);
            } else if !args.stats && !json.is_empty() {
                json.push(b'\n');
                match stdout().lock().write_all(&json) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => reader_is_gone = true,
                    Err(error) => return Err(io_error("write", Path::new("stdout"), &error)),
                }
            }
            Ok(())
        })?;
        Ok(!reader_is_gone)
    })?;
    let Counts { accepted, rejected, blank, .. } = counts;
    let summary = format!("{accepted} lines parsed, {rejected} rejected, {blank} blank");
    let printed = if args.stats {
        print_data(&format!("{summary}\n"))
    } else {
        print_error(format_args!("{summary}"));
        Exit::Ok
    };
    Ok(if rejected > 0 { Exit::Runtime } else { printed })
}

/// Counts the lines (or events) that each parser accepts. `none` accepts all.
fn detect(args: &ParseArgs) -> Result<Exit> {
    let mut attempts = Vec::new();
    for (name, kind) in ParserKind::named().into_iter().filter(|(name, _)| *name != "none") {
        let options = options(toml::Table::from_iter([("parser".to_owned(), name.into())]))?;
        attempts.push((
            name,
            kind.schema().is_some(),
            options.parser.parser(),
            Events::new(options.multiline),
            Counts::default(),
        ));
    }
    let mut json = Vec::new();
    each_line(&args.files, |place, line| {
        for (name, _, parser, events, counts) in &mut attempts {
            events.add(place, line, &mut |place, event| {
                json.clear();
                if try_line(parser, place, event, &mut json, counts) && !json.is_empty() && fits(name, &json) {
                    counts.fitting_lines += 1 + event.matches('\n').count() as u64;
                }
                Ok(())
            })?;
        }
        Ok(true)
    })?;
    // Between two formats that fit equally, the one with fixed fields says more.
    attempts.sort_by_key(|(_, is_fixed, .., counts)| (u64::MAX - counts.fitting_lines, !is_fixed));
    let lines = attempts.iter().map(|(name, .., counts)| {
        let Counts { accepted, rejected, blank, .. } = counts;
        format!("{name:<16} {accepted} lines parsed, {rejected} rejected, {blank} blank\n")
    });
    Ok(print_data(&lines.collect::<String>()))
}

/// Whether a record is a sign of its format. Some formats accept almost any line: words without a
/// value are pairs of `logfmt`, and a line without a comma is a column of `csv`.
fn fits(parser: &str, record: &[u8]) -> bool {
    let Ok(fields) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(record) else { return true };
    match parser {
        "csv" => fields.len() > 1,
        "logfmt" | "key_value" => {
            let pairs = fields.values().filter(|value| **value != serde_json::Value::Bool(true)).count();
            2 * pairs >= fields.len()
        }
        _ => true,
    }
}

/// The options of the command line.
fn chosen(args: &ParseArgs) -> Result<LogfileOptions> {
    let name = args.parser.as_deref().unwrap_or("regex");
    let with_pattern = ["regex", "grok"];
    let names: Vec<&str> = ParserKind::named().iter().map(|(name, _)| *name).chain(with_pattern).collect();
    if !names.contains(&name) {
        let message = format!("there is no parser `{name}`; known: {}", names.join(", "));
        return Err(Error::config("cli.unknown_parser", message));
    }
    if with_pattern.contains(&name) && args.pattern.is_none() {
        let message = format!(
            "the parser `{name}` needs --pattern, with fields such as `(?P<level>[A-Z]+)` or, for grok, `%{{IP:client}}`"
        );
        return Err(Error::config("cli.no_pattern", message));
    }
    let text = args.options.as_deref().unwrap_or_default();
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        Error::config("cli.bad_options", format!("--options is not TOML: {}", error.message()))
    })?;
    table.insert("parser".to_owned(), name.into());
    if let Some(pattern) = &args.pattern {
        table.insert("pattern".to_owned(), pattern.as_str().into());
    }
    options(table)
}

/// Reads options as those of a source.
fn options(mut table: toml::Table) -> Result<LogfileOptions> {
    table.insert("paths".to_owned(), vec!["*"].into());
    let node = Node::from_toml(toml::Value::Table(table));
    let report = Report::default();
    let options = match &node.value {
        Value::Table(table) => {
            let section = Section::new(table, 0..0, "options", Path::new("."), &report);
            let options = LogfileOptions::read(&section);
            section.finish();
            options
        }
        _ => None,
    };
    let problems: Vec<String> = report
        .into_problems()
        .into_iter()
        .map(|problem| {
            let help = problem.help.map_or_else(String::new, |help| format!("; {help}"));
            format!("{}: {}{help}", problem.message, problem.expected)
        })
        .collect();
    match options {
        Some(options) if problems.is_empty() => Ok(options),
        _ => Err(Error::config("cli.bad_options", problems.join(". "))),
    }
}

/// Joins lines to events, as a source does.
struct Events {
    multiline: Option<Multiline>,
    /// The event that may continue, and its first line.
    text: Option<String>,
    number: u64,
    lines: usize,
    /// Where the last line begins in `text`.
    last_line: usize,
    /// See [`Multiline::is_open_after`].
    is_open: bool,
}

impl Events {
    fn new(multiline: Option<Multiline>) -> Self {
        Self { multiline, text: None, number: 0, lines: 0, last_line: 0, is_open: false }
    }

    /// Adds a line, or the end of a file, and passes the events that end with it.
    fn add(
        &mut self,
        place: Place<'_>,
        line: Option<&str>,
        each: &mut dyn FnMut(Place<'_>, &str) -> Result<()>,
    ) -> Result<()> {
        let Some(multiline) = &self.multiline else {
            return line.map_or(Ok(()), |line| each(place, line));
        };
        if let (Some(text), Some(line)) = (&mut self.text, line)
            && self.lines < multiline.max_lines()
            && multiline.continues(self.is_open, &text.as_bytes()[self.last_line..], line.as_bytes())
        {
            text.push('\n');
            self.last_line = text.len();
            text.push_str(line);
            self.lines += 1;
        } else {
            if let Some(text) = self.text.take() {
                each(Place { number: self.number, ..place }, &text)?;
            }
            self.text = line.map(str::to_owned);
            (self.number, self.lines, self.last_line, self.is_open) = (place.number, 1, 0, false);
        }
        let Some(text) = &self.text else { return Ok(()) };
        let last = &text.as_bytes()[self.last_line..];
        self.is_open = multiline.is_open_after(self.is_open, last);
        if multiline.is_complete(self.is_open, last)
            && let Some(text) = self.text.take()
        {
            each(Place { number: self.number, ..place }, &text)?;
        }
        Ok(())
    }
}

/// Where a line is.
#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a str,
    /// Counted from 1.
    number: u64,
    /// When the file was last modified, in milliseconds since the Unix epoch.
    modified: i64,
}

/// Parses a line. `false` if it was rejected.
fn try_line(parser: &mut Parser, place: Place<'_>, line: &str, json: &mut Vec<u8>, counts: &mut Counts) -> bool {
    let parsed = if place.number == 1 {
        parser.begin_file(&FileStart { first: "", modified: place.modified });
        parser.parse_first(line, json)
    } else {
        parser.parse(line, json)
    };
    match parsed {
        Ok(Event::Record(_)) => counts.accepted += 1,
        Ok(Event::Blank) => counts.blank += 1,
        Err(_) => {
            counts.rejected += 1;
            return false;
        }
    }
    true
}

/// Shows a rejected line with a caret under the column. Of an event, shows the line of the column.
fn show_rejected(parser: &mut Parser, place: Place<'_>, event: &str) {
    let Err(expected) = parser.parse(event, &mut Vec::new()) else { return };
    let reason = parser.reason(event, &expected);
    let at = event.floor_char_boundary(expected.at.min(event.len()));
    let begin_of_line = event[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = event[begin_of_line..].lines().next().unwrap_or_default();
    let number = place.number + event[..begin_of_line].matches('\n').count() as u64;
    let column = event[begin_of_line..at].chars().count();
    let begin = column.saturating_sub(SHOWN / 2);
    let shown: String =
        line.chars().skip(begin).take(SHOWN).map(|shown| if shown.is_control() { ' ' } else { shown }).collect();
    let indent = " ".repeat(column - begin);
    print_error(format_args!("{}:{number}:{}: {} [{}]", place.path, column + 1, reason.message, reason.code));
    print_error(format_args!("  {shown}\n  {indent}^"));
}

/// Passes each line of the files, and the end of each file, until `each` returns `false`.
fn each_line(files: &[PathBuf], mut each: impl FnMut(Place<'_>, Option<&str>) -> Result<bool>) -> Result<()> {
    if files.is_empty() {
        return lines_of("stdin", stdin().lock(), SystemTime::now(), &mut each).map(drop);
    }
    for path in files {
        let file = File::open(path).map_err(|error| io_error("open", path, &error))?;
        let modified = file.metadata().and_then(|metadata| metadata.modified()).unwrap_or_else(|_| SystemTime::now());
        if !lines_of(&path.display().to_string(), file, modified, &mut each)? {
            break;
        }
    }
    Ok(())
}

fn lines_of(
    path: &str,
    file: impl Read,
    modified: SystemTime,
    each: &mut impl FnMut(Place<'_>, Option<&str>) -> Result<bool>,
) -> Result<bool> {
    let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0));
    let mut reader = BufReader::new(file);
    let (mut bytes, mut number) = (Vec::new(), 0);
    loop {
        bytes.clear();
        let count = reader.read_until(b'\n', &mut bytes).map_err(|error| io_error("read", Path::new(path), &error))?;
        if count == 0 {
            return each(Place { path, number, modified }, None);
        }
        number += 1;
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !each(Place { path, number, modified }, Some(&String::from_utf8_lossy(line)))? {
            return Ok(false);
        }
    }
}
