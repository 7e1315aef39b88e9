//! Restarts a stage: with backoff after an external failure or a panic, not at all after a failure
//! that needs a person. The failure of one stage does not affect others.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use trunkline_connector::{Domain, Error, Result, Retry};

use super::backoff::Backoff;
use super::status::{StageState, StageStatus};
use super::stop_signal::StopSignal;
use super::worker_context::WorkerContext;

/// With `--until-idle`, a stage that fails for this long without a commit gives up, because a job
/// must end.
pub const GIVE_UP: Duration = Duration::from_secs(300);

/// How long a stopping stage waits for a destination that does not answer; then its topic
/// partitions are left to their next owner.
pub(super) const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// A stage that can be run any number of times, each time from its committed state.
pub trait Stage: Send + Sync {
    /// Runs until done or stopped.
    fn run(&self, context: &WorkerContext, stop: &StopSignal, status: &StageStatus) -> Result<()>;
}

/// How supervision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Done, stopped, or failed; the status says which.
    Over,
    /// Another task took over (I4). The stage must own its lease before it starts again.
    Fenced,
}

/// Runs `stage` until it is done, `stop` is set, or it cannot recover. `leased`: the stage runs
/// under a lease, and being fenced means that the lease is lost.
pub fn supervise(
    stage: &dyn Stage,
    leased: bool,
    context: &WorkerContext,
    stop: &StopSignal,
    status: &StageStatus,
) -> Ended {
    let mut backoff = Backoff::new();
    let mut failing_since: Option<Instant> = None;
    loop {
        status.set_state(StageState::Running);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| stage.run(context, stop, status))).unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            Err(Error::internal(
                "stage.panic",
                format!("the stage panicked: {} (please report this)", text.unwrap_or_default()),
            ))
        });
        let error = match outcome {
            Ok(()) => {
                status.set_state(StageState::Done);
                return Ended::Over;
            }
            Err(error) => error,
        };
        if leased && error.domain == Domain::Fenced {
            tracing::warn!(stage = status.name(), %error, "another worker has taken over");
            status.set_state(StageState::Waiting);
            return Ended::Fenced;
        }
        if stop.is_set() {
            tracing::warn!(stage = status.name(), %error, "stopped while it was failing; its position is kept");
            status.set_state(StageState::Done);
            return Ended::Over;
        }
        if matches!(error.domain, Domain::Config | Domain::Data) {
            tracing::error!(stage = status.name(), %error, "stopped; its position is kept");
            status.set_state(StageState::Failed(error.to_string()));
            return Ended::Over;
        }
        let committed = status.last_commit().filter(|at| *at > started);
        let since = committed.unwrap_or_else(|| *failing_since.get_or_insert(started));
        failing_since = Some(since);
        if context.until_idle && (error.retry == Retry::Never || since.elapsed() > GIVE_UP) {
            let seconds = since.elapsed().as_secs();
            tracing::error!(stage = status.name(), %error, "gave up after {seconds} s; its position is kept");
            status.set_state(StageState::Failed(error.to_string()));
            return Ended::Over;
        }
        status.failed(&error.to_string());
        status.set_state(StageState::Waiting);
        let wait = backoff.after(&error, committed.is_some());
        tracing::warn!(stage = status.name(), %error, retry_in = ?wait, "failed; restarting from the committed position");
        if stop.wait(wait) {
            status.set_state(StageState::Done);
            return Ended::Over;
        }
    }
}
