//! A configuration file: its text, its values, and what is wrong with it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trunkline_connector::config::{Node, Problem, Report, Section, Table, Value};

use super::diagnostics::FileProblems;
use super::references::{References, Resolved, io_reason};
use super::syntax;

/// A configuration file that was read.
pub struct Document {
    /// Its path, as it was given.
    pub file: PathBuf,
    /// Folder it lies in: relative paths start here.
    pub base: PathBuf,
    /// Its text.
    pub source: Arc<str>,
    /// Its values, with references resolved.
    pub table: Table,
    /// Is everything that is in the file in `table`? If not, a syntax error hides some of it, and nothing should be said of the rest.
    pub whole: bool,
    problems: Vec<Problem>,
    /// Places of values that could not be read: nothing more is said of them.
    unreadable: Vec<Range<usize>>,
    resolved: Resolved,
}

/// A place in a file, as people count: from 1, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl Position {
    /// Where the byte at `offset` is.
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
    /// Reads a file. `Err` if there is nothing to read: no such file, not text.
    pub fn read(file: &Path, secrets: Option<&Path>) -> Result<Self, FileProblems> {
        let bytes = std::fs::read(file).map_err(|error| {
            let problem = Problem {
                code: "config.unreadable",
                message: format!("cannot read {}: {}", file.display(), io_reason(&error)),
                span: 0..0,
                expected: "expected a pipeline file or a folder of them".to_owned(),
                help: None,
            };
            FileProblems { file: Some(file.to_owned()), source: None, problems: vec![problem] }
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
                Err(FileProblems { file: Some(file.to_owned()), source: Some(source.into()), problems: vec![problem] })
            }
        }
    }

    /// Reads a text as if it came from `file`.
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
            whole: parsed.whole,
            problems: parsed.problems,
            unreadable: parsed.broken,
            resolved,
        }
    }

    /// The reader of the file's top level.
    pub fn section<'a>(&'a self, report: &'a Report) -> Section<'a> {
        Section::new(&self.table, 0..0, "", &self.base, report)
    }

    /// Is there a string in the table that could not be resolved?
    pub fn has_unresolved(&self, table: &Table) -> bool {
        let is_within =
            |place: &Range<usize>, node: &Node| node.span.start <= place.start && place.end <= node.span.end;
        self.resolved.unresolved.iter().any(|place| table.entries.iter().any(|(_, node)| is_within(place, node)))
    }

    /// The place in the file of a range of a string's resolved text; of the whole string, where a reference makes them differ.
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

    /// All problems of the file, those of `report` among them, in the file's order; `None` if there are none.
    pub fn finish(&self, reported: Vec<Problem>) -> Option<FileProblems> {
        let mut problems = self.problems.clone();
        problems.extend(self.resolved.problems.iter().cloned());
        problems.extend(reported.into_iter().filter_map(|problem| self.shown(problem)));
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        problems.dedup();
        (!problems.is_empty()).then(|| FileProblems {
            file: Some(self.file.clone()),
            source: Some(self.source.clone()),
            problems,
        })
    }

    /// A problem as it may be shown: nothing of what a reference stands for is in it (I8).
    fn shown(&self, mut problem: Problem) -> Option<Problem> {
        let is_in = |place: &Range<usize>| place.start <= problem.span.start && problem.span.end <= place.end;
        if self.unreadable.iter().chain(&self.resolved.unresolved).any(is_in) {
            return None;
        }
        if let Some((_, reference)) = self.resolved.strings.iter().find(|(place, _)| is_in(place)) {
            // The message may quote any part of the value.
            problem.message = format!("the value is not valid once `{reference}` is resolved");
            problem.help = Some("what it stands for is not shown, as it may be a secret".to_owned());
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
            // Shorter values are in any text by chance, and none of them is a secret worth the name.
            if value.len() >= 4 && text.contains(value.as_str()) {
                text = text.replace(value.as_str(), reference);
            }
        }
        text
    }
}

/// The place in the file of a range of a string as written; of the whole string, if escapes stand in the way.
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
    // With escapes before it: the same text, where it is there only once.
    let wanted = raw.get(range).unwrap_or_default();
    let mut found = written.match_indices(wanted).map(|(at, _)| at);
    match (found.next(), found.next()) {
        (Some(at), None) if !wanted.is_empty() => span.start + at..span.start + at + wanted.len(),
        _ => span.clone(),
    }
}

fn floor_char_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}
