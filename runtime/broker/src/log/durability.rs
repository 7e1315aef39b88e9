//! Waiting until appended batches are on disk: group commit.
//!
//! With [`FlushPolicy::Always`](crate::FlushPolicy::Always) a batch is neither acknowledged nor
//! visible before it is on disk: otherwise a reader could see records that a power failure removes.
//! A sync takes much longer than an append, so all waiting producers share one. They queue for the
//! file; the first one syncs everything appended so far, and the others find their batches synced.
//!
//! After a failed sync the page cache proves nothing about the disk, and a second sync would not
//! report the failure. The unsynced bytes are cut off, and the partition refuses appends until the
//! broker restarts.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// The synced part of a partition's log.
#[derive(Debug)]
pub(crate) struct Durability {
    /// The active segment. Locked during a sync.
    active: Mutex<Active>,
    appended: Mutex<Extent>,
    /// All records before this offset are on disk.
    durable_end: AtomicI64,
    has_failed: AtomicBool,
    #[cfg(test)]
    syncs: std::sync::atomic::AtomicUsize,
}

#[derive(Debug)]
struct Active {
    file: Arc<File>,
    durable_size: u64,
}

/// The end of the log and the size of its active segment.
#[derive(Debug, Clone, Copy)]
struct Extent {
    end_offset: i64,
    size: u64,
}

impl Durability {
    /// Opens the tracker for a recovered log. Syncs bytes that the previous run left in the page
    /// cache.
    pub(super) fn open(file: Arc<File>, end_offset: i64, size: u64) -> io::Result<Self> {
        file.sync_data()?;
        Ok(Self {
            active: Mutex::new(Active { file, durable_size: size }),
            appended: Mutex::new(Extent { end_offset, size }),
            durable_end: AtomicI64::new(end_offset),
            has_failed: AtomicBool::new(false),
            #[cfg(test)]
            syncs: Default::default(),
        })
    }

    pub(crate) fn durable_end(&self) -> i64 {
        self.durable_end.load(Ordering::Acquire)
    }

    pub(super) fn check(&self) -> io::Result<()> {
        if self.has_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier sync failed; restart the broker when the disk works"));
        }
        Ok(())
    }

    /// Records the end of the log after an append.
    pub(super) fn appended(&self, end_offset: i64, size: u64) {
        *lock(&self.appended) = Extent { end_offset, size };
    }

    /// Returns when all records before `offset` are on disk.
    pub(crate) fn wait_durable(&self, offset: i64) -> io::Result<()> {
        if self.durable_end() >= offset {
            return Ok(());
        }
        let mut active = lock(&self.active);
        if self.durable_end() >= offset {
            return Ok(());
        }
        self.sync(&mut active)
    }

    /// Continues in a new segment. Syncs the previous one.
    pub(super) fn roll(&self, file: Arc<File>) -> io::Result<()> {
        let mut active = lock(&self.active);
        self.sync(&mut active)?;
        *active = Active { file, durable_size: 0 };
        lock(&self.appended).size = 0;
        Ok(())
    }

    fn sync(&self, active: &mut Active) -> io::Result<()> {
        self.check()?;
        let extent = *lock(&self.appended);
        #[cfg(test)]
        self.syncs.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = active.file.sync_data() {
            self.has_failed.store(true, Ordering::Release);
            let cut = active.file.set_len(active.durable_size);
            tracing::error!(%error, was_cut = cut.is_ok(), "sync failed; the partition refuses records until the broker restarts");
            return Err(error);
        }
        active.durable_size = extent.size;
        self.durable_end.store(extent.end_offset, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::clock::now_ms;
    use crate::log::PartitionLog;
    use crate::log::batch::{BatchHeader, assemble};
    use crate::log::segment::log_path;
    use crate::topics::config::{TopicConfig, test_config as config};
    use crate::topics::partition::Partition;

    fn batch() -> (BatchHeader, bytes::Bytes) {
        let now = now_ms();
        let header = BatchHeader {
            base_offset: 0,
            length: 0,
            magic: 2,
            crc: 0,
            attributes: 0,
            last_offset_delta: 0,
            base_timestamp: now,
            max_timestamp: now,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: 1,
        };
        assemble(&header, &[0; 100])
    }

    fn append(partition: &Partition, config: &TopicConfig) -> Result<i64, crate::error::ApiError> {
        let (header, bytes) = batch();
        let appended = partition.append(&header, &bytes, config)?;
        partition.wait_durable(appended.end_offset)?;
        Ok(appended.base_offset)
    }

    fn durability(partition: &Partition) -> Arc<Durability> {
        partition.with_log(|log| log.durability()).unwrap()
    }

    /// The end of the log after a power failure: files without their unsynced bytes.
    fn end_after_power_cut(directory: &Path, durability: &Durability) -> i64 {
        let after = tempfile::tempdir().unwrap();
        let durable_size = lock(&durability.active).durable_size as usize;
        let bytes = std::fs::read(log_path(directory, 0)).unwrap();
        std::fs::write(log_path(after.path(), 0), &bytes[..durable_size]).unwrap();
        PartitionLog::open(after.path(), true).unwrap().end_offset()
    }

    #[test]
    fn acknowledged_and_visible_records_survive_a_power_failure() {
        const PRODUCERS: usize = 8;
        const EACH: usize = 100;
        let directory = tempfile::tempdir().unwrap();
        let partition = Partition::open("t", 0, directory.path(), true).unwrap();
        let (durability, config) = (durability(&partition), config(&[]));
        let (acknowledged, running) = (AtomicI64::new(-1), AtomicUsize::new(PRODUCERS));
        let together = Barrier::new(PRODUCERS);
        std::thread::scope(|scope| {
            for _ in 0..PRODUCERS {
                scope.spawn(|| {
                    together.wait();
                    for _ in 0..EACH {
                        acknowledged.fetch_max(append(&partition, &config).unwrap(), Ordering::SeqCst);
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                });
            }
            let mut cuts = 0;
            while running.load(Ordering::SeqCst) > 0 {
                let acked = acknowledged.load(Ordering::SeqCst) + 1;
                let readable = partition.with_log(|log| log.end_offset());
                let left = end_after_power_cut(directory.path(), &durability);
                assert!(left >= acked && left >= readable, "{left} of {acked} acknowledged, {readable} readable");
                cuts += 1;
            }
            assert!(cuts > 0);
        });
        assert_eq!(partition.with_log(|log| log.end_offset()), (PRODUCERS * EACH) as i64);
        let syncs = durability.syncs.load(Ordering::Relaxed);
        println!("{} appends, {syncs} syncs", PRODUCERS * EACH);
        assert!(syncs < PRODUCERS * EACH, "{syncs}");
    }

    #[test]
    fn synced_segments_roll_and_reopen() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&[("internal.segment.bytes", "1000")]);
        let partition = Partition::open("t", 0, directory.path(), true).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..50).for_each(|_| assert!(append(&partition, &config).is_ok())));
            }
        });
        assert_eq!(partition.with_log(|log| log.end_offset()), 200);
        drop(partition);
        let log = PartitionLog::open(directory.path(), true).unwrap();
        assert_eq!((log.start_offset(), log.end_offset()), (0, 200));
    }

    #[test]
    fn a_failed_sync_stops_acknowledgements_until_restart() {
        let directory = tempfile::tempdir().unwrap();
        let partition = Partition::open("t", 0, directory.path(), true).unwrap();
        let (durability, config) = (durability(&partition), config(&[]));
        assert_eq!(append(&partition, &config).unwrap(), 0);
        // A pipe cannot be synced, so it acts as a failing disk.
        let (_reader, writer) = std::io::pipe().unwrap();
        let pipe = Arc::new(File::from(std::os::fd::OwnedFd::from(writer)));
        let real = std::mem::replace(&mut lock(&durability.active).file, pipe);
        assert!(append(&partition, &config).is_err());
        lock(&durability.active).file = real;
        assert!(append(&partition, &config).is_err());
        assert_eq!(partition.with_log(|log| log.end_offset()), 1, "unacknowledged records are not visible");
        assert_eq!(end_after_power_cut(directory.path(), &durability), 1);
        drop(partition);
        let partition = Partition::open("t", 0, directory.path(), true).unwrap();
        assert!(append(&partition, &config).unwrap() >= 1);
    }
}
