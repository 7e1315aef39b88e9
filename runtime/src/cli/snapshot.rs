//! `trunkline snapshot`: re-reads selected tables while the source keeps streaming changes.
//!
//! The command writes the request into the source's committed position, with the source's own
//! transactional id. That fences the running task on any worker (I4), so that the task cannot
//! overwrite the request; it restarts from the changed position. The command needs no other store
//! and no connection to the worker.

use std::path::PathBuf;

use trunkline_connector::{Domain, Error, IncrementalSnapshots, Placement, PositionChange, Result, SnapshotRequest};

use super::SnapshotArgs;
use super::dlq::connect;
use super::output::{Exit, print_data, print_error, report_error, report_problems};
use super::record::record;
use super::validate::load_for_reading;
use crate::checkpoint::{Positions, or_empty};
use crate::config::Settings;
use crate::kafka::{Cluster, TransactionalProducer};
use crate::plan::{Pipeline, SourcePlan};
use crate::stage::{PendingDeletes, component_name};

/// The request is a few records.
const BUFFER_BYTES: usize = 1 << 20;

/// The pause before the task starts again grows with each time that it is fenced.
const ATTEMPTS: u32 = 10;

/// Runs the verb.
pub(super) fn snapshot(args: &SnapshotArgs, settings: &Settings) -> Exit {
    let loaded = match load_for_reading(&args.paths, settings) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let Some((pipeline, source)) = find(&loaded.pipelines, &args.source) else {
        // An invalid file may be the one that defines the source.
        if !loaded.problems.is_empty() {
            return report_problems(&loaded.problems, false);
        }
        print_error(format_args!("error: {}", unknown(&loaded.pipelines, &args.source, &args.paths)));
        return Exit::Config;
    };
    let cluster = match connect(settings) {
        Ok(cluster) => cluster,
        Err(error) => return report_error(&error),
    };
    let task = component_name(&settings.cluster_name(), &pipeline.name, &source.name);
    let request = SnapshotRequest { tables: &args.tables, condition: args.condition.as_deref() };
    let arguments = serde_json::json!({
        "source": args.source, "tables": args.tables, "where": args.condition, "with_deletes": args.with_deletes,
    });
    if let Err(error) = record(&cluster, settings, "snapshot", arguments) {
        return report_error(&error);
    }
    match request_snapshot(&cluster, &task, source, &request, args.with_deletes) {
        Ok(tables) if args.json => print_data(&format!("{}\n", serde_json::json!({ "tables": tables }))),
        Ok(tables) => print_data(&tables.iter().map(|name| format!("{name}\n")).collect::<String>()),
        Err(error) => report_error(&error),
    }
}

/// The source with the name `PIPELINE.SOURCE`.
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
    format!("{} define no source `{name}`; known sources: {}", paths.join(", "), known.join(", "))
}

/// Writes the request into the source's committed position. Returns the names of the tables that
/// will be read again.
fn request_snapshot(
    cluster: &Cluster,
    task: &str,
    source: &SourcePlan,
    request: &SnapshotRequest<'_>,
    with_deletes: bool,
) -> Result<Vec<String>> {
    let Some(snapshots) = source.spec.snapshots().filter(|_| source.spec.placement() == Placement::Anywhere) else {
        let message =
            format!("the source `{}` does not support snapshots: only sources of database tables do", source.name);
        return Err(Error::config("source.no_snapshot", message));
    };
    // A wrong name or condition is reported before the producer fences the running task.
    let stored = or_empty(Positions::load(cluster, task, task).map(|positions| positions.parts))?;
    let parts = snapshots.request(request, &stored)?;
    if let Some(condition) = request.condition {
        check_condition(snapshots, &parts, condition)?;
    }
    let mut attempt = 1;
    loop {
        match write_request(cluster, task, source, snapshots, request, with_deletes) {
            // The task has started again meanwhile, and has fenced the command.
            Err(error) if error.domain == Domain::Fenced && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome,
        }
    }
}

/// Writes the request with the transactional id of the task, which fences the running one.
fn write_request(
    cluster: &Cluster,
    task: &str,
    source: &SourcePlan,
    snapshots: &dyn IncrementalSnapshots,
    request: &SnapshotRequest<'_>,
    with_deletes: bool,
) -> Result<Vec<String>> {
    let mut producer = TransactionalProducer::new(cluster, task, BUFFER_BYTES)?;
    // The producer has ended the last owner's transactions, so this position is the newest one and
    // stays it.
    let positions = Positions::load(cluster, task, task)?;
    let mut changes = snapshots.request(request, &positions.parts)?;
    let tables: Vec<String> = changes.iter().map(|change| change.key.clone()).collect();
    for table in &tables {
        // A request without deletes replaces one with deletes.
        changes.push(match with_deletes {
            true => PendingDeletes::begin(cluster, &source.topic, snapshots, table)?.stored(table)?,
            false => PendingDeletes::removed(table),
        });
    }
    positions.write(&mut producer, &changes, &positions.counters)?;
    producer.commit()?;
    let name = |key: &str| key.split_once('/').map_or(key, |(_, name)| name).to_owned();
    if tables.is_empty() {
        return Err(Error::internal("snapshot.nothing", "the request names no tables"));
    }
    Ok(tables.iter().map(|table| name(table)).collect())
}

/// Asks the source's system whether it accepts the condition. If this machine cannot reach that
/// system, the worker finds out.
fn check_condition(snapshots: &dyn IncrementalSnapshots, parts: &[PositionChange], condition: &str) -> Result<()> {
    // Multi-threaded: a handle of a single-threaded runtime does not drive connections.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::external("snapshot.runtime", format!("cannot start a thread: {error}")))?;
    let parts: Vec<&str> = parts.iter().map(|part| part.key.as_str()).collect();
    match snapshots.check_condition(&parts, condition, runtime.handle()) {
        Err(error) if error.domain == Domain::External => {
            print_error(format_args!(
                "warning: the condition could not be checked from this machine: {error}. If it is invalid, the worker skips \
                 the table and logs the reason"
            ));
            Ok(())
        }
        outcome => outcome,
    }
}
