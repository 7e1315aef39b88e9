//! Compares a plugin that parses, filters, masks and serialises with the same native code.
//!
//! `cargo run --release --workspace --example work_speed -- TESTING.wasm.. --seconds 3`
//! - `--trusted`: without the time limit
//! - `--records 200,1000`: sizes of the batches that the host gets
//! - `--call-bytes 65536`: most bytes of a call of the plugin
//! - `--cache FOLDER`: keeps compiled plugins there; a profile of a second run has no compilation,
//!   and finds the functions of the plugin in the file
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

/// What is measured.
struct Options {
    modules: Vec<String>,
    seconds: u64,
    limits: Limits,
    sizes: Vec<usize>,
    host: HostOptions,
}

/// Batches of one size, and the nanoseconds per record of each call.
struct Measured {
    original: Batch,
    native: Vec<f64>,
    plugins: Vec<Vec<f64>>,
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let host = Host::new(options.host.clone())?;
    let mut instances: Vec<Instance> = Vec::new();
    for module in &options.modules {
        instances.push(host.load(Path::new(module))?.start(&json!({ "work": true }), &options.limits)?);
    }
    let plugins = vec![Vec::new(); instances.len()];
    let sizes = options.sizes.iter();
    let mut sizes: Vec<Measured> =
        sizes.map(|size| Measured { original: records(*size), native: Vec::new(), plugins: plugins.clone() }).collect();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(options.seconds) {
        for Measured { original, native, plugins } in &mut sizes {
            native.push(call(original, natively)?);
            for (times, instance) in plugins.iter_mut().zip(&mut instances) {
                times.push(call(original, |batch| run(instance, batch))?);
            }
        }
    }
    for Measured { original, native, plugins } in &mut sizes {
        let native = fast(native);
        println!("{:>5} records: {native:>6.0} ns for each in native code", original.len());
        for (module, times) in options.modules.iter().zip(plugins) {
            let plugin = fast(times);
            println!("{plugin:>22.0} ns {:.2} times as much, in {module}", plugin / native);
        }
    }
    Ok(())
}

fn options() -> Result<Options, Failure> {
    let (limits, host) = (Limits::default(), HostOptions::default());
    let mut options = Options { modules: Vec::new(), seconds: 3, limits, sizes: vec![200, 1000], host };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut next = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--seconds" => options.seconds = next()?.parse()?,
            "--records" => options.sizes = next()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--call-bytes" => options.limits.batch_bytes = next()?.parse()?,
            "--cache" => options.host.cache_dirs = vec![next()?.into()],
            "--trusted" => options.limits.trusted = true,
            _ => options.modules.push(argument),
        }
    }
    Ok(options)
}

fn natively(batch: &mut Batch) -> Result<(), Failure> {
    let mut out = Vec::new();
    let kept = batch.iter().filter(|record| work::work(record.value().unwrap_or_default(), &mut out));
    black_box((kept.count(), &out));
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
    Ok(elapsed.as_nanos() as f64 / original.len() as f64)
}

/// A tenth of the times are at most this.
fn fast(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 10).copied().unwrap_or(f64::NAN)
}

fn records(count: usize) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for id in 0..count {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, id as i64).value(sample::value(id).as_bytes());
        record.finish();
    }
    batch
}
