//! Measures the memory of a plugin, to choose its `memory` limit.
//!
//! `cargo run --release -p trunkline-transform-host --example plugin_memory PLUGIN.wasm [CONFIG]`
//!
//! The plugin processes JSON records of three sizes in the largest calls that the default limits
//! allow. The table shows its linear memory after several numbers of calls.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Host, HostOptions, Limits};

type Failure = Box<dyn std::error::Error>;

/// Bytes of a value, and records per call.
const SHAPES: [(usize, usize); 3] = [(300, 1000), (4_000, 1000), (1_000_000, 4)];
const CALLS: [usize; 3] = [1, 10, 100];

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: plugin_memory PLUGIN.wasm [CONFIG_JSON]")?;
    let config: Value = arguments.next().map_or(Ok(json!({})), |text| serde_json::from_str(&text))?;
    let plugin = Host::new(HostOptions::default())?.load(Path::new(&path))?;
    let limits = Limits { memory: usize::MAX, ..Limits::default() };
    println!("MiB of linear memory after N calls, and us per record in the last calls");
    println!("{:<26}{:>8}{}{:>10}", "value bytes x records", "start", CALLS.map(|n| format!("{n:>8}")).concat(), "us");
    for (bytes, records) in SHAPES {
        let mut instance = plugin.start(&config, &limits)?;
        print!("{:<26}{:>8.1}", format!("{bytes} x {records}"), mebibytes(instance.memory()));
        let original = batch_of(bytes, records);
        let (mut calls, mut last) = (0, 0.0);
        for milestone in CALLS {
            let started = Instant::now();
            let before = calls;
            while calls < milestone {
                let mut rejected = Rejections::default();
                instance.process(&mut original.clone(), &mut rejected)?;
                if let Some(reason) = rejected.reasons.first() {
                    return Err(format!("{}: {}", reason.code, reason.message).into());
                }
                calls += 1;
            }
            last = started.elapsed().as_secs_f64() * 1e6 / ((calls - before) * records) as f64;
            print!("{:>8.1}", mebibytes(instance.memory()));
        }
        println!("{last:>10.1}");
    }
    Ok(())
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn batch_of(bytes: usize, records: usize) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("web");
    for index in 0..records {
        let mut record = batch.record();
        record.timestamp(1_700_000_000_000).read_from(topic, 0, index as i64).value(value(index, bytes).as_bytes());
        record.finish();
    }
    batch
}

/// An access log record whose field `path` is filled up to about `bytes`.
fn value(index: usize, bytes: usize) -> String {
    let path = "/presentations/logstash".repeat(bytes.saturating_sub(210) / 23);
    format!(
        r#"{{"remote_addr":"198.51.100.{}","timestamp":"2024-05-17T10:05:03+00:00","method":"GET","path":"{path}","protocol":"HTTP/1.1","status":200,"bytes":203023,"user_agent":"Mozilla/5.0 (Macintosh)"}}"#,
        index % 250
    )
}
