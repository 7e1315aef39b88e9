//! What the tests share: sinks on servers of their own, and a client that knows nothing of the
//! sink.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "every test crate has its copy, and uses a part of it"
)]

pub mod certificate;
pub mod fake;
pub mod server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{
    Batch, Delivery, IdempotentSink, MemoryBudget, OffsetRanges, PartitionRecords, PreflightIssue, Rejections, Result,
    RowCounts, Schema, SchemaId, SchemaLookup, Sink, SinkConnector, SinkContext, SinkSpec, TopicPartition,
};
use trunkline_elasticsearch::ElasticsearchConnector;

/// The published schemas.
#[derive(Clone, Default)]
struct Schemas(Arc<Mutex<Vec<Arc<Schema>>>>);

impl SchemaLookup for Schemas {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(self.0.lock().unwrap().iter().find(|schema| schema.id() == id).cloned())
    }
}

/// What sinks run in.
pub struct Setup {
    runtime: tokio::runtime::Runtime,
    scratch: tempfile::TempDir,
    schemas: Schemas,
}

impl Setup {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { runtime, scratch: tempfile::tempdir().unwrap(), schemas: Schemas::default() }
    }

    /// Publishes a schema in its canonical form, and returns its id.
    pub fn publish(&self, fields: &Value) -> String {
        let schema = Schema::from_json(json!({"fields": fields}).to_string().as_bytes()).unwrap();
        let id = schema.id().to_string();
        self.schemas.0.lock().unwrap().push(Arc::new(schema));
        id
    }

    /// A configured sink.
    pub fn spec(&self, options: &str) -> Box<dyn SinkSpec> {
        spec(options)
    }

    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.runtime.handle()
    }

    pub fn open(&self, options: &str) -> Box<dyn IdempotentSink> {
        self.try_open(options).unwrap()
    }

    /// What `trunkline validate --check` reports.
    pub fn preflight(&self, options: &str) -> Vec<PreflightIssue> {
        spec(options).preflight("pipeline.test", self.runtime.handle())
    }

    /// Counts the documents of the first offsets of the topic partition of [`delivery`].
    pub fn count(&self, options: &str, offsets: i64) -> Result<RowCounts> {
        let ranges = OffsetRanges::from([(TopicPartition::new("web", 3), (0, offsets))]);
        spec(options).count_rows(&ranges, 5, self.runtime.handle()).map(Option::unwrap)
    }

    pub fn try_open(&self, options: &str) -> Result<Box<dyn IdempotentSink>> {
        self.open_within(options, MemoryBudget::new(1 << 30))
    }

    pub fn open_within(&self, options: &str, budget: MemoryBudget) -> Result<Box<dyn IdempotentSink>> {
        let sink = spec(options).open(SinkContext {
            name: "pipeline.test".to_owned(),
            replay: None,
            budget,
            runtime: self.runtime.handle().clone(),
            scratch: self.scratch.path().to_owned(),
            schemas: Arc::new(self.schemas.clone()),
        })?;
        let Sink::Idempotent(sink) = sink else { panic!("the sink is not an idempotent sink") };
        Ok(sink)
    }
}

fn spec(options: &str) -> Box<dyn SinkSpec> {
    let table = read_toml(options);
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
    let spec = ElasticsearchConnector.configure(&section, &[]);
    section.finish();
    let problems = report.into_problems();
    assert!(problems.is_empty(), "{problems:#?}");
    spec.unwrap()
}

/// A record: offset, key, value.
pub type TestRecord<'a> = (i64, Option<&'a str>, Option<&'a str>);

/// Records of one topic partition.
pub fn delivery(records: &[TestRecord<'_>]) -> Delivery {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for (offset, key, value) in records {
        let mut record = batch.record();
        record.timestamp(1_431_857_103_000).read_from(topic, 3, *offset);
        if let Some(key) = key {
            record.key(key.as_bytes());
        }
        if let Some(value) = value {
            record.value(value.as_bytes());
        }
        record.finish();
    }
    Delivery::new(vec![PartitionRecords { partition: TopicPartition::new("web", 3), records: batch }])
}

/// Records without keys that have a schema.
pub fn with_schema(schema: &str, first: i64, values: &[&str]) -> Delivery {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for (offset, value) in (first..).zip(values) {
        let mut record = batch.record();
        record.timestamp(1_431_857_103_000).read_from(topic, 3, offset).value(value.as_bytes());
        record.header("trunkline.schema", Some(schema.as_bytes()));
        record.finish();
    }
    Delivery::new(vec![PartitionRecords { partition: TopicPartition::new("web", 3), records: batch }])
}

/// Records with the values `{"n":..}` of their offsets.
pub fn numbered(offsets: std::ops::Range<i64>) -> Delivery {
    let values: Vec<(i64, String)> = offsets.map(|offset| (offset, format!("{{\"n\":{offset}}}"))).collect();
    delivery(&values.iter().map(|(offset, value)| (*offset, None, Some(value.as_str()))).collect::<Vec<_>>())
}

/// Offsets and codes of the rejected records.
pub fn rejections(delivery: &Delivery) -> Vec<(i64, String)> {
    let mut rejected = Rejections::default();
    delivery.rejections(0, &mut rejected);
    rejected.iter().map(|(record, reason)| (record.entry().offset, reason.code.clone())).collect()
}

/// Offsets of the records that are not decided.
pub fn pending(delivery: &Delivery) -> Vec<i64> {
    delivery.pending().map(|pending| pending.record.entry().offset).collect()
}

/// Calls `deliver` until it succeeds, as the runtime does, but at most `calls` times. Returns the
/// number of calls.
pub fn deliver_within(sink: &dyn IdempotentSink, delivery: &mut Delivery, calls: usize) -> usize {
    for call in 1..=calls {
        match sink.deliver(delivery) {
            Ok(()) => return call,
            Err(error) => assert_eq!(error.domain, trunkline_connector::Domain::External, "{error}"),
        }
    }
    panic!("not delivered after {calls} calls");
}

/// Sends a request with a JSON body, and returns the status and the body of the answer.
pub fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
    writer.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let (mut is_chunked, mut length) = (false, None);
    while line.trim() != "" {
        line.clear();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().ok();
        }
        is_chunked |= line.to_lowercase().starts_with("transfer-encoding: chunked");
    }
    let mut answer = Vec::new();
    if is_chunked {
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let length = u64::from_str_radix(line.trim(), 16).unwrap();
            if length == 0 {
                break;
            }
            reader.by_ref().take(length).read_to_end(&mut answer).unwrap();
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
    } else {
        // Some servers leave the connection open.
        reader.take(length.unwrap_or(u64::MAX)).read_to_end(&mut answer).unwrap();
    }
    (status, serde_json::from_slice(&answer).unwrap_or(Value::Null))
}
