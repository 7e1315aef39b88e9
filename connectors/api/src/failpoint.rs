//! Named steps at which tests kill a worker, stop it or make it fail: a machine may lose its power
//! between any two of them.
//!
//! `failpoint!("sink.intent.after")?` marks a step. Without the cargo feature `failpoints`, which
//! only `tests/chaos/run` enables, it is `Ok(())` and compiles to nothing. With it,
//! `TRUNKLINE_FAILPOINTS` says what happens where:
//!
//! ```text
//! TRUNKLINE_FAILPOINTS="sink.intent.after=kill@3;s3.part.before=error"
//! ```
//! `kill` aborts the process, `stop` stops it (SIGSTOP) until it is continued, `error` fails the
//! step with an external error, and `full` fails it as a full disk does. `@3` applies to the third
//! time only; without it, each time. `TRUNKLINE_FAILPOINTS_SEEN` names a file to which each name is
//! appended when it is first passed.

#[cfg(feature = "failpoints")]
pub use active::hit;

/// A named step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failpoint {
    /// Component, step, and which side of it.
    pub name: &'static str,
    /// When the step is passed.
    pub reached: Reached,
}

/// Which pipelines pass a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// A pipeline from a source to a sink.
    Always,
    /// A sink that writes to a bucket.
    Bucket,
    /// A sink that writes to a directory.
    Directory,
    /// A sink that loads a warehouse.
    Warehouse,
    /// A sink that loads a warehouse, which refuses rows.
    Refused,
    /// A sink of the idempotent kind.
    Delivery,
    /// A materialised transform.
    Transform,
    /// A transform that keeps state.
    State,
    /// A source that follows a database.
    Database,
    /// A source of a database while it reads existing rows.
    Snapshot,
    /// Recovery after a crash at this other failpoint.
    After(&'static str),
    /// A replay that supersedes files.
    Replay,
    /// Partitions that move from one worker to another in the middle of a transaction.
    Rebalance,
}

const fn at(name: &'static str, reached: Reached) -> Failpoint {
    Failpoint { name, reached }
}

/// All failpoints, in the order in which a record passes them. A name that is missing here does not
/// compile.
pub const FAILPOINTS: &[Failpoint] = &[
    at("worker.id.before", Reached::Always),
    at("worker.id.after", Reached::Always),
    at("producer.init.before", Reached::Always),
    at("producer.init.after", Reached::Always),
    at("source.assign.after", Reached::Always),
    at("mysql.begin.after", Reached::Database),
    at("mysql.binlog.after", Reached::Database),
    at("mysql.chunk.before", Reached::Snapshot),
    at("mysql.chunk.after", Reached::Snapshot),
    at("mysql.done.before", Reached::Snapshot),
    at("mysql.rows.before", Reached::Database),
    at("source.produce.before", Reached::Always),
    at("source.produce.after", Reached::Always),
    at("source.checkpoint.before", Reached::Always),
    at("source.checkpoint.after", Reached::Always),
    at("source.commit.after", Reached::Always),
    at("producer.commit.before", Reached::Always),
    at("producer.commit.delivered", Reached::Always),
    at("producer.commit.after", Reached::Always),
    at("transform.assign.after", Reached::Transform),
    at("transform.produce.before", Reached::Transform),
    at("transform.produce.after", Reached::Transform),
    at("transform.checkpoint.before", Reached::Transform),
    at("transform.checkpoint.after", Reached::Transform),
    at("transform.commit.after", Reached::Transform),
    at("transform.copy.before", Reached::State),
    at("transform.copy.after", Reached::State),
    at("transform.abort.before", Reached::Rebalance),
    at("transform.abort.after", Reached::Rebalance),
    at("producer.offsets.before", Reached::Always),
    at("producer.offsets.after", Reached::Always),
    at("sink.assign.before", Reached::Always),
    at("sink.assign.after", Reached::Always),
    at("sink.write.before", Reached::Always),
    at("sink.write.after", Reached::Always),
    at("sink.deliver.before", Reached::Delivery),
    at("sink.deliver.after", Reached::Delivery),
    at("sink.acknowledge.before", Reached::Delivery),
    at("sink.acknowledge.after", Reached::Delivery),
    at("sink.seal.before", Reached::Always),
    at("sink.seal.after", Reached::Always),
    at("sink.seal.recorded", Reached::Always),
    at("sink.prepare.after", Reached::Always),
    at("sink.intent.before", Reached::Always),
    at("sink.intent.written", Reached::Always),
    at("sink.intent.after", Reached::Always),
    at("sink.commit.after", Reached::Always),
    at("sink.done.before", Reached::Always),
    at("sink.done.after", Reached::Always),
    at("sink.abort.before", Reached::After("sink.seal.recorded")),
    at("sink.abort.after", Reached::After("sink.prepare.after")),
    at("sink.recover.before", Reached::After("sink.intent.after")),
    at("sink.recover.after", Reached::After("sink.intent.after")),
    at("sink.settle.before", Reached::After("sink.commit.after")),
    at("sink.settle.after", Reached::After("sink.commit.after")),
    at("consumer.revoke.before", Reached::Rebalance),
    at("producer.abort.before", Reached::Rebalance),
    at("producer.abort.after", Reached::Rebalance),
    at("s3.create.before", Reached::Bucket),
    at("s3.create.after", Reached::Bucket),
    at("s3.part.before", Reached::Bucket),
    at("s3.part.after", Reached::Bucket),
    at("s3.spool.removed", Reached::Bucket),
    at("s3.complete.before", Reached::Bucket),
    at("s3.complete.after", Reached::Bucket),
    at("s3.abort.before", Reached::After("s3.part.after")),
    at("s3.abort.after", Reached::After("s3.part.after")),
    at("warehouse.claim.before", Reached::Warehouse),
    at("warehouse.claim.after", Reached::Warehouse),
    at("warehouse.upload.before", Reached::Warehouse),
    at("warehouse.upload.after", Reached::Warehouse),
    at("warehouse.search.before", Reached::Refused),
    at("warehouse.probe.copied", Reached::Refused),
    at("warehouse.probe.after", Reached::Refused),
    at("warehouse.search.after", Reached::Refused),
    at("warehouse.begin.before", Reached::Warehouse),
    at("warehouse.begin.after", Reached::Warehouse),
    at("warehouse.offsets.after", Reached::Warehouse),
    at("warehouse.copy.before", Reached::Warehouse),
    at("warehouse.copy.after", Reached::Warehouse),
    at("warehouse.apply.after", Reached::Warehouse),
    at("warehouse.commit.before", Reached::Warehouse),
    at("warehouse.commit.after", Reached::Warehouse),
    at("warehouse.remove.before", Reached::Warehouse),
    at("directory.sync.before", Reached::Directory),
    at("directory.sync.after", Reached::Directory),
    at("directory.rename.before", Reached::Directory),
    at("directory.rename.after", Reached::Directory),
    at("directory.remove.before", Reached::Directory),
    at("directory.remove.after", Reached::Directory),
    at("replay.publish.before", Reached::Replay),
    at("replay.publish.recorded", Reached::Replay),
    at("replay.publish.part", Reached::Replay),
    at("replay.remove.recorded", Reached::Replay),
    at("replay.remove.part", Reached::Replay),
    at("replay.done.before", Reached::Replay),
    at("replay.done.after", Reached::Replay),
];

/// The list has a failpoint with this name.
pub const fn is_listed(name: &str) -> bool {
    let mut index = 0;
    while index < FAILPOINTS.len() {
        if same(FAILPOINTS[index].name.as_bytes(), name.as_bytes()) {
            return true;
        }
        index += 1;
    }
    false
}

/// `==` on bytes, at compile time.
const fn same(one: &[u8], other: &[u8]) -> bool {
    let mut index = 0;
    while index < one.len() && index < other.len() && one[index] == other[index] {
        index += 1;
    }
    index == one.len() && index == other.len()
}

/// Passes a step. See the module's header.
///
/// # Errors
/// The one that was asked for.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn hit(_name: &'static str) -> crate::Result<()> {
    Ok(())
}

/// Marks a named step: `failpoint!("sink.intent.after")?`. See [`failpoint`](mod@crate::failpoint).
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {{
        const { assert!($crate::failpoint::is_listed($name), "not in the list of failpoints") };
        $crate::failpoint::hit($name)
    }};
}

#[cfg(feature = "failpoints")]
mod active {
    use std::collections::HashMap;
    use std::io::Write as _;
    use std::sync::{LazyLock, Mutex, PoisonError};

    use crate::{Error, Result, io_error};

    /// What happens at a failpoint, and the one time at which it happens, if it is one.
    struct Plan {
        action: String,
        only: Option<u64>,
    }

    static PLANS: LazyLock<HashMap<String, Plan>> =
        LazyLock::new(|| std::env::var("TRUNKLINE_FAILPOINTS").map(|text| parse(&text)).unwrap_or_default());
    static HITS: Mutex<Option<HashMap<&'static str, u64>>> = Mutex::new(None);

    /// Panics on what it does not understand: a test that asks for something else than it gets is
    /// worse than none.
    fn parse(text: &str) -> HashMap<String, Plan> {
        let entries = text.split(';').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(|entry| parse_entry(entry).unwrap_or_else(|| panic!("TRUNKLINE_FAILPOINTS: `{entry}`"))).collect()
    }

    fn parse_entry(entry: &str) -> Option<(String, Plan)> {
        let (name, action) = entry.split_once('=')?;
        let (action, only) = match action.split_once('@') {
            Some((action, nth)) => (action, Some(nth.parse().ok()?)),
            None => (action, None),
        };
        let known = super::is_listed(name) && matches!(action, "kill" | "stop" | "error" | "full");
        known.then(|| (name.to_owned(), Plan { action: action.to_owned(), only }))
    }

    /// Passes a step.
    ///
    /// # Errors
    /// The one that was asked for.
    pub fn hit(name: &'static str) -> Result<()> {
        let plan = PLANS.get(name);
        let count = count(name);
        let Some(plan) = plan.filter(|plan| plan.only.is_none_or(|only| only == count)) else { return Ok(()) };
        match plan.action.as_str() {
            "kill" => {
                eprintln!("failpoint {name}: dies here");
                std::process::abort()
            }
            "error" => Err(Error::external("failpoint", format!("asked for at {name}"))),
            "full" => {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                Err(io_error("write", std::path::Path::new(name), &full))
            }
            _ => {
                // All threads of the process stop, this one while it waits for the command.
                let stopped =
                    std::process::Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status();
                assert!(stopped.is_ok_and(|status| status.success()), "cannot stop the process");
                Ok(())
            }
        }
    }

    fn count(name: &'static str) -> u64 {
        let mut hits = HITS.lock().unwrap_or_else(PoisonError::into_inner);
        let count = hits.get_or_insert_default().entry(name).or_default();
        *count += 1;
        if *count == 1
            && let Some(path) = std::env::var_os("TRUNKLINE_FAILPOINTS_SEEN")
        {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
            let written = file.and_then(|mut file| writeln!(file, "{name}"));
            written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        *count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_listed_once_and_lead_to_one_another() {
        for (index, point) in FAILPOINTS.iter().enumerate() {
            assert!(FAILPOINTS[..index].iter().all(|other| other.name != point.name), "{} comes twice", point.name);
            if let Reached::After(other) = point.reached {
                assert!(is_listed(other), "{} comes after {other}, which is not listed", point.name);
            }
        }
        assert!(!is_listed("sink.intent") && !is_listed("sink.intent.afterwards") && !is_listed(""));
    }
}
