//! Measures the start of compiled plugins, until the first call has returned, and its parts.
//!
//! `cargo run --release --workspace --example start_speed -- CACHE_FOLDER PLUGIN.wasm..`
//!
//! Each start has a new host, as a new process has. The plugins start in turn.

use std::path::Path;
use std::time::Instant;

use serde_json::json;
use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Host, HostOptions, Limits};

type Failure = Box<dyn std::error::Error>;

const STARTS: usize = 50;
const PARTS: [&str; 4] = ["load", "init", "first call", "all"];

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let cache = arguments.next().ok_or("expected CACHE_FOLDER PLUGIN.wasm..")?;
    let plugins: Vec<String> = arguments.collect();
    let mut times = vec![vec![Vec::new(); PARTS.len()]; plugins.len()];
    for turn in 0..=STARTS {
        for (plugin, times) in plugins.iter().zip(&mut times) {
            let parts = start(&cache, plugin)?;
            // The first start compiles the plugin.
            if turn > 0 {
                times.iter_mut().zip(parts).for_each(|(times, part)| times.push(part));
            }
        }
    }
    for (plugin, times) in plugins.iter().zip(&mut times) {
        println!("{plugin}: median and fast tenth, ms");
        for (part, times) in PARTS.iter().zip(times) {
            times.sort_by(f64::total_cmp);
            println!("{part:>12} {:>7.2} {:>7.2}", times[STARTS / 2], times[STARTS / 10]);
        }
    }
    Ok(())
}

/// Milliseconds of each part.
fn start(cache: &str, plugin: &str) -> Result<[f64; PARTS.len()], Failure> {
    let host = Host::new(HostOptions { cache_dirs: vec![cache.into()] })?;
    let begun = Instant::now();
    let loaded = host.load(Path::new(plugin))?;
    let config = if loaded.config_schema().is_some() { json!({ "over": 100 }) } else { json!({}) };
    let load = begun.elapsed();
    let mut instance = loaded.start(&config, &Limits::default())?;
    let init = begun.elapsed();
    let mut batch = Batch::default();
    let mut record = batch.record();
    record.value(br#"{"id":1,"amount":"250.00"}"#);
    record.finish();
    instance.process(&mut batch, &mut Rejections::default())?;
    let all = begun.elapsed();
    Ok([load, init - load, all - init, all].map(|part| part.as_secs_f64() * 1e3))
}
