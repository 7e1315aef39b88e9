//! A project of a transform: a folder with `transform.toml`.

use std::path::{Path, PathBuf};

use trunkline_connector::config::{Mismatch, Node, Report, Section, Value};

use super::Language;
use crate::config::{Document, FileProblems};

/// The file that makes a folder a project.
pub(super) const MANIFEST: &str = "transform.toml";

/// A project.
pub(super) struct Project {
    pub(super) folder: PathBuf,
    pub(super) name: String,
    pub(super) language: Language,
    /// The WIT world to build for. A Rust plugin imports what it uses.
    pub(super) world: &'static str,
    pub(super) tests: Vec<ProjectTest>,
    pub(super) document: Document,
}

/// A test of a project.
pub(super) struct ProjectTest {
    pub(super) name: String,
    /// Index in `[[tests]]`.
    pub(super) index: usize,
    pub(super) config: serde_json::Value,
    pub(super) records: PathBuf,
    pub(super) expected: PathBuf,
    /// The event time up to which timers fire after the records.
    pub(super) advance_to: Option<i64>,
}

impl Project {
    /// Reads the manifest of a folder.
    pub(super) fn read(folder: &Path) -> Result<Self, FileProblems> {
        let document = Document::read(&folder.join(MANIFEST), None)?;
        let report = Report::default();
        let top = document.section(&report);
        let name = top.required::<String>("name");
        if let (Some(name), Some(node)) = (&name, top.node("name"))
            && let Some(error) = crate::plan::name_error(name)
        {
            top.mismatch("name", node, Mismatch::new(error), crate::plan::NAME_RULE.to_owned());
        }
        let languages = [("rust", Language::Rust), ("python", Language::Python), ("js", Language::Js)];
        let language = top.choice("language", &languages, Language::Rust);
        let is_set = |key: &'static str| language != Language::Rust && top.optional(key).unwrap_or(false);
        let world = match (is_set("state"), is_set("timers")) {
            (_, true) => "timed",
            (true, false) => "stateful",
            (false, false) => "transform",
        };
        let tests = tests(&top);
        top.finish();
        match (document.finish(report.into_problems()), name) {
            (None, Some(name)) => Ok(Self { folder: folder.to_owned(), name, language, world, tests, document }),
            (Some(problems), _) => Err(problems),
            (None, None) => {
                let message = format!("{MANIFEST} has no name");
                Err(crate::config::problem_at(Some(&document.file), "config.missing_key", message, None))
            }
        }
    }

    /// The file that a build creates.
    pub(super) fn wasm(&self) -> PathBuf {
        self.folder.join(format!("{}.wasm", self.name))
    }

    /// The section of a test, for problems of its configuration.
    pub(super) fn test_section<'a>(&'a self, test: &ProjectTest, report: &'a Report) -> Option<Section<'a>> {
        let Value::Array(items) = &self.document.table.get("tests")?.value else { return None };
        let item = items.get(test.index)?;
        item_section(item, test.index, &self.document.base, report)
    }
}

fn item_section<'a>(item: &'a Node, index: usize, base: &'a Path, report: &'a Report) -> Option<Section<'a>> {
    let Value::Table(table) = &item.value else { return None };
    Some(Section::new(table, item.span.clone(), format!("tests[{index}]"), base, report))
}

fn tests(top: &Section<'_>) -> Vec<ProjectTest> {
    let Some(node) = top.node("tests") else { return Vec::new() };
    let Value::Array(items) = &node.value else {
        top.mismatch("tests", node, Mismatch::new(format!("is {}", node.value.kind())), "`[[tests]]`".to_owned());
        return Vec::new();
    };
    let mut tests = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let Some(section) = item_section(item, index, top.base, top.report) else {
            top.mismatch(
                "tests",
                item,
                Mismatch::new(format!("has an item that is {}", item.value.kind())),
                "a table".to_owned(),
            );
            continue;
        };
        let name = section.required::<String>("name");
        let records = section.required::<PathBuf>("records");
        let expected = section.required::<PathBuf>("expected");
        let advance_to = section.optional("advance_to");
        let config = section.node("config").map_or(serde_json::Value::Null, Node::to_json);
        if let (Some(name), Some(records), Some(expected)) = (name, records, expected) {
            let (records, expected) = (top.base.join(records), top.base.join(expected));
            tests.push(ProjectTest { name, index, config, records, expected, advance_to });
        }
        section.finish();
    }
    tests
}
