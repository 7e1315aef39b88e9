//! `trunkline run`: runs pipelines until they are idle or the worker is told to stop.

use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use trunkline_connector::Domain;
use trunkline_transform_host::{Host, HostOptions};

use super::reload::{Reader, follow};
use super::{Exit, RunArgs};
use crate::config::Settings;
use crate::kafka::embedded::{EMBEDDED, EmbeddedBroker};
use crate::plan::Loaded;
use crate::stage::Stop;
use crate::worker::{self, DataDir, PipelineSet, STOPPED_CUT_OFF, WorkerOptions, raise_open_files_limit};

/// Runs the verb.
pub(super) fn run(args: &RunArgs, settings: Settings) -> ExitCode {
    if let Err(error) = raise_open_files_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files of this process (`ulimit -n`)");
    }
    let data = match DataDir::open(&settings.data, args.new_worker_id) {
        Ok(data) => data,
        Err(error) => {
            eprintln!("error: {error}");
            return Exit::Environment.into();
        }
    };
    let host = match Host::new(HostOptions { cache_dir: Some(data.plugins().to_owned()) }) {
        Ok(host) => host,
        Err(error) => {
            eprintln!("error: plugins cannot be run here: {error}");
            return Exit::Environment.into();
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return Exit::Environment.into();
        }
    };
    // Before anything that takes its time: SIGHUP would end the process. It does end a job.
    let hangups = match args.until_idle {
        true => None,
        false => match runtime.block_on(async { signal(SignalKind::hangup()) }) {
            Ok(hangups) => Some(hangups),
            Err(error) => {
                eprintln!("error: signals cannot be received: {error}");
                return Exit::Environment.into();
            }
        },
    };
    let mut reader = Reader::new(args, settings.clone(), host);
    let Some(first) = load(&mut reader, args) else { return Exit::Config.into() };
    let (sets, of_worker) = channel();
    // The other end is in this function.
    let _ = sets.send(first);
    if let Some(hangups) = hangups {
        runtime.spawn(follow(reader, hangups, sets));
    }
    let embedded = match settings.brokers.as_deref() {
        None | Some(EMBEDDED) => match EmbeddedBroker::start(runtime.handle(), &settings.data.join("broker")) {
            Ok(broker) => Some(broker),
            Err(error) => {
                eprintln!("error: {error}");
                return Exit::Environment.into();
            }
        },
        Some(_) => None,
    };
    let brokers =
        embedded.as_ref().map_or_else(|| settings.brokers.clone().unwrap_or_default(), EmbeddedBroker::address);
    let stop = Stop::default();
    let signals = match runtime.block_on(async { StopSignals::install() }) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("error: signals cannot be received: {error}");
            return Exit::Environment.into();
        }
    };
    runtime.spawn(stop_on_signals(signals, stop.clone()));
    let options = WorkerOptions {
        settings,
        brokers,
        sets: of_worker,
        until_idle: args.until_idle,
        runtime: runtime.handle().clone(),
        stop: stop.clone(),
    };
    let outcome = worker::run(options, &data);
    if let Some(broker) = embedded {
        broker.stop();
    }
    // Nothing that is still under way in the background matters now.
    runtime.shutdown_background();
    if let Err(error) = &outcome
        && error.code == STOPPED_CUT_OFF
    {
        eprintln!("stopped: {error}");
        // Threads still wait for the brokers. An orderly exit would release memory that they use.
        exit_at_once(if args.until_idle { Exit::Environment } else { Exit::Ok });
    }
    match outcome {
        Ok(outcome) => report(args, &outcome),
        // With `--until-idle` the flag is also set at the end of the work: an error then is one.
        Err(error) if stop.is_set() && !args.until_idle && error.domain != Domain::Config => {
            eprintln!("stopped: {error}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            match error.domain {
                Domain::Config => Exit::Config.into(),
                Domain::External => Exit::Environment.into(),
                _ => Exit::Runtime.into(),
            }
        }
    }
}

/// Loads the first set. A worker that follows leaves bad files of a folder out, so that one of them
/// does not keep the others from running (I7); a run until idle is a job, which is done whole or
/// not at all.
fn load(reader: &mut Reader, args: &RunArgs) -> Option<PipelineSet> {
    let Loaded { pipelines, problems, .. } = reader.read();
    if pipelines.is_empty() || args.until_idle && !problems.is_empty() {
        return None;
    }
    Some(PipelineSet { pipelines, retry_failed: false })
}

fn report(args: &RunArgs, outcome: &worker::RunReport) -> ExitCode {
    for component in outcome.summary.unbalanced() {
        eprintln!(
            "error: the counters of {component} do not balance: records were lost or doubled in the count (please report this)"
        );
    }
    for (component, error) in &outcome.failed {
        eprintln!("error: {component} stopped: {error}");
    }
    if args.json {
        match serde_json::to_string(&outcome.summary) {
            Ok(json) => println!("{json}"),
            Err(error) => eprintln!("error: the summary cannot be written: {error}"),
        }
    } else {
        println!("{}", outcome.summary);
    }
    if outcome.failed.is_empty() && outcome.summary.unbalanced().is_empty() {
        ExitCode::SUCCESS
    } else {
        Exit::Runtime.into()
    }
}

/// Signals within this time are one request.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// SIGINT and SIGTERM stop the worker: it flushes, commits and ends. The second signal ends the
/// process at once.
async fn stop_on_signals(mut signals: StopSignals, stop: Stop) {
    signals.next().await;
    tracing::info!("stopping; a second signal ends the process at once");
    stop.set();
    // Tools such as `timeout` send the first signal twice, to the process and to its group.
    let same = tokio::time::sleep(SAME_SIGNAL);
    tokio::pin!(same);
    loop {
        tokio::select! {
            () = &mut same => break,
            () = signals.next() => {}
        }
    }
    signals.next().await;
    eprintln!("stopped by a second signal: records that were not committed are read again at the next start");
    exit_at_once(Exit::Runtime);
}

/// Ends the process without waiting for its threads.
fn exit_at_once(exit: Exit) -> ! {
    // SAFETY: the call ends the process and touches no memory of it. Nothing is buffered: stderr is
    // not, and stdout is flushed.
    unsafe { libc::_exit(exit.code()) }
}

/// SIGINT and SIGTERM.
pub(super) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Installs the handlers. Needs an async runtime.
    pub(super) fn install() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
