//! `trunkline audit`: checks the files or rows of a sink against its committed offsets.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use trunkline_connector::{Error, Result, Supersede};

use super::SettingsArgs;
use super::dlq::connect;
use super::output::{Exit, columns, print_data, print_error, report_error};
use super::selection::{Component, component};
use super::validate::load_to_inspect;
use crate::checkpoint::{IntentState, Intents, or_empty};
use crate::config::Settings;
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::{Pipeline, SinkPlan};
use crate::replay::audit::{Audit, LISTED, Output, audit};
use crate::replay::run::{RowChange, Runs};
use crate::stage::component_name;

/// A sink that commits while its files are listed is listed again, this often.
const ATTEMPTS: u32 = 20;

/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// `trunkline audit`.
#[derive(Args)]
pub(super) struct AuditArgs {
    /// Pipeline file, or folder of them
    #[arg(value_name = "PIPELINES")]
    path: PathBuf,
    /// The sink, as PIPELINE.SINK
    #[arg(value_name = "PIPELINE.SINK")]
    sink: String,
    /// Print the result as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb. The exit code is 1 if a row is missing, or there twice.
pub(super) fn run(args: &AuditArgs) -> Exit {
    let (settings, loaded) = match load_to_inspect(std::slice::from_ref(&args.path), &args.settings, args.json) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let found = component(&loaded.pipelines, &args.sink).and_then(|(pipeline, component)| match component {
        Component::Sink(sink) => check(pipeline, sink, &settings),
        other => {
            let message = format!("`{}` is a {}: only sinks have output to audit", args.sink, other.kind());
            Err(Error::config("audit.unsupported", message))
        }
    });
    match found {
        Ok(audit) => print(&args.sink, &audit, args.json),
        Err(error) => report_error(&error),
    }
}

fn check(pipeline: &Pipeline, sink: &SinkPlan, settings: &Settings) -> Result<Audit> {
    let cluster = connect(settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))?;
    let component = component_name(&settings.cluster_name(), &pipeline.name, &sink.name);
    let intents = Intents::of(&cluster, &component);
    let group = GroupOffsets::new(&cluster, &component)?;
    let mut attempt = 1;
    loop {
        let before = or_empty(intents.load(&cluster))?;
        let replaced = or_empty(changes(&cluster, settings, pipeline, sink))?;
        let output = match sink.spec.list_output(runtime.handle())? {
            Some(listing) => Output::Files(listing),
            None => {
                let ranges = before.keys().map(|partition| (partition.clone(), (0, i64::MAX))).collect();
                // Rows of keys do not stand for all records.
                let counts = match sink.spec.supersede() {
                    Supersede::Rows { up_to_live: true } => None,
                    _ => sink.spec.count_rows(&ranges, LISTED, runtime.handle())?,
                };
                Output::Rows(counts.ok_or_else(|| unsupported(sink))?)
            }
        };
        let is_settled = before.values().all(|row| row.state == IntentState::Committed);
        if is_settled && or_empty(intents.load(&cluster))? == before {
            // A replay may have replaced files meanwhile.
            if or_empty(changes(&cluster, settings, pipeline, sink))? == replaced {
                let name = format!("{}.{}", pipeline.name, sink.name);
                return Ok(audit(&name, &sink.name, &before, &replaced, output));
            }
        }
        if attempt == ATTEMPTS {
            let message = if group.members()? == 0 {
                "the sink has prepared output that it has not committed, and no worker runs it: start the pipeline, and audit \
                 it then"
            } else {
                "the sink commits so often that its output cannot be counted in between: audit it while it is idle or stopped"
            };
            return Err(Error::external("audit.busy", message));
        }
        attempt += 1;
        std::thread::park_timeout(PAUSE);
    }
}

fn unsupported(sink: &SinkPlan) -> Error {
    let message = format!(
        "the output of the sink `{}` does not name every offset in it: `s3` sinks can be audited, `elasticsearch` sinks \
         whose ids are offsets, and `redshift` and `snowflake` sinks with `mode = \"append\"`, `lineage = true`, and a `table` that \
         depends on nothing but the topic",
        sink.name
    );
    Error::config("audit.unsupported", message)
}

/// What replays have replaced.
fn changes(cluster: &Cluster, settings: &Settings, pipeline: &Pipeline, sink: &SinkPlan) -> Result<Vec<RowChange>> {
    let mut changes = Vec::new();
    for run in Runs::new(cluster, &settings.cluster_name()).list()? {
        if run.pipeline != pipeline.name || run.sink != sink.name {
            continue;
        }
        if run.is_between() {
            let message = format!(
                "the replay {0} replaces output of the sink now: audit it when `trunkline runs show {0}` shows that it is finished. \
                 If no command executes it, complete it with `trunkline replay PIPELINES {1} --resume {0}`",
                run.id, run.pipeline
            );
            return Err(Error::external("audit.busy", message));
        }
        changes.extend(run.row_changes());
    }
    Ok(changes)
}

fn print(sink: &str, audit: &Audit, as_json: bool) -> Exit {
    let text = match as_json {
        true => {
            let mut value = serde_json::json!(audit);
            value["complete"] = audit.is_complete().into();
            format!("{value}\n")
        }
        false => table(audit),
    };
    let printed = print_data(&text);
    if audit.partitions.is_empty() {
        print_error(format_args!("`{sink}` has not committed anything yet: start its pipeline, and audit it then"));
    }
    if audit.is_complete() {
        return printed;
    }
    let message = format!("the output of `{sink}` does not hold every committed row once; the ranges are above");
    report_error(&Error::data("audit.incomplete", message))
}

fn table(audit: &Audit) -> String {
    let header = ["TOPIC", "PARTITION", "COMMITTED", "FILES", "ROWS", "EXPECTED", "RESULT"];
    let mut rows = vec![header.map(str::to_owned)];
    let mut lines = String::new();
    let has_one_topic = audit.partitions.windows(2).all(|pair| pair[0].topic == pair[1].topic);
    for found in &audit.partitions {
        let result = if found.is_complete() { "ok" } else { "incomplete" };
        rows.push([
            found.topic.clone(),
            found.partition.to_string(),
            found.committed.to_string(),
            if audit.unnamed_rows.is_some() { "-".to_owned() } else { found.files.to_string() },
            found.rows.to_string(),
            found.expected.to_string(),
            result.to_owned(),
        ]);
        let place = format!("{}-{}", found.topic, found.partition);
        for (first, last) in &found.gaps {
            let kind = if audit.unnamed_rows.is_some() { "row" } else { "file" };
            let number = match has_one_topic {
                true => found.partition.to_string(),
                false => format!("{}/{}", found.topic, found.partition),
            };
            lines.push_str(&format!(
                "{place}: gap: no {kind} has the offsets {first} to {last} (--from {number}:{first} --to {number}:{})\n",
                last + 1
            ));
        }
        if found.duplicates > 0 {
            lines.push_str(&format!("{place}: {} more rows than different offsets\n", found.duplicates));
        }
        for (one, other) in &found.copies {
            lines.push_str(&format!("{place}: copy: {other} has the rows of {one}\n"));
        }
        for overlap in &found.overlaps {
            let ((one, other), (first, last)) = (&overlap.files, overlap.offsets);
            lines.push_str(&format!("{place}: overlap: {one} and {other} both have the offsets {first} to {last}\n"));
        }
        if found.rows < found.expected && found.gaps.is_empty() {
            let missing = found.expected - found.rows;
            lines.push_str(&format!("{place}: {missing} rows are missing in ranges that other files cover\n"));
        }
    }
    let kinds = [
        (&audit.unknown, "file of this sink with offsets that the cluster has not committed"),
        (&audit.of_other_sinks, "file of another sink"),
        (&audit.foreign, "foreign file"),
    ];
    for (names, kind) in kinds {
        names.iter().for_each(|name| lines.push_str(&format!("{kind}: {name}\n")));
    }
    if let Some(unnamed @ 1..) = audit.unnamed_rows {
        lines.push_str(&format!("{unnamed} rows do not name their records\n"));
    }
    format!("{}{lines}", columns(&rows, &[1, 2, 3, 4, 5]))
}
