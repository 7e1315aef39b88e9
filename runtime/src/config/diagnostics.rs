//! Renders problems for people and for programs.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource};
use serde::Serialize;
use textwrap::{WordSeparator, WordSplitter};
use trunkline_connector::config::Problem;

use super::document::Position;

/// What a problem means for its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably not as intended.
    Warning,
}

/// All problems of one file.
#[derive(Debug, Clone)]
pub struct FileProblems {
    /// The file; `None` for a flag or an environment variable.
    pub file: Option<PathBuf>,
    /// Its text; `None` if it has none to show.
    pub source: Option<Arc<str>>,
    /// What the problems mean.
    pub severity: Severity,
    /// The problems, in the file's order.
    pub problems: Vec<Problem>,
}

/// The appearance of [`render`].
#[derive(Debug, Clone, Copy)]
pub struct RenderStyle {
    /// Colours, for terminals only.
    pub colour: bool,
    /// Columns to wrap at.
    pub width: usize,
}

impl RenderStyle {
    /// For files and pipes.
    pub const PLAIN: Self = Self { colour: false, width: 120 };

    /// For stderr: colours if it is a terminal and `NO_COLOR` is not set.
    pub fn of_stderr() -> Self {
        let is_disabled = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: std::io::stderr().is_terminal() && !is_disabled, ..Self::PLAIN }
    }
}

impl fmt::Display for FileProblems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&render(std::slice::from_ref(self), RenderStyle::PLAIN))
    }
}

/// A problem of `file` as a whole, without a place in its text.
pub fn problem_at(file: Option<&Path>, code: &'static str, message: String, help: Option<String>) -> FileProblems {
    let problem = Problem { code, message, span: 0..0, expected: String::new(), help };
    FileProblems { file: file.map(Path::to_owned), source: None, severity: Severity::Error, problems: vec![problem] }
}

/// Problems for people: each with its place, the line, a marker with the expected value, and the
/// next step.
pub fn render(files: &[FileProblems], style: RenderStyle) -> String {
    let theme = if style.colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(style.width)
        .with_context_lines(1)
        .with_links(false)
        // Only at spaces: a path or a command that is broken at a slash cannot be copied.
        .with_word_separator(WordSeparator::AsciiSpace)
        .with_word_splitter(WordSplitter::NoHyphenation)
        .without_primary_span_start()
        .without_cause_chain();
    let mut rendered = String::new();
    for file in files {
        for problem in &file.problems {
            let mut diagnostic = MietteDiagnostic::new(&problem.message).with_code(problem.code);
            diagnostic.help = problem.help.clone();
            if file.severity == Severity::Warning {
                diagnostic.severity = Some(miette::Severity::Warning);
            }
            let written = match (&file.source, &file.file) {
                (Some(source), Some(path)) => {
                    let position = Position::of(source, problem.span.start);
                    // Columns in characters: the handler's own count bytes.
                    let name = format!("{}:{}:{}", path.display(), position.line, position.column);
                    let label = (!problem.expected.is_empty()).then(|| problem.expected.clone());
                    diagnostic = diagnostic.with_label(LabeledSpan::new_primary_with_span(label, problem.span.clone()));
                    let report = miette::Report::new(diagnostic)
                        .with_source_code(NamedSource::new(name, with_last_newline(source)));
                    handler.render_report(&mut rendered, report.as_ref())
                }
                _ => handler.render_report(&mut rendered, &diagnostic),
            };
            // Writing to a string fails only if the handler refuses the span. Then the message
            // alone is shown.
            if written.is_err() {
                let _ = writeln!(rendered, "{}: {}", problem.code, problem.message);
            }
            rendered.push('\n');
        }
    }
    rendered
}

/// A marker behind the last character needs a line to stand under.
fn with_last_newline(source: &str) -> String {
    if source.ends_with('\n') { source.to_owned() } else { format!("{source}\n") }
}

/// One line: the number of problems and of files.
pub fn summary(files: &[FileProblems]) -> String {
    let count = |severity: Severity| -> usize {
        files.iter().filter(|file| file.severity == severity).map(|file| file.problems.len()).sum()
    };
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let counts = [(count(Severity::Error), "error"), (count(Severity::Warning), "warning")];
    let counts: Vec<String> =
        counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, noun)| plural(count, noun)).collect();
    let counts = if counts.is_empty() { "0 errors".to_owned() } else { counts.join(" and ") };
    let named: BTreeSet<&Path> = files.iter().filter_map(|file| file.file.as_deref()).collect();
    match named.len() {
        0 => counts,
        named => format!("{counts} in {}", plural(named, "file")),
    }
}

/// A problem for programs.
#[derive(Serialize)]
struct Record<'a> {
    code: &'a str,
    severity: &'static str,
    message: &'a str,
    file: Option<String>,
    line: Option<usize>,
    column: Option<usize>,
    /// In characters.
    length: Option<usize>,
    expected: &'a str,
    help: Option<&'a str>,
}

/// Problems for programs: `[{code, severity, message, file, line, column, length, expected,
/// help}]`.
pub fn json(files: &[FileProblems]) -> String {
    let mut records = Vec::new();
    for file in files {
        let source = file.source.as_deref();
        for problem in &file.problems {
            let position = source.map(|source| Position::of(source, problem.span.start));
            let marked = source.map(|source| source.get(problem.span.clone()).unwrap_or_default());
            records.push(Record {
                code: problem.code,
                severity: match file.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                },
                message: &problem.message,
                file: file.file.as_ref().map(|path| path.display().to_string()),
                line: position.map(|position| position.line),
                column: position.map(|position| position.column),
                length: marked.map(|marked| marked.chars().count()),
                expected: &problem.expected,
                help: problem.help.as_deref(),
            });
        }
    }
    // Strings and numbers are always JSON.
    serde_json::to_string_pretty(&records).unwrap_or_default()
}
