//! `trunkline replay --supersede`: what it replaces, and why it refuses.

use std::collections::BTreeMap;

use tokio::runtime::Runtime;
use trunkline_connector::{Error, Result, Supersede, TopicPartition};

use super::target::Target;
use crate::checkpoint::{Intents, or_empty};
use crate::config::Settings;
use crate::kafka::{Admin, Cluster, GroupOffsets};
use crate::plan::{Pipeline, SinkPlan};
use crate::replay::run::{RowChange, Run, overlap};
use crate::replay::widening::{Replacement, Requested, check_rows, limited, visible_up_to, widened};
use crate::stage::component_name;
use crate::units::counted;

/// Refuses a sink whose output cannot be replaced.
pub(super) fn check_kind(sink: &SinkPlan, live: &SinkPlan) -> Result<()> {
    let Supersede::Refused(reason) = sink.spec.supersede() else { return Ok(()) };
    let message = format!("--supersede cannot replace what the sink `{}` wrote: {reason}", live.name);
    Err(Error::config("replay.not_superseded", message))
}

/// Refuses a destination that is not that of the live sink.
pub(super) fn check_destination(live: &SinkPlan, destination: &str) -> Result<()> {
    match live.spec.destination() {
        Some(place) if place == destination => Ok(()),
        place => {
            let message = format!(
                "--supersede replaces what the live sink wrote to {}, but the file of --pipeline-file writes to {destination}: correct \
                 its options",
                place.unwrap_or_default()
            );
            Err(Error::config("replay.not_superseded", message))
        }
    }
}

/// The range that is replayed, and the files that it replaces.
pub(super) fn replacement(
    cluster: &Cluster,
    settings: &Settings,
    target: &Target,
    runs: &[Run],
    offsets: &GroupOffsets,
    ranges: &BTreeMap<TopicPartition, (i64, i64)>,
) -> Result<Replacement> {
    check_topics(cluster, ranges)?;
    let component = component_name(&settings.cluster_name(), &target.pipeline.name, &target.live.name);
    // Before the files: every file of an offset below these limits is visible then.
    let live = or_empty(Intents::of(cluster, &component).load(cluster))?;
    let own_runs = || runs.iter().filter(|run| run.pipeline == target.pipeline.name && run.sink == target.live.name);
    let changes: Vec<&RowChange> =
        own_runs().filter_map(|run| run.supersede.as_ref()).flat_map(|superseding| &superseding.partitions).collect();
    let request = |(partition, (from, to)): (&TopicPartition, &(i64, i64))| {
        let row = live.get(partition);
        let counted: u64 = row.map_or(0, |row| row.counters.0.values().map(|counters| counters.extra).sum());
        let replayed =
            changes.iter().filter(|change| change.topic == *partition.topic && change.partition == partition.partition);
        let (low, high) = offsets.watermarks(partition)?;
        Ok(Requested {
            from: *from,
            to: *to,
            low,
            high,
            extra: counted + replayed.map(|change| change.extra).sum::<u64>(),
            limit: visible_up_to(row),
            partition: partition.clone(),
        })
    };
    let requested = ranges.iter().map(request).collect::<Result<Vec<_>>>()?;
    match target.sink.spec.supersede() {
        Supersede::Refused(reason) => Err(Error::config("replay.not_superseded", reason)),
        Supersede::Documents { up_to_live } => {
            if let Some(early) = requested.iter().find(|request| up_to_live && request.to < request.limit) {
                let message = format!(
                    "--to ends {} at offset {}, and the live sink is at {}: a document that a later record deleted would be written \
                     again. Leave --to out, so that the range includes the deletion",
                    early.partition, early.to, early.limit
                );
                return Err(Error::config("replay.not_superseded", message));
            }
            limited(&requested)
        }
        Supersede::Rows { up_to_live } => {
            if let Some(early) = requested.iter().find(|request| up_to_live && request.to < request.limit) {
                let message = format!(
                    "--to ends {} at offset {}, and the live sink is at {}: later records may have changed or deleted the rows of the \
                     same keys. Leave --to out, so that the range includes them",
                    early.partition, early.to, early.limit
                );
                return Err(Error::config("replay.not_superseded", message));
            }
            let replacement = limited(&requested)?;
            let beyond =
                requested.iter().map(|request| (request.partition.clone(), (request.high, i64::MAX))).collect();
            let runtime = runtime()?;
            let count = |ranges| {
                let counts = target.sink.spec.count_rows(ranges, 0, runtime.handle())?;
                counts.ok_or_else(|| Error::internal("replay.rows", "the connector replaces rows that it cannot count"))
            };
            let counts = count(&replacement.ranges)?;
            check_rows(&requested, &replacement.ranges, &counts, &count(&beyond)?)?;
            Ok(Replacement { rows: counts.partitions, ..replacement })
        }
        Supersede::Files => {
            let runtime = runtime()?;
            let listing = target.sink.spec.list_output(runtime.handle())?.unwrap_or_default();
            let name = format!("{}.{}", target.pipeline.name, target.live.name);
            let own = listing.files.into_iter().filter(|file| file.sink == name).collect();
            widened(&requested, own)
        }
    }
}

/// Rows do not name the sink that wrote them: refuses a table that another sink fills from the same
/// topics.
pub(super) fn check_other_sinks(
    pipelines: &[Pipeline],
    target: &Target,
    ranges: &BTreeMap<TopicPartition, (i64, i64)>,
) -> Result<()> {
    if !matches!(target.sink.spec.supersede(), Supersede::Rows { .. }) {
        return Ok(());
    }
    for pipeline in pipelines {
        for sink in &pipeline.sinks {
            let is_own = pipeline.name == target.pipeline.name && sink.name == target.live.name;
            let place = sink.spec.destination().filter(|place| !is_own && overlap(place, &target.destination));
            let reads =
                |partition: &TopicPartition| sink.inputs.iter().any(|input| input.topics.selects(&partition.topic));
            if let (Some(place), true) = (place, ranges.keys().any(reads)) {
                let message = format!(
                    "the sink `{}.{}` writes records of the same topics to {place}, and the rows do not name the sink that wrote them, so that                      its rows would be removed, too. Replay into another table with --into",
                    pipeline.name, sink.name
                );
                return Err(Error::config("replay.not_superseded", message));
            }
        }
    }
    Ok(())
}

/// Checks that the files may be removed.
pub(super) fn check_removal(target: &Target, replacement: &Replacement) -> Result<()> {
    if target.sink.spec.supersede() != Supersede::Files {
        return Ok(());
    }
    let runtime = runtime()?;
    target.sink.spec.check_removal(&replacement.files, runtime.handle()).map_err(|error| {
        error.context("--supersede must be able to remove the files that it replaces, so nothing was started")
    })
}

/// A compacted topic has lost records whose rows are in the files.
fn check_topics(cluster: &Cluster, ranges: &BTreeMap<TopicPartition, (i64, i64)>) -> Result<()> {
    let mut names: Vec<&str> = ranges.keys().map(|partition| partition.topic.as_ref()).collect();
    names.dedup();
    let compacted = Admin::new(cluster)?.topics(&names)?.into_iter().find(|topic| {
        topic
            .config
            .get("cleanup.policy")
            .is_some_and(|policy| policy.split(',').any(|policy| policy.trim() == "compact"))
    });
    match compacted {
        None => Ok(()),
        Some(topic) => {
            let message = format!(
                "the topic `{}` is compacted (cleanup.policy): it may have lost records of the range that the destination has, and a \
                 replay over the live destination would lose them there, too. Replay into another destination with --into",
                topic.name
            );
            Err(Error::config("replay.compacted", message))
        }
    }
}

/// What the run does to existing data, in one sentence.
pub(super) fn effect(target: &Target, replacement: Option<&Replacement>) -> String {
    match target.sink.spec.supersede() {
        Supersede::Files => {
            let files = replacement.map_or_else(
                || "the files with records of the range".to_owned(),
                |replacement| {
                    let rows: u64 = replacement.files.iter().map(|file| file.records).sum();
                    format!("{} files with {rows} rows", replacement.files.len())
                },
            );
            format!(
                "Replaces {files}: all new files are prepared unseen, then they are published, then the earlier files are removed; readers \
                 may see both from the first publication to the last removal (seconds: the result states how long)."
            )
        }
        Supersede::Rows { up_to_live } => {
            let rows = replacement.map_or_else(
                || "the rows with records of the range".to_owned(),
                |replacement| {
                    let rows: u64 = replacement.rows.iter().map(|count| count.rows).sum();
                    let mut tables: Vec<&str> = replacement.rows.iter().map(|count| count.table.as_str()).collect();
                    tables.dedup();
                    match tables.as_slice() {
                        [] => "0 rows".to_owned(),
                        tables => format!("{} of {}", counted(rows as usize, "row"), tables.join(", ")),
                    }
                },
            );
            let keys = "; rows that today's transforms no longer produce are removed, newer rows of other records stay, and nothing is \
                        replaced if a key needs records from before the range";
            format!(
                "Replaces {rows}: the new rows are staged unseen, then one transaction of the destination removes the earlier rows of the \
                 range and adds the new ones, so that readers see one of the two states{}.",
                if up_to_live { keys } else { "" }
            )
        }
        Supersede::Documents { .. } => {
            "Replaces the documents of the range, unless a later record has replaced them since; documents that \
             today's transforms no longer produce stay, because they do not name the records that they are from."
                .to_owned()
        }
        Supersede::Refused(reason) => reason.to_owned(),
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))
}
