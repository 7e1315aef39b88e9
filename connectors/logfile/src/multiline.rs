//! [`Multiline`]: which lines belong to one event.
//!
//! The reader collects the lines of an event in its buffer. Its position stays before the event
//! until the event is complete, so that a restart reads the event whole again.

use std::time::Duration;

use memchr::memchr;
use regex::bytes::Regex;

use crate::parser::{container_message, docker_message};

/// How lines are joined to events.
#[derive(Debug, Clone)]
pub struct Multiline {
    pub(crate) rule: Rule,
    /// The pattern is for lines that it does *not* match.
    pub(crate) negate: bool,
    pub(crate) container: Container,
    /// An event ends when the file was not changed for this long.
    pub(crate) timeout: Duration,
    /// Longest event.
    pub(crate) max_lines: usize,
}

/// Which lines begin an event, or continue one.
#[derive(Debug, Clone)]
pub(crate) enum Rule {
    /// Each line is an event; only parts of lines are joined.
    Parts,
    /// A line that matches begins an event.
    Start(Regex),
    /// A line that matches continues the event before it.
    Continuation(Regex),
    /// A comment after another line begins an event: entries of MySQL's slow query log.
    CommentBegins,
    /// Lines continue a field in quotes, in CSV with this separator.
    Quotes(u8),
}

/// What container runtimes write around each line, and where they split long ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    None,
    Cri,
    Docker,
}

impl Rule {
    /// The preset of this name.
    pub(crate) fn preset(name: &str) -> Option<Self> {
        const JAVA: &str =
            r"^(?:\s|Caused by: |Suppressed: |\.\.\. \d+ |(?:[\w$]+\.)+[\w$]*(?:Exception|Error|Throwable)\b)";
        const PYTHON: &str = r"^(?:\s|$|Traceback \(|[\w.]*(?:Error|Exception|Warning|Interrupt|Exit)\b|During handling of |The above exception )";
        const GO: &str = r"^(?:\s|$|goroutine \d+ |\[signal |[\w./*()$\[\]-]+\(.*\)$|created by |exit status \d+$)";
        let pattern = match name {
            "java" => JAVA,
            "python" => PYTHON,
            "go" => GO,
            "indented" => r"^[ \t]",
            _ => return None,
        };
        Regex::new(pattern).ok().map(Self::Continuation)
    }

    /// What a parser needs, whose events may have several lines.
    pub(crate) fn of_parser(name: &str) -> Option<Self> {
        let pattern = match name {
            "java" => r"^\[?\d{4}-\d\d-\d\d[T ]\d\d:",
            "postgres" => r"^\d{4}-\d\d-\d\d \d\d:",
            "mysql_slow" => return Some(Self::CommentBegins),
            "cri" | "docker_json" => return Some(Self::Parts),
            _ => return None,
        };
        Regex::new(pattern).ok().map(Self::Start)
    }
}

impl Multiline {
    /// Lines of the longest event.
    pub fn max_lines(&self) -> usize {
        self.max_lines
    }

    /// Whether a field in quotes is open after a line. `was_open`: it was open before the line.
    pub fn is_open_after(&self, was_open: bool, line: &[u8]) -> bool {
        matches!(self.rule, Rule::Quotes(separator) if csv_is_open(separator, was_open, line))
    }

    /// Whether a line continues an event whose last line is `previous`, and after which a field in
    /// quotes [is open](Multiline::is_open_after). Both lines are without their delimiters.
    pub fn continues(&self, is_open: bool, previous: &[u8], line: &[u8]) -> bool {
        if matches!(self.rule, Rule::Quotes(_)) {
            return is_open;
        }
        let text = match self.container {
            Container::None => line,
            Container::Cri => {
                let (Some(before), Some(here)) = (container_message(previous), container_message(line)) else {
                    return false;
                };
                if before.stream != here.stream {
                    return false;
                }
                if before.is_partial {
                    return true;
                }
                here.message
            }
            Container::Docker => {
                let Some(before) = docker_message(previous) else { return false };
                if before.is_partial {
                    return true;
                }
                if matches!(self.rule, Rule::Parts) {
                    return false;
                }
                return docker_message(line).is_some_and(|here| self.matches_rule(previous, here.text().as_bytes()));
            }
        };
        self.matches_rule(previous, text)
    }

    /// Whether no line can continue an event that ends with this line.
    pub fn is_complete(&self, is_open: bool, last: &[u8]) -> bool {
        if matches!(self.rule, Rule::Quotes(_)) {
            return !is_open;
        }
        matches!(self.rule, Rule::Parts)
            && match self.container {
                Container::None => true,
                Container::Cri => !container_message(last).is_some_and(|line| line.is_partial),
                Container::Docker => !docker_message(last).is_some_and(|line| line.is_partial),
            }
    }

    fn matches_rule(&self, previous: &[u8], line: &[u8]) -> bool {
        match &self.rule {
            Rule::Parts | Rule::Quotes(_) => false,
            Rule::Start(pattern) => pattern.is_match(line) == self.negate,
            Rule::Continuation(pattern) => pattern.is_match(line) != self.negate,
            Rule::CommentBegins => !line.starts_with(b"#") || previous.starts_with(b"#"),
        }
    }
}

/// Whether a field in quotes is open at the end of a line of CSV.
fn csv_is_open(separator: u8, was_open: bool, line: &[u8]) -> bool {
    let (mut at, mut is_open) = (0, was_open);
    loop {
        if !is_open && line.get(at) == Some(&b'"') {
            is_open = true;
            at += 1;
        }
        while is_open {
            let Some(quote) = memchr(b'"', &line[at..]) else { return true };
            at += quote + 1;
            // A doubled quote is one of the text.
            if line.get(at) == Some(&b'"') { at += 1 } else { is_open = false }
        }
        match memchr(separator, &line[at..]) {
            Some(end) => at += end + 1,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_opens_a_field_only_at_its_beginning() {
        for (was_open, line, expected) in [
            (false, "a,b", false),
            (false, "a,\"b", true),
            (false, "a,\"b\",\"\"", false),
            (false, "a,\"b\"\"", true),
            (false, "a,b\"c", false),
            (true, "still open", true),
            (true, "end\",x", false),
            (true, "end\",\"again", true),
            (true, "\"\"", true),
            (true, "\"", false),
        ] {
            assert_eq!(csv_is_open(b',', was_open, line.as_bytes()), expected, "{was_open} {line}");
        }
        assert!(csv_is_open(b';', false, b"a,\"b;\"c"));
    }

    fn multiline(rule: Rule, container: Container) -> Multiline {
        Multiline { rule, negate: false, container, timeout: Duration::from_secs(1), max_lines: 500 }
    }

    fn events(multiline: &Multiline, lines: &[&str]) -> Vec<usize> {
        let mut counts = vec![1];
        for pair in lines.windows(2) {
            if multiline.continues(false, pair[0].as_bytes(), pair[1].as_bytes()) {
                *counts.last_mut().unwrap() += 1;
            } else {
                counts.push(1);
            }
        }
        counts
    }

    #[test]
    fn presets_join_the_traces_of_their_language() {
        let preset = |name| multiline(Rule::preset(name).unwrap(), Container::None);
        let java = [
            "INFO started",
            "ERROR failed",
            "java.io.IOException: x",
            "\tat a.B.c(B.java:1)",
            "Caused by: java.lang.Error",
            "\t... 3 more",
            "INFO an Exception: none",
        ];
        assert_eq!(events(&preset("java"), &java), [1, 5, 1]);
        let python = [
            "ERROR failed",
            "Traceback (most recent call last):",
            "  File \"a.py\", line 1",
            "ValueError: x",
            "",
            "During handling of the above exception, another exception occurred:",
            "",
            "Traceback (most recent call last):",
            "  File \"b.py\", line 1",
            "shop.NotFoundError",
            "INFO next",
        ];
        assert_eq!(events(&preset("python"), &python), [10, 1]);
        let go = [
            "panic: x",
            "",
            "goroutine 1 [running]:",
            "main.(*Shop).open(0x1, 0x2)",
            "\t/srv/main.go:5 +0x1d",
            "created by main.main in goroutine 1",
            "exit status 2",
            "2026/03/01 10:00:00 next",
        ];
        assert_eq!(events(&preset("go"), &go), [7, 1]);
        assert_eq!(events(&preset("indented"), &["a", " b", "\tc", "d"]), [3, 1]);
        assert!(Rule::preset("cobol").is_none());
    }

    #[test]
    fn a_negated_pattern_is_for_the_other_lines() {
        let start = Rule::Start(Regex::new("^[A-Z]").unwrap());
        assert_eq!(events(&multiline(start.clone(), Container::None), &["A", "b", "C"]), [2, 1]);
        let negated = Multiline { negate: true, ..multiline(start, Container::None) };
        assert_eq!(events(&negated, &["a", "B", "c"]), [2, 1]);
    }

    #[test]
    fn parts_of_a_container_s_lines_are_joined_before_patterns_are_compared() {
        let prefix = "2016-10-06T00:17:09Z";
        let cri: Vec<String> =
            ["stdout P a", "stdout P b", "stdout F c", "stdout F  indented", "stderr F  x", "stdout F d"]
                .map(|rest| format!("{prefix} {rest}"))
                .to_vec();
        let cri: Vec<&str> = cri.iter().map(String::as_str).collect();
        assert_eq!(events(&multiline(Rule::Parts, Container::Cri), &cri), [3, 1, 1, 1]);
        assert_eq!(events(&multiline(Rule::preset("indented").unwrap(), Container::Cri), &cri), [4, 1, 1]);
        let docker: Vec<String> = ["a", "b\\n", "\\tat x\\n", "c\\n"]
            .map(|log| format!(r#"{{"log":"{log}","stream":"stdout","time":"{prefix}"}}"#))
            .to_vec();
        let docker: Vec<&str> = docker.iter().map(String::as_str).collect();
        assert_eq!(events(&multiline(Rule::Parts, Container::Docker), &docker), [2, 1, 1]);
        assert_eq!(events(&multiline(Rule::preset("java").unwrap(), Container::Docker), &docker), [3, 1]);
    }

    #[test]
    fn an_entry_of_a_slow_query_log_begins_with_its_first_comment() {
        let lines = ["# Time: x", "# User@Host: y", "# Query_time: 1", "SELECT 1;", "# User@Host: y", "SELECT 2;"];
        assert_eq!(events(&multiline(Rule::CommentBegins, Container::None), &lines), [4, 2]);
    }
}
