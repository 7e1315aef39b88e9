//! The findings of `trunkline doctor`, for people and as JSON.

use serde_json::{Value, json};
use textwrap::{Options, WordSplitter};

use super::super::explain::error_codes;
use crate::config::{FileProblems, Position, Severity};
use crate::units::counted;

/// Width of the text.
const WIDTH: usize = 110;

/// Columns before the message.
const INDENT: &str = "                      ";

/// The weight of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// A check without a finding.
    Ok,
    /// It does not stop a worker.
    Warning,
    /// It stops a worker, or loses records.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A finding.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    pub(super) level: Level,
    /// What was checked: `brokers`, `topics`.
    pub(super) area: &'static str,
    /// The error code, if it has one.
    pub(super) code: Option<&'static str>,
    pub(super) message: String,
    /// The file, line and column of a problem in a file.
    pub(super) place: Option<String>,
    pub(super) fix: Option<String>,
}

/// All findings, in the order of the checks.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Finding>);

impl Findings {
    pub(super) fn ok(&mut self, area: &'static str, message: String) {
        self.0.push(Finding { level: Level::Ok, area, code: None, message, place: None, fix: None });
    }

    pub(super) fn warning(&mut self, area: &'static str, code: &'static str, message: String, fix: Option<String>) {
        self.0.push(Finding { level: Level::Warning, area, code: Some(code), message, place: None, fix });
    }

    pub(super) fn error(&mut self, area: &'static str, code: &'static str, message: String, fix: Option<String>) {
        self.0.push(Finding { level: Level::Error, area, code: Some(code), message, place: None, fix });
    }

    /// Adds the problems of files.
    pub(super) fn add_problems(&mut self, area: &'static str, files: &[FileProblems]) {
        for file in files {
            let level = match file.severity {
                Severity::Error => Level::Error,
                Severity::Warning => Level::Warning,
            };
            for problem in &file.problems {
                let place = file.file.as_ref().map(|path| match &file.source {
                    Some(source) => {
                        let Position { line, column } = Position::of(source, problem.span.start);
                        format!("{}:{line}:{column}", path.display())
                    }
                    None => path.display().to_string(),
                });
                let parts = [Some(&problem.expected).filter(|text| !text.is_empty()), problem.help.as_ref()];
                let fix: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
                self.0.push(Finding {
                    level,
                    area,
                    code: Some(problem.code),
                    message: problem.message.clone(),
                    place,
                    fix: Some(fix.join("; ")).filter(|fix| !fix.is_empty()).or_else(|| remedy(problem.code)),
                });
            }
        }
    }

    /// The number of findings of a level.
    pub(super) fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|finding| finding.level == level).count()
    }

    pub(super) fn json(&self) -> Value {
        let findings: Vec<Value> = self
            .0
            .iter()
            .map(|finding| {
                json!({
                    "level": finding.level.name(), "area": finding.area, "code": finding.code,
                    "message": finding.message, "place": finding.place, "fix": finding.fix,
                })
            })
            .collect();
        json!({
            "findings": findings, "errors": self.count(Level::Error), "warnings": self.count(Level::Warning),
        })
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.0 {
            let first = format!("{:<8} {:<12} ", finding.level.name(), finding.area);
            let message = match (&finding.place, finding.code) {
                (Some(place), Some(code)) => format!("{place}: {} [{code}]", finding.message),
                (None, Some(code)) => format!("{} [{code}]", finding.message),
                (_, None) => finding.message.clone(),
            };
            push_wrapped(&mut text, &first, &message);
            if let Some(fix) = &finding.fix {
                push_wrapped(&mut text, &format!("{INDENT}fix: "), fix);
            }
        }
        let (errors, warnings) = (self.count(Level::Error), self.count(Level::Warning));
        text.push_str(&match (errors, warnings) {
            (0, 0) => "\nno problems\n".to_owned(),
            _ => format!("\n{}, {}\n", counted(errors, "error"), counted(warnings, "warning")),
        });
        text
    }
}

/// The remedy in the reference of an error code.
pub(super) fn remedy(code: &str) -> Option<String> {
    let (_, text) = error_codes().find(|(known, _)| *known == code)?;
    let (_, remedy) = text.split_once("**Do:** ")?;
    Some(remedy.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn push_wrapped(text: &mut String, first: &str, paragraph: &str) {
    let options = Options::new(WIDTH)
        .initial_indent(first)
        .subsequent_indent(INDENT)
        .word_splitter(WordSplitter::NoHyphenation)
        // A command that is broken cannot be copied.
        .break_words(false);
    for line in paragraph.lines() {
        for line in textwrap::wrap(line, &options) {
            text.push_str(&line);
            text.push('\n');
        }
    }
}
