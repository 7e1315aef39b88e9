//! Runs transforms with state on a number of batches of 1000 records, for profilers and for counts
//! of instructions, and prints the time of a record.
//!
//! `cargo run --release -p trunkline-transform-host --example state_speed ROW BATCHES [PLUGIN]`
//!
//! The difference of two runs with other numbers of batches has no costs of the start. ROW is
//! `get-put` or `get-put-disk` (these need the plugin that `transforms/plugins/build counting`
//! builds), `count` (windows of one second), `aggregate` (windows with a sum), `sessions` or
//! `dedupe`. The environment variable `STATE_SPEED_CACHE` names a folder for compiled plugins, so
//! that a profile of a second run has no compilation.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Host, HostOptions, Instance, Limits, StateDisk, StateStore};

type Failure = Box<dyn std::error::Error>;

const BATCH: usize = 1000;
/// Keys of `get-put`.
const ENTRIES: usize = 500_000;
/// The same for `get-put-disk`, where callgrind has to wait for compactions.
const DISK_ENTRIES: usize = 100_000;
/// Different batches, which are repeated: more of them cost nothing but the transform.
const INPUTS: usize = 20;
/// A cache that is larger than any state here.
const LARGE_CACHE: usize = 2 << 30;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [row, batches, rest @ ..] = arguments.as_slice() else {
        return Err("expected ROW BATCHES [COUNTING.wasm]".into());
    };
    let batches: usize = batches.parse()?;
    let cache_dirs = std::env::var_os("STATE_SPEED_CACHE").map(Into::into).into_iter().collect();
    let host = Host::new(HostOptions { cache_dirs })?;
    let bundled = |name: &str, config| -> Result<Instance, Failure> {
        Ok(host.bundled(name).ok_or("not bundled")??.start(config, &Limits::default())?)
    };
    let counting = || -> Result<Instance, Failure> {
        let path = rest.first().ok_or("expected the path of counting.wasm")?;
        Ok(host.load(Path::new(path))?.start(&json!({ "remember": true }), &Limits::default())?)
    };
    let window =
        json!({ "group_by": ["status"], "window": "1m", "aggregates": { "n": "count()", "ms": "sum(row.ms)" } });
    let count = json!({ "group_by": ["status"], "window": "1s", "aggregates": { "n": "count()" } });
    let session = json!({ "group_by": ["id"], "session": "1m", "aggregates": { "n": "count()" } });
    let dedupe = json!({ "fields": ["id"], "within": "1s" });
    match row.as_str() {
        "get-put" => random_keys(counting()?, batches, ENTRIES, LARGE_CACHE),
        "get-put-disk" => random_keys(counting()?, batches, DISK_ENTRIES, DISK_ENTRIES * 20),
        "count" => in_order(bundled("aggregate.wasm", &count)?, batches),
        "aggregate" => in_order(bundled("aggregate.wasm", &window)?, batches),
        "sessions" => in_order(bundled("aggregate.wasm", &session)?, batches),
        "dedupe" => in_order(bundled("dedupe.wasm", &dedupe)?, batches),
        other => Err(format!("there is no row `{other}`").into()),
    }
}

/// Stores all keys once, and then batches of random ones.
fn random_keys(mut instance: Instance, batches: usize, entries: usize, cache: usize) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let mut store = open(folder.path(), cache)?;
    store.check_restored()?;
    for number in 0..entries / BATCH {
        process(&mut instance, &mut store, &small_records(number * BATCH..(number + 1) * BATCH))?;
    }
    let mut number = 1u64;
    let mut next = || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (number >> 33) as usize % entries
    };
    let inputs: Vec<Batch> = (0..INPUTS).map(|_| small_records((0..BATCH).map(|_| next()))).collect();
    let mut times = Vec::new();
    for input in inputs.iter().cycle().take(batches) {
        times.push(process(&mut instance, &mut store, input)?);
    }
    report(times);
    println!("{} bytes of state count for an entry", store.bytes() / entries);
    Ok(())
}

/// JSON records whose ids are new and whose time advances.
fn in_order(mut instance: Instance, batches: usize) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let mut store = open(folder.path(), LARGE_CACHE)?;
    store.check_restored()?;
    let inputs: Vec<Batch> = (0..INPUTS).map(json_records).collect();
    let mut times = Vec::new();
    for (turn, input) in inputs.iter().cycle().take(batches).enumerate() {
        let mut input = input.clone();
        let mut entries = input.take_entries();
        entries.iter_mut().for_each(|entry| entry.timestamp += 100 * turn as i64);
        input.set_entries(entries);
        times.push(process(&mut instance, &mut store, &input)?);
    }
    report(times);
    Ok(())
}

fn open(folder: &Path, cache: usize) -> Result<StateStore, Failure> {
    let disk = StateDisk::new(folder, cache);
    Ok(StateStore::on_disk(4 << 30, &disk, ("speed", "in", 0), None, Duration::ZERO)?)
}

/// A transaction, without the writes to the changelog.
fn process(instance: &mut Instance, store: &mut StateStore, input: &Batch) -> Result<Duration, Failure> {
    let mut batch = input.clone();
    let mut rejected = Rejections::default();
    let started = Instant::now();
    instance.process_with_state(&mut batch, &mut rejected, store)?;
    assert!(rejected.is_empty());
    std::hint::black_box(store.changes().count());
    store.commit();
    if store.is_write_due() {
        store.write()?;
    }
    Ok(started.elapsed())
}

fn report(mut times: Vec<Duration>) {
    let sum: Duration = times.iter().sum();
    times.sort_unstable();
    let ns = |time: Duration| time.as_nanos() as f64 / BATCH as f64;
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let mean = ns(sum) / times.len().max(1) as f64;
    println!("ns per record: {:.0} (median), {mean:.0} (mean), {} batches", ns(median), times.len());
}

fn small_records(ids: impl Iterator<Item = usize>) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for id in ids {
        let key = format!("request-{id:08}");
        let value = format!("user-{:05} status {} from host web-{}.example.org", id % 50_000, 200 + id % 300, id % 7);
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, id as i64);
        record.key(key.as_bytes()).value(value.as_bytes());
        record.finish();
    }
    batch
}

fn json_records(number: usize) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for id in number * BATCH..(number + 1) * BATCH {
        let value = format!(
            r#"{{"id":"request-{id:08}","time":"2026-11-29T02:30:00.000Z","host":"web-{}.example.org","user":{{"name":"user-{:05}","agent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"}},"path":"/api/v1/orders/{id}?page=1","status":{},"ms":{}.{},"bytes":{}}}"#,
            id % 7,
            id % 50_000,
            200 + (id % 20) * 20,
            id % 90,
            id % 10,
            id % 100_000
        );
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, id as i64).value(value.as_bytes());
        record.finish();
    }
    batch
}
