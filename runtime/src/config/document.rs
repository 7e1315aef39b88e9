//! A configuration file: its text, its values, and its problems.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trunkline_connector::config::{Node, Problem, Report, Section, Table, Value};

use super::diagnostics::{FileProblems, Severity};
use super::references::{References, Resolved, io_reason};
use super::syntax;

/// A configuration file that was read.
pub struct Document {
    /// Its path, as it was given.
    pub file: PathBuf,
    /// Its folder: relative paths start from it.
    pub base: PathBuf,
    /// Its text.
    pub source: Arc<str>,
    /// Its values, with references resolved.
    pub table: Table,
    /// `table` holds the whole file. Otherwise a syntax error hides a part of it, and problems of
    /// the rest may be false.
    pub complete: bool,
    problems: Vec<Problem>,
    /// Places of values that could not be read. Other problems there are consequences and not
    /// shown.
    unreadable: Vec<Range<usize>>,
    resolved: Resolved,
}

/// A place in a file as editors show it: from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// The place of the byte at `offset`.
    pub fn of(source: &str, offset: usize) -> Self {
        let before = &source[..floor_char_boundary(source, offset)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.bytes().filter(|byte| *byte == b'\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl Document {
    /// Reads a file. `Err` if it is absent, unreadable or not text.
    pub fn read(file: &Path, secrets: Option<&Path>) -> Result<Self, FileProblems> {
        let bytes = std::fs::read(file).map_err(|error| {
            let problem = Problem {
                code: "config.unreadable",
                message: format!("cannot read {}: {}", file.display(), io_reason(&error)),
                span: 0..0,
                expected: "expected a pipeline file or a folder of them".to_owned(),
                help: None,
            };
            FileProblems {
                file: Some(file.to_owned()),
                source: None,
                severity: Severity::Error,
                problems: vec![problem],
            }
        })?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::parse(file, text, secrets)),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let source = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let problem = Problem {
                    code: "config.not_utf8",
                    message: "the file is not UTF-8 text".to_owned(),
                    span: at..at + char::REPLACEMENT_CHARACTER.len_utf8(),
                    expected: "expected UTF-8 here".to_owned(),
                    help: Some("save it in the encoding UTF-8".to_owned()),
                };
                Err(FileProblems {
                    file: Some(file.to_owned()),
                    source: Some(source.into()),
                    severity: Severity::Error,
                    problems: vec![problem],
                })
            }
        }
    }

    /// Parses a text as the contents of `file`.
    pub fn parse(file: &Path, source: String, secrets: Option<&Path>) -> Self {
        let base = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut parsed = syntax::parse(&source);
        let mut resolved = Resolved::default();
        References { base: &base, secrets }.resolve(&source, &mut parsed.table, &mut resolved);
        Self {
            file: file.to_owned(),
            base,
            source: source.into(),
            table: parsed.table,
            complete: parsed.complete,
            problems: parsed.problems,
            unreadable: parsed.malformed,
            resolved,
        }
    }

    /// Sets options of the component `{kind}.{name}` from TOML text, as if the file had these
    /// values. Problems of a value are reported at the name of the component.
    pub fn override_component(&mut self, kind: &str, name: &str, text: &str, secrets: Option<&Path>) {
        let mut given = syntax::parse(text);
        References { base: &self.base, secrets }.resolve(text, &mut given.table, &mut self.resolved);
        let Some((_, Node { value: Value::Table(kinds), .. })) =
            self.table.entries.iter_mut().find(|(key, _)| key.name == kind)
        else {
            return;
        };
        let Some((component, Node { value: Value::Table(options), .. })) =
            kinds.entries.iter_mut().find(|(key, _)| key.name == name)
        else {
            return;
        };
        let place = component.span.clone();
        self.problems.extend(given.problems.into_iter().map(|problem| Problem { span: place.clone(), ..problem }));
        for (mut key, mut node) in given.table.entries {
            key.span = place.clone();
            move_to(&mut node, &place);
            options.entries.retain(|(known, _)| known.name != key.name);
            options.entries.push((key, node));
        }
    }

    /// The reader of the file's top level.
    pub fn section<'a>(&'a self, report: &'a Report) -> Section<'a> {
        Section::new(&self.table, 0..0, "", &self.base, report)
    }

    /// Does the table contain an unresolved string?
    pub fn has_unresolved(&self, table: &Table) -> bool {
        let is_within =
            |place: &Range<usize>, node: &Node| node.span.start <= place.start && place.end <= node.span.end;
        self.resolved.unresolved.iter().any(|place| table.entries.iter().any(|(_, node)| is_within(place, node)))
    }

    /// The place in the file of a range of a string's resolved text. It is the whole string if a
    /// reference makes the two texts differ.
    pub fn within(&self, node: &Node, range: Range<usize>) -> Range<usize> {
        match &node.value {
            Value::String(text) if text.raw == text.resolved => span_within(&self.source, &node.span, &text.raw, range),
            _ => node.span.clone(),
        }
    }

    /// `file:line:column` of a place.
    pub fn place(&self, span: &Range<usize>) -> String {
        let Position { line, column } = Position::of(&self.source, span.start);
        format!("{}:{line}:{column}", self.file.display())
    }

    /// All problems of the file, including the `reported` ones, in the file's order; `None` if it
    /// is valid.
    pub fn finish(&self, reported: Vec<Problem>) -> Option<FileProblems> {
        let mut problems = self.problems.clone();
        problems.extend(self.resolved.problems.iter().cloned());
        problems.extend(reported.into_iter().filter_map(|problem| self.redacted(problem)));
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        problems.dedup();
        self.file_problems(Severity::Error, problems)
    }

    /// Warnings of the file, in its order; `None` if there are none.
    pub fn warnings(&self, reported: Vec<Problem>) -> Option<FileProblems> {
        let warnings = reported.into_iter().filter_map(|problem| self.redacted(problem));
        self.file_problems(Severity::Warning, warnings.collect())
    }

    fn file_problems(&self, severity: Severity, problems: Vec<Problem>) -> Option<FileProblems> {
        (!problems.is_empty()).then(|| FileProblems {
            file: Some(self.file.clone()),
            source: Some(self.source.clone()),
            severity,
            problems,
        })
    }

    /// A problem without resolved values (I8); `None` for a consequence of another problem.
    fn redacted(&self, mut problem: Problem) -> Option<Problem> {
        let is_in = |place: &Range<usize>| place.start <= problem.span.start && problem.span.end <= place.end;
        if self.unreadable.iter().chain(&self.resolved.unresolved).any(is_in) {
            return None;
        }
        if let Some((_, reference)) = self.resolved.strings.iter().find(|(place, _)| is_in(place)) {
            // The message may quote any part of the value.
            problem.message = format!("the value is not valid once `{reference}` is resolved");
            problem.help = Some("the resolved value is not shown, because it may be a secret".to_owned());
        }
        for text in
            [Some(&mut problem.message), Some(&mut problem.expected), problem.help.as_mut()].into_iter().flatten()
        {
            *text = self.without_values(text);
        }
        Some(problem)
    }

    /// A text with the resolved values in it replaced by their references.
    pub fn without_values(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (value, reference) in &self.resolved.values {
            // Shorter values occur in any text by chance, and are too short for secrets.
            if value.len() >= 4 && text.contains(value.as_str()) {
                text = text.replace(value.as_str(), reference);
            }
        }
        text
    }
}

/// The place in the file of a range of a string as written; the whole string, if it contains
/// escapes.
pub(super) fn span_within(source: &str, span: &Range<usize>, raw: &str, range: Range<usize>) -> Range<usize> {
    let Some(written) = source.get(span.clone()) else { return span.clone() };
    let quote = if written.starts_with("\"\"\"") || written.starts_with("'''") { 3 } else { 1 };
    let inside = written.get(quote..written.len().saturating_sub(quote)).unwrap_or_default();
    let skipped = inside.len() - inside.trim_start_matches(['\r', '\n']).len();
    for start in [quote, quote + skipped] {
        if written.get(start..start + raw.len()) == Some(raw) {
            return span.start + start + range.start..span.start + start + range.end;
        }
    }
    // After escapes: the place of the same text, if it occurs once.
    let wanted = raw.get(range).unwrap_or_default();
    let mut found = written.match_indices(wanted).map(|(at, _)| at);
    match (found.next(), found.next()) {
        (Some(at), None) if !wanted.is_empty() => span.start + at..span.start + at + wanted.len(),
        _ => span.clone(),
    }
}

/// Gives a value and everything in it another place.
fn move_to(node: &mut Node, place: &Range<usize>) {
    node.span = place.clone();
    match &mut node.value {
        Value::Table(table) => {
            for (key, inner) in &mut table.entries {
                key.span = place.clone();
                move_to(inner, place);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_to(item, place)),
        _ => {}
    }
}

fn floor_char_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}
