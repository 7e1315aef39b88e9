//! `trunkline replay switch`: makes a shadow the live destination of a sink.
//!
//! ```text
//! row of the run: begun → join the group of the sink as its only member
//!   → exchange tables, or move the alias → [txn: positions at the end of the shadow] → leave
//!   → row of the run: done
//! ```
//! The sink does not run meanwhile. It continues at the end of the shadow: records after it are
//! written once more, now into the output that has taken the place of the earlier one, and none is
//! there twice. A crash between two steps is completed by the same command.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use trunkline_connector::{Error, Result, Supersede, SwitchPlan, TopicPartition};

use super::super::SettingsArgs;
use super::super::dlq::connect;
use super::super::output::{Exit, columns, print_data, print_error, report_error, report_problems};
use super::super::record::record;
use super::super::selection;
use super::super::validate::load_to_inspect;
use super::target::{Choice, Refusal};
use crate::checkpoint::{Intents, Moved, or_empty};
use crate::config::Settings;
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::{Pipeline, SinkPlan};
use crate::replay::audit::expected_rows;
use crate::replay::cluster_name;
use crate::replay::range::partitions_of;
use crate::replay::run::{PartitionPosition, RowChange, Run, RunState, Runs, SwitchStep, Switching};
use crate::stage::component_name;
use crate::units::counted;

/// `trunkline replay switch`.
#[derive(Args)]
pub(super) struct SwitchArgs {
    /// Pipeline file, or folder of them
    #[arg(value_name = "PIPELINES")]
    path: PathBuf,
    /// The run that filled the shadow. The sink must be paused or stopped
    #[arg(value_name = "ID")]
    id: String,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Print the result as JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb.
pub(super) fn run(args: &SwitchArgs) -> Exit {
    let (settings, loaded) = match load_to_inspect(std::slice::from_ref(&args.path), &args.settings, args.json) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let outcome = connect(&settings).map_err(Refusal::from).and_then(|cluster| {
        let runs = Runs::new(&cluster, &settings.cluster_name());
        Switch::new(args, &settings, &cluster, &loaded.pipelines, &runs)?.run()
    });
    match outcome {
        Ok(exit) => exit,
        Err(Refusal::Error(error)) => report_error(&error),
        Err(Refusal::Problems(problems)) => report_problems(&[problems], args.json),
    }
}

/// What one command does.
struct Switch<'a> {
    args: &'a SwitchArgs,
    settings: &'a Settings,
    cluster: &'a Cluster,
    runs: &'a Runs<'a>,
    run: Run,
    live: SinkPlan,
    shadow: SinkPlan,
    /// The live sink in Kafka.
    component: String,
    offsets: GroupOffsets,
    /// Where the sink is, and where it continues.
    moves: Vec<Move>,
    topics: Vec<Arc<str>>,
    runtime: Runtime,
}

/// The change of one partition.
struct Move {
    partition: TopicPartition,
    before: Option<i64>,
    after: i64,
}

impl<'a> Switch<'a> {
    fn new(
        args: &'a SwitchArgs,
        settings: &'a Settings,
        cluster: &'a Cluster,
        pipelines: &[Pipeline],
        runs: &'a Runs<'a>,
    ) -> Result<Self, Refusal> {
        let run = runs.get(&args.id)?;
        check_run(&run)?;
        let choice = Choice::of_shadow(&run);
        let (live, pipeline) = choice.pipelines(pipelines, settings)?;
        let shadow = selection::sink(&pipeline, Some(&live.name))?.clone();
        let component = component_name(&settings.cluster_name(), &run.pipeline, &run.sink);
        let offsets = GroupOffsets::new(cluster, &component)?;
        let partitions = partitions_of(&offsets, &live.inputs)?;
        let committed = offsets.committed(&partitions)?;
        let mut lows = BTreeMap::new();
        for partition in &partitions {
            lows.insert(partition.clone(), offsets.watermarks(partition)?.0);
        }
        // After the switch, the shadow is what was live: nothing is compared or moved any more.
        let ends = if is_done(&run) { committed.clone() } else { shadow_ends(&runs.list()?, &run, &lows)? };
        let moves = partitions.iter().map(|partition| {
            let after = ends.get(partition).or_else(|| lows.get(partition)).copied().unwrap_or(0);
            Move { before: committed.get(partition).copied(), after, partition: partition.clone() }
        });
        let topics: BTreeSet<Arc<str>> = partitions.iter().map(|partition| Arc::clone(&partition.topic)).collect();
        Ok(Self {
            moves: moves.collect(),
            topics: topics.into_iter().collect(),
            live: live.clone(),
            runtime: super::diff::runtime()?,
            args,
            settings,
            cluster,
            runs,
            run,
            shadow,
            component,
            offsets,
        })
    }

    fn name(&self) -> String {
        format!("{}.{}", self.run.pipeline, self.run.sink)
    }

    fn run(&self) -> Result<Exit, Refusal> {
        if is_done(&self.run) {
            // The last step may have been interrupted.
            self.finish()?;
            print_error(format_args!("the shadow of the run {} is the live destination already", self.run.id));
            return Ok(self.report(""));
        }
        let plan = self.live.spec.plan_switch(&self.topics, self.shadow.spec.as_ref(), self.runtime.handle())?;
        let (effect, statements) = match plan {
            SwitchPlan::Steps { effect, statements } => (effect, statements),
            SwitchPlan::ByHand(next) => return Ok(self.by_hand(&next)),
        };
        if self.args.dry_run {
            return Ok(self.print_plan(&effect, &statements));
        }
        let (name, task) = (self.name(), self.component.as_str());
        let moved = Moved { name: &name, task, is_sink: true };
        moved.require_stopped(&self.offsets)?;
        if !self.args.json {
            print_error(format_args!("{}{effect}", self.table()));
        }
        self.confirm()?;
        let arguments = json!({
            "run": self.run.id, "sink": name, "shadow": self.run.destination, "statements": statements, "positions": self.positions(),
        });
        record(self.cluster, self.settings, "replay switch", arguments)?;
        self.begin()?;
        let next: BTreeMap<TopicPartition, i64> =
            self.moves.iter().map(|change| (change.partition.clone(), change.after)).collect();
        moved.to_with(self.cluster, &self.offsets, &next, || {
            let (live, shadow) = (&self.live.spec, self.shadow.spec.as_ref());
            live.switch(&self.topics, shadow, &self.run.id, self.runtime.handle())
        })?;
        self.runs.update(&self.run.id, |run| {
            if let Some(switch) = &mut run.switch {
                switch.step = SwitchStep::Done;
                switch.done = Some(Timestamp::now().as_millisecond());
            }
            Ok(())
        })?;
        self.finish()?;
        print_error(format_args!(
            "the shadow is the live destination; `trunkline resume {name}` continues the sink at the end of the shadow"
        ));
        Ok(self.report(&effect))
    }

    /// Stores that the switch has begun, and from which positions.
    fn begin(&self) -> Result<()> {
        let before: Vec<PartitionPosition> = self.moves.iter().map(Move::position).collect();
        if let Some(switch) = &self.run.switch {
            let is_here = |change: &&Move| {
                let was = switch.before.iter().find(|was| was.is(&change.partition));
                change.before == Some(change.after) || was.and_then(|was| was.offset) == change.before
            };
            if let Some(moved) = self.moves.iter().find(|change| !is_here(change)) {
                let message = format!(
                    "the switch to the shadow of the run {} was interrupted, and the sink has run since: it is at offset {} of {}. Records \
                     from {} to there are in one of the two outputs only: replay them into the live one with --supersede",
                    self.run.id,
                    moved.before.unwrap_or(0),
                    moved.partition,
                    moved.after
                );
                return Err(Error::data("replay.not_switched", message));
            }
            return Ok(());
        }
        let partitions = self.row_changes()?;
        self.runs.update(&self.run.id, |run| {
            run.switch.get_or_insert_with(|| Switching {
                step: SwitchStep::Begun,
                before: before.clone(),
                partitions: partitions.clone(),
                done: None,
            });
            Ok(())
        })?;
        Ok(())
    }

    /// What the switch changes for the audit: the rows of the shadow count, and no earlier one.
    fn row_changes(&self) -> Result<Vec<RowChange>> {
        if self.live.spec.supersede() != (Supersede::Rows { up_to_live: false }) {
            return Ok(Vec::new());
        }
        let live = or_empty(Intents::of(self.cluster, &self.component).load(self.cluster))?;
        let runs = self.runs.list()?;
        let earlier: Vec<RowChange> =
            runs.iter().filter(|run| run.is_of(&self.run)).flat_map(Run::row_changes).collect();
        let mut added: BTreeMap<TopicPartition, (u64, u64)> = BTreeMap::new();
        for run in runs.iter().filter(|run| fills_shadow(run, &self.run)) {
            let cluster = cluster_name(&self.settings.cluster_name(), &run.id);
            let component = component_name(&cluster, &run.pipeline, &run.sink);
            for (partition, row) in or_empty(Intents::of(self.cluster, &component).load(self.cluster))? {
                let counted = added.entry(partition).or_default();
                counted.0 += row.counters.0.get(&run.sink).map_or(0, |counters| counters.out);
                counted.1 += row.counters.0.values().map(|counters| counters.extra).sum::<u64>();
            }
        }
        let change = |change: &Move| {
            let partition = &change.partition;
            let removed =
                live.get(partition).map_or(0, |row| expected_rows(&self.run.sink, partition, row, &earlier).0);
            let (added, extra) = added.get(partition).copied().unwrap_or_default();
            RowChange { topic: partition.topic.to_string(), partition: partition.partition, removed, added, extra }
        };
        Ok(self.moves.iter().map(change).collect())
    }

    fn finish(&self) -> Result<()> {
        let (live, shadow) = (&self.live.spec, self.shadow.spec.as_ref());
        live.finish_switch(&self.topics, shadow, &self.run.id, self.runtime.handle())
    }

    fn by_hand(&self, next: &str) -> Exit {
        if self.args.json {
            let value =
                json!({ "run": self.run.id, "switched": false, "next_step": next, "positions": self.positions() });
            return print_data(&format!("{value}\n"));
        }
        let printed = print_data(&format!("{}by hand: {next}\n", self.table()));
        print_error(format_args!("nothing was changed: no single step makes the shadow the live destination"));
        printed
    }

    fn print_plan(&self, effect: &str, statements: &[String]) -> Exit {
        if self.args.json {
            let value = json!({
                "dry_run": true, "run": self.run.id, "shadow": self.run.destination, "effect": effect, "statements": statements,
                "positions": self.positions(),
            });
            return print_data(&format!("{value}\n"));
        }
        let statements: String = statements.iter().map(|statement| format!("  {statement}\n")).collect();
        print_data(&format!("{}{effect}\n{statements}{}\n", self.table(), self.after_it()))
    }

    fn report(&self, effect: &str) -> Exit {
        if !self.args.json {
            return Exit::Ok;
        }
        let value = json!({
            "run": self.run.id, "switched": true, "shadow": self.run.destination, "effect": effect, "positions": self.positions(),
        });
        print_data(&format!("{value}\n"))
    }

    fn positions(&self) -> Value {
        let position = |change: &Move| {
            let Move { partition, before, after } = change;
            json!({ "topic": &*partition.topic, "partition": partition.partition, "before": before, "after": after })
        };
        self.moves.iter().map(position).collect()
    }

    fn table(&self) -> String {
        let mut rows = vec![["TOPIC", "PARTITION", "SINK AT", "CONTINUES AT"].map(str::to_owned)];
        rows.extend(self.moves.iter().map(|Move { partition, before, after }| {
            let before = before.map_or_else(|| "none".to_owned(), |before| before.to_string());
            [partition.topic.to_string(), partition.partition.to_string(), before, after.to_string()]
        }));
        columns(&rows, &[1, 2, 3])
    }

    /// What happens to records after the end of the shadow, in one sentence.
    fn after_it(&self) -> String {
        let behind: i64 = self.moves.iter().map(|change| (change.before.unwrap_or(0) - change.after).max(0)).sum();
        format!(
            "The sink continues at the end of the shadow: {} that it has written since are written again, into the new output, and no \
             record is lost or there twice.",
            counted(usize::try_from(behind).unwrap_or(usize::MAX), "offset")
        )
    }

    /// Asks on a terminal; elsewhere `--yes` is required.
    fn confirm(&self) -> Result<()> {
        if self.args.yes {
            return Ok(());
        }
        let refused = |message: &str| Err(Error::config("offsets.not_confirmed", message.to_owned()));
        if !std::io::stdin().is_terminal() {
            return refused("nothing was changed: confirm the switch with --yes");
        }
        print_error(format_args!("{} Switch? [y/N]", self.after_it()));
        let mut answer = String::new();
        match std::io::stdin().read_line(&mut answer) {
            Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
            _ => refused("nothing was changed"),
        }
    }
}

impl Move {
    fn position(&self) -> PartitionPosition {
        PartitionPosition {
            topic: self.partition.topic.to_string(),
            partition: self.partition.partition,
            offset: self.before,
        }
    }
}

/// Refuses runs whose output is no shadow of a sink.
fn check_run(run: &Run) -> Result<()> {
    let problem = if run.transform {
        "it replays a transform: let the readers read the other topic (change their `inputs`)"
    } else if run.request.supersede {
        "it took the place of the live output, so that there is nothing to switch to"
    } else if run.is_unfinished() {
        &format!(
            "it has not processed its range: complete it with `trunkline replay PIPELINES {} --resume {}`",
            run.pipeline, run.id
        )
    } else if run.state == RunState::Discarded {
        "it was given up"
    } else if run.into.trim().is_empty() {
        "it wrote to the live destination"
    } else {
        return Ok(());
    };
    Err(not_switched(&run.id, problem))
}

fn not_switched(id: &str, problem: &str) -> Error {
    let message = format!("the output of the run {id} cannot become the live one: {problem}");
    Error::config("replay.not_switched", message)
}

/// Whether a run wrote into the same shadow.
fn fills_shadow(run: &Run, of: &Run) -> bool {
    run.is_of(of) && run.destination == of.destination && run.state != RunState::Discarded && !is_done(run)
}

fn is_done(run: &Run) -> bool {
    run.switch.as_ref().is_some_and(|switch| switch.step == SwitchStep::Done)
}

/// The offset after the last record in the shadow, for each partition that the runs into it have
/// read. `lows` are the first offsets that the topics still have.
fn shadow_ends(runs: &[Run], run: &Run, lows: &BTreeMap<TopicPartition, i64>) -> Result<BTreeMap<TopicPartition, i64>> {
    let mut filling: Vec<&Run> = runs.iter().filter(|other| fills_shadow(other, run)).collect();
    filling.sort_by_key(|run| run.started);
    if let Some(other) = filling.iter().find(|other| other.is_unfinished()) {
        return Err(not_switched(&run.id, &format!("the run {} writes there, too: complete it first", other.id)));
    }
    let is_whole = |run: &&Run| {
        let request = &run.request;
        request.from.trim() == "earliest"
            && request.partitions.is_none()
            && request.by.is_none()
            && !request.dead_letters
    };
    let Some((first, later)) = filling.split_first().filter(|(first, _)| is_whole(first)) else {
        let problem = "it does not begin with the first record, so that earlier rows would be missing: replay with `--from earliest`, \
                       without --partitions, --by and --dead-letters";
        return Err(not_switched(&run.id, problem));
    };
    let mut ends: BTreeMap<TopicPartition, i64> =
        first.ranges.iter().map(|range| (range.topic_partition(), range.to)).collect();
    for (run, range) in later.iter().flat_map(|run| run.ranges.iter().map(move |range| (run, range))) {
        let partition = range.topic_partition();
        let end = ends.get(&partition).or_else(|| lows.get(&partition)).copied().unwrap_or(0);
        if range.from > end {
            let problem = format!("the run {} left out the offsets {end} to {} of {partition}", run.id, range.from - 1);
            return Err(not_switched(&run.id, &problem));
        }
        ends.insert(partition, range.to.max(end));
    }
    for (partition, end) in &ends {
        let low = lows.get(partition).copied().unwrap_or(0);
        if low > *end {
            let problem = format!(
                "the records {end} to {} of {partition} were deleted since the run, so that the sink cannot write them into the shadow: \
                 replay into another shadow",
                low - 1
            );
            return Err(not_switched(&run.id, &problem));
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: &str, from: &str, started: i64, ranges: &[(i32, i64, i64)]) -> Run {
        let ranges: Vec<Value> = ranges
            .iter()
            .map(|(partition, from, to)| json!({ "topic": "t", "partition": partition, "from": from, "to": to }))
            .collect();
        let row = json!({
            "id": id, "pipeline": "p", "sink": "s", "destination": "d/v2", "into": "table=\"v2\"",
            "request": { "from": from, "to": "latest" }, "ranges": ranges, "state": "finished", "node": "n", "started": started,
        });
        serde_json::from_value(row).unwrap()
    }

    fn ends(runs: &[Run], low: i64) -> Result<Vec<i64>, String> {
        let lows = (0..3).map(|number| (TopicPartition::new("t", number), low)).collect();
        let found = shadow_ends(runs, &runs[0], &lows);
        found.map(|ends| ends.into_values().collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_shadow_has_all_records_up_to_its_end() {
        let whole = run("a", "earliest", 1, &[(0, 0, 10), (1, 0, 5)]);
        assert_eq!(ends(std::slice::from_ref(&whole), 0), Ok(vec![10, 5]));
        // A second run follows it, and finds another partition.
        let second = run("b", "0:10", 2, &[(0, 10, 20), (2, 0, 3)]);
        assert_eq!(ends(&[whole.clone(), second], 0), Ok(vec![20, 5, 3]));
        let gap = ends(&[whole.clone(), run("b", "0:12", 2, &[(0, 12, 20)])], 0).unwrap_err();
        assert!(gap.contains("left out the offsets 10 to 11"), "{gap}");
        let deleted = ends(std::slice::from_ref(&whole), 7).unwrap_err();
        assert!(deleted.contains("the records 5 to 6 of t-1 were deleted"), "{deleted}");
        let part = ends(&[run("a", "-7d", 1, &[(0, 3, 10)])], 0).unwrap_err();
        assert!(part.contains("--from earliest"), "{part}");
        let mut open = run("b", "0:10", 2, &[(0, 10, 20)]);
        open.state = RunState::Running;
        assert!(ends(&[whole, open], 0).unwrap_err().contains("complete it first"));
    }

    #[test]
    fn only_finished_shadows_of_sinks_are_switched_to() {
        let whole = run("a", "earliest", 1, &[(0, 0, 10)]);
        assert!(check_run(&whole).is_ok());
        for change in [
            |run: &mut Run| run.transform = true,
            |run: &mut Run| run.request.supersede = true,
            |run: &mut Run| run.state = RunState::Paused,
            |run: &mut Run| run.state = RunState::Discarded,
            |run: &mut Run| run.into.clear(),
        ] {
            let mut other = whole.clone();
            change(&mut other);
            assert_eq!(check_run(&other).unwrap_err().code, "replay.not_switched");
        }
    }
}
