//! `trunkline broker`: the embedded broker alone, until it receives a signal to stop.

use trunkline_broker::{Broker, BrokerOptions};

use super::output::print_error;
use super::{BrokerArgs, Exit, print_data, run::stop_signal};

/// Runs the verb.
pub(super) fn broker(args: &BrokerArgs) -> Exit {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(format_args!("error: cannot start: {error}"));
            return Exit::Environment;
        }
    };
    if !args.listen.ip().is_loopback() {
        print_error(format_args!(
            "warning: {} is not a loopback address: every client that reaches it can read, write and delete all data",
            args.listen
        ));
    }
    let options = BrokerOptions { listen: args.listen, ..BrokerOptions::new(&args.data) };
    runtime.block_on(async {
        let broker = match Broker::start(options).await {
            Ok(broker) => broker,
            Err(error) => {
                print_error(format_args!("error: {error}"));
                return Exit::Environment;
            }
        };
        // Clients cannot find a broker whose address is lost.
        let printed = print_data(&format!("{}\n", broker.address()));
        if printed == Exit::Ok {
            stop_signal().await;
        }
        match broker.stop().await {
            Ok(()) => printed,
            Err(error) => {
                print_error(format_args!("error: {error}"));
                Exit::Runtime
            }
        }
    })
}
