//! `trunkline runs`: lists, shows, pauses, resumes and stops the runs of the cluster: live ones and
//! replays.
//!
//! The id of a live run is the name of its component. Replays are rows in Kafka. Of live runs, the
//! worker of the data directory knows most: it asks the other workers for their rates and lag.
//! Without such a worker, the rows of the workers in Kafka say who runs what.

use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use trunkline_connector::{Error, Result};

use super::SettingsArgs;
use super::addresses::running_worker;
use super::control;
use super::dlq::connect;
use super::output::{Exit, columns, print_data, print_error, report_error, report_problems};
use super::record::record;
use super::replay::replaced;
use super::worker_api::WorkerApi;
use crate::checkpoint::or_empty;
use crate::config::Settings;
use crate::http::{LiveRun, WorkerStatus, of_workers};
use crate::kafka::Cluster;
use crate::replay::listing::{self, ListedRun, time_left, time_text};
use crate::replay::requests::RunRequest;
use crate::replay::run::is_id;
use crate::units::{count, counted};
use crate::worker::control::{Components, Request, Target, read_alive};

/// `trunkline runs`.
#[derive(Args)]
pub(super) struct RunsArgs {
    #[command(subcommand)]
    command: Option<RunsCommand>,
    /// List only live runs, or only replays
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Print as JSON on stdout
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// What the workers run
    Live,
    /// Replays, also those that have ended
    Replay,
}

#[derive(Subcommand)]
enum RunsCommand {
    /// Show the progress of a run: of a live one with its tasks on all workers, of a replay with
    /// its range and outcome
    Show(RunArgs),
    /// Pause a run on all workers and machines: it commits what it has written, and waits
    Pause(RunArgs),
    /// Resume a run that was paused, or a live run that was stopped
    Resume(RunArgs),
    /// Stop a run on all workers and machines. A live run starts again with `resume`, a replay with
    /// `trunkline replay .. --resume ID`
    Stop(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// The id of a replay, or PIPELINE or PIPELINE.COMPONENT for live runs
    #[arg(value_name = "ID")]
    id: String,
}

/// Runs the verb.
pub(super) fn run(args: &RunsArgs) -> Exit {
    let settings = match args.settings.load() {
        Ok(settings) => settings,
        Err(problems) => return report_problems(&problems, args.json),
    };
    let outcome = connect(&settings).and_then(|cluster| {
        let here = Here { cluster: &cluster, settings: &settings, as_json: args.json };
        match &args.command {
            None => here.list(args.kind),
            Some(RunsCommand::Show(run)) => here.show(&run.id),
            Some(RunsCommand::Pause(run)) => here.request(&run.id, RunRequest::Pause, &Request::Pause),
            Some(RunsCommand::Resume(run)) => here.request(&run.id, RunRequest::Resume, &Request::Resume),
            Some(RunsCommand::Stop(run)) => here.request(&run.id, RunRequest::Stop, &Request::Stop),
        }
    });
    outcome.unwrap_or_else(|error| report_error(&error))
}

/// Where the command runs.
struct Here<'a> {
    cluster: &'a Cluster,
    settings: &'a Settings,
    as_json: bool,
}

impl Here<'_> {
    fn list(&self, kind: Option<Kind>) -> Result<Exit> {
        let live = if kind == Some(Kind::Replay) { Vec::new() } else { self.live()? };
        let replays = match kind {
            Some(Kind::Live) => Vec::new(),
            _ => listing::list(self.cluster, &self.settings.cluster_name())?,
        };
        if self.as_json {
            let all = live.iter().map(|run| json!(run)).chain(replays.iter().map(ListedRun::json));
            return Ok(print_data(&format!("{}\n", all.collect::<Value>())));
        }
        let missing = match kind {
            None => "runs: `trunkline run` starts pipelines, and `trunkline replay` a replay",
            Some(Kind::Live) => "live runs: `trunkline run` starts pipelines",
            Some(Kind::Replay) => "replays: `trunkline replay` starts one",
        };
        if live.is_empty() && replays.is_empty() {
            print_error(format_args!("the cluster `{}` has no {missing}", self.settings.cluster_name()));
        }
        Ok(print_data(&table(&live, &replays)))
    }

    fn show(&self, id: &str) -> Result<Exit> {
        if is_id(id) {
            let found = listing::get(self.cluster, &self.settings.cluster_name(), id)?;
            let text = if self.as_json { format!("{}\n", found.json()) } else { replay_text(&found) };
            return Ok(print_data(&text));
        }
        let live = self.live()?;
        let known: Components = live.iter().map(|run| (run.pipeline.clone(), run.component.clone())).collect();
        let named = Target::parse(id).among(&known).map_err(|error| self.unknown(id, error))?;
        let is_named = |run: &&LiveRun| named.contains(&(run.pipeline.clone(), run.component.clone()));
        let found: Vec<&LiveRun> = live.iter().filter(is_named).collect();
        if self.as_json {
            let json = if id.contains('.') { json!(found.first()) } else { json!(found) };
            return Ok(print_data(&format!("{json}\n")));
        }
        Ok(print_data(&found.into_iter().map(live_text).collect::<String>()))
    }

    /// Asks a replay, or the workers that run a pipeline or component.
    fn request(&self, id: &str, replay: RunRequest, live: &Request) -> Result<Exit> {
        if !is_id(id) {
            let named = control::write(id, live, self.cluster, self.settings, &[]);
            let named = named.map_err(|error| self.unknown(id, error))?;
            return Ok(control::report(live, &named, self.as_json));
        }
        let name = self.settings.cluster_name();
        // An unknown run is an error, and no entry.
        listing::get(self.cluster, &name, id)?;
        record(self.cluster, self.settings, replay.name(), json!({ "id": id }))?;
        let (run, note) = replay.write(self.cluster, &name, id)?;
        if self.as_json {
            return Ok(print_data(&format!("{}\n", json!({ "id": run.id, "state": run.state.name() }))));
        }
        print_error(format_args!("run {}: {}; {note}", run.id, run.state.name()));
        Ok(Exit::Ok)
    }

    /// The error for an id that is neither that of a replay nor a name that a worker runs.
    fn unknown(&self, id: &str, error: Error) -> Error {
        if !["cli.unknown_pipeline", "control.no_worker"].contains(&error.code) {
            return error;
        }
        let message = format!(
            "the cluster `{}` has no run `{id}`: no replay has this id, and no worker runs a pipeline of this name. `trunkline \
             runs` lists the ids",
            self.settings.cluster_name()
        );
        Error::config("replay.unknown_run", message)
    }

    /// The live runs, as the worker of the data directory knows them, or else as they are in Kafka.
    fn live(&self) -> Result<Vec<LiveRun>> {
        let reason = match self.ask_worker() {
            Ok(Some(runs)) => return Ok(runs),
            Ok(None) => "no worker of this cluster runs with the data directory of this command".to_owned(),
            Err(error) => error.to_string(),
        };
        let view = or_empty(read_alive(self.cluster, &self.settings.cluster_name()))?;
        let workers = view.workers(Instant::now()).map(|(worker, tasks)| (worker.to_owned(), tasks.clone())).collect();
        let runs = of_workers(&workers, &[], |pipeline, component| view.state(pipeline, component));
        if !runs.is_empty() {
            print_error(format_args!(
                "lag, rates and counters of live runs are unknown: {reason}. Run the command where a worker runs, with its --data"
            ));
        }
        Ok(runs)
    }

    /// The answer of the worker of the data directory; `None` if it is one of another cluster.
    fn ask_worker(&self) -> Result<Option<Vec<LiveRun>>> {
        match running_worker(self.settings) {
            Ok(worker) if worker.brokers == self.cluster.brokers() => {}
            _ => return Ok(None),
        }
        let api = WorkerApi::connect(self.settings)?;
        let (status, _): (WorkerStatus, String) = api.get("status")?;
        if status.cluster != self.settings.cluster_name() {
            return Ok(None);
        }
        Ok(Some(api.get("runs?kind=live")?.0))
    }
}

/// One line for each run: live ones, then replays in the order of their ids.
fn table(live: &[LiveRun], replays: &[ListedRun]) -> String {
    let header = [
        "ID",
        "KIND",
        "COMPONENT",
        "STATE",
        "DONE",
        "LAG",
        "RATE",
        "LEFT",
        "IN",
        "OUT",
        "DROPPED",
        "DEAD",
        "STARTED",
        "BY",
        "DESTINATION",
    ];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(live.iter().map(live_row));
    rows.extend(replays.iter().map(replay_row));
    columns(&rows, &[4, 5, 6, 7, 8, 9, 10, 11])
}

fn live_row(run: &LiveRun) -> [String; 15] {
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let own = run.counters.as_ref();
    let [records_in, out, dropped, dead] = match own {
        Some(own) => [own.records_in, own.out, own.dropped, own.dead_lettered].map(|number| number.to_string()),
        None => std::array::from_fn(|_| "-".to_owned()),
    };
    [
        run.id.clone(),
        run.kind.clone(),
        run.id.clone(),
        run.state.clone(),
        "-".to_owned(),
        dash(run.lag()),
        dash(run.records_per_second.map(|rate| format!("{}/s", count(rate)))),
        dash(run.seconds_left.map(time_left)),
        records_in,
        out,
        dropped,
        dead,
        dash(run.started.clone()),
        run.started_by.join(","),
        dash(run.destination.clone()),
    ]
}

fn replay_row(listed: &ListedRun) -> [String; 15] {
    let (run, counters) = (&listed.run, listed.progress.counters);
    let (rate, left) = match listed.speed() {
        Some((rate, left)) => (format!("{}/s", count(rate)), time_left(left)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    [
        run.id.clone(),
        "replay".to_owned(),
        format!("{}.{}", run.pipeline, run.sink),
        listed.state.to_owned(),
        format!("{}%", listed.percent()),
        format!("{} offsets", listed.offsets_left()),
        rate,
        left,
        counters.records_in.to_string(),
        counters.out.to_string(),
        counters.dropped.to_string(),
        counters.dead_lettered.to_string(),
        time_text(run.started),
        listed.started_by(),
        run.destination.clone(),
    ]
}

/// A live run with its tasks.
fn live_text(run: &LiveRun) -> String {
    let mut text = format!("live run {} ({}): {}\n", run.id, run.component_kind, run.state);
    if let Some(destination) = &run.destination {
        text.push_str(&format!("  into {destination}\n"));
    }
    let since = run.started.as_ref().map_or_else(String::new, |started| format!(" since {started}"));
    text.push_str(&format!("  workers started by {}{since}\n", run.started_by.join(", ")));
    let lag = run.lag().map(|lag| format!("{lag} behind"));
    let rate = run.records_per_second.map(|rate| format!("{} records per second", count(rate)));
    let left = run.seconds_left.map(|left| format!("caught up in {} at the pace of the last minute", time_left(left)));
    let progress: Vec<String> = [lag, rate, left].into_iter().flatten().collect();
    if !progress.is_empty() {
        text.push_str(&format!("  {}\n", progress.join(", ")));
    }
    if let Some(own) = &run.counters {
        text.push_str(&format!(
            "  {} in, {} out, {} dropped, {} dead-lettered since the workers started\n",
            own.records_in, own.out, own.dropped, own.dead_lettered
        ));
    }
    for task in &run.task_list {
        let lag = task.lag_records.map(|lag| format!(", {lag} records behind"));
        let bytes = task.lag_bytes.map(|lag| format!(", {lag} bytes behind"));
        let rate = task.records_per_second.map(|rate| format!(", {}/s", count(rate)));
        let error = task.error.as_ref().map(|error| format!(": {error}"));
        let more: String = [lag, bytes, rate, error].into_iter().flatten().collect();
        text.push_str(&format!("  task {} on {} ({}): {}{more}\n", task.task, task.node, task.worker, task.state));
    }
    text
}

/// A replay with its range.
fn replay_text(seen: &ListedRun) -> String {
    let (run, progress) = (&seen.run, &seen.progress);
    let mut text = format!(
        "run {} of {}.{}: {}\n  from {} to {}, into {}\n  started {} by {}\n",
        run.id,
        run.pipeline,
        run.sink,
        seen.state,
        run.request.from,
        run.request.to,
        run.destination,
        time_text(run.started),
        seen.started_by()
    );
    if let Some((rate, left)) = seen.speed() {
        let tasks = counted(seen.tasks, "task");
        text.push_str(&format!("  {rate:.0} offsets per second by {tasks}, {} left\n", time_left(left)));
    }
    if let Some(rate) = run.rate {
        text.push_str(&format!("  at most {rate} records per second\n"));
    }
    if run.request.dead_letters {
        text.push_str("  only records with dead letters\n");
    }
    if let Some(file) = &run.request.pipeline_file {
        text.push_str(&format!("  with the transforms and options in {}\n", file.display()));
    }
    if run.request.supersede {
        let documents = || "documents of the live sink are replaced".to_owned();
        let replaced = run.supersede.as_ref().map_or_else(documents, |superseding| replaced(run, superseding));
        text.push_str(&format!("  {replaced}\n"));
    }
    if let Some(switch) = &run.switch {
        let state = match switch.done {
            Some(done) => format!("the shadow became the live destination {}", time_text(done)),
            None => format!(
                "the switch to the shadow was interrupted: complete it with `trunkline replay switch PIPELINES {}`",
                run.id
            ),
        };
        text.push_str(&format!("  {state}\n"));
    }
    if let Some(ended) = run.ended {
        text.push_str(&format!("  ended {}\n", time_text(ended)));
    }
    let counters = progress.counters;
    text.push_str(&format!(
        "  {}% of the offsets; {} in, {} out, {} dropped, {} dead-lettered\n",
        seen.percent(),
        counters.records_in,
        counters.out,
        counters.dropped,
        counters.dead_lettered
    ));
    if let Some(error) = &run.error {
        text.push_str(&format!("  error: {error}\n"));
    }
    for range in &run.ranges {
        text.push_str(&format!(
            "  topic `{}` partition {}: offsets {} to {}\n",
            range.topic,
            range.partition,
            range.from,
            range.to - 1
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::ComponentStatus;

    fn live(counters: Option<ComponentStatus>) -> LiveRun {
        serde_json::from_value(json!({
            "kind": "live", "id": "orders.lake", "pipeline": "orders", "component": "lake", "component_kind": "sink",
            "state": "running", "error": null, "destination": "s3://lake/orders", "lag_records": 600,
            "lag_bytes": null, "lag_seconds": null, "records_per_second": 120.0, "seconds_left": 65,
            "counters": counters, "started": "2026-11-01T00:00:00Z", "started_by": ["ada@a", "bob@b"], "tasks": 1,
            "task_list": [{
                "worker": "w1", "node": "a", "task": 0, "state": "running", "error": null, "lag_records": 600,
                "lag_bytes": null, "records_per_second": 120.0, "since_commit_seconds": 0.5,
            }],
        }))
        .unwrap()
    }

    #[test]
    fn a_live_run_has_its_lag_rate_and_who_started_it() {
        let counters = ComponentStatus { records_in: 7, out: 5, dropped: 2, ..ComponentStatus::default() };
        let expected = "\
            ID           KIND  COMPONENT    STATE    DONE          LAG   RATE   LEFT  IN  OUT  DROPPED  DEAD  STARTED               \
            BY           DESTINATION\n\
            orders.lake  live  orders.lake  running     -  600 records  120/s  1m 5s   7    5        2     0  2026-11-01T00:00:00Z  \
            ada@a,bob@b  s3://lake/orders\n";
        assert_eq!(table(&[live(Some(counters))], &[]), expected);
        let unknown = table(&[live(None)], &[]);
        assert!(unknown.contains(" 1m 5s   -    -        -     -  2026"), "{unknown}");
        assert_eq!(
            live_text(&live(None)),
            "live run orders.lake (sink): running\n  into s3://lake/orders\n  workers started by ada@a, bob@b since \
             2026-11-01T00:00:00Z\n  600 records behind, 120 records per second, caught up in 1m 5s at the pace of the last \
             minute\n  task 0 on a (w1): running, 600 records behind, 120/s\n"
        );
    }
}
