//! When an append is on the device: group commit.
//!
//! With [`FlushPolicy::Always`](crate::FlushPolicy::Always) nobody learns of a batch before it is on the device: neither its producer nor
//! a reader, who could otherwise have read what a power cut takes back. A sync takes far longer than an append, so one sync is for all who
//! wait. They queue for the file; whoever's turn it is syncs everything that was appended until then, and those behind find theirs done.
//!
//! After a sync that failed, what the system still has in memory says nothing about the device, and a second sync would not tell. What was
//! not on the device is cut off, and the partition takes no more until the broker is started again.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// What of a partition's log is on the device.
#[derive(Debug)]
pub(crate) struct Device {
    /// The segment that is appended to. Held while it is synced.
    active: Mutex<Active>,
    appended: Mutex<Extent>,
    /// Everything before this offset is on the device.
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

/// How far the log goes, and its last segment.
#[derive(Debug, Clone, Copy)]
struct Extent {
    end_offset: i64,
    size: u64,
}

impl Device {
    /// For a log that was opened. What the last run has left in memory is made durable.
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
            return Err(io::Error::other("the device failed; start the broker again when it works"));
        }
        Ok(())
    }

    /// Takes note of what was written.
    pub(super) fn appended(&self, end_offset: i64, size: u64) {
        *lock(&self.appended) = Extent { end_offset, size };
    }

    /// Returns when everything before `offset`, which was appended, is on the device.
    pub(crate) fn settle(&self, offset: i64) -> io::Result<()> {
        if self.durable_end() >= offset {
            return Ok(());
        }
        let mut active = lock(&self.active);
        if self.durable_end() >= offset {
            return Ok(());
        }
        self.sync(&mut active)
    }

    /// Goes on in a new segment. What is in the one before is on the device from then on.
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
            tracing::error!(%error, was_cut = cut.is_ok(), "the device failed, the partition takes no more records");
            return Err(error);
        }
        active.durable_size = extent.size;
        self.durable_end.store(extent.end_offset, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::clock::now_ms;
    use crate::log::PartitionLog;
    use crate::log::batch::{BatchHeader, assemble};
    use crate::log::segment::log_path;
    use crate::topics::config::TopicConfig;
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

    fn config(pairs: &[(&str, &str)]) -> TopicConfig {
        let pairs: BTreeMap<_, _> = pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        TopicConfig::new(pairs).unwrap()
    }

    fn append(partition: &Partition, config: &TopicConfig) -> Result<i64, crate::log::batch::Refusal> {
        let (header, bytes) = batch();
        let appended = partition.append(&header, &bytes, config)?;
        partition.settle(appended.end_offset)?;
        Ok(appended.base_offset)
    }

    fn device(partition: &Partition) -> Arc<Device> {
        partition.with_log(|log| log.device()).unwrap()
    }

    /// The end of the log that a machine would find whose power is cut now: files without what was not synced.
    fn end_after_power_cut(directory: &Path, device: &Device) -> i64 {
        let after = tempfile::tempdir().unwrap();
        let durable_size = lock(&device.active).durable_size as usize;
        let bytes = std::fs::read(log_path(directory, 0)).unwrap();
        std::fs::write(log_path(after.path(), 0), &bytes[..durable_size]).unwrap();
        PartitionLog::open(after.path(), true).unwrap().end_offset()
    }

    #[test]
    fn what_was_acknowledged_or_could_be_read_outlives_a_power_cut_and_many_share_a_sync() {
        const PRODUCERS: usize = 8;
        const EACH: usize = 100;
        let directory = tempfile::tempdir().unwrap();
        let partition = Partition::open("t", 0, directory.path(), true).unwrap();
        let (device, config) = (device(&partition), config(&[]));
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
                let told = acknowledged.load(Ordering::SeqCst) + 1;
                let readable = partition.with_log(|log| log.end_offset());
                let left = end_after_power_cut(directory.path(), &device);
                assert!(left >= told && left >= readable, "{left} of {told} acknowledged, {readable} readable");
                cuts += 1;
            }
            assert!(cuts > 0);
        });
        assert_eq!(partition.with_log(|log| log.end_offset()), (PRODUCERS * EACH) as i64);
        let syncs = device.syncs.load(Ordering::Relaxed);
        println!("{} appends, {syncs} syncs", PRODUCERS * EACH);
        assert!(syncs < PRODUCERS * EACH, "{syncs}");
    }

    #[test]
    fn segments_roll_and_a_restart_finds_all() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(&[("segment.bytes", "1000")]);
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
    fn after_a_device_has_failed_nothing_is_acknowledged_until_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let partition = Partition::open("t", 0, directory.path(), true).unwrap();
        let (device, config) = (device(&partition), config(&[]));
        assert_eq!(append(&partition, &config).unwrap(), 0);
        // A pipe cannot be synced, so it is a device that fails.
        let (_reader, writer) = std::io::pipe().unwrap();
        let pipe = Arc::new(File::from(std::os::fd::OwnedFd::from(writer)));
        let real = std::mem::replace(&mut lock(&device.active).file, pipe);
        assert!(append(&partition, &config).is_err());
        lock(&device.active).file = real;
        assert!(append(&partition, &config).is_err());
        assert_eq!(partition.with_log(|log| log.end_offset()), 1, "what was not acknowledged cannot be read");
        assert_eq!(end_after_power_cut(directory.path(), &device), 1);
        drop(partition);
        let partition = Partition::open("t", 0, directory.path(), true).unwrap();
        assert!(append(&partition, &config).unwrap() >= 1);
    }
}
