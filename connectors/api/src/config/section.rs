//! [`Section`]: reading one table option by option, with every problem reported.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::options::{OptionDefault, OptionSpec};
use super::tree::{Node, Table, Value};
use super::units::{ByteSize, parse_bytes, parse_duration};

/// A problem in a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A stable code such as `config.unknown_key`.
    pub code: &'static str,
    /// The problem.
    pub message: String,
    /// Byte range in the file.
    pub span: Range<usize>,
    /// The expected input, shown under the marked place.
    pub expected: String,
    /// The next step, where `expected` does not say it.
    pub help: Option<String>,
}

/// Collects the problems of one file.
#[derive(Debug, Default)]
pub struct Report {
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    /// Adds a problem.
    pub fn add(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Takes back the problem that an option is missing.
    fn retract_missing(&self, message: &str) {
        self.problems.borrow_mut().retain(|problem| problem.code != MISSING_KEY || problem.message != message);
    }

    /// Number of problems so far.
    pub fn len(&self) -> usize {
        self.problems.borrow().len()
    }

    /// No problem so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All problems, in the file's order.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.span.start, problem.span.end));
        problems
    }
}

/// A value of the wrong type or form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The problem, as the end of the sentence "`key` ...".
    pub message: String,
    /// The wrong part; `None`: the whole value.
    pub span: Option<Range<usize>>,
    /// The next step.
    pub help: Option<String>,
}

impl Mismatch {
    /// A mismatch of the whole value.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), span: None, help: None }
    }
}

/// A type that an option can have.
pub trait FromNode: Sized {
    /// The expected input, with an example: "a duration such as `5s`".
    fn expected() -> String;
    /// Reads it.
    fn from_node(node: &Node) -> Result<Self, Mismatch>;
}

/// One table being read. See the module's header.
pub struct Section<'a> {
    /// The table.
    pub table: &'a Table,
    /// Byte range of the table's header or braces.
    pub span: Range<usize>,
    /// Its path from the file's root, for messages: `sinks.lake`.
    pub path: String,
    /// Folder of the pipeline file: relative paths start here.
    pub base: &'a Path,
    /// Where problems go.
    pub report: &'a Report,
    asked: RefCell<Vec<&'static str>>,
    /// The declarations that [`Section::value`] takes defaults from.
    declared: Cell<&'static [OptionSpec]>,
    /// What precedes this table's keys in declarations: `rotate.` for the table `rotate`.
    prefix: String,
}

impl<'a> Section<'a> {
    /// A reader of `table`.
    pub fn new(
        table: &'a Table,
        span: Range<usize>,
        path: impl Into<String>,
        base: &'a Path,
        report: &'a Report,
    ) -> Self {
        let (asked, declared) = (RefCell::new(Vec::new()), Cell::new(&[][..]));
        Self { table, span, path: path.into(), base, report, asked, declared, prefix: String::new() }
    }

    /// Declares the options: [`value`](Section::value) and [`one_of`](Section::one_of) take their
    /// defaults from here.
    pub fn declare(&self, options: &'static [OptionSpec]) {
        self.declared.set(options);
    }

    /// An option that is [declared](Section::declare) with a default value: what was written, or
    /// the default where it is absent or wrong (reported).
    ///
    /// # Panics
    /// If the option is not declared with a default of this type: a defect that the conformance
    /// suite's reading of an empty section finds.
    pub fn value<T: FromNode>(&self, key: &'static str) -> T {
        self.optional(key).unwrap_or_else(|| self.default(key))
    }

    /// As [`value`](Section::value), for an option with named choices.
    ///
    /// # Panics
    /// As [`value`](Section::value).
    pub fn one_of<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> T {
        let default: String = self.default(key);
        match choices.iter().find(|(name, _)| *name == default) {
            Some((_, choice)) => self.choice(key, choices, *choice),
            None => panic!("the declared default of `{}{key}` is none of its choices", self.prefix),
        }
    }

    fn default<T: FromNode>(&self, key: &str) -> T {
        let name = format!("{}{key}", self.prefix);
        let declared = self.declared.get().iter().find(|option| option.key == name);
        let Some(OptionSpec { default: OptionDefault::Value(toml), .. }) = declared else {
            panic!("the option `{name}` is not declared with a default value");
        };
        let node = format!("value = {toml}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("value"));
        match node.map(|value| T::from_node(&Node::from_toml(value))) {
            Some(Ok(value)) => value,
            _ => panic!("the declared default of `{name}`, {toml}, is not {}", T::expected()),
        }
    }

    /// The node of a key, unread; the key counts as known.
    pub fn node(&self, key: &'static str) -> Option<&'a Node> {
        self.asked.borrow_mut().push(key);
        self.table.get(key)
    }

    /// An option that may be absent; `None` too if it is wrong (reported).
    pub fn optional<T: FromNode>(&self, key: &'static str) -> Option<T> {
        let node = self.node(key)?;
        match T::from_node(node) {
            Ok(value) => Some(value),
            Err(mismatch) => {
                self.mismatch(key, node, mismatch, T::expected());
                None
            }
        }
    }

    /// An option with a default.
    pub fn or<T: FromNode>(&self, key: &'static str, default: T) -> T {
        self.optional(key).unwrap_or(default)
    }

    /// An option that must be there; `None` if it is not, or is wrong (reported).
    pub fn required<T: FromNode>(&self, key: &'static str) -> Option<T> {
        if self.table.get(key).is_none() {
            self.asked.borrow_mut().push(key);
            self.missing(key, &T::expected());
            return None;
        }
        self.optional(key)
    }

    /// An option with named choices: `default` where absent or wrong.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)], default: T) -> T {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", quoted(&names));
        let Some(node) = self.node(key) else { return default };
        let Value::String(text) = &node.value else {
            self.mismatch(key, node, Mismatch::new(format!("is {}", node.value.kind())), expected);
            return default;
        };
        match choices.iter().find(|(name, _)| *name == text.resolved) {
            Some((_, choice)) => *choice,
            None => {
                let help = nearest(&text.raw, &names).map(|name| format!("did you mean `{name}`?"));
                let mismatch = Mismatch { message: format!("has no choice `{}`", text.raw), span: None, help };
                self.mismatch(key, node, mismatch, expected);
                default
            }
        }
    }

    /// A nested table; `None` if it is absent or not a table (reported).
    pub fn section(&self, key: &'static str) -> Option<Section<'a>> {
        let node = self.node(key)?;
        match &node.value {
            Value::Table(table) => {
                let section = self.nested(key, table);
                Some(Section { span: node.span.clone(), ..section })
            }
            other => {
                self.mismatch(key, node, Mismatch::new(format!("is {}", other.kind())), "a table".to_owned());
                None
            }
        }
    }

    /// A section for `table` as the value of `key`, which need not be in the file: an empty table
    /// has the declared defaults.
    pub fn nested(&self, key: &str, table: &'a Table) -> Section<'a> {
        let mut section = Section::new(table, self.span.clone(), self.path_of(key), self.base, self.report);
        section.declared = self.declared.clone();
        section.prefix = format!("{}{key}.", self.prefix);
        section
    }

    /// Reports a wrong value of an option.
    pub fn mismatch(&self, key: &str, node: &Node, mismatch: Mismatch, expected: String) {
        self.report.add(Problem {
            code: "config.wrong_value",
            message: format!("`{}` {}", self.path_of(key), mismatch.message),
            span: mismatch.span.unwrap_or(node.span.clone()),
            expected: format!("expected {expected}"),
            help: mismatch.help,
        });
    }

    /// Reports an option that must be there.
    pub fn missing(&self, key: &str, expected: &str) {
        self.report.add(Problem {
            code: MISSING_KEY,
            message: missing(&self.path_of(key)),
            span: self.span.clone(),
            expected: format!("expected `{key}` here: {expected}"),
            help: None,
        });
    }

    /// Reports the keys that were not read.
    pub fn finish(self) {
        let asked = self.asked.take();
        for (key, _) in &self.table.entries {
            if !asked.contains(&key.name.as_str()) {
                let mut known = asked.clone();
                known.sort_unstable();
                known.dedup();
                let path = if self.path.is_empty() { key.name.clone() } else { format!("{}.{}", self.path, key.name) };
                let meant = nearest(&key.name, &known);
                if let Some(meant) = meant {
                    // The option is misspelled, not missing: one mistake is one problem.
                    self.report.retract_missing(&missing(&self.path_of(meant)));
                }
                self.report.add(Problem {
                    code: "config.unknown_key",
                    message: format!("`{path}` is not a known option"),
                    span: key.span.clone(),
                    expected: match meant {
                        Some(name) => format!("did you mean `{name}`?"),
                        None => "not known here".to_owned(),
                    },
                    help: Some(format!("known here: {}", known.join(", "))),
                });
            }
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// The code of a required option that is absent.
const MISSING_KEY: &str = "config.missing_key";

fn missing(path: &str) -> String {
    format!("`{path}` is missing")
}

/// The known name that is most similar to the written one, if it is similar enough.
pub fn nearest<'n>(written: &str, known: &[&'n str]) -> Option<&'n str> {
    let distance = |name: &str| strsim::damerau_levenshtein(&written.to_lowercase(), &name.to_lowercase());
    let best = known.iter().min_by_key(|name| distance(name))?;
    (distance(best) <= (written.chars().count().max(best.chars().count()) / 3).max(1)).then_some(best)
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn wrong_kind(node: &Node) -> Mismatch {
    Mismatch::new(format!("is {}", node.value.kind()))
}

impl FromNode for String {
    fn expected() -> String {
        "a string".to_owned()
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        match &node.value {
            Value::String(text) => Ok(text.resolved.clone()),
            _ => Err(wrong_kind(node)),
        }
    }
}

impl FromNode for PathBuf {
    fn expected() -> String {
        "a path".to_owned()
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        String::from_node(node).map(PathBuf::from)
    }
}

impl FromNode for bool {
    fn expected() -> String {
        "`true` or `false`".to_owned()
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        match node.value {
            Value::Boolean(flag) => Ok(flag),
            _ => Err(wrong_kind(node)),
        }
    }
}

impl FromNode for u64 {
    fn expected() -> String {
        "a whole number from 0".to_owned()
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        match node.value {
            Value::Integer(number) => u64::try_from(number).map_err(|_| Mismatch::new(format!("is {number}"))),
            _ => Err(wrong_kind(node)),
        }
    }
}

impl FromNode for i64 {
    fn expected() -> String {
        "a whole number".to_owned()
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        match node.value {
            Value::Integer(number) => Ok(number),
            _ => Err(wrong_kind(node)),
        }
    }
}

impl FromNode for f64 {
    fn expected() -> String {
        "a number".to_owned()
    }

    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        match &node.value {
            Value::Float(number) => Ok(*number),
            Value::Integer(number) => Ok(*number as Self),
            _ => Err(wrong_kind(node)),
        }
    }
}

impl FromNode for Duration {
    fn expected() -> String {
        "a duration such as `200ms`, `5s` or `1h30m`".to_owned()
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        match &node.value {
            Value::String(text) => {
                parse_duration(&text.resolved).map_err(|why| Mismatch::new(format!("is no duration: {why}")))
            }
            _ => Err(wrong_kind(node)),
        }
    }
}

impl FromNode for ByteSize {
    fn expected() -> String {
        "a size such as `16MiB` or `512KiB`".to_owned()
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        match &node.value {
            Value::String(text) => {
                parse_bytes(&text.resolved).map_err(|why| Mismatch::new(format!("is no size: {why}")))
            }
            Value::Integer(number) if *number >= 0 => Ok(Self(number.unsigned_abs())),
            _ => Err(wrong_kind(node)),
        }
    }
}

impl<T: FromNode> FromNode for Vec<T> {
    fn expected() -> String {
        format!("an array, each item {}", T::expected())
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        let Value::Array(items) = &node.value else { return Err(wrong_kind(node)) };
        let read = |item: &Node| {
            T::from_node(item).map_err(|mismatch| Mismatch {
                message: format!("has an item that {}", mismatch.message),
                span: Some(mismatch.span.unwrap_or(item.span.clone())),
                help: mismatch.help,
            })
        };
        items.iter().map(read).collect()
    }
}

impl<T: FromNode> FromNode for BTreeMap<String, T> {
    fn expected() -> String {
        format!("a table, each value {}", T::expected())
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        let Value::Table(table) = &node.value else { return Err(wrong_kind(node)) };
        let read = |(key, value): &(super::tree::Key, Node)| match T::from_node(value) {
            Ok(read) => Ok((key.name.clone(), read)),
            Err(mismatch) => Err(Mismatch { span: Some(mismatch.span.unwrap_or(value.span.clone())), ..mismatch }),
        };
        table.entries.iter().map(read).collect()
    }
}

impl FromNode for serde_json::Value {
    fn expected() -> String {
        "any value".to_owned()
    }
    fn from_node(node: &Node) -> Result<Self, Mismatch> {
        Ok(node.to_json())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Key, Text};

    fn text(value: &str, at: usize) -> Node {
        let text = Text { raw: value.to_owned(), resolved: value.to_owned() };
        Node { value: Value::String(text), span: at..at + value.len() }
    }

    fn table(entries: Vec<(&str, Node)>) -> Table {
        let key = |(name, node): (&str, Node)| (Key { name: name.to_owned(), span: node.span.clone() }, node);
        Table { entries: entries.into_iter().map(key).collect() }
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let table = table(vec![("pathes", text("x", 0)), ("age", text("5 parsecs", 10)), ("mode", text("fastt", 30))]);
        let report = Report::default();
        let section = Section::new(&table, 90..99, "sources.web", Path::new("."), &report);
        assert_eq!(section.required::<Vec<String>>("paths"), None);
        assert_eq!(section.or("age", Duration::from_secs(1)), Duration::from_secs(1));
        assert_eq!(section.choice("mode", &[("fast", 1), ("slow", 2)], 2), 2);
        section.finish();
        let problems = report.into_problems();
        // `paths` is misspelled, so it is not also reported as missing.
        assert_eq!(
            problems.iter().map(|p| p.code).collect::<Vec<_>>(),
            ["config.unknown_key", "config.wrong_value", "config.wrong_value"]
        );
        assert_eq!(problems[0].expected, "did you mean `paths`?");
        assert_eq!(problems[2].help.as_deref(), Some("did you mean `fast`?"));
    }

    #[test]
    fn nearest_is_silent_when_nothing_is_near() {
        assert_eq!(nearest("conector", &["connector", "paths"]), Some("connector"));
        assert_eq!(nearest("zebra", &["connector", "paths"]), None);
    }
}
