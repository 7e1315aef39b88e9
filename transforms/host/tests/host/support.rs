//! Builds the `testing` plugin once, creates batches and reads them.

#[path = "../../build_plugin.rs"]
mod build_plugin;

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;
use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Counts, Host, HostOptions, Instance, Limits, Plugin};

/// The core module of the `testing` plugin.
pub(crate) fn testing_wasm() -> &'static [u8] {
    static WASM: OnceLock<Vec<u8>> = OnceLock::new();
    WASM.get_or_init(|| build("testing"))
}

/// The `counting` plugin, which keeps state.
pub(crate) fn counting_plugin() -> &'static Plugin {
    static PLUGIN: OnceLock<Plugin> = OnceLock::new();
    PLUGIN.get_or_init(|| host().load_bytes("counting.wasm", &build("counting")).unwrap())
}

/// The `timing` plugin, which sets timers.
pub(crate) fn timing_plugin() -> &'static Plugin {
    static PLUGIN: OnceLock<Plugin> = OnceLock::new();
    PLUGIN.get_or_init(|| host().load_bytes("timing.wasm", &build("timing")).unwrap())
}

/// The `hostile` plugin, whose records are programs.
pub(crate) fn hostile_plugin() -> &'static Plugin {
    static PLUGIN: OnceLock<Plugin> = OnceLock::new();
    PLUGIN.get_or_init(|| host().load_bytes("hostile.wasm", &build("hostile")).unwrap())
}

fn build(name: &str) -> Vec<u8> {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    let built = build_plugin::build(&plugins, name, &target).unwrap_or_else(|message| panic!("{message}"));
    std::fs::read(built).unwrap()
}

/// The host of all tests that need no compile cache.
pub(crate) fn host() -> &'static Host {
    static HOST: OnceLock<Host> = OnceLock::new();
    HOST.get_or_init(|| Host::new(HostOptions::default()).unwrap())
}

pub(crate) fn testing_plugin() -> &'static Plugin {
    static PLUGIN: OnceLock<Plugin> = OnceLock::new();
    PLUGIN.get_or_init(|| host().load_bytes("testing.wasm", testing_wasm()).unwrap())
}

pub(crate) fn testing(config: &Value, limits: &Limits) -> Instance {
    testing_plugin().start(config, limits).unwrap()
}

/// Records with these values, offsets from 0, the key `k`, a header `h` and a schema header.
pub(crate) fn batch_of<V: AsRef<str>>(values: &[V]) -> Batch {
    let mut batch = Batch::default();
    let topic = batch.topic_index("in");
    for (offset, value) in values.iter().enumerate() {
        let mut record = batch.record();
        record.timestamp(7).read_from(topic, 3, offset as i64).key(b"k").value(value.as_ref().as_bytes());
        record.header("h", Some(b"v")).header("trunkline.schema", Some(b"00000000000000ff")).header("n", None);
        record.finish();
    }
    batch
}

pub(crate) fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or("null".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// The values of a batch, in order.
pub(crate) fn values(batch: &Batch) -> Vec<String> {
    batch.iter().map(|record| text(record.value())).collect()
}

/// The values and error codes of rejections, in order.
pub(crate) fn rejections(rejected: &Rejections) -> Vec<(String, String)> {
    rejected.iter().map(|(record, reason)| (text(record.value()), reason.code.clone())).collect()
}

pub(crate) fn assert_conserved(counts: Counts, batch: &Batch, rejected: &Rejections) {
    assert_eq!(counts.records_in + counts.extra, counts.out + counts.dropped + counts.rejected, "{counts:?}");
    assert_eq!((counts.out, counts.rejected), (batch.len() as u64, rejected.len() as u64));
}

/// Runs records with these values; processing must succeed.
pub(crate) fn run<V: AsRef<str>>(instance: &mut Instance, records: &[V]) -> (Batch, Rejections, Counts) {
    let mut batch = batch_of(records);
    let mut rejected = Rejections::default();
    let counts = instance.process(&mut batch, &mut rejected).unwrap();
    assert_eq!(counts.records_in, records.len() as u64);
    assert_conserved(counts, &batch, &rejected);
    (batch, rejected, counts)
}
