//! `trunkline runs`: lists, shows, pauses, resumes and stops replays.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use trunkline_connector::{Error, Result};

use super::SettingsArgs;
use super::dlq::connect;
use super::output::{Exit, columns, print_data, print_error, report_error, report_problems};
use super::record::record;
use super::replay::replaced;
use crate::config::Settings;
use crate::kafka::Cluster;
use crate::replay::execution::{Progress, Watch};
use crate::replay::run::{Run, RunState, Runs};
use crate::units::counted;

/// `trunkline runs`.
#[derive(Args)]
pub(super) struct RunsArgs {
    #[command(subcommand)]
    command: Option<RunsCommand>,
    /// Print as JSON on stdout
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

#[derive(Subcommand)]
enum RunsCommand {
    /// Show the range, the progress and the outcome of a run
    Show {
        /// The id of the run
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Pause a run, on whichever machine it is executed: it commits what it has written, and waits
    Pause {
        /// The id of the run
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Resume a paused run where it was paused
    Resume {
        /// The id of the run
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Stop a run, on whichever machine it is executed. The same command continues it
    Stop {
        /// The id of the run
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Runs the verb.
pub(super) fn run(args: &RunsArgs) -> Exit {
    let settings = match args.settings.load() {
        Ok(settings) => settings,
        Err(problems) => return report_problems(&problems, args.json),
    };
    let outcome = connect(&settings).and_then(|cluster| {
        let name = settings.cluster_name();
        let runs = Runs::new(&cluster, &name);
        let recorded = |command: &str, id: &str| {
            // An unknown run is an error, and no entry.
            runs.get(id)?;
            record(&cluster, &settings, command, json!({ "id": id }))
        };
        match &args.command {
            None => list(&cluster, &settings, &runs, args.json),
            Some(RunsCommand::Show { id }) => show(&Seen::of(&cluster, &name, &runs.get(id)?)?, args.json),
            Some(RunsCommand::Pause { id }) => {
                recorded("runs pause", id)?;
                pause(&runs, id, args.json)
            }
            Some(RunsCommand::Resume { id }) => {
                recorded("runs resume", id)?;
                resume(&runs, id, args.json)
            }
            Some(RunsCommand::Stop { id }) => {
                recorded("runs stop", id)?;
                stop(&cluster, &name, &runs, id, args.json)
            }
        }
    });
    outcome.unwrap_or_else(|error| report_error(&error))
}

/// A run with what Kafka knows of it now.
struct Seen {
    run: Run,
    /// The stored state, `interrupted`, or `pausing`.
    state: &'static str,
    progress: Progress,
    /// Tasks that execute it, in all processes.
    tasks: usize,
}

impl Seen {
    fn of(cluster: &Cluster, name: &str, run: &Run) -> Result<Self> {
        let watch = Watch::new(cluster, name, run)?;
        let tasks = if run.is_unfinished() { watch.tasks()? } else { 0 };
        let state = match run.state {
            RunState::Running | RunState::Stopping if tasks == 0 => "interrupted",
            RunState::Paused if tasks > 0 => "pausing",
            state => state.name(),
        };
        Ok(Self { run: run.clone(), state, progress: watch.read()?, tasks })
    }

    /// Offsets per second, and the seconds that are left, while it is executed.
    fn speed(&self) -> Option<(f64, u64)> {
        let Progress { done, total, .. } = self.progress;
        let executed = self.run.executed.filter(|_| self.state == "running")?;
        executed.speed(done, total.saturating_sub(done), Timestamp::now().as_millisecond())
    }

    /// Who started it, and where.
    fn started_by(&self) -> String {
        match self.run.user.as_str() {
            "" => self.run.node.clone(),
            user => format!("{user}@{}", self.run.node),
        }
    }

    fn percent(&self) -> u64 {
        (self.progress.done * 100).checked_div(self.progress.total).unwrap_or(100)
    }

    fn json(&self) -> Value {
        let Self { run, state, progress, tasks } = self;
        let speed = self.speed();
        json!({
            "id": run.id, "pipeline": run.pipeline, "sink": run.sink, "transform": run.transform, "state": state, "error": run.error,
            "destination": run.destination, "from": run.request.from, "to": run.request.to, "ranges": run.ranges,
            "dead_letters_only": run.request.dead_letters, "pipeline_file": run.request.pipeline_file,
            "node": run.node, "user": run.user, "rate": run.rate, "tasks": tasks,
            "offsets_per_second": speed.map(|(rate, _)| rate as u64), "seconds_left": speed.map(|(_, left)| left),
            "started": time(run.started), "ended": run.ended.map(time),
            "offsets_done": progress.done, "offsets_total": progress.total, "counters": progress.counters,
            "supersede": run.supersede, "switch": run.switch,
        })
    }
}

fn list(cluster: &Cluster, settings: &Settings, runs: &Runs<'_>, as_json: bool) -> Result<Exit> {
    let name = settings.cluster_name();
    let seen = runs.list()?.iter().map(|run| Seen::of(cluster, &name, run)).collect::<Result<Vec<_>>>()?;
    if as_json {
        return Ok(print_data(&format!("{}\n", seen.iter().map(Seen::json).collect::<Value>())));
    }
    if seen.is_empty() {
        print_error(format_args!("the cluster has no runs: `trunkline replay` starts one"));
    }
    let header =
        ["ID", "SINK", "STATE", "DONE", "RATE", "LEFT", "IN", "OUT", "DROPPED", "DEAD", "STARTED", "BY", "DESTINATION"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(seen.iter().map(|seen| {
        let (run, counters) = (&seen.run, seen.progress.counters);
        let (rate, left) = match seen.speed() {
            Some((rate, left)) => (format!("{rate:.0}/s"), duration(left)),
            None => (String::new(), String::new()),
        };
        [
            run.id.clone(),
            format!("{}.{}", run.pipeline, run.sink),
            seen.state.to_owned(),
            format!("{}%", seen.percent()),
            rate,
            left,
            counters.records_in.to_string(),
            counters.out.to_string(),
            counters.dropped.to_string(),
            counters.dead_lettered.to_string(),
            time(run.started),
            seen.started_by(),
            run.destination.clone(),
        ]
    }));
    Ok(print_data(&columns(&rows, &[3, 4, 5, 6, 7, 8, 9])))
}

fn show(seen: &Seen, as_json: bool) -> Result<Exit> {
    if as_json {
        return Ok(print_data(&format!("{}\n", seen.json())));
    }
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
        time(run.started),
        seen.started_by()
    );
    if let Some((rate, left)) = seen.speed() {
        let tasks = counted(seen.tasks, "task");
        text.push_str(&format!("  {rate:.0} offsets per second by {tasks}, {} left\n", duration(left)));
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
        let replaced = run.supersede.as_ref().map_or("documents of the live sink are replaced".to_owned(), replaced);
        text.push_str(&format!("  {replaced}\n"));
    }
    if let Some(switch) = &run.switch {
        let state = match switch.done {
            Some(done) => format!("the shadow became the live destination {}", time(done)),
            None => format!(
                "the switch to the shadow was interrupted: complete it with `trunkline replay switch PIPELINES {}`",
                run.id
            ),
        };
        text.push_str(&format!("  {state}\n"));
    }
    if let Some(ended) = run.ended {
        text.push_str(&format!("  ended {}\n", time(ended)));
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
    Ok(print_data(&text))
}

fn stop(cluster: &Cluster, name: &str, runs: &Runs<'_>, id: &str, as_json: bool) -> Result<Exit> {
    let before = runs.get(id)?;
    let is_executed = Watch::new(cluster, name, &before)?.is_executed()?;
    let run = runs.update(id, |run| {
        match run.state {
            RunState::Running | RunState::Stopping | RunState::Paused if is_executed => run.state = RunState::Stopping,
            RunState::Running | RunState::Stopping | RunState::Paused => {
                run.state = RunState::Stopped;
                run.ended = Some(Timestamp::now().as_millisecond());
            }
            RunState::Stopped | RunState::Failed | RunState::Finished | RunState::Discarded => {}
        }
        Ok(())
    })?;
    let note = match run.state {
        _ if run.is_between() && run.supersede.as_ref().is_some_and(|superseding| superseding.rows.is_some()) => {
            "the rows of the range are replaced in one transaction, which is done or not: complete the run with `trunkline replay .. \
             --resume`"
        }
        _ if run.is_between() => {
            "readers may see earlier and new files until the run is completed with `trunkline replay .. --resume`"
        }
        RunState::Stopping => "it commits what it has written, and ends within seconds",
        _ => "",
    };
    Ok(report(&run, note, as_json))
}

/// The next step for a run that is in no state to be paused or resumed.
fn refusal(run: &Run, verb: &str) -> Error {
    let Run { id, pipeline, state, .. } = run;
    if !run.is_unfinished() {
        let message = format!("the run {id} is {}: there is nothing left to {verb}", state.name());
        return Error::config("replay.finished", message);
    }
    let message = format!(
        "the run {id} is {}, so it cannot {verb}: continue it with `trunkline replay PIPELINES {pipeline} --resume {id}`",
        state.name()
    );
    Error::config("replay.not_executed", message)
}

fn pause(runs: &Runs<'_>, id: &str, as_json: bool) -> Result<Exit> {
    let run = runs.update(id, |run| match run.state {
        RunState::Running | RunState::Paused => {
            run.state = RunState::Paused;
            Ok(())
        }
        RunState::Stopping | RunState::Stopped | RunState::Failed | RunState::Finished | RunState::Discarded => {
            Err(refusal(run, "pause"))
        }
    })?;
    let note = "it commits what it has written, and waits within seconds; `trunkline runs resume` continues it";
    Ok(report(&run, note, as_json))
}

fn resume(runs: &Runs<'_>, id: &str, as_json: bool) -> Result<Exit> {
    let run = runs.update(id, |run| match run.state {
        RunState::Running | RunState::Paused => {
            run.state = RunState::Running;
            Ok(())
        }
        RunState::Stopping | RunState::Stopped | RunState::Failed | RunState::Finished | RunState::Discarded => {
            Err(refusal(run, "resume"))
        }
    })?;
    let note = format!(
        "the command that waits with it continues within seconds. If that command has ended, start `trunkline replay PIPELINES {} \
         --resume {id}`",
        run.pipeline
    );
    Ok(report(&run, &note, as_json))
}

/// Prints the state of a run after a change.
fn report(run: &Run, note: &str, as_json: bool) -> Exit {
    if as_json {
        return print_data(&format!("{}\n", json!({ "id": run.id, "state": run.state.name() })));
    }
    let note = if note.is_empty() { String::new() } else { format!("; {note}") };
    print_error(format_args!("run {}: {}{note}", run.id, run.state.name()));
    Exit::Ok
}

/// Seconds for people: `3h 12m`, `4m 5s`, `7s`.
fn duration(seconds: u64) -> String {
    match (seconds / 3_600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m {seconds}s"),
        (hours, minutes, _) => format!("{hours}h {minutes}m"),
    }
}

/// A time in milliseconds since the Unix epoch, as text.
pub(super) fn time(milliseconds: i64) -> String {
    let time = Timestamp::from_millisecond(milliseconds);
    time.map_or_else(|_| milliseconds.to_string(), |time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m 0s"), (3_599, "59m 59s"), (90_061, "25h 1m")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
