//! `trunkline replay`: a sink reads a range of its topics again, as a run that is separate from the
//! live one (I9).

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};
use trunkline_connector::{Error, Result, TopicPartition};
use trunkline_transform_host::{Host, HostOptions};

use super::SettingsArgs;
use super::dlq::connect;
use super::output::{Exit, columns, print_data, report_error, report_problems};
use super::replay_progress::Reporter;
use super::run::{StopSignals, stop_on_signals};
use super::selection;
use super::validate::load_to_inspect;
use crate::config::{FileProblems, Settings};
use crate::kafka::{Admin, Cluster, GroupOffsets};
use crate::plan::{Pipeline, Registry, SinkPlan, load_with_sink_options};
use crate::replay::execution::{Ending, Job, Progress, execute, prepare_topics};
use crate::replay::range::{Bound, partitions_of, resolve};
use crate::replay::run::{PartitionRange, Request, Run, RunState, Runs, new_id, overlap};
use crate::stage::{StopSignal, component_name};
use crate::worker::{DataDir, create_private_folder};

/// Time between two looks at the row of the run, which another command may have changed.
const ROW_CHECK: Duration = Duration::from_secs(3);

/// `trunkline replay`.
#[derive(Args)]
pub(super) struct ReplayArgs {
    /// Pipeline file, or folder of them
    #[arg(value_name = "PIPELINES")]
    path: PathBuf,
    /// The pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    /// The sink that reads its topics again; may be left out if there is only one
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// First record: `earliest`, `latest`, offsets by partition (0:1200,1:900), a time
    /// (2026-11-01T00:00Z), or a time ago (-7d)
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, required_unless_present = "resume")]
    from: Option<String>,
    /// The position after the last record, in the same forms
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true, default_value = "latest")]
    to: String,
    /// Only these partitions of the topics
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    partitions: Option<Vec<i32>>,
    /// Options that replace those of the sink, as in the pipeline file: 'url="s3://lake/orders-v2"'
    #[arg(long, value_name = "OPTION=VALUE")]
    into: Vec<String>,
    /// At most N records per second
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU64>,
    /// Continue the run with this id
    #[arg(long, value_name = "ID", conflicts_with_all = ["from", "into", "partitions", "dry_run"])]
    resume: Option<String>,
    /// Print what would be read and written, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Print progress and result as lines of JSON on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

impl Target {
    fn key(&self) -> [&str; 3] {
        [&self.pipeline.name, &self.sink.name, &self.destination]
    }
}

/// Why a replay does not start.
enum Refusal {
    Error(Error),
    /// Problems in the options of `--into`.
    Problems(FileProblems),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Refuses secrets that are written out in `--into`: the text is stored with the run (I8).
fn check_secrets(into: &str) -> Result<()> {
    // The pipeline's own reader reports text that is not TOML.
    let Ok(options) = into.parse::<toml::Table>() else { return Ok(()) };
    let Some(name) = options.iter().find_map(|(name, value)| literal_secret(name, value)) else { return Ok(()) };
    let message = format!(
        "--into sets `{name}` to a secret, and its text is stored with the run: write a reference, such as \
         `${{env:NAME}}` or `${{file:/run/secrets/NAME}}`"
    );
    Err(Error::config("replay.bad_into", message))
}

/// The name of an option whose value is, or holds, a secret that is not a reference.
fn literal_secret<'a>(name: &'a str, value: &'a toml::Value) -> Option<&'a str> {
    const SECRETS: [&str; 6] = ["secret", "password", "passphrase", "token", "private_key", "bearer"];
    match value {
        toml::Value::Table(members) => members.iter().find_map(|(name, value)| literal_secret(name, value)),
        toml::Value::Array(items) => items.iter().find_map(|item| literal_secret(name, item)),
        toml::Value::String(text) if !text.contains("${") => {
            let login = text.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@'));
            let has_password = login.is_some_and(|(login, _)| login.contains(':'));
            (has_password || SECRETS.iter().any(|secret| name.contains(secret))).then_some(name)
        }
        _ => None,
    }
}

/// Runs the verb.
pub(super) fn run(args: &ReplayArgs) -> Exit {
    let (settings, loaded) = match load_to_inspect(std::slice::from_ref(&args.path), &args.settings, args.json) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let replay = Replay { args, settings: &settings, pipelines: &loaded.pipelines };
    match replay.run() {
        Ok(exit) => exit,
        Err(Refusal::Error(error)) => report_error(&error),
        Err(Refusal::Problems(problems)) => report_problems(&[problems], args.json),
    }
}

struct Replay<'a> {
    args: &'a ReplayArgs,
    settings: &'a Settings,
    pipelines: &'a [Pipeline],
}

/// The sink of a replay.
struct Target {
    pipeline: Pipeline,
    sink: SinkPlan,
    destination: String,
    /// A live sink writes there too, to which repeated records do no harm.
    is_live: bool,
}

impl Replay<'_> {
    fn run(&self) -> Result<Exit, Refusal> {
        let cluster = connect(self.settings)?;
        let name = self.settings.cluster_name();
        let runs = Runs::new(&cluster, &name);
        let resumed = self.args.resume.as_deref().map(|id| self.resumed(&runs, id)).transpose()?;
        let (sink, into) = match &resumed {
            Some(run) => (Some(run.sink.as_str()), run.into.clone()),
            None => (self.args.sink.as_deref(), self.args.into.join("\n")),
        };
        let target = self.target(sink, &into)?;
        let run = match resumed {
            Some(run) => run,
            None => {
                let request = self.request();
                // Before the range is looked up: what the run has processed may be deleted by now.
                let is_same = |run: &Run| run.is_unfinished() && run.is_request(&target.key(), &request);
                match runs.list()?.into_iter().find(is_same) {
                    Some(run) => run,
                    None => self.new_run(&cluster, &target, into, request)?,
                }
            }
        };
        if self.args.dry_run {
            return Ok(self.print_plan(&target, &run));
        }
        prepare_topics(&Admin::new(&cluster)?, &cluster, self.settings, &target.pipeline)?;
        let run = self.register(&runs, &target, run)?;
        Ok(self.execute(&cluster, &runs, &target, run)?)
    }

    /// The unfinished run to continue.
    fn resumed(&self, runs: &Runs<'_>, id: &str) -> Result<Run> {
        let run = runs.get(id)?;
        if run.pipeline != self.args.pipeline {
            let message = format!("the run `{id}` is one of the pipeline `{}`: name that pipeline", run.pipeline);
            return Err(Error::config("replay.unknown_run", message));
        }
        if !run.is_unfinished() {
            let message = format!("the run `{id}` has processed its range: there is nothing left to resume");
            return Err(Error::config("replay.finished", message));
        }
        Ok(run)
    }

    /// The sink with its options, checked against the destinations of live sinks.
    fn target(&self, sink: Option<&str>, into: &str) -> Result<Target, Refusal> {
        let live_pipeline = selection::pipeline(self.pipelines, &self.args.pipeline)?;
        let live = selection::sink(live_pipeline, sink)?;
        let pipeline = match into.trim().is_empty() {
            true => live_pipeline.clone(),
            false => self.with_options(live_pipeline, &live.name, into)?,
        };
        let sink = selection::sink(&pipeline, Some(&live.name))?.clone();
        if sink.inputs != live.inputs {
            let message =
                "--into sets `inputs`: a replay reads the topics of the live sink; set the options of its destination";
            return Err(Error::config("replay.bad_into", message).into());
        }
        let Some(destination) = sink.spec.destination() else {
            let message = format!(
                "sinks of the connector `{}` cannot be replayed yet: only `s3` and `elasticsearch` sinks can",
                sink.connector
            );
            return Err(Error::config("replay.unsupported", message).into());
        };
        let is_live = self.check_destination(&sink, &destination, !into.trim().is_empty())?;
        Ok(Target { pipeline, sink, destination, is_live })
    }

    fn with_options(&self, pipeline: &Pipeline, sink: &str, into: &str) -> Result<Pipeline, Refusal> {
        check_secrets(into)?;
        let host = Host::new(HostOptions { cache_dir: DataDir::plugin_cache(&self.settings.data) })
            .map_err(|error| Error::external("environment.plugins", format!("plugins cannot run here: {error}")))?;
        load_with_sink_options(&pipeline.file, sink, into, &host, self.settings, &Registry::new())
            .map_err(Refusal::Problems)
    }

    /// Refuses the destination of a live sink, unless repeated records change nothing there. That
    /// is known of the options of the live sink only: with another `version_epoch`, for example,
    /// its next records would lose. Returns whether it is the destination of a live sink.
    fn check_destination(&self, sink: &SinkPlan, destination: &str, has_options: bool) -> Result<bool> {
        let mut is_live = false;
        for pipeline in self.pipelines {
            for live in &pipeline.sinks {
                let Some(place) = live.spec.destination().filter(|place| overlap(place, destination)) else { continue };
                if has_options || !sink.spec.repeats_change_nothing() {
                    let message = format!(
                        "the sink `{}.{}` writes to {place}, and a replay into {destination} would write its records \
                         there a second time: choose another destination with --into, such as 'url=\"s3://lake/orders-v2\"', and \
                         switch to it afterwards",
                        pipeline.name, live.name
                    );
                    return Err(Error::config("replay.live_destination", message));
                }
                is_live = true;
            }
        }
        Ok(is_live)
    }

    fn request(&self) -> Request {
        let from = self.args.from.clone().unwrap_or_default();
        Request { from, to: self.args.to.clone(), partitions: self.args.partitions.clone() }
    }

    /// The run of this command, with the offsets that its range has now.
    fn new_run(&self, cluster: &Cluster, target: &Target, into: String, request: Request) -> Result<Run> {
        let now = Timestamp::now();
        let (from, to) = (Bound::parse(&request.from, now)?, Bound::parse(&request.to, now)?);
        let group = component_name(&self.settings.cluster_name(), &target.pipeline.name, &target.sink.name);
        let offsets = GroupOffsets::new(cluster, &group)?;
        let partitions = partitions_of(&offsets, &target.sink.inputs)?;
        let ranges = resolve(&offsets, &partitions, &from, &to, request.partitions.as_deref())?;
        Ok(Run {
            id: new_id(now),
            pipeline: target.pipeline.name.clone(),
            sink: target.sink.name.clone(),
            destination: target.destination.clone(),
            into,
            request,
            ranges: ranges.into_iter().map(range).collect(),
            state: RunState::Running,
            error: None,
            node: self.settings.node.clone(),
            started: now.as_millisecond(),
            ended: None,
        })
    }

    /// Prints what the run would do.
    fn print_plan(&self, target: &Target, run: &Run) -> Exit {
        let offsets: i64 = run.ranges.iter().map(|range| range.to - range.from).sum();
        let effect = effect(target);
        if self.args.json {
            let plan = json!({
                "dry_run": true, "pipeline": run.pipeline, "sink": run.sink, "destination": run.destination,
                "ranges": run.ranges, "offsets": offsets, "effect": effect,
            });
            return print_data(&format!("{plan}\n"));
        }
        let mut rows = vec![["TOPIC", "PARTITION", "FIRST", "LAST", "OFFSETS"].map(str::to_owned)];
        rows.extend(run.ranges.iter().map(|range| {
            let numbers = [range.from, range.to - 1, range.to - range.from].map(|number| number.to_string());
            let [first, last, count] = numbers;
            [range.topic.clone(), range.partition.to_string(), first, last, count]
        }));
        print_data(&format!(
            "{}at most {offsets} records of {} partitions would go through today's transforms of `{}` into {}\n{effect}\n",
            columns(&rows, &[1, 2, 3, 4]),
            run.ranges.len(),
            run.pipeline,
            run.destination
        ))
    }

    /// Stores the run, or continues the one that the same command has started. Of two commands at
    /// once, the second finds the run of the first.
    fn register(&self, runs: &Runs<'_>, target: &Target, run: Run) -> Result<Run> {
        let known = runs.list()?;
        let continues = |other: &&Run| {
            other.is_unfinished() && (other.id == run.id || other.is_request(&target.key(), &run.request))
        };
        if !known.iter().any(|other| continues(&other)) {
            check_runs(&known, &run, |other| other.is_unfinished())?;
            if !target.is_live {
                check_output(target, &run)?;
            }
        }
        // The output of a run that has finished since then has not been checked.
        let was_finished = |id: &str| known.iter().any(|run| run.id == id && !run.is_unfinished());
        runs.change(|stored| {
            if let Some(other) = stored.iter().find(continues) {
                return Ok(Run { state: RunState::Running, error: None, ended: None, ..other.clone() });
            }
            check_runs(stored, &run, |other| other.is_unfinished() || !was_finished(&other.id))?;
            Ok(run.clone())
        })
    }

    fn execute(&self, cluster: &Cluster, runs: &Runs<'_>, target: &Target, run: Run) -> Result<Exit> {
        let folder = self.settings.data.join("replays").join(&run.id);
        create_private_folder(&self.settings.data.join("replays"))
            .map_err(|error| trunkline_connector::io_error("create", &folder, &error))?;
        let data = DataDir::open(&folder, false).map_err(|error| match error.code {
            "worker.data_in_use" => {
                let message =
                    format!("the run {} is being executed on this machine: `trunkline runs` shows it", run.id);
                Error::config("replay.running", message)
            }
            _ => error,
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))?;
        let stop = StopSignal::default();
        let signals = runtime.block_on(async { StopSignals::install() }).map_err(|error| {
            Error::external("environment.signals", format!("the process cannot receive signals: {error}"))
        })?;
        runtime.spawn(stop_on_signals(signals, stop.clone()));
        let mut reporter = Reporter::new(&run, self.args.json);
        reporter.begin(&run);
        let job = Job {
            settings: self.settings,
            cluster,
            pipeline: &target.pipeline,
            sink: &target.sink,
            run: &run,
            rate: self.args.rate,
        };
        let mut checked = Instant::now();
        let ending = execute(&job, &data, runtime.handle(), &stop, &mut |progress: &Progress| {
            reporter.progress(progress);
            if checked.elapsed() >= ROW_CHECK {
                checked = Instant::now();
                match runs.get(&run.id) {
                    Ok(run) if matches!(run.state, RunState::Stopping | RunState::Stopped) => stop.set(),
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "the row of the run cannot be read"),
                }
            }
        })?;
        let stored = runs.update(&run.id, |run| {
            run.ended = Some(Timestamp::now().as_millisecond());
            (run.state, run.error) = match &ending {
                Ending::Finished => (RunState::Finished, None),
                Ending::Stopped => (RunState::Stopped, None),
                Ending::Failed(error) => (RunState::Failed, Some(error.clone())),
            };
        })?;
        drop(data);
        if ending == Ending::Finished
            && let Err(error) = std::fs::remove_dir_all(&folder)
        {
            tracing::debug!(%error, folder = %folder.display(), "the folder of the run cannot be removed");
        }
        runtime.shutdown_background();
        reporter.end(cluster, &self.settings.cluster_name(), &stored)
    }
}

fn range((partition, (from, to)): (TopicPartition, (i64, i64))) -> PartitionRange {
    PartitionRange { topic: partition.topic.to_string(), partition: partition.partition, from, to }
}

/// Refuses the destination of another run.
fn check_runs(runs: &[Run], run: &Run, counts: impl Fn(&Run) -> bool) -> Result<()> {
    let Some(other) = runs.iter().find(|other| overlap(&other.destination, &run.destination) && counts(other)) else {
        return Ok(());
    };
    let message = format!(
        "the run {} ({}.{}, {}) writes to {}: choose another destination, or complete that run with `trunkline replay .. \
         --resume {}`",
        other.id,
        other.pipeline,
        other.sink,
        other.state.name(),
        other.destination,
        other.id
    );
    Err(Error::config("replay.destination_in_use", message))
}

/// Refuses a destination that has records of the range.
fn check_output(target: &Target, run: &Run) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))?;
    let Some(listing) = target.sink.spec.list_output(runtime.handle())? else { return Ok(()) };
    let ranges: BTreeMap<TopicPartition, &PartitionRange> =
        run.ranges.iter().map(|range| (range.topic_partition(), range)).collect();
    let is_in_range = |file: &&trunkline_connector::OutputFile| {
        ranges.get(&file.partition).is_some_and(|range| file.first < range.to && file.last >= range.from)
    };
    match listing.files.iter().find(is_in_range) {
        None => Ok(()),
        Some(file) => {
            let message = format!(
                "{} holds records of the range, which the replay would write there a second time: choose an empty destination, \
                 or remove the files of the earlier replay",
                file.name
            );
            Err(Error::config("replay.output_exists", message))
        }
    }
}

/// What the run does to existing data, in one sentence.
fn effect(target: &Target) -> Value {
    Value::from(match (target.is_live, target.sink.spec.repeats_change_nothing()) {
        (true, _) => {
            "Documents that exist stay as they are, because their ids and versions are the same; missing ones are written again."
        }
        (false, true) => "New documents are written there; no live sink uses this destination.",
        (false, false) => {
            "New files are added there; no live sink uses this destination, and existing files stay as they are."
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_options_must_be_references() {
        for into in [
            "secret_access_key = \"x\"",
            "tls = { key_password = \"x\" }",
            "url = [\"https://a:b@c:9200\"]",
            "password = \"x\"\nurl = \"s3://a/b\"",
        ] {
            let error = check_secrets(into).unwrap_err();
            assert_eq!(error.code, "replay.bad_into", "{into}");
            assert!(!error.to_string().contains("a:b@"), "{error}");
        }
        for into in
            ["url = \"s3://lake/v2\"", "secret_access_key = \"${env:KEY}\"", "url = \"https://${env:LOGIN}@c\"", "?"]
        {
            assert!(check_secrets(into).is_ok(), "{into}");
        }
    }
}
