//! What sinks of every kind are checked with: a fixture that a connector's tests implement, records
//! with numbers, and a runtime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::read_toml;
use crate::config::{Report, Section};
use crate::{
    Batch, CommitPolicy, MemoryBudget, Result, Schema, SchemaId, SchemaLookup, Sink, SinkConnector, SinkContext,
    SinkSpec, TopicPartition,
};

/// A sink, and a place where its destinations are created and read back.
pub trait SinkFixture: Sync {
    /// The connector.
    fn connector(&self) -> Box<dyn SinkConnector>;

    /// Options, as TOML, of a sink that writes to the destination with this name. A destination is
    /// empty when its name is first used.
    fn options(&self, destination: &str) -> String;

    /// Further options, one line each, that must be refused.
    fn bad_options(&self) -> Vec<&'static str>;

    /// The value of a good record. Records are identified by partition and number; the number is
    /// the record's offset.
    fn value(&self, partition: i32, number: i64, text: &str) -> Vec<u8> {
        format!("{{\"partition\":{partition},\"number\":{number},\"text\":\"{text}\"}}").into_bytes()
    }

    /// Values that the sink must reject; `None` for a record without a value.
    fn bad_values(&self) -> Vec<Option<Vec<u8>>>;

    /// What a reader of the destination sees: the numbers of each partition, in the destination's
    /// order.
    fn rows(&self, destination: &str) -> BTreeMap<i32, Vec<i64>>;

    /// What exists at the destination without being visible: temporary files, unfinished uploads.
    fn leftovers(&self, destination: &str) -> Vec<String> {
        let _ = destination;
        Vec::new()
    }

    /// The most memory that the sink may report with a few open outputs.
    fn memory_bound(&self) -> usize {
        64 << 20
    }
}

/// What one check works with: a destination that no other check uses.
pub(super) struct Bench<'a> {
    pub(super) fixture: &'a dyn SinkFixture,
    pub(super) destination: String,
    runtime: tokio::runtime::Runtime,
    scratch: PathBuf,
    opened: AtomicU64,
}

struct NoSchemas;

impl SchemaLookup for NoSchemas {
    fn schema(&self, _: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(None)
    }
}

impl<'a> Bench<'a> {
    pub(super) fn new(fixture: &'a dyn SinkFixture, name: &str) -> Self {
        let destination = name.replace(' ', "-");
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = format!("trunkline-conformance-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let runtime = must(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build());
        Self { fixture, destination, runtime, scratch: std::env::temp_dir().join(unique), opened: AtomicU64::new(0) }
    }

    /// The sink's spec with the fixture's options for this check.
    pub(super) fn spec(&self) -> Box<dyn SinkSpec> {
        let toml = self.fixture.options(&self.destination);
        let table = read_toml(&toml);
        let report = Report::default();
        let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
        let spec = self.fixture.connector().configure(&section, &[]);
        section.finish();
        let problems = report.into_problems();
        assert!(problems.is_empty(), "good options are refused: {problems:#?}\n{toml}");
        match spec {
            Some(spec) => spec,
            None => panic!("good options give no sink, and no problem is reported:\n{toml}"),
        }
    }

    /// A sink on the check's destination, as a task that just started has it.
    pub(super) fn open(&self) -> Sink {
        let scratch = self.scratch.join(self.opened.fetch_add(1, Ordering::Relaxed).to_string());
        must(std::fs::create_dir_all(&scratch));
        must(self.spec().open(SinkContext {
            name: "conformance.test".to_owned(),
            replay: None,
            budget: MemoryBudget::new(1 << 30),
            runtime: self.runtime.handle().clone(),
            scratch,
            schemas: Arc::new(NoSchemas),
        }))
    }

    /// Records of one partition; their numbers are their offsets.
    pub(super) fn batch(&self, partition: i32, numbers: impl IntoIterator<Item = i64>) -> Batch {
        self.batch_of(partition, numbers.into_iter().map(|number| (number, format!("text {number}"))))
    }

    pub(super) fn batch_of(&self, partition: i32, records: impl IntoIterator<Item = (i64, String)>) -> Batch {
        let mut batch = Batch::default();
        for (number, text) in records {
            push(&mut batch, partition, number, Some(&self.fixture.value(partition, number, &text)));
        }
        batch
    }

    pub(super) fn rows(&self) -> BTreeMap<i32, Vec<i64>> {
        self.fixture.rows(&self.destination)
    }

    pub(super) fn expect_rows(&self, expected: impl IntoIterator<Item = (i32, std::ops::Range<i64>)>) {
        let expected: BTreeMap<i32, Vec<i64>> =
            expected.into_iter().map(|(partition, numbers)| (partition, numbers.collect())).collect();
        assert!(self.rows() == expected, "expected {expected:?}\n   found {:?}", self.rows());
    }

    pub(super) fn expect_no_leftovers(&self) {
        let leftovers = self.fixture.leftovers(&self.destination);
        assert!(leftovers.is_empty(), "left over: {leftovers:?}");
    }

    pub(super) fn expect_nothing(&self) {
        assert!(self.rows().is_empty(), "visible: {:?}", self.rows());
        self.expect_no_leftovers();
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.scratch));
    }
}

pub(super) fn must<T, E: std::fmt::Display>(result: std::result::Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

pub(super) fn topic_partition(partition: i32) -> TopicPartition {
    TopicPartition::new("conformance", partition)
}

pub(super) fn push(batch: &mut Batch, partition: i32, offset: i64, value: Option<&[u8]>) {
    let topic = batch.topic_index("conformance");
    let mut record = batch.record();
    record.timestamp(1_431_857_103_000).read_from(topic, partition, offset);
    if let Some(value) = value {
        record.value(value);
    }
    record.finish();
}

/// Every wrong option is refused.
pub(super) fn bad_options_are_refused(bench: &Bench<'_>) {
    let good = bench.fixture.options(&bench.destination);
    for bad in bench.fixture.bad_options() {
        let replaced = bad.split_once('=').map_or("", |(key, _)| key.trim());
        let kept: Vec<_> =
            good.lines().filter(|line| line.split_once('=').is_none_or(|(key, _)| key.trim() != replaced)).collect();
        let table = read_toml(&format!("{}\n{bad}", kept.join("\n")));
        let report = Report::default();
        let section = Section::new(&table, 0..0, "sinks.test", Path::new("."), &report);
        drop(bench.fixture.connector().configure(&section, &[]));
        section.finish();
        assert!(!report.is_empty(), "not refused: {bad}");
    }
}

/// The limits of the commit policy are above zero.
pub(super) fn the_commit_policy_is_usable(bench: &Bench<'_>) {
    let CommitPolicy { bytes, records, age, idle, max_open_files } = bench.spec().commit_policy();
    assert!(bytes > 0 && records > 0 && max_open_files > 0, "{bytes} bytes, {records} records, {max_open_files} files");
    assert!(!age.is_zero() && !idle.is_zero(), "age {age:?}, idle {idle:?}");
}

/// A bad record between two good ones, at the offset of the first.
pub(super) fn batch_with_bad_record(bench: &Bench<'_>, first: i64, bad: Option<&[u8]>) -> Batch {
    let mut batch = Batch::default();
    for number in first..first + 10 {
        push(&mut batch, 0, number, Some(&bench.fixture.value(0, number, "x")));
        if number == first + 4 {
            push(&mut batch, 0, number, bad);
        }
    }
    batch
}

/// Text that does not compress well.
pub(super) fn noise(seed: i64, len: usize) -> String {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(len + 16);
    while text.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(&format!("{state:016x}"));
    }
    text
}
