//! Tests in pipeline files: `[[tests]]`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use trunkline_connector::config::{Mismatch, Node, Problem, Report, Section, Value, nearest};
use trunkline_connector::{Batch, Reason, Result};

use super::diff::{compare, difference};
use super::record::{ExpectedRecord, LineError, TestRecord, read_expected, read_records};
use crate::config::{Document, FileProblems, Settings};
use crate::plan::Pipeline;
use crate::stage::{DryRun, DryRunOutput};

/// A test in a pipeline file.
#[derive(Debug)]
pub struct PipelineTest {
    /// Its name.
    pub name: String,
    records: Vec<TestRecord>,
    /// The event time up to which timers fire after the records.
    advance_to: Option<i64>,
    /// Expected records by output.
    expected: BTreeMap<String, Vec<ExpectedRecord>>,
    dead_letters: Vec<ExpectedRecord>,
}

/// The outcome of a test.
#[derive(Debug)]
pub struct TestOutcome {
    /// Name of the test.
    pub name: String,
    /// The difference between the expected and the actual records; `None` if the test passed.
    pub failure: Option<String>,
}

/// Reads the tests in the file of a pipeline.
pub fn read_tests(pipeline: &Pipeline, settings: &Settings) -> std::result::Result<Vec<PipelineTest>, FileProblems> {
    let document = Document::read(&pipeline.file, settings.secrets.as_deref())?;
    let report = Report::default();
    let reader = Reader { pipeline, report: &report };
    let tests = match document.section(&report).node("tests") {
        None => Vec::new(),
        Some(Node { value: Value::Array(items), .. }) => {
            items.iter().enumerate().filter_map(|(index, item)| reader.test(index, item, &document.base)).collect()
        }
        Some(node) => {
            let mismatch = Mismatch::new(format!("is {}", node.value.kind()));
            document.section(&report).mismatch("tests", node, mismatch, "`[[tests]]`".to_owned());
            Vec::new()
        }
    };
    match document.finish(report.into_problems()) {
        None => Ok(tests),
        Some(problems) => Err(problems),
    }
}

struct Reader<'r> {
    pipeline: &'r Pipeline,
    report: &'r Report,
}

impl Reader<'_> {
    fn test(&self, index: usize, item: &Node, base: &Path) -> Option<PipelineTest> {
        let path = format!("tests[{index}]");
        let Value::Table(table) = &item.value else {
            self.problem(item.span.clone(), format!("`{path}` is {}", item.value.kind()), "expected a table");
            return None;
        };
        let section = Section::new(table, item.span.clone(), path, base, self.report);
        let name = section.required::<String>("name");
        let records = match section.node("records") {
            Some(node) => self.records(node, base),
            None => {
                section.missing("records", "an array of records, or the path of a file with one per line");
                Vec::new()
            }
        };
        let advance_to = section.optional("advance_to");
        let mut expected = BTreeMap::new();
        if let Some(outputs) = section.section("expected") {
            for (key, node) in &outputs.table.entries {
                self.check_output(&key.name, &key.span);
                expected.insert(key.name.clone(), self.expected(node, base));
            }
        }
        let dead_letters = section.node("dead_letters").map(|node| self.expected(node, base)).unwrap_or_default();
        section.finish();
        Some(PipelineTest { name: name?, records, advance_to, expected, dead_letters })
    }

    fn records(&self, node: &Node, base: &Path) -> Vec<TestRecord> {
        self.each(node, base, TestRecord::parse, read_records, |record, span| {
            let sources: Vec<&str> = self.pipeline.sources.iter().map(|source| source.name.as_str()).collect();
            match (&record.source, &record.topic, sources.as_slice()) {
                (Some(source), _, known) if !known.contains(&source.as_str()) => {
                    let expected = match nearest(source, known) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None => format!("expected one of {}", known.join(", ")),
                    };
                    self.problem(span, format!("the pipeline has no source `{source}`"), &expected);
                }
                (None, None, [only]) => record.source = Some((*only).to_owned()),
                (None, None, _) => {
                    let message = "the record names neither a source nor a topic".to_owned();
                    self.problem(span, message, "expected `source = \"NAME\"` or `topic = \"NAME\"`");
                }
                _ => {}
            }
        })
    }

    fn expected(&self, node: &Node, base: &Path) -> Vec<ExpectedRecord> {
        self.each(node, base, ExpectedRecord::parse, read_expected, |_, _| {})
    }

    /// Reads records that are written in the pipeline file, or in a file that it names.
    fn each<T>(
        &self,
        node: &Node,
        base: &Path,
        parse: impl Fn(&str) -> std::result::Result<T, (usize, String)>,
        read: impl Fn(&Path) -> std::result::Result<Vec<T>, LineError>,
        mut check: impl FnMut(&mut T, Range<usize>),
    ) -> Vec<T> {
        let mut records = Vec::new();
        match &node.value {
            Value::Array(items) => {
                for item in items {
                    match parse(&item.to_json().to_string()) {
                        Ok(mut record) => {
                            check(&mut record, item.span.clone());
                            records.push(record);
                        }
                        Err((_, message)) => {
                            let (message, expected) = message.split_once("; ").unwrap_or((&message, "not a record"));
                            self.problem(item.span.clone(), message.to_owned(), expected);
                        }
                    }
                }
            }
            Value::String(path) => match read(&base.join(&path.resolved)) {
                Ok(read) => records.extend(read.into_iter().map(|mut record| {
                    check(&mut record, node.span.clone());
                    record
                })),
                Err(error) => {
                    let message = if error.line > 0 { format!("{}:{error}", path.resolved) } else { error.to_string() };
                    self.problem(node.span.clone(), message, "expected a file with one record per line, as JSON");
                }
            },
            other => {
                let message = format!("the records are {}", other.kind());
                self.problem(node.span.clone(), message, "expected an array of records, or the path of a file");
            }
        }
        records
    }

    fn check_output(&self, name: &str, span: &Range<usize>) {
        let mut known: Vec<String> = self.pipeline.sinks.iter().map(|sink| sink.name.clone()).collect();
        for transform in &self.pipeline.transforms {
            known.push(transform.name.clone());
            let ports = transform.step.ports.iter().skip(1);
            known.extend(ports.map(|port| format!("{}.{port}", transform.name)));
        }
        if known.iter().any(|output| output == name) {
            return;
        }
        let names: Vec<&str> = known.iter().map(String::as_str).collect();
        let expected = match nearest(name, &names) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("expected one of {}", names.join(", ")),
        };
        self.report.add(Problem {
            code: "test.unknown_output",
            message: format!("`{name}` is not an output of the pipeline"),
            span: span.clone(),
            expected,
            help: Some("outputs are sinks, and transforms with their own topic; a fused transform has none".to_owned()),
        });
    }

    fn problem(&self, span: Range<usize>, message: String, expected: &str) {
        let expected = expected.to_owned();
        self.report.add(Problem { code: "test.bad_record", message, span, expected, help: None });
    }
}

/// Runs a test.
pub fn run_test(pipeline: &Pipeline, test: &PipelineTest) -> TestOutcome {
    let failure = match run_records(pipeline, &test.records, test.advance_to) {
        Ok(output) => differences(test, &output),
        Err(error) => Some(format!("  {error}\n")),
    };
    TestOutcome { name: test.name.clone(), failure }
}

fn run_records(pipeline: &Pipeline, records: &[TestRecord], advance_to: Option<i64>) -> Result<DryRunOutput> {
    let mut run = DryRun::new(pipeline)?;
    for source in &pipeline.sources {
        let mut batch = Batch::default();
        for record in records.iter().filter(|record| record.source.as_ref() == Some(&source.name)) {
            record.push_to(&mut batch, "", -1);
        }
        run.add_source(source, batch)?;
    }
    for (record, index) in records.iter().filter(|record| record.source.is_none()).zip(0..) {
        let topic = record.topic.as_deref().unwrap_or_default();
        let mut batch = Batch::default();
        record.push_to(&mut batch, topic, index);
        batch.iter().for_each(|record| run.add(topic, record));
    }
    run.finish(advance_to)
}

fn differences(test: &PipelineTest, output: &DryRunOutput) -> Option<String> {
    let mut text = String::new();
    let mut check = |name: &str, expected: &[ExpectedRecord], actual: &[ExpectedRecord]| {
        if !compare(expected, actual) {
            let counts = format!("{} expected, {} actual", expected.len(), actual.len());
            text.push_str(&format!("  {name}: {counts} (- expected, + actual)\n{}", difference(expected, actual)));
        }
    };
    for (name, expected) in &test.expected {
        let actual: Vec<ExpectedRecord> = output.outputs.get(name).map(records_of).unwrap_or_default();
        check(name, expected, &actual);
    }
    let dead_letters: Vec<ExpectedRecord> = output
        .dead_letters
        .iter()
        .flat_map(|(component, record, reason)| {
            records_of(record).into_iter().map(|record| dead_letter(record, component, reason))
        })
        .collect();
    check("dead_letters", &test.dead_letters, &dead_letters);
    (!text.is_empty()).then_some(text)
}

fn records_of(batch: &Batch) -> Vec<ExpectedRecord> {
    let record = |record| {
        let topic = serde_json::Value::from(trunkline_connector::RecordRef::topic(&record)).to_string();
        let mut parts = TestRecord::of(record).parts();
        parts.insert("topic", topic);
        ExpectedRecord { output: None, rejected: None, parts }
    };
    batch.iter().map(record).collect()
}

fn dead_letter(mut record: ExpectedRecord, component: &str, reason: &Reason) -> ExpectedRecord {
    record.parts.insert("component", serde_json::Value::from(component).to_string());
    record.parts.insert("message", serde_json::Value::from(reason.message.as_str()).to_string());
    ExpectedRecord { rejected: Some(reason.code.clone()), ..record }
}
