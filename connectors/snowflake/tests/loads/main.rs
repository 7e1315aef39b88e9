//! A sink on the stand-in for Snowflake: what it loads, whatever breaks. The tests share one
//! account.

#![allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]

mod changes;
mod checks;
#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod rebuilds;
mod refused;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use common::{Account, Exclusive, exclusive};
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{
    Batch, ErasedTwoPhaseSink, MemoryBudget, Rejections, Result, Schema, SchemaId, SchemaLookup, Sink, SinkConnector,
    SinkContext, SinkReplay, SinkSpec, TopicPartition, headers,
};
use trunkline_snowflake::SnowflakeConnector;
use trunkline_tests::RowChange;

/// The schema that the records name, if any.
struct OneSchema(Option<Arc<Schema>>);

impl SchemaLookup for OneSchema {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(self.0.clone().filter(|schema| schema.id() == id))
    }
}

struct Setup {
    account: Account,
    runtime: tokio::runtime::Runtime,
    /// In the folder of the S3 server, which is removed with it.
    scratch: PathBuf,
    opened: AtomicU32,
}

impl Setup {
    /// The servers of all tests, for this one alone.
    fn find() -> Option<Exclusive<Self>> {
        static SHARED: Mutex<Option<Setup>> = Mutex::new(None);
        exclusive(&SHARED, Self::start)
    }

    fn start() -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let account = Account::start()?;
        let scratch = account.s3.folder.join("scratch");
        Some(Self { account, runtime, scratch, opened: AtomicU32::new(0) })
    }

    fn open_with(&self, options: &str, schema: Option<Arc<Schema>>) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        match spec(options).open(self.context(schema))? {
            Sink::TwoPhase(sink) => Ok(sink),
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    fn context(&self, schema: Option<Arc<Schema>>) -> SinkContext {
        let scratch = self.scratch.join(self.opened.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir_all(&scratch).unwrap();
        SinkContext {
            name: "loads.test".to_owned(),
            replay: None,
            budget: MemoryBudget::new(1 << 30),
            runtime: self.runtime.handle().clone(),
            scratch,
            schemas: Arc::new(OneSchema(schema)),
        }
    }

    fn open(&self, schema: &str, mode: &str) -> Box<dyn ErasedTwoPhaseSink> {
        self.open_with(&self.account.options(schema, mode), None).unwrap()
    }

    /// A sink with the options of one that was configured before.
    fn open_spec(&self, spec: &dyn SinkSpec) -> Box<dyn ErasedTwoPhaseSink> {
        match spec.open(self.context(None)).unwrap() {
            Sink::TwoPhase(sink) => sink,
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    /// A sink that replaces the rows of a range.
    fn open_superseding(&self, options: &str, run: &str, range: (i64, i64)) -> Box<dyn ErasedTwoPhaseSink> {
        let ranges = BTreeMap::from([(partition(), range)]);
        let earlier = ranges.keys().filter(|_| range.0 > 0).cloned().collect();
        let replay = SinkReplay { run: run.to_owned(), supersedes: true, ranges, earlier };
        match spec(options).open(SinkContext { replay: Some(replay), ..self.context(None) }).unwrap() {
            Sink::TwoPhase(sink) => sink,
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    /// The rows of a query, with `null` for null, joined by `|`.
    fn query(&self, schema: &str, sql: &str) -> Vec<String> {
        let rows = self.account.server.query("DB", schema, sql).unwrap();
        let value = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
        rows.into_iter().map(|row| row.into_iter().map(value).collect::<Vec<_>>().join("|")).collect()
    }
}

fn spec(options: &str) -> Box<dyn SinkSpec> {
    let table = read_toml(options);
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
    let spec = SnowflakeConnector.configure(&section, &[]);
    section.finish();
    let problems = report.into_problems();
    spec.unwrap_or_else(|| panic!("{problems:?}"))
}

fn partition() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

fn batch(first: i64, records: &[(Option<&str>, Option<&str>)], schema: Option<&Schema>) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("orders");
    for (offset, (key, value)) in (first..).zip(records) {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, offset);
        if let Some(key) = key {
            record.key(key.as_bytes());
        }
        if let Some(value) = value {
            record.value(value.as_bytes());
        }
        if let Some(schema) = schema {
            record.header(headers::SCHEMA, Some(schema.id().to_string().as_bytes()));
        }
        record.finish();
    }
    batch
}

/// Changes of a source whose epoch is known, at these offsets.
fn ordered_at<'c>(changes: impl Iterator<Item = (i64, &'c RowChange)>) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("orders");
    for (offset, change) in changes {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, offset);
        if let Some(key) = change.key() {
            record.key(key.as_bytes());
        }
        record.value(change.value().as_bytes());
        record.header(headers::EPOCH, Some(change.epoch.to_string().as_bytes()));
        record.finish();
    }
    batch
}

fn write(sink: &mut dyn ErasedTwoPhaseSink, batch: &Batch) {
    let mut rejected = Rejections::default();
    sink.write(&partition(), batch, &mut rejected).unwrap();
    assert!(rejected.is_empty(), "{:?}", rejected.reasons);
}

fn prepare(sink: &mut dyn ErasedTwoPhaseSink) -> Vec<serde_json::Value> {
    let plan = sink.seal(&partition()).unwrap().unwrap();
    sink.prepare(&[plan], &mut Rejections::default()).unwrap()
}

fn load(sink: &mut dyn ErasedTwoPhaseSink, batch: &Batch) {
    write(sink, batch);
    let committables = prepare(sink);
    sink.commit(&committables).unwrap();
}

const ROWS: [(Option<&str>, Option<&str>); 3] = [
    (Some("{\"id\":1}"), Some("{\"id\":1,\"name\":\"a\"}")),
    (Some("{\"id\":2}"), Some("{\"id\":2,\"name\":\"b\"}")),
    (Some("{\"id\":1}"), Some("{\"id\":1,\"name\":\"c\"}")),
];
