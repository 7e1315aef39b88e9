//! The runs: combinations of paths, brokers and faults, and the command line that selects among
//! them.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use trunkline_tests::BrokerKind;

use crate::faults::{FAULTS, FaultKind};

/// A pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    /// Log files → topic → plugin in the sink → Parquet in S3.
    Bucket,
    /// Log files → topic → materialised transform → topic → Parquet in a directory.
    Topics,
    /// The same with a transform that keeps state, and another one whose timers close windows.
    State,
    /// Tables of MySQL → a topic for each → plugin in the sink → Parquet in S3.
    Tables,
    /// The same with MariaDB.
    MariaDb,
    /// Log files → topic → plugin in the sink → OpenSearch.
    Search,
    /// Log files → topic → plugin in the sink → a table in Snowflake.
    Snowflake,
    /// The same with Redshift.
    Redshift,
    /// The same with a table that has one row for each key.
    RedshiftKeys,
}

impl Path {
    /// All of them.
    const ALL: [Self; 9] = [
        Self::Bucket,
        Self::Topics,
        Self::State,
        Self::Tables,
        Self::MariaDb,
        Self::Search,
        Self::Snowflake,
        Self::Redshift,
        Self::RedshiftKeys,
    ];

    /// Whether its destination is S3.
    pub(crate) fn ends_in_bucket(self) -> bool {
        matches!(self, Self::Bucket | Self::Tables | Self::MariaDb)
    }

    /// Whether its destination is a warehouse.
    pub(crate) fn ends_in_warehouse(self) -> bool {
        matches!(self, Self::Snowflake | Self::Redshift | Self::RedshiftKeys)
    }

    /// Whether its source is a database.
    pub(crate) fn begins_with_tables(self) -> bool {
        matches!(self, Self::Tables | Self::MariaDb)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bucket => "bucket",
            Self::Topics => "topics",
            Self::State => "state",
            Self::Tables => "tables",
            Self::MariaDb => "mariadb",
            Self::Search => "search",
            Self::Snowflake => "snowflake",
            Self::Redshift => "redshift",
            Self::RedshiftKeys => "redshift-keys",
        })
    }
}

/// One run.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// The fault.
    pub fault: &'static FaultKind,
    /// The pipeline.
    pub path: Path,
    /// The broker.
    pub broker: BrokerKind,
    /// Determines all random choices of the run.
    pub seed: u64,
    /// Fewer repetitions.
    pub short: bool,
    /// See [`Arguments::hostile`].
    pub hostile: bool,
    /// See [`Arguments::secured`].
    pub secured: bool,
}

impl Plan {
    /// `fault/path/broker`, as in `--only`.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}/{}", self.fault.name, self.path, self.broker)
    }

    /// The command that repeats the run.
    pub(crate) fn command(&self) -> String {
        let short = if self.short { " --short" } else { "" };
        let hostile = if self.hostile { " --hostile" } else { "" };
        let secured = if self.secured { " --secured" } else { "" };
        format!("tests/chaos/run{short}{hostile}{secured} --seed {} --only {}", self.seed, self.label())
    }

    /// A number of repetitions.
    pub(crate) fn times(&self, short: u64, long: u64) -> u64 {
        if self.short { short } else { long }
    }
}

/// The command line.
pub(crate) struct Arguments {
    /// The seed of the first round; each later round increments it.
    pub seed: u64,
    /// New rounds begin until this time has passed. Without it, there is one round.
    pub time: Option<Duration>,
    /// Only the short set, with fewer repetitions.
    pub short: bool,
    /// Only the runs with this label: fault, fault/path or fault/path/broker, with `*` for any.
    pub only: Option<String>,
    /// Database servers with unusual settings, and logs behind symbolic links.
    pub hostile: bool,
    /// Apache Kafka over SASL_SSL, with tokens that are replaced every five seconds, and the other
    /// servers over TLS.
    pub secured: bool,
    /// Only list the runs.
    pub list: bool,
}

impl Arguments {
    /// Parses the arguments; the error is a message for the user.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut this =
            Self { seed: 1, time: None, short: false, only: None, hostile: false, secured: false, list: false };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            let number = |text: String| text.parse::<u64>().map_err(|error| format!("{argument} {text}: {error}"));
            match argument.as_str() {
                "--seed" => this.seed = number(value()?)?,
                "--minutes" => this.time = Some(Duration::from_secs(60 * number(value()?)?)),
                "--only" => this.only = Some(value()?),
                "--short" => this.short = true,
                "--hostile" => this.hostile = true,
                "--secured" => this.secured = true,
                "--list" => this.list = true,
                _ => return Err(format!("unknown argument {argument}")),
            }
        }
        Ok(this)
    }

    /// The runs of one round.
    pub(crate) fn round(&self, round: u64) -> Vec<Plan> {
        let mut plans = Vec::new();
        let brokers = [BrokerKind::Embedded, BrokerKind::Apache];
        for broker in brokers.into_iter().filter(|broker| !self.secured || *broker == BrokerKind::Apache) {
            for path in Path::ALL {
                for fault in FAULTS {
                    let (seed, short) = (self.seed + round, self.short);
                    let (hostile, secured) = (self.hostile, self.secured);
                    let plan = Plan { fault, path, broker, seed, short, hostile, secured };
                    let asked = self.only.as_ref().map_or_else(
                        || !self.short || fault.short.contains(&(path, broker)),
                        |only| is_selected(only, &plan.label()),
                    );
                    if asked && fault.paths.contains(&path) {
                        plans.push(plan);
                    }
                }
            }
        }
        plans
    }
}

/// Whether `only` is the label, or its first parts; `*` stands for any part.
fn is_selected(only: &str, label: &str) -> bool {
    let parts = only.split('/').count();
    parts <= label.split('/').count()
        && only.split('/').zip(label.split('/')).all(|(part, of)| part == "*" || part == of)
}

/// The runs on one kind of broker, round by round.
pub(crate) struct Queue<'a> {
    broker: BrokerKind,
    arguments: &'a Arguments,
    started: Instant,
    rounds: u64,
    plans: VecDeque<Plan>,
}

impl<'a> Queue<'a> {
    /// A new queue; its time begins now.
    pub(crate) fn new(broker: BrokerKind, arguments: &'a Arguments) -> Self {
        Self { broker, arguments, started: Instant::now(), rounds: 0, plans: VecDeque::new() }
    }

    /// The next run. The first round is always complete.
    pub(crate) fn next(&mut self) -> Option<Plan> {
        let over = self.arguments.time.is_none_or(|time| self.started.elapsed() >= time);
        if self.rounds > 1 && over {
            return None;
        }
        if self.plans.is_empty() && (self.rounds == 0 || !over) {
            self.plans = self.arguments.round(self.rounds).into();
            self.plans.retain(|plan| plan.broker == self.broker);
            self.rounds += 1;
        }
        self.plans.pop_front()
    }
}
