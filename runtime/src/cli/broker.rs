//! `trunkline broker`: the embedded broker by itself, until it is told to stop.

use trunkline_broker::{Broker, BrokerOptions};

use super::{BrokerArgs, Exit, print_data, run::StopSignals};
use crate::worker::{create_private_folder, raise_open_files_limit};

/// Runs the verb.
pub(super) fn broker(args: &BrokerArgs) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return Exit::Environment;
        }
    };
    if let Err(error) = raise_open_files_limit() {
        eprintln!("warning: cannot raise the limit of open files of this process (`ulimit -n`): {error}");
    }
    if let Err(error) = create_private_folder(&args.data) {
        eprintln!("error: cannot create {}: {error}", args.data.display());
        return Exit::Environment;
    }
    if !args.listen.ip().is_loopback() {
        eprintln!(
            "warning: {} is not loopback: whoever can reach it can read, write and delete everything",
            args.listen
        );
    }
    let options = BrokerOptions { listen: args.listen, ..BrokerOptions::new(&args.data) };
    runtime.block_on(async {
        let mut signals = match StopSignals::install() {
            Ok(signals) => signals,
            Err(error) => {
                eprintln!("error: signals cannot be received: {error}");
                return Exit::Environment;
            }
        };
        let broker = match Broker::start(options).await {
            Ok(broker) => broker,
            Err(error) => {
                eprintln!("error: {error}");
                return Exit::Environment;
            }
        };
        print_data(&format!("{}\n", broker.address()));
        signals.next().await;
        match broker.stop().await {
            Ok(()) => Exit::Ok,
            Err(error) => {
                eprintln!("error: {error}");
                Exit::Runtime
            }
        }
    })
}
