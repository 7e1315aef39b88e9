//! A broker in a process of its own: `broker DATA_DIRECTORY [ADDRESS]`. It prints its address and runs until its standard
//! input ends. The tests that kill it use this.

use std::error::Error;
use std::io::Read;

use trunkline_broker::{Broker, BrokerOptions, FlushPolicy};

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
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    broker.stop().await?;
    Ok(())
}
