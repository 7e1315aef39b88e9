//! `trunkline parse`: tries a parser of the source `logfile` on files.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write as _, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use trunkline_connector::{Error, Result, io_error};
use trunkline_logfile::{Event, FileStart, Parser, ParserKind};

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
    /// Try all parsers, and print how many lines each of them accepts
    #[arg(long, conflicts_with_all = ["parser", "pattern"])]
    detect: bool,
    /// Print only the counts
    #[arg(long)]
    stats: bool,
}

/// The lines that a parser accepted and rejected.
#[derive(Default)]
struct Counts {
    accepted: u64,
    rejected: u64,
    blank: u64,
}

/// Runs the verb. The exit code is 1 if a line was rejected.
pub(super) fn parse(args: &ParseArgs) -> Exit {
    let outcome = if args.detect { detect(args) } else { parse_with_one(args) };
    outcome.unwrap_or_else(|error| report_error(&error))
}

fn parse_with_one(args: &ParseArgs) -> Result<Exit> {
    let mut parser = chosen(args)?.parser();
    let mut counts = Counts::default();
    let mut json = Vec::new();
    let mut reader_is_gone = false;
    each_line(&args.files, |place, line| {
        let Place { path, number, .. } = place;
        json.clear();
        if !try_line(&mut parser, place, line, &mut json, &mut counts) && !args.stats {
            show_rejected(&mut parser, path, number, line);
        } else if !args.stats && !json.is_empty() {
            json.push(b'\n');
            match stdout().lock().write_all(&json) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => reader_is_gone = true,
                Err(error) => return Err(io_error("write", Path::new("stdout"), &error)),
            }
        }
        Ok(!reader_is_gone)
    })?;
    let Counts { accepted, rejected, blank } = counts;
    let summary = format!("{accepted} lines parsed, {rejected} rejected, {blank} blank");
    let printed = if args.stats {
        print_data(&format!("{summary}\n"))
    } else {
        print_error(format_args!("{summary}"));
        Exit::Ok
    };
    Ok(if rejected > 0 { Exit::Runtime } else { printed })
}

/// Counts the lines that each parser accepts. `none` accepts all.
fn detect(args: &ParseArgs) -> Result<Exit> {
    let mut parsers: Vec<(&str, Parser, Counts)> = ParserKind::named()
        .into_iter()
        .filter(|(name, _)| *name != "none")
        .map(|(name, kind)| (name, kind.parser(), Counts::default()))
        .collect();
    let mut json = Vec::new();
    each_line(&args.files, |place, line| {
        for (_, parser, counts) in &mut parsers {
            json.clear();
            try_line(parser, place, line, &mut json, counts);
        }
        Ok(true)
    })?;
    parsers.sort_by_key(|(_, _, counts)| counts.rejected);
    let lines = parsers.iter().map(|(name, _, counts)| {
        let Counts { accepted, rejected, blank } = counts;
        format!("{name:<16} {accepted} lines parsed, {rejected} rejected, {blank} blank\n")
    });
    Ok(print_data(&lines.collect::<String>()))
}

fn chosen(args: &ParseArgs) -> Result<ParserKind> {
    let name = args.parser.as_deref().unwrap_or("regex");
    if matches!(name, "regex" | "grok") {
        let Some(pattern) = &args.pattern else {
            let message = format!(
                "the parser `{name}` needs --pattern, with fields such as `(?P<level>[A-Z]+)` or, for grok, `%{{IP:client}}`"
            );
            return Err(Error::config("cli.no_pattern", message));
        };
        let parser = if name == "grok" { ParserKind::grok(pattern) } else { ParserKind::regex(pattern) };
        return parser
            .map_err(|error| Error::config("cli.bad_pattern", format!("the pattern cannot be used: {error}")));
    }
    let known = ParserKind::named().into_iter().find(|(known, _)| *known == name);
    known.map(|(_, kind)| kind).ok_or_else(|| {
        let names: Vec<&str> = ParserKind::named().iter().map(|(name, _)| *name).chain(["regex", "grok"]).collect();
        Error::config("cli.unknown_parser", format!("there is no parser `{name}`; known: {}", names.join(", ")))
    })
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

/// Shows a rejected line with a caret under the column.
fn show_rejected(parser: &mut Parser, path: &str, number: u64, line: &str) {
    let Err(expected) = parser.parse(line, &mut Vec::new()) else { return };
    let reason = parser.reason(line, &expected);
    let at = line.floor_char_boundary(expected.at.min(line.len()));
    let column = line[..at].chars().count();
    let begin = column.saturating_sub(SHOWN / 2);
    let shown: String =
        line.chars().skip(begin).take(SHOWN).map(|shown| if shown.is_control() { ' ' } else { shown }).collect();
    let indent = " ".repeat(column - begin);
    print_error(format_args!("{path}:{number}:{}: {} [{}]", column + 1, reason.message, reason.code));
    print_error(format_args!("  {shown}\n  {indent}^"));
}

/// Passes each line of the files, with its number, until `each` returns `false`.
fn each_line(files: &[PathBuf], mut each: impl FnMut(Place<'_>, &str) -> Result<bool>) -> Result<()> {
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
    each: &mut impl FnMut(Place<'_>, &str) -> Result<bool>,
) -> Result<bool> {
    let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0));
    let mut reader = BufReader::new(file);
    let (mut bytes, mut number) = (Vec::new(), 0);
    loop {
        bytes.clear();
        let count = reader.read_until(b'\n', &mut bytes).map_err(|error| io_error("read", Path::new(path), &error))?;
        if count == 0 {
            return Ok(true);
        }
        number += 1;
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !each(Place { path, number, modified }, &String::from_utf8_lossy(line))? {
            return Ok(false);
        }
    }
}
