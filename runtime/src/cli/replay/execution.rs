//! Executes the run of a replay in this process: with its progress, until it ends, and through the
//! pauses that `trunkline runs pause` asks for.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use tokio::runtime::Runtime;
use trunkline_connector::{Error, Result};

use super::super::output::{Exit, print_data, print_error};
use super::super::run::{StopSignals, stop_on_signals};
use super::progress::Reporter;
use crate::replay::execution::{Ending, Job, Progress, Watch, clean_up, execute};
use crate::replay::run::{Execution, Run, RunState, Runs};
use crate::replay::superseding::{self, Completion};
use crate::stage::StopSignal;
use crate::worker::{DataDir, IN_USE, create_private_folder};

/// Time between two looks at the row of the run, which another command may have changed.
const ROW_CHECK: Duration = Duration::from_secs(3);

/// Folders of processes that join a run on one machine.
const MAX_JOINED: u32 = 1_000;

/// Times that a run follows the live sink before it gives up.
const MAX_EXTENSIONS: u32 = 20;

/// Executes a run that is registered, or a part of it, and stores and prints its result.
pub(super) fn execute_run(job: &Job<'_>, runs: &Runs<'_>, as_json: bool) -> Result<Exit> {
    let (settings, run) = (job.settings, job.run);
    let data =
        if job.joins { open_free_folder(job)? } else { open_folder(job, &folder_of(job), DataDir::open_after_last)? };
    // Before the threads start: they inherit it.
    yield_to_live_work();
    let runtime = new_runtime()?;
    let stop = StopSignal::default();
    let signals = runtime.block_on(async { StopSignals::install() }).map_err(|error| {
        Error::external("environment.signals", format!("the process cannot receive signals: {error}"))
    })?;
    runtime.spawn(stop_on_signals(signals, stop.clone()));
    let mut reporter = Reporter::new(run, as_json);
    if job.joins {
        reporter.joined(run)
    } else {
        reporter.begin(run)
    }
    let mut current = run.clone();
    let mut extensions = 0;
    let ending = loop {
        let job = Job { run: &current, failed: job.failed.clone(), ..*job };
        let ending = execute_range(&job, &data, runtime.handle(), runs, &stop, &mut reporter)?;
        if ending != Ending::Finished || run.supersede.is_none() || job.joins {
            break ending;
        }
        reporter.publishing();
        match superseding::complete(&job, &data, runtime.handle(), runs, &stop) {
            Ok(Completion::Ended(ending)) => break ending,
            Ok(Completion::Extended(extended)) if extensions < MAX_EXTENSIONS => {
                extensions += 1;
                current = *extended;
            }
            Ok(Completion::Extended(_)) => break Ending::Failed(live_is_faster(run)),
            Err(error) => break Ending::Failed(error.to_string()),
        }
    };
    let stored = runs.update(&run.id, |run| {
        // Another command may have completed or given up the run.
        if !run.is_unfinished() {
            return Ok(());
        }
        // The process that was joined replaces output, and knows whether the run failed.
        if job.joins && (ending != Ending::Finished || run.supersede.is_some()) {
            return Ok(());
        }
        // A paused run whose command ends stays paused.
        if ending == Ending::Stopped && run.state == RunState::Paused {
            return Ok(());
        }
        run.ended = Some(Timestamp::now().as_millisecond());
        (run.state, run.error) = match &ending {
            Ending::Finished => (RunState::Finished, None),
            Ending::Stopped => (RunState::Stopped, None),
            Ending::Failed(error) => (RunState::Failed, Some(error.clone())),
        };
        Ok(())
    })?;
    drop(data);
    if ending == Ending::Finished && !stored.is_unfinished() {
        remove_folders(job);
        clean_up(job);
    }
    runtime.shutdown_background();
    match ending {
        Ending::Failed(error) if job.joins => Err(Error::external("replay.part_failed", error)),
        ending if job.joins && stored.is_unfinished() => Ok(reporter.left(&stored, ending == Ending::Finished)),
        _ => reporter.end(job.cluster, &settings.cluster_name(), &stored),
    }
}

/// Lets the live work of this machine go first: a process with this nice value gets a fiftieth of a
/// busy processor, and all of an idle one.
fn yield_to_live_work() {
    const NICE: libc::c_int = 19;
    // SAFETY: the call has no memory effects. A process may always lower its own priority.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS as _, 0, NICE) } != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "the priority of the run was not lowered");
    }
}

/// Stores since when the run is executed: `trunkline runs` shows its speed.
fn note_execution(job: &Job<'_>, runs: &Runs<'_>) -> Result<()> {
    if job.joins {
        return Ok(());
    }
    let done = Watch::new(job.cluster, &job.settings.cluster_name(), job.run)?.read()?.done;
    let executed = Some(Execution { since: Timestamp::now().as_millisecond(), done });
    runs.update(&job.run.id, |run| {
        run.executed = executed;
        Ok(())
    })?;
    Ok(())
}

/// The folder of the process that executes the run.
fn folder_of(job: &Job<'_>) -> PathBuf {
    job.settings.data.join("replays").join(&job.run.id)
}

/// Locks the first free folder for a process that joins the run. A process that joins after another
/// one was killed gets its folder, and so its transactional ids, which ends its transactions.
fn open_free_folder(job: &Job<'_>) -> Result<DataDir> {
    let mut last = None;
    for number in 1..MAX_JOINED {
        match open_folder(job, &folder_of(job).with_extension(number.to_string()), DataDir::open) {
            Err(error) if error.code == "replay.running" => last = Some(error),
            outcome => return outcome,
        }
    }
    Err(last.unwrap_or_else(|| Error::internal("replay.folder", "there is no folder for the process")))
}

/// Processes the range of a run, through its pauses.
fn execute_range(
    job: &Job<'_>,
    data: &DataDir,
    runtime: &tokio::runtime::Handle,
    runs: &Runs<'_>,
    stop: &StopSignal,
    reporter: &mut Reporter,
) -> Result<Ending> {
    let run = job.run;
    // New files are visible: only the earlier ones are left to be removed.
    if run.is_between() {
        return Ok(Ending::Finished);
    }
    loop {
        if let Some(ending) = wait_while_paused(runs, &run.id, stop, reporter) {
            return Ok(ending);
        }
        note_execution(job, runs)?;
        let ending = execute_part(job, data, runtime, runs, stop, reporter)?;
        // A pause ends the tasks as a stop does.
        let is_paused = || Ok::<_, Error>(!matches!(runs.get(&run.id)?.state, RunState::Stopping | RunState::Stopped));
        if ending != Ending::Stopped || stop.is_set() || !is_paused()? {
            return Ok(ending);
        }
    }
}

/// The live sink loads records of the same keys again and again before the run can commit.
fn live_is_faster(run: &Run) -> String {
    let Run { id, pipeline, sink, .. } = run;
    format!(
        "the live sink loads records faster than the run follows: `trunkline pause {pipeline}.{sink}`, continue the run with \
         `trunkline replay PIPELINES {pipeline} --resume {id}`, and resume the sink when it has ended"
    )
}

/// Gives up a run that has not replaced anything.
pub(super) fn discard_run(job: &Job<'_>, runs: &Runs<'_>, as_json: bool) -> Result<Exit> {
    let id = &job.run.id;
    let data = open_folder(job, &folder_of(job), DataDir::open_after_last)?;
    if Watch::new(job.cluster, &job.settings.cluster_name(), job.run)?.is_executed()? {
        let message = format!("the run {id} is being executed: stop it first with `trunkline runs stop {id}`");
        return Err(Error::config("replay.running", message));
    }
    let runtime = new_runtime()?;
    let run = superseding::discard(job, &data, runtime.handle(), runs)?;
    drop(data);
    remove_folders(job);
    clean_up(job);
    runtime.shutdown_background();
    if as_json {
        return Ok(print_data(&format!("{}\n", json!({ "run": run.id, "state": run.state.name() }))));
    }
    match run.request.supersede {
        true => print_error(format_args!(
            "run {id}: discarded; what it had prepared is removed, and the destination is as it was"
        )),
        false => print_error(format_args!(
            "run {id}: discarded; what it has written into {} stays there, and another run may use the place when it is removed",
            run.destination
        )),
    }
    Ok(Exit::Ok)
}

/// Locks the folder of the run on this machine.
fn open_folder(job: &Job<'_>, folder: &Path, open: fn(&Path, bool) -> Result<DataDir>) -> Result<DataDir> {
    create_private_folder(&job.settings.data.join("replays"))
        .map_err(|error| trunkline_connector::io_error("create", folder, &error))?;
    open(folder, false).map_err(|error| match error.code {
        IN_USE => {
            let id = &job.run.id;
            let message = format!("the run {id} is being executed on this machine: `trunkline runs` shows it");
            Error::config("replay.running", message)
        }
        _ => error,
    })
}

/// Removes the folders that processes of the run have left on this machine.
fn remove_folders(job: &Job<'_>) {
    let id = job.run.id.as_str();
    for entry in std::fs::read_dir(job.settings.data.join("replays")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let rest = name.to_str().and_then(|name| name.strip_prefix(id));
        if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
            continue;
        }
        // Another process may still end in it.
        let is_free = DataDir::open(&entry.path(), false).is_ok();
        if is_free && let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::debug!(%error, folder = %entry.path().display(), "the folder of the run cannot be removed");
        }
    }
}

fn new_runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))
}

/// Executes the run until it ends, or its row asks for a pause or a stop.
fn execute_part(
    job: &Job<'_>,
    data: &DataDir,
    runtime: &tokio::runtime::Handle,
    runs: &Runs<'_>,
    stop: &StopSignal,
    reporter: &mut Reporter,
) -> Result<Ending> {
    let part = stop.child();
    let mut checked = Instant::now();
    execute(job, data, runtime, &part, &mut |progress: &Progress| {
        reporter.progress(progress);
        if checked.elapsed() >= ROW_CHECK {
            checked = Instant::now();
            match runs.get(&job.run.id).map(|run| run.state) {
                Ok(RunState::Stopping | RunState::Stopped | RunState::Paused) => part.set(),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the row of the run cannot be read"),
            }
        }
    })
}

/// Waits until the run is not paused. Returns how it ended, if it was stopped meanwhile.
fn wait_while_paused(runs: &Runs<'_>, id: &str, stop: &StopSignal, reporter: &Reporter) -> Option<Ending> {
    let mut is_reported = false;
    loop {
        match runs.get(id).map(|run| run.state) {
            Ok(RunState::Paused) if !is_reported => {
                is_reported = true;
                reporter.paused();
            }
            Ok(RunState::Paused) => {}
            Ok(RunState::Stopping | RunState::Stopped) => return Some(Ending::Stopped),
            Ok(_) => return None,
            // Without a pause, the execution reports that the brokers do not answer.
            Err(_) if !is_reported => return None,
            Err(error) => tracing::debug!(%error, "the row of the run cannot be read"),
        }
        if stop.wait(ROW_CHECK) {
            return Some(Ending::Stopped);
        }
    }
}
