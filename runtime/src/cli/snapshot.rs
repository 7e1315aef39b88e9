//! `trunkline snapshot`: a source reads some of its tables once more.
//!
//! What is asked for is written into the source's committed position, by the source's own transactional id: that fences the task that runs, wherever
//! it does (I4), so that it can write nothing over it, and goes on from the changed position a moment later. No other store and no connection to
//! the worker is needed.

use std::path::PathBuf;

use trunkline_connector::{Domain, Error, IncrementalSnapshots, Placement, PositionChange, Result, SnapshotRequest};

use super::SnapshotArgs;
use super::output::{Exit, print_data, report_problems};
use super::validate::load_for_reading;
use crate::checkpoint::{CHECKPOINTS, Positions};
use crate::config::Settings;
use crate::kafka::embedded::EMBEDDED;
use crate::kafka::{Cluster, TransactionalProducer};
use crate::plan::{Pipeline, SourcePlan};
use crate::stage::component_name;

/// A few rows are sent.
const BUFFER_BYTES: usize = 1 << 20;

/// Runs the verb.
pub(super) fn snapshot(args: &SnapshotArgs, settings: &Settings) -> Exit {
    let loaded = match load_for_reading(&args.paths, settings) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let Some((pipeline, source)) = find(&loaded.pipelines, &args.source) else {
        // A file that cannot be read may be the one that was meant.
        if !loaded.problems.is_empty() {
            return report_problems(&loaded.problems, false);
        }
        eprintln!("error: {}", unknown(&loaded.pipelines, &args.source, &args.paths));
        return Exit::Config;
    };
    let brokers = match settings.brokers.as_deref() {
        Some(brokers) if brokers != EMBEDDED => brokers,
        _ => {
            eprintln!(
                "error: the brokers are not named, and the embedded one is in the worker's process. The worker's log says where it listens: --brokers 127.0.0.1:9092"
            );
            return Exit::Config;
        }
    };
    let cluster = match Cluster::new(brokers, &settings.kafka) {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Config;
        }
    };
    let task = component_name(&settings.cluster, &pipeline.name, &source.name);
    let request = SnapshotRequest { tables: &args.tables, condition: args.condition.as_deref() };
    match request_snapshot(&cluster, &task, source, &request) {
        Ok(tables) if args.json => {
            print_data(&format!("{}\n", serde_json::json!({ "tables": tables })));
            Exit::Ok
        }
        Ok(tables) => {
            tables.iter().for_each(|name| print_data(&format!("{name}\n")));
            Exit::Ok
        }
        Err(error) => {
            eprintln!("error: {error}");
            match error.domain {
                Domain::Config => Exit::Config,
                Domain::External => Exit::Environment,
                _ => Exit::Runtime,
            }
        }
    }
}

/// The source called `PIPELINE.SOURCE`. Both names may have dots.
fn find<'p>(pipelines: &'p [Pipeline], name: &str) -> Option<(&'p Pipeline, &'p SourcePlan)> {
    let sources = pipelines.iter().flat_map(|pipeline| pipeline.sources.iter().map(move |source| (pipeline, source)));
    sources.into_iter().find(|(pipeline, source)| format!("{}.{}", pipeline.name, source.name) == name)
}

fn unknown(pipelines: &[Pipeline], name: &str, paths: &[PathBuf]) -> String {
    let sources = pipelines
        .iter()
        .flat_map(|pipeline| pipeline.sources.iter().map(move |source| format!("{}.{}", pipeline.name, source.name)));
    let known: Vec<String> = sources.collect();
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    format!("no source is called `{name}` in {}; there are: {}", paths.join(", "), known.join(", "))
}

/// Writes the request into the source's committed position. Returns the names of the tables that will be read again.
fn request_snapshot(
    cluster: &Cluster,
    task: &str,
    source: &SourcePlan,
    request: &SnapshotRequest<'_>,
) -> Result<Vec<String>> {
    let Some(snapshots) = source.spec.snapshots().filter(|_| source.spec.placement() == Placement::Anywhere) else {
        let message =
            format!("the source `{}` does not support snapshots: only sources of database tables do", source.name);
        return Err(Error::config("source.no_snapshot", message));
    };
    // A wrong name or condition is reported before the producer fences the running task.
    let stored = match Positions::load(cluster, task, task) {
        Ok(positions) => positions.parts,
        // No worker of this cluster has run yet.
        Err(error) if error.code == "kafka.unknown_topic" => Vec::new(),
        Err(error) => return Err(error),
    };
    let parts = snapshots.request(request, &stored)?;
    if let Some(condition) = request.condition {
        check_condition(snapshots, &parts, condition)?;
    }
    let mut producer = TransactionalProducer::new(cluster, task, CHECKPOINTS, BUFFER_BYTES)?;
    // The last owner's transactions are settled now: this is the newest position, and stays so.
    let positions = Positions::load(cluster, task, task)?;
    let changes = snapshots.request(request, &positions.parts)?;
    positions.write(&mut producer, &changes, &positions.counters)?;
    producer.commit()?;
    let name = |key: &str| key.split_once('/').map_or(key, |(_, name)| name).to_owned();
    if changes.is_empty() {
        return Err(Error::internal("snapshot.nothing", "nothing was asked for"));
    }
    Ok(changes.iter().map(|change| name(&change.key)).collect())
}

/// Lets the source's system say whether it understands the condition. Whoever asks for a snapshot need not reach that system; then the worker says it.
fn check_condition(snapshots: &dyn IncrementalSnapshots, parts: &[PositionChange], condition: &str) -> Result<()> {
    // Of several threads: one that only has a handle does not drive connections.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::external("snapshot.runtime", format!("cannot start a thread: {error}")))?;
    let parts: Vec<&str> = parts.iter().map(|part| part.key.as_str()).collect();
    match snapshots.check_condition(&parts, condition, runtime.handle()) {
        Err(error) if error.domain == Domain::External => {
            eprintln!(
                "warning: the condition could not be tried from here: {error}. If it is wrong, the worker skips the table, and its log says so"
            );
            Ok(())
        }
        tried => tried,
    }
}
