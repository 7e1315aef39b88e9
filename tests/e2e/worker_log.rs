//! Conditions on a worker's log. They use error codes and structured fields where the worker logs
//! them, so that tests do not depend on the wording of messages.

use std::collections::BTreeSet;

use trunkline_tests::{Process, wait};

use crate::LONG;

/// Waits until the worker's log satisfies a condition.
pub(crate) fn wait_for(what: &str, worker: &mut Process, condition: impl Fn(&str) -> bool) {
    let met = wait::within(LONG, || {
        assert!(worker.is_running(), "{}", worker.stderr());
        condition(&worker.stderr()).then_some(())
    });
    assert!(met.is_some(), "not in the worker's log: {what}\n{}", worker.stderr());
}

/// The stage has failed, and is not retried.
pub(crate) fn has_failed(log: &str, stage: &str) -> bool {
    lines_of(log, stage).any(|line| line.contains("ERROR"))
}

/// The topics of the pipelines cannot be created yet: the worker retries, and names the brokers.
pub(crate) fn waits_for_brokers(log: &str) -> bool {
    log.lines().any(|line| line.contains("WARN") && line.contains(" brokers="))
}

/// A task was fenced: another worker runs it.
pub(crate) fn was_fenced(log: &str) -> bool {
    log.contains("[worker.fenced]") || log.contains("[kafka.fenced]")
}

/// The stage was assigned partitions.
pub(crate) fn is_assigned(log: &str, stage: &str) -> bool {
    lines_of(log, stage).any(|line| line.contains(" partitions="))
}

/// How often the stage was started: a source when it has its lease, a sink when it is assigned
/// partitions.
pub(crate) fn starts(log: &str, stage: &str) -> usize {
    lines_of(log, stage).filter(|line| line.contains("owns its lease") || line.contains(" partitions=")).count()
}

/// The stage has ended after a reload without it.
pub(crate) fn has_stopped(log: &str, stage: &str) -> bool {
    lines_of(log, stage).any(|line| line.contains(" stopped: "))
}

fn lines_of<'a>(log: &'a str, stage: &str) -> impl Iterator<Item = &'a str> {
    let field = format!("stage=\"{stage}\"");
    log.lines().filter(move |line| line.contains(&field))
}

/// What a reload of the pipeline files did, as names of stages (`pipeline.component`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reload {
    /// New stages.
    pub(crate) started: BTreeSet<String>,
    /// Stages whose configuration changed, or that had failed.
    pub(crate) restarted: BTreeSet<String>,
    /// Stages that no pipeline file has any more.
    pub(crate) stopped: BTreeSet<String>,
    /// All other stages.
    pub(crate) unchanged: BTreeSet<String>,
}

impl Reload {
    /// A reload that restarted some stages, and left others unchanged.
    pub(crate) fn restarting<'a>(restarted: impl Names<'a>, unchanged: impl Names<'a>) -> Self {
        Self { restarted: set(restarted), unchanged: set(unchanged), ..Self::default() }
    }

    /// A reload that stopped some stages, and left others unchanged.
    pub(crate) fn stopping<'a>(stopped: impl Names<'a>, unchanged: impl Names<'a>) -> Self {
        Self { stopped: set(stopped), unchanged: set(unchanged), ..Self::default() }
    }

    /// Waits until the worker has logged this reload.
    pub(crate) fn wait_for(&self, worker: &mut Process) {
        wait_for(&format!("{self:?}"), worker, |log| reloads(log).any(|reload| reload == *self));
    }

    /// Parses `started=[..] restarted=[..] stopped=[..] unchanged=[..]`.
    fn parse(line: &str) -> Option<Self> {
        let list = |name: &str| {
            let (_, rest) = line.split_once(&format!(" {name}=["))?;
            let (names, _) = rest.split_once(']')?;
            Some(names.split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect())
        };
        Some(Self {
            started: list("started")?,
            restarted: list("restarted")?,
            stopped: list("stopped")?,
            unchanged: list("unchanged")?,
        })
    }
}

/// All reloads of a log. The first one is the start of the worker.
pub(crate) fn reloads(log: &str) -> impl Iterator<Item = Reload> {
    log.lines().filter_map(Reload::parse)
}

/// Some names of stages.
pub(crate) trait Names<'a>: IntoIterator<Item = &'a String> {}

impl<'a, I: IntoIterator<Item = &'a String>> Names<'a> for I {}

fn set<'a>(names: impl Names<'a>) -> BTreeSet<String> {
    names.into_iter().cloned().collect()
}
