//! Plugins in this process, on one core, in batches of 1000: one that passes every record, one that
//! parses, filters, masks and serialises, bundled transforms, and state. The figure of a round is
//! the median of its calls; of state on disk, it is their mean, because a few calls write for the
//! others. Compactions have a thread of their own.
//!
//! The no-op plugin is compared with a native call that does the remaining work: copying the table
//! of the batch. Their calls alternate.

#[path = "../../transforms/plugins/testing/sample.rs"]
pub(crate) mod sample;
#[path = "../../transforms/plugins/testing/src/work.rs"]
mod work;

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline_connector::{Batch, Rejections};
use trunkline_tests::{counting_plugin, test_plugin};
use trunkline_transform_host::{Host, HostOptions, Instance, Limits, StateDisk, StateEntry, StateStore};

use crate::measure::{Sampling, median};
use crate::records::Lines;
use crate::table::{Row, Target};

/// Records of a batch.
const BATCH: usize = 1000;
/// Batches of different records with state.
const BATCHES: usize = 100;
/// The same with a large state: as many records as it has entries.
const RANDOM_BATCHES: usize = DISK_ENTRIES / BATCH;
/// Entries of a state that is restored.
const ENTRIES: usize = 200_000;
/// Entries of a state on disk.
const DISK_ENTRIES: usize = 500_000;
/// What an entry counts, with its key: of `previous`, of the plugin that only gets and puts, and of
/// a restored one.
const PREVIOUS_ENTRY: usize = 200;
const GET_PUT_ENTRY: usize = 200;
const RESTORED_ENTRY: usize = 240;
/// A cache that is larger than any state here.
const LARGE_CACHE: usize = 2 << 30;

/// The rows without a large state.
pub(crate) fn rows(sampling: Sampling) -> Vec<Row> {
    let host = Host::new(HostOptions::default()).unwrap();
    let filter = json!({ "condition": "value.status >= 500" });
    let project = json!({ "fields": ["id", "status", "user.name"] });
    let dedupe = json!({ "fields": ["id"], "within": "1s" });
    let aggregate =
        json!({ "group_by": ["status"], "window": "1m", "aggregates": { "n": "count()", "ms": "sum(row.ms)" } });
    let session = json!({ "group_by": ["id"], "session": "1m", "aggregates": { "n": "count()" } });
    vec![
        row(sampling),
        work_row(sampling),
        stateless(&host, sampling, ("filter on one member of 300 B JSON", "filter.wasm"), &filter, 400.0),
        stateless(&host, sampling, ("project three members of 300 B JSON", "project.wasm"), &project, 1_000.0),
        stateful(&host, sampling, ("dedupe: state get and put", "dedupe.wasm"), &dedupe, Target::AtMost(1_000.0)),
        // 500,000 records per second.
        stateful(
            &host,
            sampling,
            ("aggregate: windows of 20 groups", "aggregate.wasm"),
            &aggregate,
            Target::AtMost(2_000.0),
        ),
        stateful(&host, sampling, ("aggregate: sessions of many groups", "aggregate.wasm"), &session, Target::None),
    ]
}

/// State with random keys, and its restoration.
pub(crate) fn state_rows(sampling: Sampling) -> Vec<Row> {
    let host = Host::new(HostOptions::default()).unwrap();
    let counting = host.load(&counting_plugin()).unwrap();
    let counting = || counting.start(&json!({ "remember": true }), &Limits::default()).unwrap();
    let config = json!({ "fields": ["id"], "into": "before", "take": ["status"] });
    let previous = || start(&host, "previous.wasm", &config);
    let get_put = |name, cache, most| {
        random_keys(sampling, name, counting(), small_records, (GET_PUT_ENTRY, cache), Target::AtMost(most))
    };
    let previous =
        |name, cache| random_keys(sampling, name, previous(), json_records_of, (PREVIOUS_ENTRY, cache), Target::None);
    vec![
        get_put("state: get and put, in memory", LARGE_CACHE, 1_000.0),
        get_put("state: get and put, ten times the cache", DISK_ENTRIES * GET_PUT_ENTRY / 10, 3_000.0),
        previous("previous: state in memory", LARGE_CACHE),
        previous("previous: state of ten times the cache", DISK_ENTRIES * PREVIOUS_ENTRY / 10),
        restore(sampling, "state: restore, without Kafka", ENTRIES, LARGE_CACHE),
        restore(
            sampling,
            "state: restore to disk, ten times the cache",
            DISK_ENTRIES,
            DISK_ENTRIES * RESTORED_ENTRY / 10,
        ),
    ]
}

/// The plugin that passes every record.
pub(crate) fn row(sampling: Sampling) -> Row {
    let host = Host::new(HostOptions::default()).unwrap();
    let mut instance = host.load(&test_plugin()).unwrap().start(&json!({ "noop": true }), &Limits::default()).unwrap();
    let original = log_lines();
    let (mut reference, mut measured) = (Vec::new(), Vec::new());
    for _ in 0..sampling.rounds {
        let (mut native, mut plugin) = (Vec::new(), Vec::new());
        let started = Instant::now();
        while started.elapsed() < sampling.run {
            native.push(call(&original, |batch| {
                let entries = batch.entries().to_vec();
                batch.set_entries(black_box(entries));
            }));
            plugin.push(call(&original, |batch| process(&mut instance, batch)));
        }
        reference.push(median(&native));
        measured.push(median(&plugin));
    }
    Row {
        name: format!("no-op plugin, batches of {BATCH}"),
        unit: "ns per record",
        reference,
        measured,
        target: Target::AtMostAbove(50.0),
    }
}

/// The same work in a plugin and in native code. Native code also writes the output of a batch into
/// one block.
fn work_row(sampling: Sampling) -> Row {
    let host = Host::new(HostOptions::default()).unwrap();
    let mut instance = host.load(&test_plugin()).unwrap().start(&json!({ "work": true }), &Limits::default()).unwrap();
    let original = json_records(0);
    let (mut reference, mut measured) = (Vec::new(), Vec::new());
    for _ in 0..sampling.rounds {
        let (mut native, mut plugin) = (Vec::new(), Vec::new());
        let started = Instant::now();
        while started.elapsed() < sampling.run {
            native.push(call(&original, |batch| {
                let mut out = Vec::new();
                let kept = batch.iter().filter(|record| work::work(record.value().unwrap_or_default(), &mut out));
                black_box((kept.count(), &out));
            }));
            plugin.push(call(&original, |batch| process(&mut instance, batch)));
        }
        reference.push(median(&native));
        measured.push(median(&plugin));
    }
    Row {
        name: "parse, filter, mask and serialise 300 B JSON".to_owned(),
        unit: "ns per record",
        reference,
        measured,
        target: Target::AtMostShare(1.6),
    }
}

fn stateless(host: &Host, sampling: Sampling, (name, plugin): (&str, &str), config: &Value, most: f64) -> Row {
    let mut instance = start(host, plugin, config);
    let original = json_records(0);
    let measured = (0..sampling.rounds).map(|_| {
        let mut calls = Vec::new();
        let started = Instant::now();
        while started.elapsed() < sampling.run {
            calls.push(call(&original, |batch| process(&mut instance, batch)));
        }
        median(&calls)
    });
    Row {
        name: name.to_owned(),
        unit: "ns per record",
        reference: Vec::new(),
        measured: measured.collect(),
        target: Target::AtMost(most),
    }
}

/// A transform with state. Each call is a transaction; the writes to the changelog are not
/// measured.
fn stateful(host: &Host, sampling: Sampling, (name, plugin): (&str, &str), config: &Value, target: Target) -> Row {
    let batches: Vec<Batch> = (0..BATCHES).map(json_records).collect();
    let measured = (0..sampling.rounds).map(|_| {
        let mut instance = start(host, plugin, config);
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path(), LARGE_CACHE);
        let mut calls = Vec::new();
        let started = Instant::now();
        for (turn, original) in batches.iter().cycle().enumerate() {
            if started.elapsed() >= sampling.run {
                break;
            }
            // The time advances, so that keys expire before they come again, and windows close.
            let mut original = original.clone();
            let mut entries = original.take_entries();
            entries.iter_mut().for_each(|entry| entry.timestamp += 1_000 * turn as i64);
            original.set_entries(entries);
            calls.push(call(&original, |batch| {
                let mut rejected = Rejections::default();
                instance.process_with_state(batch, &mut rejected, &mut store).unwrap();
                assert!(rejected.is_empty());
                commit(&mut store);
            }));
        }
        median(&calls)
    });
    Row { name: name.to_owned(), unit: "ns per record", reference: Vec::new(), measured: measured.collect(), target }
}

/// Gets and puts random keys of a large state. `records` makes a batch of these keys; each entry
/// counts `entry` bytes.
fn random_keys(
    sampling: Sampling,
    name: &str,
    mut instance: Instance,
    records: impl Fn(Vec<usize>) -> Batch,
    (entry, cache): (usize, usize),
    target: Target,
) -> Row {
    let mut number = 1u64;
    let batches: Vec<Batch> = (0..RANDOM_BATCHES)
        .map(|_| {
            let ids = (0..BATCH).map(|_| {
                number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (number >> 33) as usize % DISK_ENTRIES
            });
            records(ids.collect())
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path(), cache);
    store.check_restored().unwrap();
    let mut process = |original: &Batch| {
        let elapsed = call(original, |batch| {
            let mut rejected = Rejections::default();
            instance.process_with_state(batch, &mut rejected, &mut store).unwrap();
            assert!(rejected.is_empty());
            commit(&mut store);
        });
        (elapsed, store.bytes())
    };
    // All keys once.
    let mut bytes = 0;
    for number in 0..DISK_ENTRIES / BATCH {
        (_, bytes) = process(&records((number * BATCH..(number + 1) * BATCH).collect()));
    }
    let counted = bytes / DISK_ENTRIES;
    assert!(counted.abs_diff(entry) * 10 < entry, "an entry counts {counted} bytes, and not {entry}");
    let measured = (0..sampling.rounds).map(|_| {
        let (mut sum, mut calls) = (0.0, 0);
        let started = Instant::now();
        for original in batches.iter().cycle() {
            if started.elapsed() >= sampling.run {
                break;
            }
            (sum, calls) = (sum + process(original).0, calls + 1);
        }
        sum / f64::from(calls)
    });
    Row { name: name.to_owned(), unit: "ns per record", reference: Vec::new(), measured: measured.collect(), target }
}

fn open(folder: &Path, cache: usize) -> StateStore {
    let disk = StateDisk::new(folder, cache);
    StateStore::on_disk(4 << 30, &disk, ("bench", "in", 0), None, Duration::ZERO).unwrap()
}

/// Ends a transaction, as a stage does.
fn commit(store: &mut StateStore) {
    black_box(store.changes().count());
    store.commit();
    if store.is_write_due() {
        store.write().unwrap();
    }
}

/// The entries of a changelog go into an empty store. The reads from Kafka are not measured.
fn restore(sampling: Sampling, name: &str, count: usize, cache: usize) -> Row {
    let entries: Vec<(Vec<u8>, Arc<[u8]>)> = (0..count as u64)
        .map(|number| {
            let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (format!("passed\0device-{number:016x}").into_bytes(), Arc::from(number.to_string().into_bytes()))
        })
        .collect();
    let measured = (0..sampling.rounds).map(|_| {
        let mut runs = Vec::new();
        let started = Instant::now();
        while started.elapsed() < sampling.run {
            let folder = tempfile::tempdir().unwrap();
            let begun = Instant::now();
            let mut store = open(folder.path(), cache);
            for (key, value) in &entries {
                store.restore(key, Some(StateEntry { value: value.clone(), expires_at: Some(1_700_000_000_000) }));
                if store.is_write_due() {
                    store.write().unwrap();
                }
            }
            runs.push(count as f64 / begun.elapsed().as_secs_f64());
            assert_eq!(store.len(), count);
        }
        median(&runs)
    });
    Row {
        name: name.to_owned(),
        unit: "entries/s",
        reference: Vec::new(),
        measured: measured.collect(),
        target: Target::AtLeast(500_000.0),
    }
}

fn start(host: &Host, plugin: &str, config: &Value) -> Instance {
    host.bundled(plugin).unwrap().unwrap().start(config, &Limits::default()).unwrap()
}

fn process(instance: &mut Instance, batch: &mut Batch) {
    let mut rejected = Rejections::default();
    instance.process(batch, &mut rejected).unwrap();
    assert!(rejected.is_empty());
}

/// The nanoseconds per record of one call on a copy of the batch. Making the copy is not measured.
fn call(original: &Batch, work: impl FnOnce(&mut Batch)) -> f64 {
    let mut batch = original.clone();
    let started = Instant::now();
    work(&mut batch);
    let elapsed: Duration = started.elapsed();
    black_box(&batch);
    elapsed.as_nanos() as f64 / BATCH as f64
}

fn log_lines() -> Batch {
    let lines = Lines::generate(1, BATCH as u64);
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for (index, line) in lines.records().enumerate() {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, index as i64).value(line);
        record.finish();
    }
    batch
}

/// Records of 300 bytes: a batch of this number.
fn json_records(number: usize) -> Batch {
    json_records_of((number * BATCH..(number + 1) * BATCH).collect())
}

/// Records with these ids as keys, and values of 50 bytes.
fn small_records(ids: Vec<usize>) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for id in ids {
        let (key, value) = (
            format!("request-{id:08}"),
            format!("user-{:05} status {} from host web-{}.example.org", id % 50_000, 200 + id % 300, id % 7),
        );
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, id as i64);
        record.key(key.as_bytes()).value(value.as_bytes());
        record.finish();
    }
    batch
}

/// The same, with these ids.
fn json_records_of(ids: Vec<usize>) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for id in ids {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, id as i64).value(sample::value(id).as_bytes());
        record.finish();
    }
    batch
}
