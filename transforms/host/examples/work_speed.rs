//! Compares a plugin that parses, filters, masks and serialises with the same native code.
//!
//! `cargo run --release --workspace --example work_speed -- TESTING.wasm.. --seconds 3`
//! (`--trusted`: without the time limit)
//!
//! `transforms/plugins/build testing` builds the plugin. The calls of native code and of the
//! modules alternate, and the fast tenth of each counts, so that ratios are comparable on a busy
//! machine.

#[path = "../../plugins/testing/sample.rs"]
mod sample;
#[path = "../../plugins/testing/src/work.rs"]
mod work;

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Host, HostOptions, Instance, Limits};

type Failure = Box<dyn std::error::Error>;

/// Few records, so that a call is rarely interrupted.
const BATCH: usize = 200;

fn main() -> Result<(), Failure> {
    let (mut modules, mut seconds, mut limits) = (Vec::new(), 3, Limits::default());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => seconds = arguments.next().ok_or("--seconds needs a number")?.parse()?,
            "--trusted" => limits.trusted = true,
            _ => modules.push(argument),
        }
    }
    let host = Host::new(HostOptions::default())?;
    let original = records();
    let mut instances: Vec<Instance> = Vec::new();
    for module in &modules {
        instances.push(host.load(Path::new(module))?.start(&json!({ "work": true }), &limits)?);
    }
    let (mut native, mut plugins) = (Vec::new(), vec![Vec::new(); modules.len()]);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        native.push(call(&original, |batch| {
            let mut out = Vec::new();
            let kept = batch.iter().filter(|record| work::work(record.value().unwrap_or_default(), &mut out));
            black_box((kept.count(), &out));
            Ok(())
        })?);
        for (times, instance) in plugins.iter_mut().zip(&mut instances) {
            times.push(call(&original, |batch| run(instance, batch))?);
        }
    }
    let native = fast(&mut native);
    println!("{native:>6.0} ns for each record in native code");
    for (module, times) in modules.iter().zip(&mut plugins) {
        let plugin = fast(times);
        println!("{plugin:>6.0} ns {:.2} times as much, in {module}", plugin / native);
    }
    Ok(())
}

fn run(instance: &mut Instance, batch: &mut Batch) -> Result<(), Failure> {
    let mut rejected = Rejections::default();
    instance.process(batch, &mut rejected)?;
    assert!(rejected.is_empty());
    Ok(())
}

fn call(original: &Batch, work: impl FnOnce(&mut Batch) -> Result<(), Failure>) -> Result<f64, Failure> {
    let mut batch = original.clone();
    let started = Instant::now();
    work(&mut batch)?;
    let elapsed = started.elapsed();
    black_box(&batch);
    Ok(elapsed.as_nanos() as f64 / BATCH as f64)
}

/// A tenth of the times are at most this.
fn fast(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 10).copied().unwrap_or(f64::NAN)
}

fn records() -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for id in 0..BATCH {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, id as i64).value(sample::value(id).as_bytes());
        record.finish();
    }
    batch
}
