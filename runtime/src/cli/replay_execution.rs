//! Executes the run of a replay in this process: with its progress, until it ends, and through the
//! pauses that `trunkline runs pause` asks for.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use trunkline_connector::{Error, Result};

use super::output::Exit;
use super::replay_progress::Reporter;
use super::run::{StopSignals, stop_on_signals};
use crate::replay::execution::{Ending, Job, Progress, execute};
use crate::replay::run::{RunState, Runs};
use crate::stage::StopSignal;
use crate::worker::{DataDir, create_private_folder};

/// Time between two looks at the row of the run, which another command may have changed.
const ROW_CHECK: Duration = Duration::from_secs(3);

/// Executes a run that is registered, and stores and prints its result.
pub(super) fn execute_run(job: &Job<'_>, runs: &Runs<'_>, as_json: bool) -> Result<Exit> {
    let (settings, run) = (job.settings, job.run);
    let folder = settings.data.join("replays").join(&run.id);
    create_private_folder(&settings.data.join("replays"))
        .map_err(|error| trunkline_connector::io_error("create", &folder, &error))?;
    let data = DataDir::open(&folder, false).map_err(|error| match error.code {
        "worker.data_in_use" => {
            let message = format!("the run {} is being executed on this machine: `trunkline runs` shows it", run.id);
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
    let mut reporter = Reporter::new(run, as_json);
    reporter.begin(run);
    let ending = loop {
        if let Some(ending) = wait_while_paused(runs, &run.id, &stop, &reporter) {
            break ending;
        }
        let ending = execute_part(job, &data, runtime.handle(), runs, &stop, &mut reporter)?;
        // A pause ends the tasks as a stop does.
        let is_paused = || Ok::<_, Error>(!matches!(runs.get(&run.id)?.state, RunState::Stopping | RunState::Stopped));
        if ending != Ending::Stopped || stop.is_set() || !is_paused()? {
            break ending;
        }
    };
    let stored = runs.update(&run.id, |run| {
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
    if ending == Ending::Finished
        && let Err(error) = std::fs::remove_dir_all(&folder)
    {
        tracing::debug!(%error, folder = %folder.display(), "the folder of the run cannot be removed");
    }
    runtime.shutdown_background();
    reporter.end(job.cluster, &settings.cluster_name(), &stored)
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
