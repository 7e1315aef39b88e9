//! Measures the cost of plugins per record, and the cost of the same work in native code.
//!
//! `cargo run --release -p trunkline-transform-host --example noop_speed [TESTING.wasm]`
//!
//! `transforms/plugins/build testing` builds the plugin. Without it, only `mask.wasm` is measured.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use trunkline_connector::{Batch, Rejections, json as text};
use trunkline_transform_host::{Host, HostOptions, Instance, Limits};

type Failure = Box<dyn std::error::Error>;

/// Duration of each measurement. Its result is the fastest call, because other processes can only
/// slow calls down.
const MEASUREMENT: Duration = Duration::from_secs(1);
const BATCH_SIZES: [usize; 4] = [1, 100, 1000, 10_000];

fn main() -> Result<(), Failure> {
    let host = Host::new(HostOptions::default())?;
    println!("ns per record in the best call; values of {} bytes", value(0).len());
    println!(
        "{:<34}{:>12}{:>12}{:>12}{:>12}",
        "records in a batch", BATCH_SIZES[0], BATCH_SIZES[1], BATCH_SIZES[2], BATCH_SIZES[3]
    );
    let native_noop = row("native: copy the table", |batch| {
        let entries = batch.entries().to_vec();
        batch.set_entries(black_box(entries));
        Ok(())
    })?;
    if let Some(path) = std::env::args().nth(1) {
        let plugin = host.load(Path::new(&path))?;
        for trusted in [false, true] {
            let limits = Limits { trusted, ..Limits::default() };
            let name = if trusted { "plugin: no-op, trusted" } else { "plugin: no-op" };
            let mut instance = plugin.start(&json!({ "noop": true }), &limits)?;
            let times = row(name, |batch| run(&mut instance, batch))?;
            ratio(&times, &native_noop);
        }
    }
    let native_mask = row("native: find and replace a field", mask_natively)?;
    let mask = host.bundled("mask.wasm").ok_or("mask.wasm is not bundled")??;
    for (name, config) in [
        ("mask: field is missing", json!({ "fields": ["gone"] })),
        ("mask: fixed", json!({ "fields": ["remote_addr"] })),
        ("mask: hash", json!({ "fields": ["remote_addr"], "mode": "hash", "salt": "s" })),
    ] {
        let mut instance = start(&mask, &config)?;
        let times = row(name, |batch| run(&mut instance, batch))?;
        ratio(&times, &native_mask);
    }
    Ok(())
}

fn start(plugin: &trunkline_transform_host::Plugin, config: &Value) -> Result<Instance, Failure> {
    Ok(plugin.start(config, &Limits::default())?)
}

fn run(instance: &mut Instance, batch: &mut Batch) -> Result<(), Failure> {
    let mut rejected = Rejections::default();
    instance.process(batch, &mut rejected)?;
    assert!(rejected.is_empty());
    Ok(())
}

fn mask_natively(batch: &mut Batch) -> Result<(), Failure> {
    let mut entries = batch.take_entries();
    batch.set_entries(entries.clone());
    let mut masked = Vec::new();
    let at = batch.arena_bytes();
    for (record, entry) in batch.iter().zip(&mut entries) {
        let value = record.value().unwrap_or_default();
        let start = masked.len();
        let mut copied = 0;
        for member in text::members(value) {
            let member = member?;
            if text::key_is(member.key, "remote_addr") {
                masked.extend_from_slice(&value[copied..member.range.start]);
                masked.extend_from_slice(b"\"***\"");
                copied = member.range.end;
            }
        }
        masked.extend_from_slice(&value[copied..]);
        entry.value_at = (at + start) as u32;
        entry.value_len = (masked.len() - start) as i32;
    }
    batch.append(&masked);
    batch.set_entries(entries);
    Ok(())
}

/// Measures `work` on batches of each size. Each call gets a new copy of the batch, which is not
/// part of the measured time.
fn row(name: &str, mut work: impl FnMut(&mut Batch) -> Result<(), Failure>) -> Result<Vec<f64>, Failure> {
    let mut times = Vec::new();
    for size in BATCH_SIZES {
        let original = batch_of(size);
        let mut best = Duration::MAX;
        let started = Instant::now();
        while started.elapsed() < MEASUREMENT {
            let mut batch = original.clone();
            let call_started = Instant::now();
            work(&mut batch)?;
            best = best.min(call_started.elapsed());
            black_box(&batch);
        }
        let best = best.as_nanos() as f64 / size as f64;
        times.push(best);
    }
    print_row(name, &times, 1);
    Ok(times)
}

fn ratio(times: &[f64], native: &[f64]) {
    let ratios: Vec<f64> = times.iter().zip(native).map(|(time, native)| time / native).collect();
    print_row("    times the native work", &ratios, 2);
}

fn print_row(name: &str, numbers: &[f64], digits: usize) {
    print!("{name:<34}");
    for number in numbers {
        print!("{number:>12.digits$}");
    }
    println!();
}

fn batch_of(size: usize) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for index in 0..size {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, index as i64).value(value(index).as_bytes());
        record.finish();
    }
    batch
}

fn value(index: usize) -> String {
    format!(
        r#"{{"remote_addr":"198.51.100.{}","remote_user":null,"timestamp":"2024-05-17T10:05:03+00:00","method":"GET","path":"/presentations/logstash/images/kibana-search.png","protocol":"HTTP/1.1","status":200,"bytes":203023,"referer":"http://example.com/presentations/logstash/","user_agent":"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1)"}}"#,
        index % 250
    )
}
