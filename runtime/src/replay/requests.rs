//! Requests to a replay, on whichever machine it is executed: pause, resume and stop. A request is
//! a change of the run's row, which each process that executes the run reads every few seconds.

use jiff::Timestamp;
use trunkline_connector::{Error, Result};

use super::execution::Watch;
use super::run::{Run, RunState, Runs};
use crate::kafka::Cluster;

/// What people ask a run to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunRequest {
    /// It commits what it has written, and waits.
    Pause,
    /// A paused run continues.
    Resume,
    /// It commits what it has written, and the commands that execute it end.
    Stop,
}

impl RunRequest {
    /// Its name in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "runs pause",
            Self::Resume => "runs resume",
            Self::Stop => "runs stop",
        }
    }

    /// Writes the request into the row of a run. Returns the run, and what happens next.
    pub fn write(self, cluster: &Cluster, name: &str, id: &str) -> Result<(Run, String)> {
        let runs = Runs::new(cluster, name);
        match self {
            Self::Pause => pause(&runs, id),
            Self::Resume => resume(&runs, id),
            Self::Stop => stop(cluster, name, &runs, id),
        }
    }
}

fn pause(runs: &Runs<'_>, id: &str) -> Result<(Run, String)> {
    let run = runs.update(id, |run| match run.state {
        RunState::Running | RunState::Paused => {
            run.state = RunState::Paused;
            Ok(())
        }
        RunState::Stopping | RunState::Stopped | RunState::Failed | RunState::Finished | RunState::Discarded => {
            Err(refusal(run, "pause"))
        }
    })?;
    let note =
        format!("it commits what it has written, and waits within seconds; `trunkline runs resume {id}` continues it");
    Ok((run, note))
}

fn resume(runs: &Runs<'_>, id: &str) -> Result<(Run, String)> {
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
    Ok((run, note))
}

fn stop(cluster: &Cluster, name: &str, runs: &Runs<'_>, id: &str) -> Result<(Run, String)> {
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
    let note = stopped(&run);
    Ok((run, note))
}

/// What happens to a run that was stopped.
fn stopped(run: &Run) -> String {
    let resume = format!("`trunkline replay PIPELINES {} --resume {}`", run.pipeline, run.id);
    match run.state {
        _ if run.is_between() && run.supersede.as_ref().is_some_and(|superseding| superseding.rows.is_some()) => {
            format!(
                "the rows of the range are replaced in one transaction, which is done or not: complete the run with {resume}"
            )
        }
        _ if run.is_between() => {
            format!("readers may see earlier and new files until the run is completed with {resume}")
        }
        RunState::Stopping => format!("it commits what it has written, and ends within seconds; {resume} continues it"),
        RunState::Finished | RunState::Discarded => "there was nothing left to stop".to_owned(),
        _ => format!("{resume} continues it"),
    }
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
