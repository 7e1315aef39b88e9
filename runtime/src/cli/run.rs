//! `trunkline run`: runs pipelines until they are idle or the worker is told to stop.

use std::process::ExitCode;
use std::sync::mpsc::channel;

use tokio::signal::unix::{SignalKind, signal};
use trunkline_connector::Domain;
use trunkline_transform_host::{Host, HostOptions};

use super::reload::{Reader, follow};
use super::{Exit, RunArgs};
use crate::config::Settings;
use crate::kafka::embedded::{EMBEDDED, EmbeddedBroker};
use crate::plan::Loaded;
use crate::stage::StopSignal;
use crate::worker::{self, DataDir, PipelineSet, WorkerOptions};

/// Runs the verb.
pub(super) fn run(args: &RunArgs, settings: Settings) -> ExitCode {
    let data = match DataDir::open(&settings.data) {
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
    let stop = StopSignal::default();
    runtime.spawn(stop_on_signals(stop.clone()));
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
    match outcome {
        Ok(outcome) => report(args, &outcome),
        // With `--until-idle` the flag is also set at the end of the work: an error then is one.
        Err(error) if stop.is_set() && !args.until_idle => {
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

/// Loads the first set. A worker that follows leaves bad files of a folder out, so that one of them does not keep the others from running (I7); a
/// run until idle is a job, which is done whole or not at all.
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

/// SIGINT and SIGTERM stop the worker: it flushes, commits and ends.
async fn stop_on_signals(stop: StopSignal) {
    stop_signal().await;
    tracing::info!("told to stop");
    stop.set();
}

/// Waits for SIGINT or SIGTERM.
pub(super) async fn stop_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be received: the process can only be killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
