//! A plugin that passes every record, compared with a native call that does the remaining work:
//! copying the batch's table. The calls alternate; the figure of a round is the median of its
//! calls.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde_json::json;
use trunkline_connector::{Batch, Rejections};
use trunkline_tests::test_plugin;
use trunkline_transform_host::{Host, HostOptions, Limits};

use crate::measure::{Sampling, median};
use crate::records::Lines;
use crate::table::{Row, Target};

/// Records of a batch.
const BATCH: usize = 1000;

pub(crate) fn row(sampling: Sampling) -> Row {
    let host = Host::new(HostOptions::default()).unwrap();
    let mut instance = host.load(&test_plugin()).unwrap().start(&json!({ "noop": true }), &Limits::default()).unwrap();
    let original = batch();
    let (mut reference, mut measured) = (Vec::new(), Vec::new());
    for _ in 0..sampling.rounds {
        let (mut native, mut plugin) = (Vec::new(), Vec::new());
        let started = Instant::now();
        while started.elapsed() < sampling.run {
            native.push(call(&original, |batch| {
                let entries = batch.entries().to_vec();
                batch.set_entries(black_box(entries));
            }));
            plugin.push(call(&original, |batch| {
                let mut rejected = Rejections::default();
                instance.process(batch, &mut rejected).unwrap();
                assert!(rejected.is_empty());
            }));
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

/// The nanoseconds per record of one call on a copy of the batch. Making the copy is not measured.
fn call(original: &Batch, work: impl FnOnce(&mut Batch)) -> f64 {
    let mut batch = original.clone();
    let started = Instant::now();
    work(&mut batch);
    let elapsed: Duration = started.elapsed();
    black_box(&batch);
    elapsed.as_nanos() as f64 / BATCH as f64
}

fn batch() -> Batch {
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
