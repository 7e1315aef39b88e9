//! What every source must do. Each function panics with a message that names the broken rule; a
//! connector calls [`source_suite`] in its tests, or single checks.
//!
//! Records are compared by ordering key, because only records with the same key have an order, and
//! without their timestamps, which may be the time of reading.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::batch::RecordRef;
use crate::budget::MemoryBudget;
use crate::config::{Key, Node, Problem, Report, Section, Table, Text, Value};
use crate::source::{Fill, Source, SourceBatch, SourceConnector, SourceContext, SourceSpec};

/// A data set, and the options of a source that reads it.
pub trait SourceFixture {
    /// The connector.
    fn connector(&self) -> &dyn SourceConnector;

    /// Creates the data set in a new place and returns its number of records, rejected and dropped
    /// ones included: at least 20, with more than one ordering key if the source has several.
    fn create(&mut self) -> u64;

    /// Adds at least one complete record and returns how many.
    fn append(&mut self) -> u64;

    /// The source's options, as TOML.
    fn options(&self) -> String;

    /// Base folder of relative paths in the options.
    fn base(&self) -> PathBuf;

    /// Options that must be refused, as TOML, each with the code of a problem that must be
    /// reported.
    fn bad_options(&self) -> Vec<(String, &'static str)>;

    /// Bytes of the budget that the source may hold while it reads the data set.
    fn budget(&self) -> usize {
        32 << 20
    }
}

/// Runs all checks, each on a new fixture.
pub fn source_suite<F: SourceFixture>(mut fixture: impl FnMut() -> F) {
    source_rejects_bad_options(&fixture());
    source_resumes_from_any_checkpoint(&mut fixture());
    source_reports_lag(&mut fixture());
    source_stops_promptly(&mut fixture());
    source_keeps_to_its_limits(&mut fixture());
}

/// A record as the suite compares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRecord {
    /// Key.
    pub key: Option<Vec<u8>>,
    /// Value.
    pub value: Option<Vec<u8>>,
    /// Headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Code of the reason, for a record that was rejected.
    pub rejected: Option<String>,
}

/// An open source, with the state that the runtime would have committed.
pub struct SourceReading {
    source: Box<dyn Source>,
    /// Records by ordering key and by whether they were rejected, in order.
    pub ordering_keys: BTreeMap<(i32, bool), Vec<SeenRecord>>,
    /// Records dropped by a rule.
    pub dropped: u64,
    /// The position as committed.
    pub position: BTreeMap<String, Vec<u8>>,
    budget: MemoryBudget,
    scratch: Scratch,
    _runtime: tokio::runtime::Runtime,
}

/// A folder that is removed when dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Time limit of each check.
const PATIENCE: Duration = Duration::from_secs(60);
/// How late `fill` may return, on a busy machine.
const SLACK: Duration = Duration::from_millis(1500);

impl SourceReading {
    /// Opens a source at a position.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn open(spec: &dyn SourceSpec, position: &BTreeMap<String, Vec<u8>>, until_idle: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch(std::env::temp_dir().join(format!("trunkline-suite-{}-{number}", std::process::id())));
        if let Err(error) = std::fs::create_dir_all(&scratch.0) {
            panic!("no scratch folder {}: {error}", scratch.0.display());
        }
        let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => panic!("no runtime: {error}"),
        };
        let budget = MemoryBudget::new(1 << 30);
        let context = SourceContext {
            task: "suite.tested.source".to_owned(),
            position: position.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            until_idle,
            budget: budget.clone(),
            runtime: runtime.handle().clone(),
            scratch: scratch.0.clone(),
        };
        let source = match spec.open(context) {
            Ok(source) => source,
            Err(error) => panic!("the source does not open at its own position {:?}: {error}", position.keys()),
        };
        Self {
            source,
            ordering_keys: BTreeMap::new(),
            dropped: 0,
            position: position.clone(),
            budget,
            scratch,
            _runtime: runtime,
        }
    }

    /// Fills an empty batch, collects its records, and acknowledges its position.
    ///
    /// # Panics
    /// If the fill fails or returns late.
    pub fn fill(&mut self, batch: &mut SourceBatch, wait: Duration) -> Fill {
        batch.clear();
        let deadline = Instant::now() + wait;
        let filled = self.source.fill(batch, deadline);
        let late = Instant::now().saturating_duration_since(deadline);
        assert!(late < SLACK, "fill returned {late:?} after its deadline");
        self.take(batch);
        match filled {
            Ok(filled) => filled,
            Err(error) => panic!("fill failed: {error}"),
        }
    }

    /// Fills until the source is caught up.
    ///
    /// # Panics
    /// If that takes more than a minute.
    pub fn read_all(&mut self, batch: &mut SourceBatch) {
        let begun = Instant::now();
        while self.fill(batch, Duration::from_secs(2)) != Fill::CaughtUp {
            assert!(begun.elapsed() < PATIENCE, "not caught up after {PATIENCE:?}; {} records so far", self.count());
        }
    }

    /// Records, rejected and dropped ones included.
    pub fn count(&self) -> u64 {
        self.ordering_keys.values().map(|records| records.len() as u64).sum::<u64>() + self.dropped
    }

    fn take(&mut self, batch: &SourceBatch) {
        assert_eq!(
            batch.rejected.records.len(),
            batch.rejected.reasons.len(),
            "every rejected record must have one reason"
        );
        for record in batch.records.iter() {
            self.ordering_keys.entry((record.entry().partition, false)).or_default().push(seen(record, None));
        }
        for (record, reason) in batch.rejected.iter() {
            assert!(!reason.code.is_empty() && !reason.message.is_empty(), "a rejected record must say why");
            let record_seen = seen(record, Some(reason.code.clone()));
            self.ordering_keys.entry((record.entry().partition, true)).or_default().push(record_seen);
        }
        self.dropped += batch.dropped;
        for change in &batch.position {
            match &change.value {
                Some(value) => self.position.insert(change.key.clone(), value.clone()),
                None => self.position.remove(&change.key),
            };
        }
        if let Err(error) = self.source.committed(&batch.position) {
            panic!("committed failed: {error}");
        }
    }
}

fn seen(record: RecordRef<'_>, rejected: Option<String>) -> SeenRecord {
    SeenRecord {
        key: record.key().map(<[u8]>::to_vec),
        value: record.value().map(<[u8]>::to_vec),
        // A source without a position begins another history, which has another epoch.
        headers: record
            .headers()
            .filter(|(name, _)| ![crate::headers::EPOCH, crate::headers::ORDER].contains(name))
            .map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)))
            .collect(),
        rejected,
    }
}

/// A source that is stopped after any fill and opened at its position returns exactly the rest, and
/// later records once.
///
/// # Panics
/// If the rule is broken.
pub fn source_resumes_from_any_checkpoint(fixture: &mut impl SourceFixture) {
    let expected = fixture.create();
    let spec = source_spec(fixture);
    let mut batch = SourceBatch::with_limits(1 << 20, 3);
    let mut whole = SourceReading::open(&*spec, &BTreeMap::new(), true);
    let mut stops = vec![(BTreeMap::new(), BTreeMap::new(), 0)];
    let begun = Instant::now();
    while whole.fill(&mut batch, Duration::from_secs(2)) != Fill::CaughtUp {
        let lengths: BTreeMap<_, _> = whole.ordering_keys.iter().map(|(key, records)| (*key, records.len())).collect();
        stops.push((whole.position.clone(), lengths, whole.dropped));
        assert!(begun.elapsed() < PATIENCE, "not caught up after {PATIENCE:?}");
    }
    assert_eq!(whole.count(), expected, "records read, with a position of nothing");

    let mut batch = SourceBatch::with_limits(1 << 20, 1000);
    for (number, (position, lengths, dropped)) in stops.iter().enumerate() {
        let mut resumed = SourceReading::open(&*spec, position, true);
        resumed.read_all(&mut batch);
        for (key, records) in &whole.ordering_keys {
            let before = lengths.get(key).copied().unwrap_or(0);
            let rest = resumed.ordering_keys.get(key).map_or(&[][..], Vec::as_slice);
            assert!(
                rest == &records[before..],
                "resumed after fill {number} of {}, ordering key {key:?}: expected {} records from {:?}, got {} from {:?}",
                stops.len(),
                records.len() - before,
                records.get(before),
                rest.len(),
                rest.first()
            );
        }
        assert_eq!(resumed.count(), whole.count() - lengths.values().map(|len| *len as u64).sum::<u64>() - dropped);
    }

    let mut resumed = SourceReading::open(&*spec, &whole.position, true);
    resumed.read_all(&mut batch);
    assert_eq!(resumed.count(), 0, "records read a second time");
    let added = fixture.append();
    let mut resumed = SourceReading::open(&*spec, &resumed.position, true);
    resumed.read_all(&mut batch);
    assert_eq!(resumed.count(), added, "records that were added after the position");
}

/// Wrong options are reported with their codes, and no source is made.
///
/// # Panics
/// If the rule is broken.
pub fn source_rejects_bad_options(fixture: &impl SourceFixture) {
    for (options, code) in fixture.bad_options() {
        let (made, problems) = configure_source(fixture.connector(), &options, &fixture.base());
        let codes: Vec<_> = problems.iter().map(|problem| problem.code).collect();
        assert!(codes.contains(&code), "expected the problem {code}, got {codes:?} for:\n{options}");
        let own = problems.iter().any(|problem| problem.code != "config.unknown_key");
        assert!(!own || made.is_none(), "a source was made in spite of {problems:?} for:\n{options}");
        for problem in problems {
            assert!(
                !problem.message.is_empty() && !problem.expected.is_empty(),
                "{problem:?} must say what and what else"
            );
            assert!(problem.span.end <= options.len(), "{problem:?} points outside of:\n{options}");
        }
    }
}

/// The lag is above zero while something is left, and zero at the end.
///
/// # Panics
/// If the rule is broken.
pub fn source_reports_lag(fixture: &mut impl SourceFixture) {
    fixture.create();
    let spec = source_spec(fixture);
    let mut reading = SourceReading::open(&*spec, &BTreeMap::new(), true);
    reading.fill(&mut SourceBatch::with_limits(1 << 20, 1), Duration::from_secs(10));
    let lag = reading.source.lag();
    assert!(!lag.is_caught_up(), "{lag:?} after one record of many");
    reading.read_all(&mut SourceBatch::with_limits(1 << 20, 1000));
    let lag = reading.source.lag();
    assert!(lag.is_caught_up(), "{lag:?} at the end");
}

/// Without data, `fill` waits until its deadline and no longer. It returns earlier when data
/// arrives.
///
/// # Panics
/// If the rule is broken.
pub fn source_stops_promptly(fixture: &mut impl SourceFixture) {
    fixture.create();
    let spec = source_spec(fixture);
    let mut batch = SourceBatch::with_limits(1 << 20, 1000);
    let mut reading = SourceReading::open(&*spec, &BTreeMap::new(), false);
    // `SourceReading::fill` checks that the call returns by its deadline.
    reading.fill(&mut batch, Duration::ZERO);
    reading.read_all(&mut batch);
    let before = reading.count();
    let begun = Instant::now();
    let wait = Duration::from_millis(200);
    reading.fill(&mut batch, wait);
    assert_eq!(reading.count(), before, "records out of nothing");
    assert!(begun.elapsed() >= wait.mul_f64(0.9), "fill did not wait: the runtime would spin");
    let added = fixture.append();
    let begun = Instant::now();
    while reading.count() < before + added {
        reading.fill(&mut batch, Duration::from_secs(20));
        assert!(begun.elapsed() < Duration::from_secs(15), "added records were not returned in time");
    }
    assert_eq!(reading.count(), before + added);
}

/// Batches keep their limits, except for one record. Other memory is reserved, bounded and
/// returned.
///
/// # Panics
/// If the rule is broken.
pub fn source_keeps_to_its_limits(fixture: &mut impl SourceFixture) {
    let expected = fixture.create();
    let spec = source_spec(fixture);
    let mut reading = SourceReading::open(&*spec, &BTreeMap::new(), true);
    let mut batch = SourceBatch::with_limits(2048, 7);
    let begun = Instant::now();
    loop {
        let filled = reading.fill(&mut batch, Duration::from_secs(2));
        let records = batch.records.len() + batch.rejected.len();
        assert!(records <= 7, "{records} records in a batch of 7");
        let largest = batch.records.iter().chain(batch.rejected.records.iter()).map(record_bytes).max().unwrap_or(0);
        let bytes = batch.records.bytes() + batch.rejected.records.bytes();
        assert!(bytes < 2048 + largest, "{bytes} bytes in a batch of 2048, the largest record has {largest}");
        let held = reading.budget.used();
        assert!(held <= fixture.budget(), "{held} bytes of the budget held, expected at most {}", fixture.budget());
        let on_disk = folder_bytes(&reading.scratch.0);
        assert!(on_disk <= fixture.budget() as u64, "{on_disk} bytes of scratch space used");
        if filled == Fill::CaughtUp {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "not caught up after {PATIENCE:?}");
    }
    assert_eq!(reading.count(), expected);
    let budget = reading.budget.clone();
    drop(reading);
    assert_eq!(budget.used(), 0, "bytes of the budget still held by a source that is gone");
}

fn record_bytes(record: RecordRef<'_>) -> usize {
    let parts = record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len);
    parts + record.header_block().len() + crate::batch::ENTRY_BYTES
}

fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// The fixture's source.
///
/// # Panics
/// If its options are refused.
pub fn source_spec(fixture: &impl SourceFixture) -> Box<dyn SourceSpec> {
    let (spec, problems) = configure_source(fixture.connector(), &fixture.options(), &fixture.base());
    assert!(problems.is_empty(), "the fixture's own options are refused: {problems:#?}");
    match spec {
        Some(spec) => spec,
        None => panic!("the fixture's own options are refused without a problem"),
    }
}

/// Configures a source as the runtime does, from TOML that holds the component's options alone.
///
/// # Panics
/// If the text is not TOML.
pub fn configure_source(
    connector: &dyn SourceConnector,
    options: &str,
    base: &Path,
) -> (Option<Box<dyn SourceSpec>>, Vec<Problem>) {
    let table = read_toml(options);
    let report = Report::default();
    let section = Section::new(&table, 0..0, "sources.tested", base, &report);
    let spec = connector.configure(&section);
    section.finish();
    (spec, report.into_problems())
}

/// A TOML document as the tree that sections read. `${..}` is not resolved: the runtime does that.
///
/// # Panics
/// If the text is not TOML.
pub fn read_toml(text: &str) -> Table {
    match toml::de::DeTable::parse(text) {
        Ok(table) => table_of(table.get_ref()),
        Err(error) => panic!("not TOML: {error}\n{text}"),
    }
}

fn table_of(table: &toml::de::DeTable<'_>) -> Table {
    let mut entries: Vec<(Key, Node)> = table
        .iter()
        .map(|(key, value)| (Key { name: key.get_ref().to_string(), span: key.span() }, node_of(value)))
        .collect();
    entries.sort_by_key(|(key, _)| key.span.start);
    Table { entries }
}

fn node_of(node: &toml::Spanned<toml::de::DeValue<'_>>) -> Node {
    use toml::de::DeValue;
    let value = match node.get_ref() {
        DeValue::String(text) => Value::String(Text { raw: text.to_string(), resolved: text.to_string() }),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(error) => panic!("{}: {error}", number.as_str()),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(error) => panic!("{}: {error}", number.as_str()),
        },
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(time.to_string()),
        DeValue::Array(items) => Value::Array(items.iter().map(node_of).collect()),
        DeValue::Table(table) => Value::Table(table_of(table)),
    };
    Node { value, span: node.span() }
}
