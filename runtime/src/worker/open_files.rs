//! The limit of open files of this process. A broker keeps two files open per partition, and a
//! worker about a dozen descriptors per stage, so the usual soft limit of 1,024 is too small for a
//! few hundred tables.

use std::io;

/// Descriptors of a process without stages: sockets, libraries, the log.
const BASE: u64 = 64;

/// Descriptors of one stage: its Kafka clients with a connection to each broker, and its files.
const PER_STAGE: u64 = 24;

/// Descriptors of one partition in the embedded broker.
const PER_EMBEDDED_PARTITION: u64 = 2;

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

/// A warning if a worker with this many stages, and partitions in its embedded broker, needs more
/// open files than it may have.
pub fn shortage(limit: u64, stages: usize, embedded_partitions: usize) -> Option<String> {
    let need = BASE + stages as u64 * PER_STAGE + embedded_partitions as u64 * PER_EMBEDDED_PARTITION;
    (need > limit).then(|| {
        format!(
            "{stages} stages and {embedded_partitions} partitions of the embedded broker need about {need} open files, and \
             this process may open {limit}: raise the hard limit (`ulimit -Hn`, `LimitNOFILE=` of a systemd unit, `nofile` \
             in /etc/security/limits.conf)"
        )
    })
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
        assert_eq!(shortage(1024, 3, 100), None);
        let warning = shortage(1024, 3, 1_000).unwrap();
        assert!(warning.contains("2136 open files") && warning.contains("may open 1024"), "{warning}");
        assert!(warning.contains("LimitNOFILE"), "{warning}");
    }
}
