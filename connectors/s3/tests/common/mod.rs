//! Shared by the tests: sinks with new destinations, and readers that are independent of the sink.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "every test crate has its copy, and uses a part of it"
)]

pub mod proxy;
pub mod s3;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value as Json;
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{
    Batch, ErasedTwoPhaseSink, MemoryBudget, PreflightIssue, Rejections, Result, Schema, SchemaId, SchemaLookup, Sink,
    SinkConnector, SinkContext, SinkSpec, TopicPartition,
};
use trunkline_s3::S3Connector;

/// A Parquet file that was read.
pub struct ReadFile {
    /// Its key below the destination.
    pub key: String,
    pub metadata: HashMap<String, String>,
    pub row_groups: usize,
    pub batches: Vec<RecordBatch>,
}

impl ReadFile {
    pub fn parse(key: String, bytes: Vec<u8>) -> Self {
        let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).unwrap();
        let pairs = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
        let row_groups = builder.metadata().num_row_groups();
        let batches = builder.build().unwrap().map(|batch| batch.unwrap()).collect();
        let metadata = pairs.into_iter().map(|pair| (pair.key, pair.value.unwrap_or_default())).collect();
        Self { key, metadata, row_groups, batches }
    }

    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Names and types of its columns.
    pub fn columns(&self) -> Vec<(String, String)> {
        let schema = self.batches[0].schema();
        schema.fields().iter().map(|field| (field.name().clone(), field.data_type().to_string())).collect()
    }

    /// Its rows as JSON.
    pub fn json(&self) -> Vec<Json> {
        let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
        self.batches.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.finish().unwrap();
        let text = String::from_utf8(writer.into_inner()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// All visible files below `root`, by name: what a reader's `**/*.parquet` finds.
pub fn read_directory(root: &Path) -> Vec<ReadFile> {
    let mut found = Vec::new();
    walk(root, &mut |path| {
        let key = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        let hidden = key.split('/').any(|segment| segment.starts_with('.'));
        if !hidden {
            assert!(key.ends_with(".parquet"), "a visible file that is no Parquet: {key}");
            found.push(ReadFile::parse(key, std::fs::read(path).unwrap()));
        }
    });
    found.sort_by(|left, right| left.key.cmp(&right.key));
    found
}

/// All files of hidden folders.
pub fn hidden_files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    walk(root, &mut |path| {
        let key = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if key.split('/').any(|segment| segment.starts_with('.')) {
            found.push(key);
        }
    });
    found
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, visit) } else { visit(&path) }
    }
}

/// The numbers of the conformance suite's rows, by partition.
pub fn numbers(files: &[ReadFile]) -> BTreeMap<i32, Vec<i64>> {
    let mut rows: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
    for batch in files.iter().flat_map(|file| &file.batches) {
        let column = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().to_vec();
        for (partition, number) in column("partition").into_iter().zip(column("number")) {
            rows.entry(partition as i32).or_default().push(number);
        }
    }
    rows
}

/// Schemas that records may name.
#[derive(Default)]
pub struct Schemas(Mutex<HashMap<SchemaId, Arc<Schema>>>);

impl Schemas {
    pub fn commit(&self, schema: arrow::datatypes::Schema) -> SchemaId {
        let schema = Schema::new(Arc::new(schema)).unwrap();
        let id = schema.id();
        self.0.lock().unwrap().insert(id, Arc::new(schema));
        id
    }
}

impl SchemaLookup for Schemas {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(self.0.lock().unwrap().get(&id).cloned())
    }
}

/// What a sink needs: a folder, a runtime, schemas.
pub struct Setup {
    pub folder: tempfile::TempDir,
    pub runtime: tokio::runtime::Runtime,
    pub schemas: Arc<Schemas>,
}

impl Setup {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { folder: tempfile::tempdir().unwrap(), runtime, schemas: Arc::default() }
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// A sink on the folder.
    pub fn open(&self, options: &str) -> Box<dyn ErasedTwoPhaseSink> {
        self.try_open(&format!("url = \"file://{}\"\n{options}", self.root().display())).unwrap()
    }

    /// What `trunkline validate --check` reports.
    pub fn preflight(&self, options: &str) -> Vec<PreflightIssue> {
        spec(options).preflight("pipeline.test", self.runtime.handle())
    }

    pub fn try_open(&self, options: &str) -> Result<Box<dyn ErasedTwoPhaseSink>> {
        let scratch =
            self.folder.path().join(format!("scratch-{}", std::fs::read_dir(self.folder.path()).unwrap().count()));
        std::fs::create_dir_all(&scratch).unwrap();
        let sink = spec(options).open(SinkContext {
            name: "pipeline.test".to_owned(),
            replay: None,
            budget: MemoryBudget::new(1 << 30),
            runtime: self.runtime.handle().clone(),
            scratch,
            schemas: Arc::clone(&self.schemas) as Arc<dyn SchemaLookup>,
        })?;
        let Sink::TwoPhase(sink) = sink else { panic!("the sink is not a two-phase sink") };
        Ok(sink)
    }

    pub fn files(&self) -> Vec<ReadFile> {
        read_directory(&self.root())
    }
}

pub fn spec(options: &str) -> Box<dyn SinkSpec> {
    let table = read_toml(options);
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
    let spec = S3Connector.configure(&section, &["path"]);
    section.finish();
    let problems = report.into_problems();
    assert!(problems.is_empty(), "{problems:#?}");
    spec.unwrap()
}

pub fn topic_partition() -> TopicPartition {
    TopicPartition { topic: "web".into(), partition: 3 }
}

/// Records with values, each with the header of its schema if it has one; offsets from `first`.
pub fn batch(first: i64, records: &[(Option<SchemaId>, &str)]) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for (offset, (schema, value)) in (first..).zip(records) {
        let mut record = batch.record();
        record.timestamp(1_431_857_103_000).read_from(topic, 3, offset).value(value.as_bytes());
        if let Some(id) = schema {
            record.header("trunkline.schema", Some(id.to_string().as_bytes()));
        }
        record.finish();
    }
    batch
}

/// Writes records without schema, all of which must be accepted.
pub fn write(sink: &mut dyn ErasedTwoPhaseSink, first: i64, values: &[&str]) {
    let records: Vec<_> = values.iter().map(|value| (None, *value)).collect();
    let mut rejected = Rejections::default();
    sink.write(&topic_partition(), &batch(first, &records), &mut rejected).unwrap();
    assert!(rejected.is_empty(), "{:?}", rejected.reasons);
}

/// Seals, prepares and commits.
pub fn commit(sink: &mut dyn ErasedTwoPhaseSink) -> Vec<Json> {
    let plan = sink.seal(&topic_partition()).unwrap().expect("nothing is buffered");
    let committables = sink.prepare(std::slice::from_ref(&plan), &mut Rejections::default()).unwrap();
    sink.commit(&committables).unwrap();
    committables
}

/// Values that are not rows.
pub fn bad_values() -> Vec<Option<Vec<u8>>> {
    let values: [&[u8]; 8] =
        [b"[1]", b"17", b"null", b"{\"number\":", b"", b"{\"a\":\"\xff\xfe\"}", b"{\"number\":1} x", b"\"text\""];
    values.iter().map(|value| Some(value.to_vec())).chain([None]).collect()
}

/// Options that must be refused for any destination.
pub const BAD_OPTIONS: [&str; 16] = [
    "url = \"/data/lake\"",
    "url = \"file://host/data\"",
    "url = \"s3://\"",
    "url = 7",
    "path = \"{@pth}\"",
    "path = \"a//b\"",
    "path = \"../up\"",
    "rotate = { byte = \"1MiB\" }",
    "rotate = { records = 0 }",
    "rotate = { idle = \"0s\" }",
    "rotate = 5",
    "compression = \"gzip\"",
    "compression_level = 99",
    "row_group = \"1B\"",
    "max_open_files = 0",
    "bucket = \"lake\"",
];
