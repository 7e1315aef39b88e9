//! How fast records become Parquet files in a directory: `cargo run --release -p trunkline-s3
//! --example encode [RECORDS [PATHS [DIRECTORY]]]`.
//!
//! One thread writes access-log records in batches of 1000, without schema, to a directory (by
//! default a temporary one, which is removed). Printed are rows and bytes of JSON a second of CPU
//! time, the most memory that the sink reported, and the same for a plain copy of the bytes to a
//! file, which is what any writer costs at least.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{
    Batch, ErasedTwoPhaseSink, MemoryBudget, Rejections, Result, Schema, SchemaId, SchemaLookup, Sink, SinkConnector,
    SinkContext, TopicPartition,
};
use trunkline_s3::S3Connector;

struct NoSchemas;

impl SchemaLookup for NoSchemas {
    fn schema(&self, _: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok(None)
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |argument| argument.parse());
    let (records, paths) = (number(1_000_000)?, number(1)?.max(1));
    if let Some(folder) = arguments.next() {
        return measure(records, paths, Path::new(&folder));
    }
    let folder = std::env::temp_dir().join(format!("trunkline-encode-{}", std::process::id()));
    let outcome = measure(records, paths, &folder);
    std::fs::remove_dir_all(&folder)?;
    outcome
}

fn measure(records: u64, paths: u64, folder: &Path) -> std::result::Result<(), Box<dyn Error>> {
    let toml = format!("url = \"file://{}/out\"\npath = \"customer={{customer}}\"", folder.display());
    let (table, report) = (read_toml(&toml), Report::default());
    let section = Section::new(&table, 0..0, "sinks.lake", Path::new("."), &report);
    let spec = S3Connector.configure(&section, &[]).ok_or("the options are wrong")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sink = spec.open(SinkContext {
        name: "bench.lake".to_owned(),
        replay: None,
        budget: MemoryBudget::new(1 << 30),
        runtime: runtime.handle().clone(),
        scratch: folder.to_owned(),
        schemas: Arc::new(NoSchemas),
    })?;
    let Sink::TwoPhase(mut sink) = sink else { return Err("the sink is not a two-phase sink".into()) };
    let (partition, policy) = (TopicPartition::new("web", 0), spec.commit_policy());
    let (mut seconds, mut bytes, mut memory, mut copied) = (0.0, 0, 0, 0.0);
    std::fs::create_dir_all(folder)?;
    let mut copy = std::io::BufWriter::new(std::fs::File::create(folder.join("copy"))?);
    for first in (0..records).step_by(1000) {
        let mut batch = Batch::default();
        for number in first..(first + 1000).min(records) {
            push(&mut batch, number, paths);
        }
        bytes += batch.iter().map(|record| record.value().map_or(0, <[u8]>::len)).sum::<usize>();
        let started = cpu();
        sink.write(&partition, &batch, &mut Rejections::default())?;
        memory = memory.max(sink.memory_bytes());
        if policy.is_full(&sink.buffered(&partition)) {
            commit(sink.as_mut(), &partition)?;
        }
        seconds += cpu() - started;
        let started = cpu();
        for record in batch.iter() {
            copy.write_all(record.value().unwrap_or_default())?;
        }
        copied += cpu() - started;
    }
    let started = cpu();
    commit(sink.as_mut(), &partition)?;
    seconds += cpu() - started;
    let megabytes = bytes as f64 / 1e6;
    println!(
        "{records} rows, {megabytes:.0} MB of JSON, {paths} paths: {:.0} rows and {:.0} MB a CPU second, {:.1} MB memory at most",
        records as f64 / seconds,
        megabytes / seconds,
        memory as f64 / 1e6
    );
    println!("copying the same records to a file: {:.0} MB a CPU second", megabytes / copied);
    Ok(())
}

fn commit(sink: &mut dyn ErasedTwoPhaseSink, partition: &TopicPartition) -> Result<()> {
    if let Some(plan) = sink.seal(partition)? {
        let committables = sink.prepare(&[plan], &mut Rejections::default())?;
        sink.commit(&committables)?;
    }
    Ok(())
}

fn push(batch: &mut Batch, number: u64, paths: u64) {
    let noise = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
    let value = format!(
        "{{\"customer\":{},\"remote_addr\":\"10.{}.{}.{}\",\"timestamp\":\"2015-05-17T10:05:{:02}Z\",\"method\":\"GET\",\
         \"path\":\"/images/{:x}.png\",\"protocol\":\"HTTP/1.1\",\"status\":{},\"bytes\":{},\"referer\":null,\
         \"user_agent\":\"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1) {}\"}}",
        noise % paths,
        noise & 255,
        noise >> 8 & 255,
        noise >> 16 & 255,
        number / 1000 % 60,
        noise >> 24 & 0xffff,
        if noise.is_multiple_of(50) { 404 } else { 200 },
        noise >> 20 & 0xf_ffff,
        noise % 300,
    );
    let topic = batch.topic_index("web");
    let mut record = batch.record();
    record.timestamp(1_431_857_103_000).read_from(topic, 0, number as i64).value(value.as_bytes());
    record.finish();
}

/// Seconds of CPU time of this thread.
fn cpu() -> f64 {
    let read = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    read.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}
