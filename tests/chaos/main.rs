//! Breaks pipelines on purpose, and checks the records at the destination. `tests/chaos/run` builds
//! and runs this program.
//!
//! * `faults` lists the faults, with one file per kind.
//! * `fixture` is one pipeline with its servers, and the checks at the end of a run.
//! * `feed` is the input of the pipeline: `logs`, or `tables` that `writer`s change.
//! * `warehouse` is the destination of the paths `snowflake`, `redshift` and `redshift-keys`.
//! * `plan` parses the command line and selects the runs. `table` prints the results.

// The harness reports every failure by a panic with its reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod broker;
mod faults;
mod feed;
mod fixture;
mod logs;
mod plan;
mod table;
mod tables;
mod warehouse;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use broker::{Apache, ChaosBroker, Embedded, Secured};
use fixture::{Destinations, Fixture, Tally};
use plan::{Arguments, Path, Plan, Queue};
use table::Table;
use trunkline_tests::{
    BrokerKind, Case, KafkaClient, Mysql, OpenSearch, Redshift, RedshiftFaults, S3, Skip, Snowflake,
};
use warehouse::Server;

const USAGE: &str = "usage: tests/chaos/run [--seed N] [--minutes M | --short] [--only FAULT[/PATH[/BROKER]]] [--hostile] \
                     [--secured] [--list]";

fn main() -> ExitCode {
    let arguments = match Arguments::read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if arguments.list {
        arguments.round(0).iter().for_each(|plan| println!("{:<44}{}", plan.label(), plan.fault.about));
        return ExitCode::SUCCESS;
    }
    if arguments.round(0).is_empty() {
        eprintln!("no run matches --only {}; --list shows all runs", arguments.only.unwrap_or_default());
        return ExitCode::from(2);
    }
    let started = Instant::now();
    let table = Mutex::new(Table::default());
    // Three runs at a time, because a run mostly waits: two with an embedded broker each, and one
    // on Apache Kafka, which all runs share.
    let embedded = Mutex::new(Queue::new(BrokerKind::Embedded, &arguments));
    let apache = Mutex::new(Queue::new(BrokerKind::Apache, &arguments));
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

/// Servers that start slowly; the runs of one thread share them.
#[derive(Default)]
struct Servers {
    apache: Option<ChaosBroker>,
    s3: Option<S3>,
    mysql: Option<Mysql>,
    mariadb: Option<Mysql>,
    search: Option<OpenSearch>,
    snowflake: Option<Snowflake>,
    redshift: Option<Redshift>,
}

fn run(plan: &Plan, servers: &mut Servers, table: &Mutex<Table>) {
    let started = Instant::now();
    let mut tally = Tally::default();
    let outcome = catch_unwind(AssertUnwindSafe(|| execute(plan, servers, &mut tally)));
    let seconds = started.elapsed().as_secs_f64();
    let label = plan.label();
    let mut table = table.lock().unwrap();
    match outcome {
        Ok(Ok(())) => {
            println!(
                "{label:<44} seed {:<6} ok, {seconds:.0} s, {} kills, {} records",
                plan.seed, tally.kills, tally.records
            );
            table.add(plan, &tally, true);
        }
        Ok(Err(skip)) => {
            // In the format of tests, which tests/run counts and shows.
            println!("SKIP {label}: {skip}");
            table.skip(plan, skip.to_string());
        }
        Err(_) => {
            println!("{label:<44} seed {:<6} FAILED after {seconds:.0} s\n  repeat: {}", plan.seed, plan.command());
            table.add(plan, &tally, false);
            // Their state is unknown: the next run starts new servers.
            servers.apache = None;
            servers.mysql = None;
            servers.mariadb = None;
            servers.search = None;
            servers.snowflake = None;
            servers.redshift = None;
        }
    }
}

fn get_or_start<T>(server: &mut Option<T>, start: impl FnOnce() -> Result<T, Skip>) -> Result<&mut T, Skip> {
    match server {
        Some(server) => Ok(server),
        none => Ok(none.insert(start()?)),
    }
}

fn execute(plan: &Plan, servers: &mut Servers, tally: &mut Tally) -> Result<(), Skip> {
    let s3 = &*get_or_start(&mut servers.s3, S3::start)?;
    let mysql = match plan.path {
        Path::Tables => Some(get_or_start(&mut servers.mysql, Mysql::start)?),
        Path::MariaDb => Some(get_or_start(&mut servers.mariadb, Mysql::start_mariadb)?),
        _ => None,
    };
    let search = match plan.path {
        Path::Search => Some(get_or_start(&mut servers.search, OpenSearch::start)?),
        _ => None,
    };
    let warehouse = match plan.path {
        Path::Snowflake => {
            let snowflake = get_or_start(&mut servers.snowflake, || Snowflake::start(s3))?;
            Some(Server::Snowflake(snowflake))
        }
        Path::Redshift | Path::RedshiftKeys => {
            let redshift = get_or_start(&mut servers.redshift, || Redshift::start(s3))?;
            let proxy = RedshiftFaults::start(redshift.port());
            Some(Server::Redshift(redshift, proxy))
        }
        _ => None,
    };
    let mut own;
    let (case, broker) = match plan.broker {
        BrokerKind::Embedded => {
            // The broker's data is in the case's folder, so that the case exists before the broker.
            let case = Case::new("chaos", &KafkaClient::new(String::new()));
            (plan.fault.prepare)(plan, &case)?;
            own = ChaosBroker::Embedded(Box::new(Embedded::start(&case.path("broker"))));
            (case.on(own.for_workers()), &mut own)
        }
        BrokerKind::Apache => {
            // All runs of a process are of one of the two kinds.
            let start = || match plan.secured {
                true => Ok(ChaosBroker::Secured(Box::new(Secured::start()?))),
                false => Ok(ChaosBroker::Apache(Box::new(Apache::start()?))),
            };
            let apache = get_or_start(&mut servers.apache, start)?;
            let mut case = Case::new("chaos", apache.for_workers());
            apache.settings().iter().for_each(|(name, value)| case.set(name, value));
            (plan.fault.prepare)(plan, &case)?;
            (case, apache)
        }
    };
    let mut fixture = Fixture::new(*plan, case, broker, Destinations { s3, search, warehouse }, mysql, tally)?;
    (plan.fault.run)(&mut fixture)?;
    fixture.finish();
    Ok(())
}
