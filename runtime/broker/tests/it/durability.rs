//! Acknowledged records survive `kill -9`, torn files and a full disk.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::producer::Producer;

use crate::common::{LONG, TestBroker, collect_log, drain, eventually, is_foreign, logged, pause, send, unique};
use crate::raw::{PLAIN, Raw, batch, produce};

const DATA: &str = "TRUNKLINE_TEST_PROCESS_DATA";
const ADDRESS: &str = "TRUNKLINE_TEST_PROCESS_ADDRESS";
const READY: &str = "listening on ";

/// Not a test: the process that [`Process::start`] runs.
#[test]
#[ignore = "run by other tests, in a process that they kill"]
fn broker_process() {
    let Some(data) = std::env::var_os(DATA) else { return };
    let mut options = trunkline_broker::BrokerOptions::new(data);
    options.listen = std::env::var(ADDRESS).unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let broker = runtime.block_on(trunkline_broker::Broker::start(options)).unwrap();
    println!("\n{READY}{}", broker.address());
    // Runs until it is killed or its input ends.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    runtime.block_on(broker.stop()).unwrap();
}

/// A broker in its own process, which a test can kill.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: String,
    data: PathBuf,
}

impl Process {
    pub(crate) fn start(data: &Path, address: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "durability::broker_process", "--ignored", "--nocapture"])
            .env(DATA, data)
            .env(ADDRESS, address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.map_while(Result::ok).find_map(|line| line.strip_prefix(READY).map(str::to_owned));
        let address = address.expect("the broker did not start");
        Self { child, address, data: data.to_owned() }
    }

    /// `kill -9` and a restart.
    pub(crate) fn kill_and_restart(&mut self) {
        self.kill();
        *self = Self::start(&self.data.clone(), &self.address.clone());
    }

    /// A clean stop and a restart.
    pub(crate) fn stop_and_restart(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
        *self = Self::start(&self.data.clone(), &self.address.clone());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn transactions_are_exactly_once_through_kill_9() {
    if is_foreign() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let mut process = Process::start(data.path(), "127.0.0.1:0");
    // The clients of `TestBroker`, connected to the process.
    let mut broker = TestBroker::own(|_| {});
    broker.address.clone_from(&process.address);
    let topic = broker.topic("killed", 2, &[]);
    let producer = broker.transactional(&unique("tx"), &[]);
    let is_over = Arc::new(AtomicBool::new(false));
    let killer = std::thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            let mut kills = 0;
            while !is_over.load(Ordering::Relaxed) {
                pause(Duration::from_millis(137 + 61 * (kills % 5)));
                process.kill_and_restart();
                kills += 1;
            }
            (process, kills)
        }
    });
    let mut expected = Vec::new();
    let begun = Instant::now();
    let mut round = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        producer.begin_transaction().unwrap();
        let values: Vec<String> = (0..20).map(|number| format!("{round}-{number}")).collect();
        for value in &values {
            send(&producer, &topic, 0, "k", value);
            send(&producer, &topic, 1, "k", value);
        }
        drain(&producer);
        if round % 4 == 3 {
            producer.abort_transaction(LONG).unwrap();
        } else {
            producer.commit_transaction(LONG).unwrap();
            expected.extend(values);
        }
        round += 1;
    }
    is_over.store(true, Ordering::Relaxed);
    let (_process, kills) = killer.join().unwrap();
    println!("{round} transactions, {kills} kills");
    assert!(kills >= 5);
    for partition in 0..2 {
        assert_eq!(broker.values(&topic, partition, "read_committed"), expected, "partition {partition}");
    }
}

fn append(path: &Path, bytes: &[u8]) {
    std::fs::OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn recovery_cuts_off_only_the_torn_tail() {
    if is_foreign() {
        return;
    }
    collect_log();
    for with_checkpoint in [true, false] {
        for torn in [1, 11, 12, 40, 61, 70] {
            let mut broker = TestBroker::own(|_| {});
            let topic = broker.topic("torn", 1, &[]);
            let mut raw = Raw::connect(&broker.address);
            for number in 0..5 {
                assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 3)), (0, number * 3));
            }
            drop(raw);
            let directory = broker.data_dir().join("topics").join(&topic).join("0");
            let state = broker.data_dir().join("state.log");
            broker.stop();
            if !with_checkpoint {
                std::fs::remove_file(directory.join("checkpoint.json")).unwrap();
            }
            let mut next = batch(PLAIN, 3);
            next[..8].copy_from_slice(&15i64.to_be_bytes());
            append(&directory.join("00000000000000000000.log"), &next[..torn.min(next.len() - 1)]);
            append(&state, &[9, 0, 0, 0, 1, 2]);
            broker.start_again(|_| {});
            for path in [directory.display().to_string(), state.display().to_string()] {
                let lines = logged(&path);
                assert!(lines.iter().any(|line| line.contains("torn")), "{path}: {lines:?}");
            }
            assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, 15));
            let mut raw = Raw::connect(&broker.address);
            assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 1)), (0, 15));
            assert_eq!(broker.values(&topic, 0, "read_committed").len(), 16);
        }
    }
}

#[test]
fn transactions_survive_a_restart_with_flush_always() {
    if is_foreign() {
        return;
    }
    let mut broker = TestBroker::own(|options| options.flush = trunkline_broker::FlushPolicy::Always);
    let topic = broker.topic("flushed", 1, &[("internal.segment.bytes", "1000")]);
    let producer = broker.transactional(&unique("tx"), &[]);
    for round in 0..10 {
        producer.begin_transaction().unwrap();
        send(&producer, &topic, 0, "k", &format!("{round} {}", "x".repeat(400)));
        drain(&producer);
        producer.commit_transaction(LONG).unwrap();
    }
    broker.restart(|_| {});
    assert_eq!(broker.values(&topic, 0, "read_committed").len(), 10);
}

#[test]
fn producers_share_syncs_with_flush_always() {
    if is_foreign() {
        return;
    }
    const PRODUCERS: usize = 16;
    const EACH: usize = 100;
    let broker = TestBroker::own(|options| options.flush = trunkline_broker::FlushPolicy::Always);
    let topic = broker.topic("broker", 1, &[]);
    let write = |count: usize| {
        let mut raw = Raw::connect(&broker.address);
        (0..count).for_each(|_| assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 1)).0, 0));
    };
    let begun = Instant::now();
    write(EACH);
    let alone = begun.elapsed();
    let begun = Instant::now();
    std::thread::scope(|scope| (0..PRODUCERS).for_each(|_| drop(scope.spawn(|| write(EACH)))));
    let together = begun.elapsed();
    println!("{EACH} writes of one: {alone:?}; of each of {PRODUCERS}: {together:?}");
    let end = ((PRODUCERS + 1) * EACH) as i64;
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, end));
    assert_eq!(broker.values(&topic, 0, "read_committed").len() as i64, end);
}

#[test]
fn a_data_directory_has_one_broker_at_a_time() {
    if is_foreign() {
        return;
    }
    let first = TestBroker::own(|_| {});
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let options = trunkline_broker::BrokerOptions::new(first.data_dir());
    let error = runtime.block_on(trunkline_broker::Broker::start(options)).unwrap_err();
    assert!(matches!(error, trunkline_broker::BrokerError::InUse(_)), "{error}");
    let second = TestBroker::own(|_| {});
    assert_ne!(first.address, second.address);
    let topic = first.topic("only-in-the-first", 1, &[]);
    send(&first.producer(&[]), &topic, 0, "k", "v");
    assert!(second.directory_is_without(&topic));
}

/// A small file system that a test can fill.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(directory.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self { directory })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.directory.path()).output();
    }
}

#[test]
fn a_full_disk_refuses_with_a_retriable_error_and_recovers() {
    if is_foreign() {
        return;
    }
    let Some(disk) = SmallDisk::mount() else {
        println!("SKIP a_full_disk_refuses_with_a_retriable_error_and_recovers: cannot mount a file system");
        return;
    };
    let broker = TestBroker::own(|options| options.data_dir = disk.directory.path().join("data"));
    let topic = broker.topic("full", 1, &[]);
    let filler = disk.directory.path().join("filler");
    let mut raw = Raw::connect(&broker.address);
    assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 3)), (0, 0));
    let producer = broker.transactional(&unique("tx"), &[]);
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, "k", "in a transaction");
    drain(&producer);
    fill(&filler);
    // The last page may have a little room.
    let mut accepted = 1;
    let error = loop {
        let (error, _) = produce(&mut raw, &topic, None, batch(PLAIN, 60));
        if error != 0 {
            break error;
        }
        accepted += 1;
        assert!(accepted < 2000);
    };
    assert_eq!(error, kafka_protocol::ResponseError::KafkaStorageError.code());
    let end = broker.watermarks(&topic, 0, "read_uncommitted").1;
    std::fs::remove_file(&filler).unwrap();
    eventually("room again", || produce(&mut raw, &topic, None, batch(PLAIN, 60)) == (0, end));
    producer.commit_transaction(LONG).unwrap();
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, end + 61));
    assert_eq!(broker.values(&topic, 0, "read_committed").len() as i64, end + 60);
}

/// Writes until the file system is full.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    while file.write_all(&[0]).is_ok() {}
}

#[test]
fn a_log_that_was_cut_is_reported() {
    if is_foreign() {
        return;
    }
    collect_log();
    let mut broker = TestBroker::own(|_| {});
    let topic = broker.topic("cut", 1, &[]);
    let mut raw = Raw::connect(&broker.address);
    (0..10).for_each(|offset| assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 1)), (0, offset)));
    drop(raw);
    broker.stop();
    let directory = broker.data_dir().join("topics").join(&topic).join("0");
    let path = directory.join("00000000000000000000.log");
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 37).unwrap();
    broker.start_again(|_| {});
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, 9));
    let lines = logged(&directory.display().to_string());
    assert!(lines.iter().any(|line| line.contains("torn") && line.contains("end_offset=9")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("records were lost") && line.contains("expected=10")), "{lines:?}");
}

#[test]
fn records_are_kept_when_the_internal_log_is_lost() {
    if is_foreign() {
        return;
    }
    collect_log();
    for keep in [0, 10] {
        let mut broker = TestBroker::own(|_| {});
        let topic = broker.topic("lost", 1, &[]);
        let mut raw = Raw::connect(&broker.address);
        assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 3)), (0, 0));
        drop(raw);
        broker.stop();
        let state = std::fs::File::options().write(true).open(broker.data_dir().join("state.log")).unwrap();
        state.set_len(keep).unwrap();
        broker.start_again(|_| {});
        assert!(broker.directory_is_without(&topic));
        let kept = broker.data_dir().join("lost").join(&topic).join("0").join("00000000000000000000.log");
        assert!(kept.metadata().unwrap().len() > 0, "{keep}");
        assert!(!logged(&kept.parent().unwrap().parent().unwrap().display().to_string()).is_empty());
    }
}

/// Every file and directory below a path, with its permissions.
fn modes(path: &Path) -> Vec<(PathBuf, u32)> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = path.metadata().unwrap();
    let mut found = vec![(path.to_owned(), metadata.permissions().mode() & 0o777)];
    if metadata.is_dir() {
        found.extend(std::fs::read_dir(path).unwrap().flat_map(|entry| modes(&entry.unwrap().path())));
    }
    found
}

#[test]
fn only_the_owner_can_access_the_data() {
    if is_foreign() {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("new").join("data");
    let mut broker = TestBroker::own(|options| {
        options.data_dir = data.clone();
        options.compaction_interval = Duration::from_millis(100);
    });
    let configs = [("cleanup.policy", "compact"), ("internal.segment.bytes", "200")];
    let topic = broker.topic("private", 1, &configs);
    let mut raw = Raw::connect(&broker.address);
    (0..50).for_each(|_| assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 1)).0, 0));
    drop(raw);
    eventually("compacted", || broker.values(&topic, 0, "read_committed").len() < 50);
    broker.stop();
    let modes = modes(&parent.path().join("new"));
    assert!(modes.len() > 8, "{modes:?}");
    for (path, mode) in modes {
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}: {mode:o}", path.display());
    }
}

#[test]
fn a_data_directory_that_others_can_read_is_reported() {
    use std::os::unix::fs::PermissionsExt;
    if is_foreign() {
        return;
    }
    collect_log();
    for (mode, is_reported) in [(0o755, true), (0o710, true), (0o700, false)] {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(mode)).unwrap();
        drop(TestBroker::own(|options| options.data_dir = data.clone()));
        let lines = logged(&data.display().to_string());
        assert_eq!(lines.iter().any(|line| line.contains("chmod")), is_reported, "{mode:o}: {lines:?}");
    }
}
