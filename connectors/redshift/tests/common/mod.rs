//! A sink on the stand-in for Redshift, and records.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::datatypes::{DataType, Field, Fields, Schema as ArrowSchema};
use serde_json::Value as Json;
use tempfile::TempDir;
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{
    Batch, ErasedTwoPhaseSink, MemoryBudget, PreflightIssue, Rejections, Result, Schema, SchemaId, SchemaLookup, Sink,
    SinkConnector, SinkContext, SinkReplay, SinkSpec, TopicPartition, headers,
};
use trunkline_redshift::RedshiftConnector;
use trunkline_tests::{Redshift, RowChange, S3, Skip};

/// A schema of the stand-in, and sinks that load it.
pub(crate) struct Bench {
    pub(crate) redshift: &'static Redshift,
    /// The schema's name, also that of the bucket.
    pub(crate) name: &'static str,
    schemas: Arc<Schemas>,
    runtime: tokio::runtime::Runtime,
    scratch: TempDir,
}

#[derive(Default)]
struct Schemas(Mutex<HashMap<SchemaId, Arc<Schema>>>);

impl SchemaLookup for Schemas {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(self.0.lock().unwrap().get(&id).cloned())
    }
}

impl Bench {
    pub(crate) fn new(name: &'static str) -> Result<Self, Skip> {
        let (s3, redshift) = (S3::shared()?, Redshift::shared()?);
        s3.bucket(name);
        redshift.run(&format!("CREATE SCHEMA \"{name}\""));
        Ok(Self {
            redshift,
            name,
            schemas: Arc::default(),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            scratch: tempfile::tempdir().unwrap(),
        })
    }

    /// A sink, as a task that just started has it.
    pub(crate) fn open(&self, options: &str) -> Box<dyn ErasedTwoPhaseSink> {
        self.open_at(self.redshift.port(), options).unwrap()
    }

    /// A sink that reaches the stand-in at this port.
    pub(crate) fn open_at(&self, port: u16, options: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        self.open_with(&format!("{}{options}", self.redshift.sink_options(port, self.name, self.name)))
    }

    /// A sink of another user.
    pub(crate) fn open_as(&self, (user, password): (&str, &str), options: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        let own = self.redshift.sink_options(self.redshift.port(), self.name, self.name);
        self.open_with(&format!("{}{options}", own.replace("rs:rspass1", &format!("{user}:{password}"))))
    }

    /// A sink whose options have `to` in place of `from`.
    pub(crate) fn open_changed(&self, from: &str, to: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        self.open_changed_at(self.redshift.port(), from, to)
    }

    /// The same, at this port.
    pub(crate) fn open_changed_at(&self, port: u16, from: &str, to: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        let options = self.redshift.sink_options(port, self.name, self.name);
        assert!(options.contains(from));
        self.open_with(&options.replace(from, to))
    }

    /// What `validate --check` reports with `to` in place of `from`.
    pub(crate) fn preflight(&self, from: &str, to: &str) -> Vec<PreflightIssue> {
        let options = self.redshift.sink_options(self.redshift.port(), self.name, self.name);
        assert!(options.contains(from));
        spec(&options.replace(from, to)).preflight("pipeline.check", self.runtime.handle())
    }

    /// What `validate --check` reports of tables, as this user, if the inputs have these records.
    pub(crate) fn preflight_records(
        &self,
        (user, password): (&str, &str),
        options: &str,
        records: &Batch,
    ) -> Vec<PreflightIssue> {
        let own = self.redshift.sink_options(self.redshift.port(), self.name, self.name);
        let own = own.replace("rs:rspass1", &format!("{user}:{password}"));
        let mut sample = || {
            let mut copy = Batch::default();
            records.iter().for_each(|record| copy.push_copy(record));
            Ok(copy)
        };
        spec(&format!("{own}{options}")).preflight_records(self.context(), &mut sample)
    }

    fn open_with(&self, toml: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        self.open_replay(toml, None)
    }

    /// A sink that reaches the stand-in at this port and replaces the rows of a range.
    pub(crate) fn open_superseding(
        &self,
        port: u16,
        options: &str,
        run: &str,
        range: (i64, i64),
    ) -> Box<dyn ErasedTwoPhaseSink> {
        let ranges = BTreeMap::from([(partition(), range)]);
        let earlier = ranges.keys().filter(|_| range.0 > 0).cloned().collect();
        let replay = SinkReplay { run: run.to_owned(), supersedes: true, ranges, earlier };
        let toml = format!("{}{options}", self.redshift.sink_options(port, self.name, self.name));
        self.open_replay(&toml, Some(replay)).unwrap()
    }

    /// The same with ranges of several partitions.
    pub(crate) fn open_superseding_partitions(
        &self,
        options: &str,
        run: &str,
        ranges: &[(i32, (i64, i64))],
    ) -> Box<dyn ErasedTwoPhaseSink> {
        let ranges = ranges.iter().map(|(number, range)| (TopicPartition::new("changes", *number), *range)).collect();
        let replay = SinkReplay { run: run.to_owned(), supersedes: true, ranges, earlier: BTreeSet::new() };
        let toml = format!("{}{options}", self.redshift.sink_options(self.redshift.port(), self.name, self.name));
        self.open_replay(&toml, Some(replay)).unwrap()
    }

    /// A sink with the options of one that was configured before.
    pub(crate) fn open_configured(&self, spec: &dyn SinkSpec) -> Box<dyn ErasedTwoPhaseSink> {
        match spec.open(self.context()).unwrap() {
            Sink::TwoPhase(sink) => sink,
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    /// A sink with its own options for the login.
    pub(crate) fn open_logged_in(&self, url: &str, login: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        let own = self.redshift.sink_options(self.redshift.port(), self.name, self.name);
        let (_, rest) = own.split_once('\n').unwrap();
        self.open_with(&format!("url = \"{url}\"\n{login}\n{rest}"))
    }

    /// A configured sink, and what it runs on.
    pub(crate) fn spec(&self, options: &str) -> (Box<dyn SinkSpec>, &tokio::runtime::Handle) {
        let toml = format!("{}{options}", self.redshift.sink_options(self.redshift.port(), self.name, self.name));
        (spec(&toml), self.runtime.handle())
    }

    fn open_replay(&self, toml: &str, replay: Option<SinkReplay>) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        match spec(toml).open(SinkContext { replay, ..self.context() })? {
            Sink::TwoPhase(sink) => Ok(sink),
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    fn context(&self) -> SinkContext {
        SinkContext {
            name: format!("{}.dw", self.name),
            replay: None,
            budget: MemoryBudget::new(1 << 30),
            runtime: self.runtime.handle().clone(),
            scratch: tempfile::tempdir_in(self.scratch.path()).unwrap().keep(),
            schemas: self.schemas.clone(),
        }
    }

    /// Publishes the schema of change events with rows of these fields.
    pub(crate) fn publish(&self, fields: Vec<Field>, key: &str) -> String {
        let row = DataType::Struct(Fields::from(fields));
        let text = |name: &str| Field::new(name, DataType::Utf8, false);
        let envelope = vec![Field::new("before", row.clone(), true), Field::new("after", row, true), text("op")];
        let metadata = HashMap::from([("primary_key".to_owned(), key.to_owned())]);
        let schema = Schema::new(Arc::new(ArrowSchema::new_with_metadata(envelope, metadata))).unwrap();
        let id = schema.id();
        self.schemas.0.lock().unwrap().insert(id, Arc::new(schema));
        id.to_string()
    }

    /// Number of files in the stage.
    pub(crate) fn staged_files(&self) -> usize {
        let folder = S3::shared().unwrap().bucket(self.name).join("stage").join("pipeline.check");
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    /// The rows of a query in the schema.
    pub(crate) fn rows(&self, sql: &str) -> Vec<String> {
        self.redshift.run(&sql.replace("$S", self.name))
    }
}

/// What is wrong with the options of a sink.
pub(crate) fn problems(toml: &str) -> Vec<String> {
    let table = read_toml(toml);
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
    RedshiftConnector.configure(&section, &["table"]);
    section.finish();
    report.into_problems().into_iter().map(|problem| format!("{}; {}", problem.message, problem.expected)).collect()
}

fn spec(toml: &str) -> Box<dyn SinkSpec> {
    let table = read_toml(toml);
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
    let spec = RedshiftConnector.configure(&section, &["table"]);
    spec.unwrap_or_else(|| panic!("{:?}", report.into_problems()))
}

/// Records of partition 0 of the topic `changes`.
#[derive(Default)]
pub(crate) struct Records {
    pub(crate) batch: Batch,
    next: i64,
}

impl Records {
    pub(crate) fn from_offset(next: i64) -> Self {
        Self { next, ..Self::default() }
    }

    /// The next record has this offset.
    pub(crate) fn skip_to(&mut self, offset: i64) -> &mut Self {
        self.next = offset;
        self
    }

    pub(crate) fn push(&mut self, schema: Option<&str>, key: Option<&str>, value: Option<&str>) -> &mut Self {
        let topic = self.batch.topic_index("changes");
        let mut record = self.batch.record();
        record.timestamp(1_431_857_103_000 + self.next).read_from(topic, 0, self.next);
        self.next += 1;
        if let Some(key) = key {
            record.key(key.as_bytes());
        }
        if let Some(value) = value {
            record.value(value.as_bytes());
        }
        if let Some(schema) = schema {
            record.header(headers::SCHEMA, Some(schema.as_bytes()));
        }
        record.finish();
        self
    }

    /// A value of a source whose epoch is known.
    pub(crate) fn push_with(&mut self, schema: &str, value: &str, epoch: u64) -> &mut Self {
        let topic = self.batch.topic_index("changes");
        let mut record = self.batch.record();
        record.timestamp(1_431_857_103_000 + self.next).read_from(topic, 0, self.next);
        self.next += 1;
        record.value(value.as_bytes()).header(headers::SCHEMA, Some(schema.as_bytes()));
        record.header(headers::EPOCH, Some(epoch.to_string().as_bytes()));
        record.finish();
        self
    }

    /// A change of a history.
    pub(crate) fn change(&mut self, schema: &str, change: &RowChange) -> &mut Self {
        self.push_with(schema, &change.value(), change.epoch)
    }

    /// A change event.
    pub(crate) fn event(&mut self, schema: &str, op: &str, before: &str, after: &str) -> &mut Self {
        let time = self.next;
        let value =
            format!(r#"{{"before":{before},"after":{after},"source":{{"ts_ms":{time}000}},"op":"{op}","ts_ms":1}}"#);
        self.push(Some(schema), None, Some(&value))
    }
}

pub(crate) fn partition() -> TopicPartition {
    TopicPartition::new("changes", 0)
}

/// Writes, seals and prepares; returns the committables and the rejected records' reasons.
pub(crate) fn prepare(sink: &mut dyn ErasedTwoPhaseSink, records: &Batch) -> Result<(Vec<Json>, Vec<String>)> {
    let mut rejected = Rejections::default();
    sink.write(&partition(), records, &mut rejected)?;
    let plan = sink.seal(&partition())?.expect("something is buffered");
    let committables = sink.prepare(&[plan], &mut rejected)?;
    Ok((committables, rejected.reasons.iter().map(|reason| format!("{}: {}", reason.code, reason.message)).collect()))
}

/// Loads records; returns the rejected records' reasons.
pub(crate) fn load(sink: &mut dyn ErasedTwoPhaseSink, records: &Batch) -> Vec<String> {
    let (committables, rejected) = prepare(sink, records).unwrap();
    sink.commit(&committables).unwrap();
    rejected
}
