//! `trunkline run`: runs pipelines until they are idle or the worker is stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use trunkline_broker::BrokerStats;
use trunkline_connector::{Domain, Error, Result};
use trunkline_transform_host::{Host, HostOptions};

use super::output::{change_log_filter, print_error, report_error};
use super::reload::{Reader, follow};
use super::run_report::report;
use super::stored_connectors::StoredConnectors;
use super::{Exit, RunArgs};
use crate::config::{HttpSetting, Settings};
use crate::http::{
    self, HTTPS, HttpTls, LoadedComponents, LogLevels, Measured, Others, Samples, Served, SharedAnswers, Viewers,
};
use crate::kafka::embedded::{EMBEDDED, EmbeddedBroker};
use crate::plan::Loaded;
use crate::stage::StopSignal;
use crate::telemetry::{Counts, Observed, Telemetry};
use crate::worker::control::Control;
use crate::worker::{
    self, Addresses, DataDir, Overview, PipelineSet, STOPPED_CUT_OFF, WorkerOptions, plugin_cache_dirs,
    raise_open_files_limit,
};

/// Runs the verb.
pub(super) fn run(args: &RunArgs, settings: Settings) -> Exit {
    let (data, host, runtime, hangups) = match prepare(args, &settings) {
        Ok(prepared) => prepared,
        Err(error) => {
            print_error(format_args!("error: {error}"));
            return Exit::Environment;
        }
    };
    let tls = match HttpTls::load(&settings) {
        Ok(tls) => tls,
        Err(error) => return report_error(&error),
    };
    let (overview, control) = (Overview::default(), Control::default());
    let connectors = StoredConnectors::new(control.clone(), data.stored_connectors());
    let mut reader = Reader::new(args, settings.clone(), host, connectors).with_certificate(tls.clone());
    let Some(first) = first_set(&mut reader, args) else { return Exit::Config };
    let (sets, received_sets) = channel();
    // The receiver is in this function, so this cannot fail.
    let _ = sets.send(first);
    if let Some(hangups) = hangups {
        runtime.spawn(follow(reader, hangups, sets));
    }
    let embedded = match settings.brokers.as_deref() {
        None | Some(EMBEDDED) => match EmbeddedBroker::start(runtime.handle(), &settings.data.join("broker")) {
            Ok(broker) => Some(broker),
            Err(error) => {
                print_error(format_args!("error: {error}"));
                return Exit::Environment;
            }
        },
        Some(_) => None,
    };
    let brokers =
        embedded.as_ref().map_or_else(|| settings.brokers.clone().unwrap_or_default(), EmbeddedBroker::address);
    let stop = StopSignal::default();
    let signals = match runtime.block_on(async { StopSignals::install() }) {
        Ok(signals) => signals,
        Err(error) => {
            print_error(format_args!("error: signals cannot be received: {error}"));
            return Exit::Environment;
        }
    };
    runtime.spawn(stop_on_signals(signals, stop.clone()));
    let counts = Arc::new(Counts::default());
    let broker = embedded.as_ref().map(EmbeddedBroker::stats);
    let measured = Measured {
        worker: data.worker_id().to_owned(),
        cluster: settings.cluster.clone(),
        overview: overview.clone(),
        export: Some(counts.clone()),
        broker: broker.clone(),
    };
    let telemetry = match start_telemetry(&settings, &data, &runtime, measured, &counts) {
        Ok(telemetry) => telemetry,
        Err(error) => return report_error(&error),
    };
    let export = telemetry.is_running().then_some(counts);
    let shown = Shown { overview: overview.clone(), control: control.clone(), export, broker, tls };
    if let Err(error) = publish(args, &settings, &data, &runtime, brokers.clone(), &shown) {
        return report_error(&error);
    }
    let options = WorkerOptions {
        settings,
        brokers,
        sets: received_sets,
        until_idle: args.until_idle,
        append: args.append,
        allow_divergence: args.allow_divergence,
        runtime: runtime.handle().clone(),
        stop: stop.clone(),
        overview,
        control,
        tracer: telemetry.tracer(),
    };
    let outcome = worker::run(options, &data);
    telemetry.stop(&runtime);
    if let Some(broker) = embedded {
        broker.stop();
    }
    // Background work that is unfinished now has no effect.
    runtime.shutdown_background();
    if let Err(error) = &outcome
        && error.code == STOPPED_CUT_OFF
    {
        print_error(format_args!("stopped: {error}"));
        // Threads still wait for the brokers. An orderly exit would release memory that they use.
        let exit = if args.until_idle { Exit::Environment } else { Exit::Ok };
        exit.end_process();
    }
    match outcome {
        Ok(outcome) => report(args, &outcome),
        // With `--until-idle` the worker sets the flag itself at the end of the work.
        Err(error) if stop.is_set() && !args.until_idle && error.domain != Domain::Config => {
            print_error(format_args!("stopped: {error}"));
            Exit::Ok
        }
        Err(error) => report_error(&error),
    }
}

/// Opens the data folder and starts the plugin host and the async runtime. A follower also receives
/// SIGHUP from here on, because the signal would end the process; it does end a job.
fn prepare(args: &RunArgs, settings: &Settings) -> Result<(DataDir, Host, Runtime, Option<Signal>)> {
    if let Err(error) = raise_open_files_limit() {
        tracing::warn!(%error, "cannot raise the limit of open files of this process (`ulimit -n`)");
    }
    let data = DataDir::open_after_last(&settings.data, args.new_worker_id)?;
    let host = Host::new(HostOptions { cache_dirs: plugin_cache_dirs(Some(&settings.data)) })
        .map_err(|error| Error::external("environment.plugins", format!("plugins cannot run here: {error}")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))?;
    let hangups = match args.until_idle {
        true => None,
        false => Some(runtime.block_on(async { signal(SignalKind::hangup()) }).map_err(|error| {
            Error::external("environment.signals", format!("the process cannot receive signals: {error}"))
        })?),
    };
    Ok((data, host, runtime, hangups))
}

/// Starts the export to OpenTelemetry, if the settings ask for one.
fn start_telemetry(
    settings: &Settings,
    data: &DataDir,
    runtime: &Runtime,
    measured: Measured,
    counts: &Arc<Counts>,
) -> Result<Telemetry> {
    let node = data.node(&settings.node, settings.is_default_node)?;
    let observed = Observed { worker: data.worker_id(), cluster: &settings.cluster, node: &node };
    Telemetry::start(runtime.handle(), &settings.otlp, &observed, counts.clone(), move || measured.points())
}

/// What the HTTP server shows of a worker.
struct Shown {
    overview: Overview,
    control: Control,
    export: Option<Arc<Counts>>,
    broker: Option<BrokerStats>,
    tls: Option<HttpTls>,
}

/// Starts the HTTP server, and writes its address and the brokers' to the data directory.
fn publish(
    args: &RunArgs,
    settings: &Settings,
    data: &DataDir,
    runtime: &Runtime,
    brokers: String,
    shown: &Shown,
) -> Result<()> {
    let log_levels = Arc::new(LogLevels::new(&settings.log, Box::new(change_log_filter)));
    let served = || Served {
        worker: data.worker_id().to_owned(),
        cluster: settings.cluster.clone(),
        secrets: settings.secrets.clone(),
        connectors: Some(data.stored_connectors()),
        token: settings.http_token.clone(),
        tls: shown.tls.clone(),
        overview: shown.overview.clone(),
        control: shown.control.clone(),
        samples: Samples::default(),
        others: Others::default(),
        loaded: LoadedComponents::default(),
        answers: SharedAnswers::default(),
        viewers: Viewers::default(),
        log_levels: log_levels.clone(),
        export: shown.export.clone(),
        broker: shown.broker.clone(),
    };
    let http = match settings.http_address(args.until_idle) {
        HttpSetting::Off => None,
        HttpSetting::Preferred(address) => {
            let any = SocketAddr::new(address.ip(), 0);
            let start = |address| http::start(runtime.handle(), address, served());
            Some(start(address).or_else(|_| start(any))?)
        }
        HttpSetting::Required(address) => {
            let knows_clients = settings.http_token.is_some() || shown.tls.as_ref().is_some_and(HttpTls::knows_clients);
            if !http::is_loopback(&address) && !knows_clients {
                let message = format!(
                    "other machines can reach the HTTP server at {address}: set `http_token` or `http_tls_client_ca`, or let `http` be \
                     an address such as 127.0.0.1:8083"
                );
                return Err(Error::config("worker.http_open", message));
            }
            Some(http::start(runtime.handle(), address, served())?)
        }
    };
    if let Some(address) = http {
        let scheme = if shown.tls.is_some() { HTTPS } else { "http://" };
        tracing::info!("status: {scheme}{address}/api/v1/status, metrics: {scheme}{address}/metrics");
        if !http::is_loopback(&address) && shown.tls.is_none() {
            tracing::warn!(
                "the HTTP server has no TLS: tokens that clients send can be read on the network; set `http_tls_cert` and \
                 `http_tls_key`, or let clients reach it through a proxy with TLS"
            );
        }
    }
    let scheme = if shown.tls.is_some() { HTTPS } else { "" };
    let http = http.map(|address| format!("{scheme}{address}"));
    shown.control.set_http(http.clone());
    data.write_addresses(&Addresses { http, brokers })
}

/// Loads the first set. A follower leaves invalid files out, so that they do not affect the others
/// (I7). A job (`--until-idle`) runs completely or not at all.
fn first_set(reader: &mut Reader, args: &RunArgs) -> Option<PipelineSet> {
    let Loaded { pipelines, problems, .. } = reader.read();
    if pipelines.is_empty() || args.until_idle && !problems.is_empty() {
        return None;
    }
    Some(PipelineSet { pipelines, retry_failed: false, kafka: None })
}

/// Signals within this time are one request.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// SIGINT and SIGTERM stop the worker: it flushes, commits and ends. The second signal ends the
/// process at once.
pub(super) async fn stop_on_signals(mut signals: StopSignals, stop: StopSignal) {
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
    print_error(format_args!(
        "stopped by a second signal: records that were not committed are read again at the next start"
    ));
    Exit::Runtime.end_process();
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
