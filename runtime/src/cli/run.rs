//! `trunkline run`: runs pipelines until they are idle or the worker is told to stop.

use std::process::ExitCode;

use trunkline_transform_host::{Host, HostOptions};

use super::{Exit, RunArgs};
use crate::config::{self, Look, Settings};
use crate::kafka::embedded::{EMBEDDED, EmbeddedBroker};
use crate::plan::{self, Pipeline, Registry};
use crate::stage::Stop;
use crate::worker::{self, DataDir, WorkerOptions};

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
    let Some(pipelines) = load(args, &host, &settings) else { return Exit::Config.into() };

    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return Exit::Environment.into();
        }
    };
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
    runtime.spawn(stop_on_signals(stop.clone()));
    let options = WorkerOptions {
        settings,
        brokers,
        pipelines,
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
            if error.domain == trunkline_connector::Domain::External {
                Exit::Environment.into()
            } else {
                Exit::Runtime.into()
            }
        }
    }
}

/// Loads the pipelines. A worker that follows leaves bad files of a folder out, so that one of them does not keep the others from
/// running (I7); a run until idle is a job, which is done whole or not at all.
fn load(args: &RunArgs, host: &Host, settings: &Settings) -> Option<Vec<Pipeline>> {
    let registry = Registry::new();
    let (pipelines, problems) = if args.until_idle {
        match plan::load(&args.paths, host, settings, &registry) {
            Ok(pipelines) => (pipelines, Vec::new()),
            Err(problems) => (Vec::new(), problems),
        }
    } else {
        let loaded = plan::load_each(&args.paths, host, settings, &registry);
        (loaded.pipelines, loaded.problems)
    };
    if !problems.is_empty() {
        eprintln!("{}", config::render(&problems, Look::of_stderr()));
        eprintln!("{}", config::summary(&problems));
    }
    if pipelines.is_empty() {
        return None;
    }
    Some(pipelines)
}

fn report(args: &RunArgs, outcome: &worker::Outcome) -> ExitCode {
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
async fn stop_on_signals(stop: Stop) {
    stop_signal().await;
    tracing::info!("told to stop");
    stop.set();
}

/// Waits for SIGINT or SIGTERM.
pub(super) async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
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
