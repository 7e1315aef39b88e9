//! Breaks pipelines on purpose, and counts at the destination what came of it: `tests/chaos/run` builds and runs this.
//!
//! * `faults` is the list of what can break; a file for each kind.
//! * `ground` is one pipeline with its servers, and what is checked when all is over.
//! * `feed` is what feeds it: `logs`, or `tables` that `writer`s change.
//! * `plan` is the command line and what it chooses; `table` is how it ends.

// A harness has one way to report a failure, a panic with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod broker;
mod faults;
mod feed;
mod ground;
mod logs;
mod plan;
mod table;
mod tables;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use broker::{Apache, ChaosBroker, Embedded};
use ground::{Ground, Tally};
use plan::{Arguments, Broker, Path, Plan, Queue};
use table::Table;
use trunkline_tests::{Case, KafkaClient, Mysql, S3, Skip};

const USAGE: &str = "usage: tests/chaos/run [--seed N] [--minutes M | --short] [--only FAULT[/PATH[/BROKER]]] [--list]";

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if arguments.list {
        arguments.round(0).iter().for_each(|plan| println!("{:<36}{}", plan.label(), plan.fault.about));
        return ExitCode::SUCCESS;
    }
    if arguments.round(0).is_empty() {
        eprintln!("nothing matches --only {}; --list shows all there is", arguments.only.unwrap_or_default());
        return ExitCode::from(2);
    }
    let started = Instant::now();
    let table = Mutex::new(Table::default());
    // Side by side, because most of a run is waiting: two on the embedded broker, which each of them has for itself, and one on Apache Kafka,
    // which they share.
    let embedded = Mutex::new(Queue::new(Broker::Embedded, &arguments));
    let apache = Mutex::new(Queue::new(Broker::Apache, &arguments));
    std::thread::scope(|scope| {
        for queue in [&embedded, &embedded, &apache] {
            let table = &table;
            scope.spawn(move || {
                let next = || queue.lock().unwrap().next();
                let mut servers = Servers::default();
                while let Some(plan) = next() {
                    run(&plan, &mut servers, table);
                }
            });
        }
    });
    let table = table.into_inner().unwrap();
    table.print();
    println!("{:.0} s, from seed {}", started.elapsed().as_secs_f64(), arguments.seed);
    if table.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What takes long to start and is shared by the runs.
#[derive(Default)]
struct Servers {
    apache: Option<ChaosBroker>,
    s3: Option<S3>,
    mysql: Option<Mysql>,
    mariadb: Option<Mysql>,
}

fn run(plan: &Plan, servers: &mut Servers, table: &Mutex<Table>) {
    let started = Instant::now();
    let mut tally = Tally::default();
    let outcome = catch_unwind(AssertUnwindSafe(|| attempt(plan, servers, &mut tally)));
    let seconds = started.elapsed().as_secs_f64();
    let label = plan.label();
    let mut table = table.lock().unwrap();
    match outcome {
        Ok(Ok(())) => {
            println!(
                "{label:<36} seed {:<6} ok, {seconds:.0} s, {} kills, {} records",
                plan.seed, tally.kills, tally.records
            );
            table.add(plan, &tally, true);
        }
        Ok(Err(skip)) => {
            // As tests print it, for tests/run to count and to show.
            println!("SKIP {label}: {skip}");
            table.skip(plan, skip.to_string());
        }
        Err(_) => {
            println!("{label:<36} seed {:<6} FAILED after {seconds:.0} s\n  again: {}", plan.seed, plan.command());
            table.add(plan, &tally, false);
            // Whatever state it is in, the next run is to have a new one.
            servers.apache = None;
            servers.mysql = None;
            servers.mariadb = None;
        }
    }
}

fn started<T>(server: &mut Option<T>, start: fn() -> Result<T, Skip>) -> Result<&mut T, Skip> {
    match server {
        Some(server) => Ok(server),
        none => Ok(none.insert(start()?)),
    }
}

fn attempt(plan: &Plan, servers: &mut Servers, tally: &mut Tally) -> Result<(), Skip> {
    let s3 = started(&mut servers.s3, S3::start)?;
    let mysql = match plan.path {
        Path::Bucket | Path::Topics => None,
        Path::Tables => Some(started(&mut servers.mysql, Mysql::start)?),
        Path::MariaDb => Some(started(&mut servers.mariadb, Mysql::start_mariadb)?),
    };
    let mut own;
    let (case, broker) = match plan.broker {
        Broker::Embedded => {
            // The broker lies in the case's folder, and the case wants to know its address.
            let case = Case::new("chaos", &KafkaClient::new(String::new()));
            (plan.fault.prepare)(plan, &case)?;
            own = ChaosBroker::Embedded(Box::new(Embedded::start(&case.path("broker"))));
            (case.on(own.for_workers()), &mut own)
        }
        Broker::Apache => {
            let apache = started(&mut servers.apache, || Ok(ChaosBroker::Apache(Box::new(Apache::start()?))))?;
            let case = Case::new("chaos", apache.for_workers());
            (plan.fault.prepare)(plan, &case)?;
            (case, apache)
        }
    };
    let mut ground = Ground::new(*plan, case, broker, s3, mysql, tally)?;
    (plan.fault.run)(&mut ground)?;
    ground.finish();
    Ok(())
}
