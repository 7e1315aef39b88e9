//! The list of faults, with one file per kind.

mod brokers;
mod clock;
mod disks;
mod kills;
mod memory;
mod mixed;
mod mysql;
mod peers;
mod plugins;
mod replay;
mod rotation;
mod steps;
mod store;
mod warehouses;

pub(crate) use disks::Mounted;

use std::time::Duration;

use trunkline_tests::{BrokerKind, Case, Process, Skip, wait};

use crate::fixture::Fixture;
use crate::plan::{Path, Plan};

/// A kind of fault.
pub(crate) struct FaultKind {
    /// Its name in `--only` and in the table.
    pub name: &'static str,
    /// A description of one line.
    pub about: &'static str,
    /// The paths on which it is possible.
    pub paths: &'static [Path],
    /// The paths and brokers on which the short set has it.
    pub short: &'static [(Path, BrokerKind)],
    /// Called before the broker starts.
    pub prepare: fn(&Plan, &Case) -> Result<(), Skip>,
    /// Injects and ends the faults, and leaves no worker running. The checks afterwards are the
    /// same for all kinds.
    pub run: fn(&mut Fixture<'_>) -> Result<(), Skip>,
}

const ALL: &[Path] = &[Path::Bucket, Path::Topics, Path::Tables, Path::MariaDb];
const EVERY: &[Path] = &[
    Path::Bucket,
    Path::Topics,
    Path::State,
    Path::Tables,
    Path::MariaDb,
    Path::Search,
    Path::Snowflake,
    Path::Redshift,
];
const ALL_AND_STATE: &[Path] = &[Path::Bucket, Path::Topics, Path::State, Path::Tables, Path::MariaDb];
const STORES: &[Path] = &[Path::Bucket, Path::Tables, Path::MariaDb, Path::Snowflake, Path::Redshift];
const WAREHOUSES: &[Path] = &[Path::Snowflake, Path::Redshift];
const REPLAYED: &[Path] = &[Path::Bucket, Path::Topics, Path::Snowflake, Path::Redshift, Path::RedshiftKeys];
const SNOWFLAKE: &[Path] = &[Path::Snowflake];
const SEARCH: &[Path] = &[Path::Search];
const LOGS: &[Path] = &[Path::Bucket, Path::Topics];
const BUCKETS: &[Path] = &[Path::Bucket, Path::Tables, Path::MariaDb];
const TOPICS: &[Path] = &[Path::Topics];
const TABLES: &[Path] = &[Path::Tables, Path::MariaDb];

const BUCKET_EMBEDDED: &[(Path, BrokerKind)] = &[(Path::Bucket, BrokerKind::Embedded)];
const TOPICS_EMBEDDED: &[(Path, BrokerKind)] = &[(Path::Topics, BrokerKind::Embedded)];
const SNOWFLAKE_EMBEDDED: &[(Path, BrokerKind)] = &[(Path::Snowflake, BrokerKind::Embedded)];
const REDSHIFT_EMBEDDED: &[(Path, BrokerKind)] = &[(Path::Redshift, BrokerKind::Embedded)];
const BUCKET_APACHE: &[(Path, BrokerKind)] = &[(Path::Bucket, BrokerKind::Apache)];
const TOPICS_APACHE: &[(Path, BrokerKind)] = &[(Path::Topics, BrokerKind::Apache)];

const DATABASES_KILLED: &[(Path, BrokerKind)] =
    &[(Path::Tables, BrokerKind::Embedded), (Path::MariaDb, BrokerKind::Embedded)];
const TABLES_APACHE: &[(Path, BrokerKind)] = &[(Path::Tables, BrokerKind::Apache)];

const fn fault(
    name: &'static str,
    about: &'static str,
    paths: &'static [Path],
    short: &'static [(Path, BrokerKind)],
    run: fn(&mut Fixture<'_>) -> Result<(), Skip>,
) -> FaultKind {
    FaultKind { name, about, paths, short, prepare: |_, _| Ok(()), run }
}

/// All kinds of faults.
pub(crate) const FAULTS: &[FaultKind] = &[
    fault("kill-random", "kill -9 of the worker at random moments", EVERY, KILLED, kills::at_random),
    fault("kill-steps", "death of the worker at each step of each protocol", EVERY, STEPS, steps::kill_at_each),
    fault("error-steps", "an error at each step of each protocol", EVERY, TOPICS_EMBEDDED, steps::fail_at_each),
    fault(
        "replay",
        "death of a replay that replaces output at each of its steps, while live records arrive",
        REPLAYED,
        &[],
        replay::kill_at_each,
    ),
    fault(
        "zombie",
        "a worker hangs at a step until another one has taken over, then resumes",
        EVERY,
        TOPICS_EMBEDDED,
        peers::zombie,
    ),
    fault(
        "zombie-kill",
        "a worker hangs at a step, its successor dies at a step, then it resumes",
        ALL_AND_STATE,
        BUCKET_EMBEDDED,
        peers::zombie_and_kill,
    ),
    fault(
        "give-away",
        "a worker dies before it gives up partitions, and restarts",
        ALL_AND_STATE,
        CROSSED,
        peers::give_away,
    ),
    fault("rebalances", "every second a worker joins, leaves or is killed", EVERY, TOPICS_APACHE, peers::storm),
    fault("broker-restart", "the broker is stopped and started", ALL, &[], brokers::restart),
    fault("broker-kill", "kill -9 of the broker", ALL_AND_STATE, TOPICS_APACHE, brokers::kill),
    fault("lost-replies", "the broker executes requests, its replies are lost", EVERY, CROSSED, brokers::lost_replies),
    fault("broker-errors", "the broker answers with errors", ALL, BUCKET_EMBEDDED, brokers::errors),
    fault(
        "s3-lost-replies",
        "the object store executes requests, its replies are lost",
        BUCKETS,
        BUCKET_EMBEDDED,
        store::lost_replies,
    ),
    fault("s3-503", "the object store is overloaded for a while", STORES, BUCKET_EMBEDDED, store::overloaded),
    fault("s3-403", "the object store refuses requests for a while", STORES, &[], store::refusing),
    fault("s3-slow", "the object store takes seconds to answer", STORES, &[], store::slow),
    fault(
        "search-lost-replies",
        "the search server executes requests, its replies are lost",
        SEARCH,
        &[],
        store::lost_search_replies,
    ),
    fault("search-503", "the search server is overloaded for a while", SEARCH, &[], store::overloaded),
    fault("search-403", "the search server refuses requests for a while", SEARCH, &[], store::refusing),
    fault("search-slow", "the search server takes seconds to answer", SEARCH, &[], store::slow),
    fault("search-kill", "kill -9 of the search server", SEARCH, &[], store::kill_search),
    fault(
        "stage-lost-replies",
        "the stage executes requests, its replies are lost",
        WAREHOUSES,
        &[],
        store::lost_stage_replies,
    ),
    fault(
        "warehouse-lost-replies",
        "statements, or only their replies, are lost",
        WAREHOUSES,
        SNOWFLAKE_EMBEDDED,
        warehouses::lost_replies,
    ),
    fault(
        "warehouse-zombie",
        "a worker hangs at a step of a load, and resumes with its old epoch",
        WAREHOUSES,
        REDSHIFT_EMBEDDED,
        warehouses::zombie,
    ),
    fault(
        "warehouse-refused",
        "COPY refuses rows, and a worker dies until the others are loaded",
        WAREHOUSES,
        REDSHIFT_EMBEDDED,
        warehouses::refused,
    ),
    fault("warehouse-sessions", "the warehouse ends all sessions", WAREHOUSES, &[], warehouses::killed_sessions),
    fault("warehouse-conflicts", "storms of error 1023, or of locks", WAREHOUSES, &[], warehouses::conflicts),
    fault("warehouse-denied", "the role lacks a privilege for a while", WAREHOUSES, &[], warehouses::denied),
    fault("warehouse-slow", "statements take seconds, and are polled", WAREHOUSES, &[], warehouses::slow),
    fault("warehouse-queue", "the queue of the warehouse is full", SNOWFLAKE, &[], warehouses::busy),
    fault("warehouse-tokens", "the tokens of sessions expire", SNOWFLAKE, &[], warehouses::expired_tokens),
    fault("s3-cut", "connections break in the middle of a part", BUCKETS, BUCKET_APACHE, store::cut),
    fault("plugin", "the plugin traps, loops, and exceeds its limits", ALL, TOPICS_EMBEDDED, plugins::run),
    FaultKind {
        prepare: disks::prepare_worker,
        ..fault("disk-worker", "the worker's disk is full for a while", BUCKETS, BUCKET_EMBEDDED, disks::worker)
    },
    FaultKind {
        prepare: disks::prepare_sink,
        ..fault("disk-sink", "the destination's disk is full for a while", TOPICS, TOPICS_EMBEDDED, disks::sink)
    },
    FaultKind {
        prepare: disks::prepare_broker,
        ..fault("disk-broker", "the broker's disk is full for a while", ALL, TOPICS_EMBEDDED, disks::broker)
    },
    fault("memory-tenth", "a tenth of the memory budget, and kills", ALL, TOPICS_EMBEDDED, memory::tenth),
    fault("clock", "the clock jumps forwards and backwards", ALL, TOPICS_EMBEDDED, clock::jumps),
    fault("rotation", "a thousand rotations while the worker is killed", LOGS, BUCKET_APACHE, rotation::storm),
    fault("mysql-restart", "MySQL is stopped and started", TABLES, &[], mysql::restart),
    fault("mysql-kill", "kill -9 of MySQL", TABLES, DATABASES_KILLED, mysql::kill),
    fault("mysql-cut", "MySQL cuts its connections", TABLES, &[], mysql::cut),
    fault("mysql-alter", "columns are added to tables that are written to", TABLES, TABLES_APACHE, mysql::alter),
    fault("mixed", "several of these at once", ALL, BUCKET_EMBEDDED, mixed::run),
];

const STEPS: &[(Path, BrokerKind)] =
    &[(Path::Bucket, BrokerKind::Embedded), (Path::State, BrokerKind::Embedded), (Path::Tables, BrokerKind::Embedded)];
const KILLED: &[(Path, BrokerKind)] = &[(Path::Bucket, BrokerKind::Apache), (Path::Tables, BrokerKind::Apache)];
const CROSSED: &[(Path, BrokerKind)] = &[(Path::Topics, BrokerKind::Embedded), (Path::Bucket, BrokerKind::Apache)];

/// Lets the pipeline run for a time. The time is part of the fault, and not a substitute for a
/// condition.
fn let_run(time: Duration) {
    wait::within(time, || None::<()>);
}

/// The worker of a fault, which is started if an earlier step has killed it.
fn running<'w>(fixture: &Fixture<'_>, worker: &'w mut Option<Process>) -> &'w mut Process {
    worker.get_or_insert_with(|| fixture.start("a"))
}
