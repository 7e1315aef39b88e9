//! Sources on the embedded broker.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use trunkline_broker::{Broker, BrokerHandle, BrokerOptions};
use trunkline_connector::{Domain, MemoryBudget, PositionChange, Result};
use trunkline_transform_host::{Host, HostOptions, StateDisk};

use super::*;
use crate::checkpoint::{Positions, Schemas, TopicOwners, system_topics};
use crate::config::{Settings, TopicSettings};
use crate::kafka::{Admin, Cluster, TransactionalProducer, topic_reader};
use crate::plan::{Registry, SourcePlan, load_each};

/// The source `web` of the pipeline `p` on the node `n`.
const TASK: &str = "c.p.web.n";

/// A broker and a log file, with a source that reads it.
struct Fixture {
    runtime: Runtime,
    broker: Option<BrokerHandle>,
    folder: tempfile::TempDir,
    cluster: Cluster,
}

impl Fixture {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let broker = runtime.block_on(Broker::start(BrokerOptions::new(folder.path().join("broker")))).unwrap();
        let cluster = Cluster::new(&broker.address().to_string(), &BTreeMap::new()).unwrap();
        let admin = Admin::new(&cluster).unwrap();
        admin.ensure(&system_topics(&cluster, 1)).unwrap();
        let topic = crate::kafka::TopicSpec {
            name: "p.web".to_owned(),
            partitions: 1,
            replication: 1,
            config: BTreeMap::new(),
        };
        admin.ensure(&[topic]).unwrap();
        Self { runtime, broker: Some(broker), folder, cluster }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// A context in which every producer is closed as soon as it is not used.
    fn context(&self, stop: &StopSignal) -> WorkerContext {
        let cluster = self.cluster.clone();
        WorkerContext {
            admin: Arc::new(Admin::new(&cluster).unwrap()),
            runtime: self.runtime.handle().clone(),
            budget: MemoryBudget::new(64 << 20),
            schemas: Arc::new(Schemas::new(cluster.clone())),
            owners: Arc::new(TopicOwners::new(&cluster, "c")),
            cluster,
            names: Names { cluster: "c".to_owned(), node: "n".to_owned(), worker: "w".to_owned() },
            topics: TopicSettings { create: true, partitions: 1, replication: 1, config: BTreeMap::new() },
            commit_interval: Duration::from_millis(50),
            max_initial_failures: 1000,
            until_idle: false,
            append: false,
            stop: stop.clone(),
            scratch: self.path("scratch"),
            state: StateDisk::new(&self.path("state"), 0),
            share: ResourceShare { client_buffer_bytes: 1 << 20, batch_bytes: 1 << 20 },
            backlogs: Backlogs::default(),
            tracer: crate::telemetry::Tracer::default(),
        }
    }

    fn source(&self) -> SourcePlan {
        let text = format!(
            "name = \"p\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"{}\"]\n",
            self.path("app.log").display()
        );
        let file = self.path("p.toml");
        std::fs::write(&file, text).unwrap();
        let host = Host::new(HostOptions::default()).unwrap();
        let settings = Settings::load(None, &Vec::new()).unwrap();
        let loaded = load_each(&[file], &host, &settings, &Registry::new());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
        loaded.pipelines[0].sources[0].clone()
    }

    fn stage(&self) -> SourceStage {
        SourceStage { pipeline: "p".to_owned(), dead_letters: "p.dead-letters".to_owned(), plan: self.source() }
    }

    /// The values in the topic of the source.
    fn records(&self) -> Vec<String> {
        let mut found = Vec::new();
        topic_reader::scan(&self.cluster, "p.web", &mut |record| {
            found.push(String::from_utf8_lossy(record.value().unwrap_or_default()).into_owned());
            Ok(())
        })
        .unwrap();
        found
    }

    fn positions(&self) -> Positions {
        Positions::load(&self.cluster, TASK, TASK).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            let _ = self.runtime.block_on(broker.stop());
        }
    }
}

fn append(path: &Path, line: &str) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Runs the source while `during` does something, and returns the result of the run. `during` gets
/// a function that returns whether the run is over.
fn run_source(fixture: &Fixture, during: impl FnOnce(&StageStatus, &StopSignal, &dyn Fn() -> bool)) -> Result<()> {
    let stop = StopSignal::default();
    let context = fixture.context(&stop);
    let stage = fixture.stage();
    let status = StageStatus::new("p", "web", StageKind::Source);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| stage.run(&context, &stop, &status));
        during(&status, &stop, &|| run.is_finished());
        run.join().unwrap()
    })
}

/// Waits until the task has committed this many records and has had time to close its producer.
fn wait_for_commit(status: &StageStatus, records: u64) {
    wait_until("the records are not committed", || {
        status.counters().0.get("web").is_some_and(|counters| counters.out == records)
    });
    std::thread::park_timeout(Duration::from_millis(300));
}

#[test]
fn an_idle_source_that_was_replaced_is_fenced() {
    let fixture = Fixture::start();
    let log = fixture.path("app.log");
    let run = run_source(&fixture, |status, _, _| {
        append(&log, "line 1");
        wait_for_commit(status, 1);
        // A newer task commits a position.
        let mut producer = TransactionalProducer::new(&fixture.cluster, TASK, 1 << 20).unwrap();
        let positions = fixture.positions();
        let moved = PositionChange { key: "moved".to_owned(), value: Some(b"{}".to_vec()) };
        positions.write(&mut producer, &[moved], &positions.counters).unwrap();
        producer.commit().unwrap();
        append(&log, "line 2");
    });
    let error = run.unwrap_err();
    assert_eq!((error.domain, error.code), (Domain::Fenced, "kafka.fenced"), "{error}");
    let records = fixture.records();
    assert_eq!(records.len(), 1, "the replaced task sent nothing: {records:?}");
}

#[test]
fn a_backlog_arrives_once_and_in_order_with_one_thread_and_with_two() {
    let lines: Vec<String> = (0..5_000).map(|number| format!("line {number} of a log with a backlog")).collect();
    let values: Vec<String> = lines.iter().map(|line| format!("{{\"message\":\"{line}\"}}")).collect();
    for processors in [0, 1] {
        let fixture = Fixture::start();
        std::fs::write(fixture.path("app.log"), lines.join("\n")).unwrap();
        let stop = StopSignal::default();
        let context = WorkerContext {
            until_idle: true,
            backlogs: Backlogs::new(processors),
            share: ResourceShare { client_buffer_bytes: 1 << 20, batch_bytes: 16 << 10 },
            ..fixture.context(&stop)
        };
        let status = StageStatus::new("p", "web", StageKind::Source);
        fixture.stage().run(&context, &stop, &status).unwrap();
        assert!(fixture.records() == values, "{} records with {processors} processors", fixture.records().len());
        assert_eq!(fixture.positions().counters.0["web"].out, 5_000);
    }
}
