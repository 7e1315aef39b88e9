//! The sink `redshift` in this process: staging, with arrow-json and `ArrowWriter` as its limit,
//! and a load, with the same statements issued by hand.
//!
//! The stand-in loads slower than Redshift, and both arms of a load wait for it. What the row
//! measures is what the sink adds: its offsets row, its session, and the removal of the files.

use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, TimeUnit};
use arrow::json::ReaderBuilder;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::Value;
use trunkline_connector::config::{Report, Section};
use trunkline_connector::conformance::read_toml;
use trunkline_connector::{
    Batch, ErasedTwoPhaseSink, MemoryBudget, Rejections, Result, Schema, SchemaId, SchemaLookup, Sink, SinkConnector,
    SinkContext, TopicPartition, headers,
};
use trunkline_redshift::RedshiftConnector;
use trunkline_tests::{Redshift, S3};

use crate::measure::Sampling;
use crate::pipeline::{PathTargets, Run, alternate, timed};
use crate::table::{Row, Target};
use crate::warehouse::MAX_MEMORY_MB;

/// Distinct rows, which repeat.
const SAMPLE: i64 = 200_000;
/// Rows of a batch.
const BATCH: usize = 4096;
/// Rows of a load.
const LOAD: u64 = 1_000_000;
const SCHEMA: &str = "bench_loads";
const BUCKET: &str = "bench-loads";

/// The rows as JSON, and as the sink receives them.
struct Sample {
    schema: Arc<Schema>,
    values: Vec<Vec<u8>>,
    batches: Vec<Batch>,
}

struct OneSchema(Arc<Schema>);

impl SchemaLookup for OneSchema {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>> {
        Ok((self.0.id() == id).then(|| Arc::clone(&self.0)))
    }
}

impl Sample {
    /// About 230 bytes per row: numbers, a decimal, a time, texts.
    fn generate() -> Self {
        let fields = vec![
            Field::new("id", DataType::Int64, false),
            Field::new("customer", DataType::Int32, false),
            Field::new("status", DataType::Utf8, false),
            Field::new("price", DataType::Decimal128(10, 2), false),
            Field::new("placed", DataType::Timestamp(TimeUnit::Microsecond, None), false),
            Field::new("email", DataType::Utf8, false),
            Field::new("note", DataType::Utf8, true),
        ];
        let schema = Arc::new(Schema::new(Arc::new(ArrowSchema::new(fields))).unwrap());
        let value = |id: i64| {
            let (status, note) = (["open", "paid", "sent"][(id % 3) as usize], "n".repeat(80 + (id % 20) as usize));
            format!(
                "{{\"id\":{id},\"customer\":{},\"status\":\"{status}\",\"price\":\"{}.{:02}\",\
                 \"placed\":\"2026-01-02T03:04:{:02}.{:06}\",\"email\":\"customer.{id}@example.org\",\"note\":\"{note}\"}}",
                id % 100_000,
                id / 7,
                id % 100,
                id % 60,
                id % 1_000_000
            )
        };
        let values: Vec<Vec<u8>> = (0..SAMPLE).map(|id| value(id).into_bytes()).collect();
        let id = schema.id().to_string();
        let batch = |(number, rows): (usize, &[Vec<u8>])| {
            let mut batch = Batch::default();
            let topic = batch.topic_index("orders");
            for (row, value) in rows.iter().enumerate() {
                let mut record = batch.record();
                record.timestamp(1_767_323_045_000).read_from(topic, 0, (number * BATCH + row) as i64);
                record.value(value).header(headers::SCHEMA, Some(id.as_bytes()));
                record.finish();
            }
            batch
        };
        let batches = values.chunks(BATCH).enumerate().map(batch).collect();
        Self { schema, values, batches }
    }
}

/// The servers, and sinks on them.
struct Setup<'a> {
    redshift: &'a Redshift,
    sample: Sample,
    runtime: tokio::runtime::Runtime,
    scratch: tempfile::TempDir,
}

impl<'a> Setup<'a> {
    fn new(redshift: &'a Redshift, s3: &S3) -> Self {
        s3.bucket(BUCKET);
        redshift.run(&format!("CREATE SCHEMA IF NOT EXISTS {SCHEMA}"));
        Self {
            redshift,
            sample: Sample::generate(),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    /// A sink that appends to this table.
    fn open(&self, table: &str) -> Box<dyn ErasedTwoPhaseSink> {
        let options = self.redshift.sink_options(self.redshift.port(), SCHEMA, BUCKET);
        let toml = read_toml(&format!("{options}table = \"{table}\""));
        let report = Report::default();
        let section = Section::new(&toml, 0..0, "sinks.bench", Path::new("."), &report);
        let spec = RedshiftConnector.configure(&section, &[]);
        let spec = spec.unwrap_or_else(|| panic!("{:?}", report.into_problems()));
        let context = SinkContext {
            name: format!("bench.{table}"),
            replay: None,
            budget: MemoryBudget::new(1 << 30),
            runtime: self.runtime.handle().clone(),
            scratch: tempfile::tempdir_in(self.scratch.path()).unwrap().keep(),
            schemas: Arc::new(OneSchema(Arc::clone(&self.sample.schema))),
        };
        match spec.open(context).unwrap() {
            Sink::TwoPhase(sink) => sink,
            Sink::Idempotent(_) => panic!("the sink is not a two-phase sink"),
        }
    }

    /// Writes the sample to a sink once; returns the number of rows.
    fn write(&self, sink: &mut dyn ErasedTwoPhaseSink) -> u64 {
        let mut rejected = Rejections::default();
        for batch in &self.sample.batches {
            sink.write(&partition(), batch, &mut rejected).unwrap();
        }
        assert!(rejected.reasons.is_empty(), "{:?}", rejected.reasons.first());
        self.sample.values.len() as u64
    }

    /// Stages rows for a load of [`LOAD`] rows.
    fn prepare(&self, sink: &mut dyn ErasedTwoPhaseSink) -> Vec<Value> {
        let mut rows = 0;
        while rows < LOAD {
            rows += self.write(sink);
        }
        let plan = sink.seal(&partition()).unwrap().unwrap();
        sink.prepare(&[plan], &mut Rejections::default()).unwrap()
    }
}

fn partition() -> TopicPartition {
    TopicPartition::new("orders", 0)
}

/// The rows of `warehouse-staging`.
pub(crate) fn staging_rows(redshift: &Redshift, s3: &S3, sampling: Sampling) -> [Row; 2] {
    let setup = Setup::new(redshift, s3);
    let path = PathTargets {
        name: "records -> staged Parquet",
        unit: "rows/s",
        share: 0.7,
        cpu: Target::None,
        memory: MAX_MEMORY_MB,
    };
    let limit = |_| timed(|| encode(&setup.sample, sampling));
    let stage = || {
        let mut sink = setup.open("staged");
        timed(|| {
            let (mut rows, started) = (0, std::time::Instant::now());
            while started.elapsed() < sampling.run {
                rows += setup.write(sink.as_mut());
                let plan = sink.seal(&partition()).unwrap().unwrap();
                sink.abort(&plan).unwrap();
            }
            rows
        })
    };
    // The memory of this process is not the sink's.
    let [speed, cpu, _] = path.measure(sampling, limit, stage);
    [speed, cpu]
}

/// The limit of staging: arrow-json with the same columns, and `ArrowWriter`, on one thread. Each
/// pass of the sample is a file, as in the sink.
fn encode(sample: &Sample, sampling: Sampling) -> u64 {
    let (mut rows, started) = (0, std::time::Instant::now());
    while started.elapsed() < sampling.run {
        let schema = Arc::clone(sample.schema.arrow());
        let mut decoder = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(BATCH).build_decoder().unwrap();
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut writer = ArrowWriter::try_new(tempfile::tempfile().unwrap(), schema, Some(properties)).unwrap();
        for chunk in sample.values.chunks(BATCH) {
            for value in chunk {
                assert_eq!(decoder.decode(value).unwrap(), value.len());
            }
            writer.write(&decoder.flush().unwrap().unwrap()).unwrap();
        }
        writer.close().unwrap();
        rows += sample.values.len() as u64;
    }
    rows
}

/// The row of `warehouse-load`.
pub(crate) fn load_row(redshift: &Redshift, s3: &S3, sampling: Sampling) -> Row {
    let setup = Setup::new(redshift, s3);
    let name = "load of 1 M rows, and by hand";
    eprintln!("{name}");
    // Creates the tables.
    for table in ["by_hand", "loaded"] {
        let mut sink = setup.open(table);
        setup.write(sink.as_mut());
        let plan = sink.seal(&partition()).unwrap().unwrap();
        sink.abort(&plan).unwrap();
    }
    let [by_hand, loaded] = alternate(
        sampling,
        |_| {
            let mut sink = setup.open("by_hand");
            let statements = statements(&setup.prepare(sink.as_mut()));
            timed(|| {
                redshift.run_as_client(&statements);
                LOAD
            })
            .report("by hand", sampling)
        },
        |_| {
            let committables = setup.prepare(setup.open("loaded").as_mut());
            // The rows are in a staging table of that task. Another one copies them again, so that
            // its statements are those by hand.
            let mut sink = setup.open("loaded");
            sink.recover(&partition(), &committables).unwrap();
            timed(|| {
                // A call that ends before the load is repeated, as the stage does.
                while let Err(error) = sink.commit(&committables) {
                    assert_eq!(error.code, "warehouse.slow", "{error}");
                }
                LOAD
            })
            .report("sink", sampling)
        },
    );
    let count = |table| redshift.run(&format!("SELECT COUNT(*) FROM {SCHEMA}.{table}"))[0].clone();
    assert_eq!(count("by_hand"), count("loaded"), "rows of the two tables");
    Row {
        name: name.to_owned(),
        unit: "s",
        reference: by_hand.iter().map(|run: &Run| run.seconds).collect(),
        measured: loaded.iter().map(|run: &Run| run.seconds).collect(),
        target: Target::AtMostShare(1.3),
    }
}

/// The statements of a load, as a person would write them.
fn statements(committables: &[Value]) -> Vec<String> {
    let columns = "id, customer, status, price, placed, email, note, _topic, _partition, _offset";
    let mut all = vec![
        format!("SET search_path TO {SCHEMA}"),
        "CREATE TEMP TABLE hand (id BIGINT, customer INTEGER, status VARCHAR(256), price DECIMAL(10,2), placed TIMESTAMP, \
         email VARCHAR(256), note VARCHAR(256), _topic VARCHAR(255), _partition INTEGER, _offset BIGINT)"
            .to_owned(),
        "BEGIN".to_owned(),
    ];
    for file in committables.iter().flat_map(|committable| committable["files"].as_array().unwrap()) {
        let key = file["key"].as_str().unwrap();
        let (id, secret) = (S3::CREDENTIALS[0].1, S3::CREDENTIALS[1].1);
        all.push(format!(
            "COPY hand FROM 's3://{BUCKET}/stage/{key}.manifest' ACCESS_KEY_ID '{id}' SECRET_ACCESS_KEY '{secret}' FORMAT AS \
             PARQUET MANIFEST"
        ));
    }
    all.extend([
        "SELECT COUNT(*) FROM hand".to_owned(),
        format!("INSERT INTO by_hand ({columns}, _loaded_at) SELECT {columns}, CURRENT_TIMESTAMP FROM hand"),
        "COMMIT".to_owned(),
    ]);
    all
}
