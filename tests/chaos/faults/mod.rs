//! The list of what can break. A file for each kind.

mod brokers;
mod clock;
mod disks;
mod kills;
mod memory;
mod mixed;
mod mysql;
mod peers;
mod plugins;
mod rotation;
mod steps;
mod store;

pub(crate) use disks::Mounted;

use std::time::Duration;

use trunkline_tests::{Case, Skip, Worker, wait};

use crate::ground::Ground;
use crate::plan::{Broker, Path, Plan};

/// Something that can break, and how to break it.
pub(crate) struct FaultKind {
    /// For `--only` and the table.
    pub name: &'static str,
    /// In one line.
    pub about: &'static str,
    /// On which paths there is such a thing.
    pub paths: &'static [Path],
    /// Where it is part of the short set.
    pub short: &'static [(Path, Broker)],
    /// Called before the broker starts.
    pub prepare: fn(&Plan, &Case) -> Result<(), Skip>,
    /// Breaks things, mends them, and leaves no worker behind. What is checked afterwards is the same for all.
    pub run: fn(&mut Ground<'_>) -> Result<(), Skip>,
}

const ALL: &[Path] = &[Path::Bucket, Path::Topics, Path::Tables, Path::MariaDb];
const LOGS: &[Path] = &[Path::Bucket, Path::Topics];
const BUCKETS: &[Path] = &[Path::Bucket, Path::Tables, Path::MariaDb];
const TOPICS: &[Path] = &[Path::Topics];
const TABLES: &[Path] = &[Path::Tables, Path::MariaDb];

const BUCKET_EMBEDDED: &[(Path, Broker)] = &[(Path::Bucket, Broker::Embedded)];
const TOPICS_EMBEDDED: &[(Path, Broker)] = &[(Path::Topics, Broker::Embedded)];
const BUCKET_APACHE: &[(Path, Broker)] = &[(Path::Bucket, Broker::Apache)];
const TOPICS_APACHE: &[(Path, Broker)] = &[(Path::Topics, Broker::Apache)];

const DATABASES_KILLED: &[(Path, Broker)] = &[(Path::Tables, Broker::Embedded), (Path::MariaDb, Broker::Embedded)];
const TABLES_APACHE: &[(Path, Broker)] = &[(Path::Tables, Broker::Apache)];

const fn fault(
    name: &'static str,
    about: &'static str,
    paths: &'static [Path],
    short: &'static [(Path, Broker)],
    run: fn(&mut Ground<'_>) -> Result<(), Skip>,
) -> FaultKind {
    FaultKind { name, about, paths, short, prepare: |_, _| Ok(()), run }
}

/// All of them.
pub(crate) const FAULTS: &[FaultKind] = &[
    fault("kill-random", "kill -9 of the worker at random moments", ALL, KILLED, kills::at_random),
    fault("kill-steps", "death of the worker at each step of each protocol", ALL, STEPS, steps::kill_at_each),
    fault("error-steps", "each step of each protocol fails once", ALL, TOPICS_EMBEDDED, steps::fail_at_each),
    fault(
        "zombie",
        "a worker stops at a step until another took over, then goes on",
        ALL,
        TOPICS_EMBEDDED,
        peers::zombie,
    ),
    fault(
        "zombie-kill",
        "a worker stops at a step, who took over dies at a step, then it goes on",
        ALL,
        BUCKET_EMBEDDED,
        peers::zombie_and_kill,
    ),
    fault("give-away", "a worker dies before it gives up partitions, and is back", ALL, CROSSED, peers::give_away),
    fault("rebalances", "every second a worker joins, leaves or is killed", ALL, TOPICS_APACHE, peers::storm),
    fault("broker-restart", "the broker is stopped and started", ALL, &[], brokers::restart),
    fault("broker-kill", "kill -9 of the broker", ALL, TOPICS_APACHE, brokers::kill),
    fault("lost-replies", "the broker does the work, its reply is lost", ALL, CROSSED, brokers::lost_replies),
    fault("broker-errors", "the broker answers with errors", ALL, BUCKET_EMBEDDED, brokers::errors),
    fault(
        "s3-lost-replies",
        "the object store does the work, its reply is lost",
        BUCKETS,
        BUCKET_EMBEDDED,
        store::lost_replies,
    ),
    fault("s3-503", "the object store is overloaded for a while", BUCKETS, BUCKET_EMBEDDED, store::overloaded),
    fault("s3-403", "the object store refuses for a while", BUCKETS, &[], store::refusing),
    fault("s3-slow", "the object store takes seconds to answer", BUCKETS, &[], store::slow),
    fault("s3-cut", "connections break in the middle of a part", BUCKETS, BUCKET_APACHE, store::cut),
    fault("plugin", "the plugin traps, loops, floods and bombs memory", ALL, TOPICS_EMBEDDED, plugins::run),
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

const STEPS: &[(Path, Broker)] =
    &[(Path::Bucket, Broker::Embedded), (Path::Topics, Broker::Embedded), (Path::Tables, Broker::Embedded)];
const KILLED: &[(Path, Broker)] = &[(Path::Bucket, Broker::Apache), (Path::Tables, Broker::Apache)];
const CROSSED: &[(Path, Broker)] = &[(Path::Topics, Broker::Embedded), (Path::Bucket, Broker::Apache)];

/// Lets things run as they are. Time passing is what is wanted here, not a sign of anything.
fn hold(time: Duration) {
    wait::within(time, || None::<()>);
}

/// The worker of a live fault: started again if a fault before has killed it.
fn running<'w>(ground: &Ground<'_>, worker: &'w mut Option<Worker>) -> &'w mut Worker {
    worker.get_or_insert_with(|| ground.start("a"))
}
