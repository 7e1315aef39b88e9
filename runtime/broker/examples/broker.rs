//! A broker in its own process: `broker DATA_DIRECTORY [ADDRESS]`. It prints its address and runs
//! until its standard input ends. Tests kill it.
//!
//! Each line of its input is a command, answered with a line:
//!
//! ```text
//! drop EndTxn 2           execute the 2nd EndTxn request from now on, and send no response
//! delay Produce 1 500     answer the next Produce request 500 ms late
//! error EndTxn 1 51       answer the next EndTxn request with error 51, and do not execute it
//! pending                 print the number of planned faults that have not happened
//! clear                   remove them
//! ```

use std::error::Error;
use std::io::BufRead;
use std::time::Duration;

use trunkline_broker::{ApiKey, Broker, BrokerHandle, BrokerOptions, Fault, FlushPolicy};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let mut options = BrokerOptions::new(arguments.next().ok_or("usage: broker DATA_DIRECTORY [ADDRESS]")?);
    if let Some(address) = arguments.next() {
        options.listen = address.parse()?;
    }
    if std::env::var_os("TRUNKLINE_FLUSH_ALWAYS").is_some() {
        options.flush = FlushPolicy::Always;
    }
    let broker = Broker::start(options).await?;
    println!("{}", broker.address());
    let broker = tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            println!("{}", run_command(&broker, &line).unwrap_or_else(|| format!("invalid command: {line}")));
        }
        broker
    })
    .await?;
    broker.stop().await?;
    Ok(())
}

/// Runs one command; `None` if it is invalid.
fn run_command(broker: &BrokerHandle, line: &str) -> Option<String> {
    let faults = broker.faults();
    match line.split_whitespace().collect::<Vec<_>>()[..] {
        ["pending"] => return Some(faults.pending().to_string()),
        ["clear"] => faults.clear(),
        ["drop", api, nth] => faults.inject(api_key(api)?, nth.parse().ok()?, Fault::DropReply),
        ["delay", api, nth, millis] => {
            let delay = Duration::from_millis(millis.parse().ok()?);
            faults.inject(api_key(api)?, nth.parse().ok()?, Fault::Delay(delay));
        }
        ["error", api, nth, code] => {
            faults.inject(api_key(api)?, nth.parse().ok()?, Fault::Error(code.parse().ok()?));
        }
        _ => return None,
    }
    Some("ok".to_owned())
}

fn api_key(name: &str) -> Option<ApiKey> {
    (0..=100).filter_map(|number| ApiKey::try_from(number).ok()).find(|key| format!("{key:?}") == name)
}
