//! The run of a replay, before it is executed: its component, range and destination, and what is
//! printed with `--dry-run`.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::json;
use trunkline_connector::{Error, Result, Supersede, TopicPartition};

use super::super::dlq::connect;
use super::super::output::{Exit, columns, print_data, print_error};
use super::super::record::record;
use super::ReplayArgs;
use super::execution::{discard_run, execute_run};
use super::supersede::{check_other_sinks, check_removal, replacement};
use super::target::{Choice, Refusal, Target, check_output, effect};
use super::transform::{TransformChoice, TransformTarget, check_failed_only};
use crate::checkpoint::user_name;
use crate::config::Settings;
use crate::dead_letters::Failed;
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::{Input, Pipeline, TransformPlan};
use crate::replay::event_time::EventTimes;
use crate::replay::execution::{Job, Watch, Work, prepare_topics};
use crate::replay::range::{Bound, check_order, compacted_topics, open_transactions, partitions_of, resolve};
use crate::replay::run::{PartitionRange, Request, Run, RunState, Runs, Superseding, new_id, overlap};
use crate::replay::widening::Replacement;
use crate::stage::component_name;
use crate::units::counted;

/// The first offset of each partition, and the one after the last.
pub(super) type Ranges = BTreeMap<TopicPartition, (i64, i64)>;

/// A run, and what is reported of it before it starts.
struct Planned {
    run: Run,
    /// What it replaces, if it is a new run that replaces something.
    replacement: Option<Replacement>,
    /// How its range differs from the request.
    notes: Vec<String>,
}

/// A component, as a command or a run names it.
struct Named<'a> {
    name: Option<&'a str>,
    is_transform: bool,
}

impl<'a> Named<'a> {
    fn of(args: &'a ReplayArgs) -> Self {
        let transform = args.transform.as_deref();
        Self { name: transform.or(args.sink.as_deref()), is_transform: transform.is_some() }
    }
}

/// What reads its topics again.
enum Replayed {
    Sink(Target),
    Transform(TransformTarget),
}

impl Replayed {
    fn pipeline(&self) -> &Pipeline {
        match self {
            Self::Sink(target) => &target.pipeline,
            Self::Transform(target) => &target.pipeline,
        }
    }

    fn work(&self) -> Work<'_> {
        match self {
            Self::Sink(target) => Work::Sink(&target.sink),
            Self::Transform(target) => Work::Transform(&target.plan),
        }
    }

    /// The component's name.
    fn name(&self) -> &str {
        match self {
            Self::Sink(target) => &target.sink.name,
            Self::Transform(target) => &target.plan.name,
        }
    }

    fn inputs(&self) -> &[Input] {
        match self {
            Self::Sink(target) => &target.sink.inputs,
            Self::Transform(target) => &target.plan.inputs,
        }
    }

    fn destination(&self) -> &str {
        match self {
            Self::Sink(target) => &target.destination,
            Self::Transform(target) => &target.destination,
        }
    }

    fn key(&self) -> [&str; 3] {
        [&self.pipeline().name, self.name(), self.destination()]
    }

    /// Records per second, at most.
    fn rate(&self, requested: Option<NonZeroU64>) -> Option<NonZeroU64> {
        match self {
            Self::Sink(target) => target.rate(requested),
            Self::Transform(_) => requested,
        }
    }

    /// What the run does to existing data, in one sentence.
    fn effect(&self, replacement: Option<&Replacement>) -> String {
        match self {
            Self::Sink(target) => effect(target, replacement),
            Self::Transform(target) => target.effect(),
        }
    }
}

/// A command that replays a component, or prints what it would do.
pub(super) struct Replay<'a> {
    pub(super) args: &'a ReplayArgs,
    /// The pipeline's name.
    pub(super) pipeline: &'a str,
    pub(super) settings: &'a Settings,
    pub(super) pipelines: &'a [Pipeline],
}

impl Replay<'_> {
    pub(super) fn run(&self) -> Result<Exit, Refusal> {
        let cluster = connect(self.settings)?;
        let name = self.settings.cluster_name();
        let runs = Runs::new(&cluster, &name);
        let named = [&self.args.resume, &self.args.discard, &self.args.join].into_iter().flatten().next();
        let resumed = named.map(|id| self.resumed(&runs, id)).transpose()?;
        if let (Some(run), Some(_)) = (&resumed, &self.args.join) {
            check_joined(&cluster, &name, run)?;
        }
        let given = self.request()?;
        let (component, into, request) = match &resumed {
            Some(run) => {
                let pipeline_file = given.pipeline_file.or_else(|| run.request.pipeline_file.clone());
                let component = Named { name: Some(run.sink.as_str()), is_transform: run.transform };
                (component, run.into.clone(), Request { pipeline_file, ..run.request.clone() })
            }
            None => (Named::of(self.args), self.args.into.join("\n"), given),
        };
        let replayed = self.replayed(&component, &into, &request)?;
        let failed = match &replayed {
            Replayed::Sink(target) => {
                let stages = [&target.live, &target.sink].map(|sink| (sink.name.as_str(), sink.inputs.as_slice()));
                self.failed(&cluster, &target.pipeline, &stages, &request)?
            }
            Replayed::Transform(target) => {
                self.failed_of_transform(&cluster, &target.pipeline, &target.plan, &request)?
            }
        };
        let known = |run| Planned { run, replacement: None, notes: Vec::new() };
        let planned = match resumed {
            Some(run) => known(run),
            None => {
                // Before the range is looked up: what the run has processed may be deleted by now.
                let is_same = |run: &Run| run.is_unfinished() && run.is_request(&replayed.key(), &request);
                match runs.list()?.into_iter().find(is_same) {
                    Some(run) => known(run),
                    None => self.new_run(&cluster, &runs, &replayed, into, request, failed.as_ref())?,
                }
            }
        };
        if self.args.dry_run {
            return Ok(self.print_plan(&replayed, &planned, failed.as_ref()));
        }
        let Planned { run, replacement, notes } = planned;
        if let (Some(replacement), Replayed::Sink(target)) = (&replacement, &replayed) {
            check_removal(target, replacement)?;
        }
        notes.iter().for_each(|note| print_error(format_args!("{note}")));
        let command = match (&self.args.discard, &self.args.join) {
            (Some(_), _) => "replay --discard",
            (None, Some(_)) => "replay --join",
            (None, None) => "replay",
        };
        self.record(&cluster, command, &run)?;
        let joins = self.args.join.is_some();
        let mut job = Job {
            settings: self.settings,
            cluster: &cluster,
            pipeline: replayed.pipeline(),
            work: replayed.work(),
            run: &run,
            rate: if joins { run.rate } else { replayed.rate(self.args.rate) },
            failed: failed.map(Into::into),
            joins,
        };
        prepare_topics(&job)?;
        if self.args.discard.is_some() {
            return Ok(discard_run(&job, &runs, self.args.json)?);
        }
        if joins {
            return Ok(execute_run(&job, &runs, self.args.json)?);
        }
        let run = Run { rate: job.rate, ..run.clone() };
        let registered = self.register(&cluster, &runs, &replayed, run)?;
        job.run = &registered;
        Ok(execute_run(&job, &runs, self.args.json)?)
    }

    /// What reads its topics again.
    fn replayed(&self, component: &Named<'_>, into: &str, request: &Request) -> Result<Replayed, Refusal> {
        let (pipeline, file) = (self.pipeline, request.pipeline_file.as_deref());
        match component {
            Named { name: Some(transform), is_transform: true } => {
                let choice = TransformChoice { pipeline, transform, into, file, appends: request.append };
                Ok(Replayed::Transform(choice.target(self.pipelines, self.settings)?))
            }
            Named { name, .. } => {
                let choice = Choice { pipeline, sink: *name, into, file, supersede: request.supersede };
                Ok(Replayed::Sink(choice.target(self.pipelines, self.settings)?))
            }
        }
    }

    /// Writes the run to the audit log. The text of `--into` has no secrets.
    fn record(&self, cluster: &Cluster, command: &str, run: &Run) -> Result<()> {
        let arguments = json!({
            "run": run.id, "pipeline": run.pipeline, "sink": run.sink, "transform": run.transform, "destination": run.destination, "into": run.into,
            "request": run.request, "resume": self.args.resume.is_some(),
        });
        record(cluster, self.settings, command, arguments)
    }

    /// The unfinished run to continue.
    fn resumed(&self, runs: &Runs<'_>, id: &str) -> Result<Run> {
        let run = runs.get(id)?;
        if run.pipeline != self.pipeline {
            let message = format!("the run `{id}` is one of the pipeline `{}`: name that pipeline", run.pipeline);
            return Err(Error::config("replay.unknown_run", message));
        }
        // A second --discard removes what the first one has left.
        if !(run.is_unfinished() || self.args.discard.is_some() && run.state == RunState::Discarded) {
            let message = format!("the run `{id}` is {}: there is nothing left to resume", run.state.name());
            return Err(Error::config("replay.finished", message));
        }
        Ok(run)
    }

    pub(super) fn request(&self) -> Result<Request> {
        let absolute = |file: &PathBuf| {
            std::fs::canonicalize(file).map_err(|error| {
                let message = format!("--pipeline-file: {} cannot be read: {error}", file.display());
                Error::config("replay.other_pipeline", message)
            })
        };
        Ok(Request {
            from: self.args.from.clone().unwrap_or_default(),
            to: self.args.to.clone(),
            by: self.args.by.clone(),
            partitions: self.args.partitions.clone(),
            dead_letters: self.args.dead_letters,
            pipeline_file: self.args.pipeline_file.as_ref().map(absolute).transpose()?,
            supersede: self.args.supersede,
            append: self.args.append,
        })
    }

    /// The records with dead letters, if only they are asked for.
    pub(super) fn failed(
        &self,
        cluster: &Cluster,
        pipeline: &Pipeline,
        stages: &[(&str, &[Input])],
        request: &Request,
    ) -> Result<Option<Failed>> {
        let find = || Failed::find(cluster, &self.settings.cluster_name(), pipeline, stages);
        request.dead_letters.then(find).transpose()
    }

    /// The same for a transform, as it is today and as another file has it.
    pub(super) fn failed_of_transform(
        &self,
        cluster: &Cluster,
        pipeline: &Pipeline,
        plan: &TransformPlan,
        request: &Request,
    ) -> Result<Option<Failed>> {
        if request.dead_letters {
            check_failed_only(plan)?;
        }
        let of_live = self.pipelines.iter().filter(|live| live.name == pipeline.name);
        let live = of_live.flat_map(|live| &live.transforms).filter(|live| live.name == plan.name);
        let stages: Vec<_> = live.chain([plan]).map(|plan| (plan.name.as_str(), plan.inputs.as_slice())).collect();
        self.failed(cluster, pipeline, &stages, request)
    }

    /// The offsets that the range of a request has now.
    pub(super) fn ranges(
        &self,
        cluster: &Cluster,
        pipeline: &str,
        (name, inputs): (&str, &[Input]),
        request: &Request,
        failed: Option<&Failed>,
    ) -> Result<(GroupOffsets, Ranges, Vec<String>)> {
        let now = Timestamp::now();
        let (from, to) = (Bound::parse(&request.from, now)?, Bound::parse(&request.to, now)?);
        check_order(&from, &to)?;
        let by = request.by.as_deref().map(|field| EventTimes::new(field, &from, &to)).transpose()?;
        let (from, to) = if by.is_some() { (Bound::Earliest, Bound::Latest) } else { (from, to) };
        let group = component_name(&self.settings.cluster_name(), pipeline, name);
        let offsets = GroupOffsets::new(cluster, &group)?;
        let partitions = partitions_of(&offsets, inputs)?;
        let mut ranges = resolve(&offsets, &partitions, &from, &to, request.partitions.as_deref())?;
        let mut notes = compacted_topics(cluster, &ranges)?;
        if to == Bound::Latest {
            notes.extend(open_transactions(&offsets, &ranges)?);
        }
        if let Some(by) = by {
            let (narrowed, more) = by.narrow(cluster, ranges)?;
            ranges = narrowed;
            notes.extend(more);
        }
        if let Some(failed) = failed {
            ranges = failed.narrow(&ranges)?;
        }
        Ok((offsets, ranges, notes))
    }

    /// The run of this command, with the offsets that its range has now.
    fn new_run(
        &self,
        cluster: &Cluster,
        runs: &Runs<'_>,
        replayed: &Replayed,
        into: String,
        request: Request,
        failed: Option<&Failed>,
    ) -> Result<Planned> {
        let pipeline = replayed.pipeline();
        let (offsets, mut ranges, mut notes) =
            self.ranges(cluster, &pipeline.name, (replayed.name(), replayed.inputs()), &request, failed)?;
        let superseding = match replayed {
            Replayed::Sink(target) => Some(target).filter(|target| target.supersede),
            Replayed::Transform(_) => None,
        };
        let replace = |target| replacement(cluster, self.settings, target, &runs.list()?, &offsets, &ranges);
        let replacement = superseding.map(replace).transpose()?;
        if let (Some(replacement), Some(target)) = (&replacement, superseding) {
            check_other_sinks(self.pipelines, target, &replacement.ranges)?;
            ranges.clone_from(&replacement.ranges);
            notes.extend_from_slice(&replacement.notes);
        }
        let now = Timestamp::now();
        let run = Run {
            id: new_id(now),
            pipeline: pipeline.name.clone(),
            sink: replayed.name().to_owned(),
            transform: matches!(replayed, Replayed::Transform(_)),
            destination: replayed.destination().to_owned(),
            into,
            request,
            ranges: ranges.into_iter().map(range).collect(),
            supersede: match superseding.map(|target| target.sink.spec.supersede()) {
                Some(Supersede::Files) => Some(Superseding::default()),
                Some(Supersede::Rows { .. }) => Some(Superseding { rows: Some(0), ..Superseding::default() }),
                _ => None,
            },
            switch: None,
            state: RunState::Running,
            error: None,
            node: self.settings.node.clone(),
            user: user_name(),
            rate: replayed.rate(self.args.rate),
            executed: None,
            started: now.as_millisecond(),
            ended: None,
        };
        Ok(Planned { run, replacement, notes })
    }

    /// Prints what the run would do.
    fn print_plan(&self, replayed: &Replayed, planned: &Planned, failed: Option<&Failed>) -> Exit {
        let Planned { run, replacement, notes } = planned;
        let replacement = replacement.as_ref();
        let offsets: i64 = run.ranges.iter().map(|range| range.to - range.from).sum();
        let bounds = run.ranges.iter().map(|range| (range.topic_partition(), (range.from, range.to))).collect();
        let dead_letters = failed.map(|failed| failed.count(&bounds));
        let (effect, rate) = (replayed.effect(replacement), replayed.rate(self.args.rate));
        let transforms = match &run.request.pipeline_file {
            Some(file) => format!("the transforms in {}", file.display()),
            None => format!("today's transforms of `{}`", run.pipeline),
        };
        if self.args.json {
            let plan = json!({
                "dry_run": true, "pipeline": run.pipeline, "sink": run.sink, "destination": run.destination,
                "ranges": run.ranges, "offsets": offsets, "dead_letters": dead_letters, "rate": rate,
                "pipeline_file": run.request.pipeline_file, "effect": effect, "notes": notes,
                "replaced_files": replacement.map(|replacement| replacement.files.len()),
                "replaced_rows": replacement.map(|replacement| replacement.rows.iter().map(|count| count.rows).sum::<u64>()),
            });
            return print_data(&format!("{plan}\n"));
        }
        let mut rows = vec![["TOPIC", "PARTITION", "FIRST", "LAST", "OFFSETS"].map(str::to_owned)];
        rows.extend(run.ranges.iter().map(|range| {
            let numbers = [range.from, range.to - 1, range.to - range.from].map(|number| number.to_string());
            let [first, last, count] = numbers;
            [range.topic.clone(), range.partition.to_string(), first, last, count]
        }));
        let records = match dead_letters {
            Some(count) => format!("{count} records with dead letters"),
            None => format!("at most {offsets} records"),
        };
        let rate = rate.map_or_else(String::new, |rate| format!(", at most {rate} per second"));
        let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
        print_data(&format!(
            "{}{notes}{records} of {} would go through {transforms} into {}{rate}\n{effect}\n",
            columns(&rows, &[1, 2, 3, 4]),
            counted(run.ranges.len(), "partition"),
            run.destination
        ))
    }

    /// Stores the run, or continues the one that the same command has started. Of two commands at
    /// once, the second finds the run of the first. A paused run stays paused, unless `--resume`
    /// names it.
    fn register(&self, cluster: &Cluster, runs: &Runs<'_>, replayed: &Replayed, run: Run) -> Result<Run> {
        let known = runs.list()?;
        let continues = |other: &&Run| {
            other.is_unfinished() && (other.id == run.id || other.is_request(&replayed.key(), &run.request))
        };
        if !known.iter().any(|other| continues(&other)) {
            check_runs(&known, &run, |other| other.is_unfinished())?;
            match replayed {
                Replayed::Sink(target) if target.is_live => {}
                Replayed::Sink(target) => check_output(target, &run)?,
                Replayed::Transform(target) => target.check_output(&GroupOffsets::new(cluster, &run.id)?)?,
            }
        }
        // The output of a run that has finished since then has not been checked.
        let was_finished = |id: &str| known.iter().any(|run| run.id == id && !run.is_unfinished());
        runs.change(|stored| {
            if let Some(other) = stored.iter().find(continues) {
                if other.state == RunState::Paused && self.args.resume.is_none() {
                    return Ok(other.clone());
                }
                return Ok(Run { state: RunState::Running, error: None, ended: None, rate: run.rate, ..other.clone() });
            }
            check_runs(stored, &run, |other| other.is_unfinished() || !was_finished(&other.id))?;
            Ok(run.clone())
        })
    }
}

pub(super) fn range((partition, (from, to)): (TopicPartition, (i64, i64))) -> PartitionRange {
    PartitionRange { topic: partition.topic.to_string(), partition: partition.partition, from, to }
}

/// Refuses to join a run that no process executes.
fn check_joined(cluster: &Cluster, name: &str, run: &Run) -> Result<()> {
    if Watch::new(cluster, name, run)?.is_executed()? {
        return Ok(());
    }
    let message = format!(
        "no process executes the run {0}, so there is none to join: execute it with `trunkline replay PIPELINES {1} --resume {0}`",
        run.id, run.pipeline
    );
    Err(Error::config("replay.not_executed", message))
}

/// Refuses the destination of another run.
fn check_runs(runs: &[Run], run: &Run, counts: impl Fn(&Run) -> bool) -> Result<()> {
    let Some(other) = runs.iter().find(|other| overlap(&other.destination, &run.destination) && counts(other)) else {
        return Ok(());
    };
    let message = format!(
        "the run {} ({}.{}, {}) writes to {}: choose another destination, complete that run with `trunkline replay \
         PIPELINES {} --resume {}`, or give it up with `--discard {}`",
        other.id,
        other.pipeline,
        other.sink,
        other.state.name(),
        other.destination,
        other.pipeline,
        other.id,
        other.id
    );
    Err(Error::config("replay.destination_in_use", message))
}
