//! `trunkline offsets`: shows positions of components, and moves those of sinks and transforms.
//! `offsets_source` moves those of sources.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use trunkline_connector::{Error, Placement, Result, TopicPartition};

use super::SettingsArgs;
use super::dlq::connect;
use super::offsets_source::SourceMove;
use super::output::{Exit, columns, print_data, print_error, report_error};
use super::record::record;
use super::selection::{Component, component, components, pipeline};
use super::validate::load_to_inspect;
use crate::checkpoint::{Moved, Positions, or_empty};
use crate::config::Settings;
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::{Pipeline, SourcePlan};
use crate::replay::range::{Bound, partitions_of, positions};
use crate::stage::component_name;

/// `trunkline offsets`.
#[derive(Args)]
pub(super) struct OffsetsArgs {
    #[command(subcommand)]
    command: OffsetsCommand,
}

#[derive(Subcommand)]
enum OffsetsCommand {
    /// Print the positions of a pipeline or a component
    Show {
        /// Pipeline file, or folder of them
        #[arg(value_name = "PIPELINES")]
        path: PathBuf,
        /// PIPELINE or PIPELINE.COMPONENT
        #[arg(value_name = "PIPELINE[.COMPONENT]")]
        name: String,
        /// Print as JSON on stdout
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Move the position of a component that does not run
    Set {
        #[command(flatten)]
        change: ChangeArgs,
        /// New position. Of a sink or transform: `earliest`, `latest`, offsets by partition
        /// (0:1200,1:900), a time (2026-11-01T00:00Z), or a time ago (-7d). Of a `mysql` source:
        /// `earliest`, `latest`, a GTID set, or FILE:OFFSET of the binlog. Of a `logfile` source:
        /// PATH:BYTE,..
        #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
        to: String,
    },
    /// Move a sink or transform that does not run to the first record that its topics still have,
    /// or remove the position of a source, which then starts as if it had never run
    Reset {
        #[command(flatten)]
        change: ChangeArgs,
    },
}

#[derive(Args)]
pub(super) struct ChangeArgs {
    /// Pipeline file, or folder of them
    #[arg(value_name = "PIPELINES")]
    path: PathBuf,
    /// The component, as PIPELINE.COMPONENT
    #[arg(value_name = "PIPELINE.COMPONENT")]
    pub(super) name: String,
    /// Only these partitions of the topics of a sink or transform
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(super) partitions: Option<Vec<i32>>,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(super) yes: bool,
    /// Print the positions before and after as JSON on stdout
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb.
pub(super) fn run(args: &OffsetsArgs) -> Exit {
    let (path, settings, as_json) = match &args.command {
        OffsetsCommand::Show { path, settings, json, .. } => (path, settings, *json),
        OffsetsCommand::Set { change, .. } | OffsetsCommand::Reset { change } => {
            (&change.path, &change.settings, change.json)
        }
    };
    let (settings, loaded) = match load_to_inspect(std::slice::from_ref(path), settings, as_json) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let outcome = connect(&settings).and_then(|cluster| {
        let context = Context { cluster: &cluster, settings: &settings, pipelines: &loaded.pipelines };
        match &args.command {
            OffsetsCommand::Show { name, .. } => context.show(name, as_json),
            OffsetsCommand::Set { change, to } => context.change(change, Some(to)),
            OffsetsCommand::Reset { change } => context.change(change, None),
        }
    });
    outcome.unwrap_or_else(|error| report_error(&error))
}

struct Context<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    pipelines: &'a [Pipeline],
}

/// The change of one partition.
struct Change {
    partition: TopicPartition,
    before: Option<i64>,
    after: i64,
}

impl Context<'_> {
    fn name(&self, pipeline: &Pipeline, component: &str) -> String {
        component_name(&self.settings.cluster_name(), &pipeline.name, component)
    }

    fn show(&self, name: &str, as_json: bool) -> Result<Exit> {
        let shown = match name.contains('.') {
            true => vec![component(self.pipelines, name)?],
            false => {
                let found = pipeline(self.pipelines, name)?;
                components(found).into_iter().map(|component| (found, component)).collect()
            }
        };
        let mut values = Vec::new();
        let mut rows = vec![["COMPONENT", "PLACE", "POSITION", "END", "LAG"].map(str::to_owned)];
        for (pipeline, component) in shown {
            let name = format!("{}.{}", pipeline.name, component.name());
            let positions = match component {
                Component::Source(source) => self.source_positions(pipeline, source, &name, &mut rows)?,
                _ => self.reader_positions(pipeline, component, &name, &mut rows)?,
            };
            values.push(json!({ "component": name, "kind": component.kind(), "positions": positions }));
        }
        if rows.len() == 1 {
            print_error(format_args!("`{name}` has no positions yet: start the pipeline"));
        }
        Ok(match as_json {
            true => print_data(&format!("{}\n", Value::Array(values))),
            false => print_data(&columns(&rows, &[3, 4])),
        })
    }

    /// The parts of a source's position, on every node.
    fn source_positions(
        &self,
        pipeline: &Pipeline,
        source: &SourcePlan,
        name: &str,
        rows: &mut Vec<[String; 5]>,
    ) -> Result<Vec<Value>> {
        let task = self.name(pipeline, &source.name);
        let nodes = match source.spec.placement() {
            Placement::Anywhere => {
                Positions::load(self.cluster, &task, &task).map(|found| BTreeMap::from([(String::new(), found.parts)]))
            }
            Placement::EveryNode => Positions::by_node(self.cluster, &task),
        };
        let mut values = Vec::new();
        for (node, parts) in or_empty(nodes)? {
            for (key, value) in parts {
                let text = String::from_utf8_lossy(&value).into_owned();
                let position = serde_json::from_slice(&value).unwrap_or_else(|_| Value::from(text.clone()));
                let described = source.spec.position_moves().and_then(|moves| moves.describe(&key, &value));
                let (part, shown) = described.unwrap_or_else(|| (key.clone(), text));
                let place = if node.is_empty() { part } else { format!("{node}: {part}") };
                rows.push([name.to_owned(), place, shown, String::new(), String::new()]);
                values.push(json!({ "node": node, "part": key, "position": position }));
            }
        }
        Ok(values)
    }

    /// The committed offsets of a sink or transform.
    fn reader_positions(
        &self,
        pipeline: &Pipeline,
        component: Component<'_>,
        name: &str,
        rows: &mut Vec<[String; 5]>,
    ) -> Result<Vec<Value>> {
        let offsets = GroupOffsets::new(self.cluster, &self.name(pipeline, component.name()))?;
        let partitions =
            offsets.partitions(|topic| component.inputs().iter().any(|input| input.topics.selects(topic)))?;
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let committed = offsets.committed(&partitions)?;
        let mut values = Vec::new();
        for (partition, (low, high)) in partitions.iter().zip(offsets.all_watermarks(&partitions)?) {
            let position = committed.get(partition).copied();
            // Markers of transactions at the end have offsets, too.
            let lag = high - position.unwrap_or(low).max(low);
            rows.push([
                name.to_owned(),
                format!("{}-{}", partition.topic, partition.partition),
                position.map_or_else(|| "none".to_owned(), |position| position.to_string()),
                high.to_string(),
                lag.to_string(),
            ]);
            values.push(json!({
                "topic": &*partition.topic, "partition": partition.partition, "committed": position, "first": low,
                "end": high,
            }));
        }
        Ok(values)
    }

    /// Without `to`, moves to the first position that there is.
    fn change(&self, args: &ChangeArgs, to: Option<&str>) -> Result<Exit> {
        let (pipeline, component) = component(self.pipelines, &args.name)?;
        if let Component::Source(source) = component {
            let (cluster, settings) = (self.cluster, self.settings);
            return SourceMove { cluster, settings, pipeline, source, args }.run(to);
        }
        let to = to.unwrap_or("earliest");
        let name = self.name(pipeline, component.name());
        let offsets = GroupOffsets::new(self.cluster, &name)?;
        let changes = self.planned(&offsets, component, args, to)?;
        if !args.json {
            print_error(format_args!("{}", table(&changes).trim_end()));
        }
        let moved = Moved { name: &args.name, task: &name, is_sink: matches!(component, Component::Sink(_)) };
        moved.require_stopped(&offsets)?;
        let effect = match component {
            Component::Sink(sink) if sink.spec.repeats_change_nothing() => {
                "Records before the old position are delivered again."
            }
            _ => "Records between the new and the old position are written a second time, or are skipped.",
        };
        confirm(&args.name, effect, args.yes)?;
        let moved_partitions: Vec<Value> = changes
            .iter()
            .map(|Change { partition, before, after }| {
                json!({ "topic": &*partition.topic, "partition": partition.partition, "before": before, "after": after })
            })
            .collect();
        let arguments = json!({ "name": args.name, "to": to, "changes": &moved_partitions });
        record(self.cluster, self.settings, "offsets set", arguments)?;
        let next: BTreeMap<TopicPartition, i64> =
            changes.iter().map(|change| (change.partition.clone(), change.after)).collect();
        moved.to(self.cluster, &offsets, &next)?;
        if args.json {
            return Ok(print_data(&format!("{}\n", Value::Array(moved_partitions))));
        }
        print_error(format_args!("the position of `{}` was changed: it continues there when it starts", args.name));
        Ok(Exit::Ok)
    }

    fn planned(
        &self,
        offsets: &GroupOffsets,
        component: Component<'_>,
        args: &ChangeArgs,
        to: &str,
    ) -> Result<Vec<Change>> {
        let bound = Bound::parse(to, Timestamp::now())?;
        let mut partitions = partitions_of(offsets, component.inputs())?;
        bound.check(&partitions)?;
        if let Some(only) = &args.partitions {
            partitions.retain(|partition| only.contains(&partition.partition));
        }
        let committed = offsets.committed(&partitions)?;
        let watermarks = offsets.all_watermarks(&partitions)?;
        let found = positions(offsets, &partitions, &bound, &watermarks, true)?;
        let changes = partitions.into_iter().zip(found).filter_map(|(partition, after)| {
            let before = committed.get(&partition).copied();
            Some(Change { partition, before, after: after? })
        });
        let changes: Vec<Change> = changes.collect();
        if changes.is_empty() {
            let message = "the component's topics have none of the partitions in --partitions";
            return Err(Error::config("replay.unknown_partition", message));
        }
        Ok(changes)
    }
}

fn table(changes: &[Change]) -> String {
    let mut rows = vec![["TOPIC", "PARTITION", "BEFORE", "AFTER"].map(str::to_owned)];
    rows.extend(changes.iter().map(|Change { partition, before, after }| {
        let before = before.map_or_else(|| "none".to_owned(), |before| before.to_string());
        [partition.topic.to_string(), partition.partition.to_string(), before, after.to_string()]
    }));
    columns(&rows, &[1, 2, 3])
}

/// Asks on a terminal; elsewhere `--yes` is required. `effect` is a sentence.
pub(super) fn confirm(name: &str, effect: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let message = format!("nothing was changed: confirm the new position of `{name}` with --yes");
        return Err(Error::config("offsets.not_confirmed", message));
    }
    print_error(format_args!("{effect} Move the position of `{name}`? [y/N]"));
    let mut answer = String::new();
    match std::io::stdin().read_line(&mut answer) {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Error::config("offsets.not_confirmed", "nothing was changed".to_owned())),
    }
}
