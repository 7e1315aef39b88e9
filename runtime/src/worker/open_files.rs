//! The limit of open files of this process. A broker keeps two files open per partition, and a
//! worker about a dozen descriptors per stage and up to 36 per partition with state, so the usual
//! soft limit of 1,024 is too small for a few hundred tables.

use std::io;

use trunkline_transform_host::StateDisk;

use crate::plan::{Pipeline, TopicSelector};

/// Descriptors of a process without stages: sockets, libraries, the log.
const BASE: u64 = 64;

/// Descriptors of one stage: its Kafka clients with a connection to each broker, and its files.
const PER_STAGE: u64 = 24;

/// Descriptors of one partition in the embedded broker.
const PER_EMBEDDED_PARTITION: u64 = 2;

/// Descriptors of the state of one topic partition.
const PER_STATE: u64 = StateDisk::MAX_FILES as u64;

/// What a worker opens files for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// Stages.
    pub stages: usize,
    /// Topic partitions of which a transform keeps state.
    pub states: usize,
    /// Partitions in the embedded broker.
    pub embedded_partitions: usize,
}

impl OpenFiles {
    /// Of these pipelines, if one worker runs them alone. `partitions_of` returns the number of
    /// partitions of a topic. Of a pattern the topics are not known yet, and one is assumed, with
    /// `default_partitions`.
    pub fn of(
        pipelines: &[Pipeline],
        embedded_partitions: usize,
        partitions_of: impl Fn(&str) -> Option<i32>,
        default_partitions: i32,
    ) -> Self {
        let transforms = pipelines.iter().flat_map(|pipeline| &pipeline.transforms);
        let inputs = transforms.filter(|transform| transform.state.is_some()).flat_map(|transform| &transform.inputs);
        let partitions = inputs.map(|input| match &input.topics {
            TopicSelector::Exact(topic) => partitions_of(topic).unwrap_or(default_partitions),
            TopicSelector::Pattern(_) => default_partitions,
        });
        Self {
            stages: pipelines.iter().map(super::stage_count).sum(),
            states: partitions.map(|partitions| usize::try_from(partitions).unwrap_or(0)).sum(),
            embedded_partitions,
        }
    }

    /// A warning if the worker may need more open files than it may have.
    pub fn shortage(&self, limit: u64) -> Option<String> {
        let Self { stages, states, embedded_partitions } = *self;
        let need = BASE
            + stages as u64 * PER_STAGE
            + states as u64 * PER_STATE
            + embedded_partitions as u64 * PER_EMBEDDED_PARTITION;
        (need > limit).then(|| {
            format!(
                "{stages} stages, {states} topic partitions with state and {embedded_partitions} partitions of the embedded \
                 broker need up to {need} open files, and this process may open {limit}: raise the hard limit (`ulimit -Hn`, \
                 `LimitNOFILE=` of a systemd unit, `nofile` in /etc/security/limits.conf)"
            )
        })
    }
}

/// Raises the soft limit of open files to the hard limit. Returns the limit that applies then.
pub fn raise_open_files_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the calls read and write the given place only.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_limit() {
        let raised = raise_open_files_limit().unwrap();
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the call writes the given place only.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
        assert_eq!((limit.rlim_cur, raised), (limit.rlim_max, limit.rlim_max));
    }

    #[test]
    fn a_shortage_names_the_need_the_limit_and_the_remedy() {
        let few = OpenFiles { stages: 3, states: 0, embedded_partitions: 100 };
        assert_eq!(few.shortage(1024), None);
        let warning = OpenFiles { embedded_partitions: 1_000, ..few }.shortage(1024).unwrap();
        assert!(warning.contains("2136 open files") && warning.contains("may open 1024"), "{warning}");
        assert!(warning.contains("LimitNOFILE"), "{warning}");
        let warning = OpenFiles { states: 24, ..few }.shortage(1024).unwrap();
        assert!(warning.contains("24 topic partitions with state"), "{warning}");
        assert!(warning.contains("1200 open files"), "{warning}");
    }
}
