//! States on disk: a seeded model with kills, moves and outdated copies, a state larger than its
//! cache, damage, and a full disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::disk::now_ms;
use super::slots::{entry_bytes, value_bytes};
use super::*;

use std::time::Duration;

/// Longer than any test.
const YOUNG: Duration = Duration::from_secs(3600);
const PARTITION: (&str, &str, i32) = ("cluster.pipeline.transform", "in", 3);
/// The cache of the model: a few entries.
const SMALL_CACHE: usize = 1_500;

/// In memory where that is possible: writes sync their files.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn identity(topic: u32) -> StateIdentity {
    StateIdentity { cluster: "kafka".to_owned(), topic: format!("topic-{topic}") }
}

/// All entries, in memory and on disk, that have not expired.
fn contents(store: &StateStore) -> BTreeMap<Vec<u8>, (Vec<u8>, Option<i64>)> {
    let disk = store.disk.as_ref().unwrap();
    let mut all = BTreeMap::new();
    if !disk.is_whole {
        for row in disk.rows(&[], None) {
            let (key, entry) = row.unwrap();
            if entry.expires_at.is_none() || entry.expires_at > store.time {
                all.insert(key.to_vec(), (entry.value.to_vec(), entry.expires_at));
            }
        }
    }
    for slot in store.slots.iter().filter(|slot| slot.is_used) {
        match &slot.entry {
            Some(entry) => drop(all.insert(slot.key.to_vec(), (entry.value.to_vec(), entry.expires_at))),
            None => drop(all.remove(&*slot.key)),
        }
    }
    all
}

/// A topic partition's changelog in Kafka.
#[derive(Debug, Clone, Default)]
struct Changelog {
    topic: u32,
    end: i64,
    /// The last change of each key, or all of them, with their offsets.
    changes: Vec<(i64, Vec<u8>, Option<StateEntry>)>,
    /// The changes of the time, with their offsets.
    times: Vec<(i64, i64)>,
}

impl Changelog {
    /// Writes the changes of the transaction as a commit does, with the marker of the transaction.
    fn write(&mut self, store: &StateStore) {
        for (key, entry) in store.changes() {
            self.changes.push((self.end, key.to_vec(), entry.cloned()));
            self.end += 1;
        }
        if let Some(time) = store.changed_time() {
            self.times.push((self.end, time));
            self.end += 1;
        }
        self.end += 1;
    }

    /// Keeps the last change of each key; `deletions`: removes keys whose last change is a
    /// deletion.
    fn compact(&mut self, deletions: bool) {
        let last: BTreeMap<Vec<u8>, i64> = self.changes.iter().map(|(offset, key, _)| (key.clone(), *offset)).collect();
        self.changes.retain(|(offset, key, entry)| last[key] == *offset && (entry.is_some() || !deletions));
    }

    /// Opens the copy on disk, and reads what it lacks. Returns the number of read changes, too.
    fn restore(&self, disk: &StateDisk, max_age: Duration) -> (StateStore, usize) {
        let mut store = StateStore::on_disk(1 << 30, disk, PARTITION, Some(identity(self.topic)), max_age).unwrap();
        let from = store.position().unwrap_or(0);
        let mut read = 0;
        for (_, key, entry) in self.changes.iter().filter(|(offset, ..)| *offset >= from) {
            store.restore(key, entry.clone());
            if store.is_write_due() {
                store.write().unwrap();
            }
            read += 1;
        }
        if let Some((_, time)) = self.times.iter().rfind(|(offset, _)| *offset >= from) {
            store.restore_time(*time);
        }
        store.check_restored().unwrap();
        store.advance(self.end, now_ms());
        (store, read)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8, Option<u8>),
    Delete(u8),
    Get(u8),
    Savepoint,
    Release,
    Rollback,
    /// Ends a batch with a record of this age.
    Advance(u8),
    /// Commits; with `true`, the changes are written to disk.
    Commit(bool),
    Abort,
    /// The process dies.
    Kill,
    /// The process dies while it writes to disk.
    KillInWrite,
    /// The task ends and starts again.
    Restart,
    /// Another worker owns the partition for some transactions, and changes these keys.
    Elsewhere(Vec<(u8, Option<u8>)>),
    /// The changelog is compacted; with `true`, deletions vanish, too, after a long time.
    Compact(bool),
    /// The changelog is deleted and created again while no task runs.
    Recreate,
}

fn step() -> impl Strategy<Value = Step> {
    let elsewhere = proptest::collection::vec((0..30u8, proptest::option::of(any::<u8>())), 1..6);
    prop_oneof![
        16 => (0..30u8, any::<u8>(), proptest::option::of(1..20u8)).prop_map(|(key, value, ttl)| Step::Put(key, value, ttl)),
        5 => (0..30u8).prop_map(Step::Delete),
        4 => (0..30u8).prop_map(Step::Get),
        2 => Just(Step::Savepoint),
        2 => Just(Step::Release),
        2 => Just(Step::Rollback),
        4 => (0..10u8).prop_map(Step::Advance),
        6 => any::<bool>().prop_map(Step::Commit),
        1 => Just(Step::Abort),
        1 => Just(Step::Kill),
        1 => Just(Step::KillInWrite),
        1 => Just(Step::Restart),
        1 => elsewhere.prop_map(Step::Elsewhere),
        1 => any::<bool>().prop_map(Step::Compact),
        1 => Just(Step::Recreate),
    ]
}

/// The state as a plain map, which is copied at each savepoint.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    entries: BTreeMap<Vec<u8>, (Vec<u8>, Option<i64>)>,
    time: Option<i64>,
}

/// A store on disk beside its model.
struct Pair {
    folder: TempDir,
    disk: StateDisk,
    store: Option<StateStore>,
    changelog: Changelog,
    model: Model,
    committed: Model,
    savepoints: Vec<(usize, Model)>,
    clock: i64,
}

impl Pair {
    fn new() -> Self {
        let folder = folder();
        let disk = StateDisk::new(folder.path(), SMALL_CACHE);
        let changelog = Changelog::default();
        let store = Some(changelog.restore(&disk, YOUNG).0);
        let (model, committed) = (Model::default(), Model::default());
        Self { folder, disk, store, changelog, model, committed, savepoints: Vec::new(), clock: 1000 }
    }

    fn store(&mut self) -> &mut StateStore {
        self.store.as_mut().unwrap()
    }

    fn reopen(&mut self, max_age: Duration) {
        self.store = None;
        self.store = Some(self.changelog.restore(&self.disk, max_age).0);
        self.savepoints.clear();
        self.model = self.committed.clone();
        let store = self.store();
        // The clock of the next batch is not known before it.
        store.batch_time = store.time();
    }

    fn commit(&mut self, writes: bool) {
        let end = self.changelog.end;
        let store = self.store.as_mut().unwrap();
        self.changelog.write(store);
        store.commit();
        self.savepoints.clear();
        self.committed = self.model.clone();
        if writes || store.is_write_due() {
            store.advance(end, now_ms());
            store.write().unwrap();
        }
    }

    /// Replaces the tables by their copy from before a write, with half-written files.
    fn kill_in_write(&mut self) {
        self.store().abort();
        let tables = self.folder.path().join("cluster.pipeline.transform/in/3/tables");
        let before: PathBuf = self.folder.path().join("before");
        while self.store().disk.as_ref().unwrap().is_merging() {
            std::thread::yield_now();
        }
        copy_folder(&tables, &before);
        self.store().write().unwrap();
        self.store = None;
        while fs::File::open(tables.with_file_name("lock")).unwrap().try_lock().is_err() {
            std::thread::yield_now();
        }
        fs::remove_dir_all(&tables).unwrap();
        fs::rename(&before, &tables).unwrap();
        fs::write(tables.join("99999"), b"half of a table").unwrap();
        fs::write(tables.join("manifest.new"), b"{\"version\":").unwrap();
        self.reopen(YOUNG);
    }

    fn elsewhere(&mut self, changes: &[(u8, Option<u8>)]) {
        self.store = None;
        let other = folder();
        let (mut store, _) = self.changelog.restore(&StateDisk::new(other.path(), 1 << 20), YOUNG);
        store.batch_time = store.time();
        let mut model = self.committed.clone();
        for (key, value) in changes {
            match value {
                Some(value) => {
                    store.put(&[*key], &[*value], None).unwrap();
                    model.entries.insert(vec![*key], (vec![*value], None));
                }
                None => {
                    store.delete(&[*key]).unwrap();
                    model.entries.remove(&vec![*key]);
                }
            }
        }
        self.changelog.write(&store);
        self.committed = model;
        self.reopen(YOUNG);
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Put(key, value, ttl) => {
                let store = self.store();
                store.put(&[key], &[value], ttl.map(u64::from)).unwrap();
                let now = store.batch_time.unwrap_or(0);
                self.model.entries.insert(vec![key], (vec![value], ttl.map(|ttl| now + i64::from(ttl))));
            }
            Step::Delete(key) => {
                self.store().delete(&[key]).unwrap();
                self.model.entries.remove(&vec![key]);
            }
            Step::Get(key) => {
                let found = self.store().get(&[key]).unwrap().map(|value| value.to_vec());
                assert_eq!(found, self.model.entries.get(&vec![key]).map(|(value, _)| value.clone()));
            }
            Step::Savepoint => {
                let savepoint = self.store().savepoint();
                self.savepoints.push((savepoint, self.model.clone()));
            }
            Step::Release => {
                if let Some((savepoint, _)) = self.savepoints.pop() {
                    self.store().release(savepoint);
                }
            }
            Step::Rollback => {
                if let Some((savepoint, before)) = self.savepoints.pop() {
                    self.store().rollback_to(savepoint);
                    self.model = before;
                }
            }
            Step::Advance(by) => {
                self.clock += i64::from(by);
                let clock = self.clock;
                let store = self.store();
                store.batch_time = store.time().max(Some(clock));
                store.end_batch();
                self.model.time = self.model.time.max(Some(clock));
                let now = self.model.time;
                self.model.entries.retain(|_, (_, expires_at)| *expires_at > now || expires_at.is_none());
            }
            Step::Commit(writes) => self.commit(writes),
            Step::Abort => {
                self.store().abort();
                self.savepoints.clear();
                self.model = self.committed.clone();
            }
            Step::Kill => self.reopen(YOUNG),
            Step::KillInWrite => self.kill_in_write(),
            Step::Restart => {
                self.store.take().unwrap().close().unwrap();
                self.reopen(YOUNG);
            }
            Step::Elsewhere(changes) => self.elsewhere(&changes),
            Step::Compact(deletions) => {
                self.changelog.compact(deletions);
                self.reopen(if deletions { Duration::ZERO } else { YOUNG });
            }
            Step::Recreate => {
                self.changelog = Changelog { topic: self.changelog.topic + 1, ..Changelog::default() };
                self.committed = Model::default();
                self.reopen(YOUNG);
            }
        }
    }

    fn check(&mut self) {
        let store = self.store.as_mut().unwrap();
        assert_eq!(contents(store), self.model.entries);
        assert_eq!((store.time(), store.len()), (self.model.time, self.model.entries.len()));
        let keys: Vec<Vec<u8>> = self.model.entries.keys().cloned().collect();
        let ranged = store.range(&[], None, usize::MAX).unwrap();
        assert_eq!(ranged.iter().map(|(key, _)| key.to_vec()).collect::<Vec<_>>(), keys);
        let part: Vec<_> = keys.iter().filter(|key| (7..19).contains(&key[0])).take(3).cloned().collect();
        let ranged = store.range(&[7], Some(&[19]), 3).unwrap();
        assert_eq!(ranged.iter().map(|(key, _)| key.to_vec()).collect::<Vec<_>>(), part);
        let entry = |(value, expires_at): &(Vec<u8>, Option<i64>)| StateEntry {
            value: Arc::from(value.as_slice()),
            expires_at: *expires_at,
        };
        let bytes: usize = self.model.entries.iter().map(|(key, value)| entry_bytes(key, &entry(value))).sum();
        assert_eq!(store.bytes(), bytes);
        let used = store.slots.iter().filter(|slot| slot.is_used).count();
        assert_eq!((store.index.len(), store.slots.len()), (used, used + store.free.len()));
        let disk = store.disk.as_ref().unwrap();
        let slots = store.slots.iter().filter(|slot| slot.is_used);
        let memory: usize = slots.map(|slot| slot.key.len() + ENTRY_OVERHEAD_BYTES + value_bytes(&slot.entry)).sum();
        assert_eq!(disk.memory, memory);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn store_on_disk_and_changelog_agree_with_a_map(steps in proptest::collection::vec(step(), 0..150)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.apply(step);
            pair.check();
        }
    }
}

/// Changes random keys of a large state, and compares each read with a map.
#[test]
fn state_of_ten_times_the_cache_is_complete_and_bounded_in_memory() {
    const KEYS: u64 = 20_000;
    let folder = folder();
    // An entry counts 150 bytes.
    let cache = KEYS as usize * 150 / 10;
    let disk = StateDisk::new(folder.path(), cache);
    let mut changelog = Changelog::default();
    let (mut store, _) = changelog.restore(&disk, YOUNG);
    let mut truth = BTreeMap::new();
    let mut number = 1u64;
    for batch in 0..100u64 {
        for _ in 0..1000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = (number >> 33) % KEYS;
            let name = format!("key-{key:08}");
            let found = store.get(name.as_bytes()).unwrap().map(|value| value.to_vec());
            assert_eq!(found, truth.get(&key).cloned());
            let value = batch.to_string().into_bytes();
            store.put(name.as_bytes(), &value, None).unwrap();
            truth.insert(key, value);
        }
        let end = changelog.end;
        changelog.write(&store);
        store.commit();
        if store.is_write_due() {
            store.advance(end, now_ms());
            store.write().unwrap();
        }
        assert!(store.disk.as_ref().unwrap().memory < 2 * cache, "{} bytes", store.disk.as_ref().unwrap().memory);
    }
    assert!(store.bytes() > 9 * cache && store.len() == truth.len());
    store.close().unwrap();
    let all = changelog.changes.len();
    let (mut store, read) = changelog.restore(&disk, YOUNG);
    assert!(read * 10 < all, "{read} of {all} changes were read again");
    for (key, value) in &truth {
        assert_eq!(
            store.get(format!("key-{key:08}").as_bytes()).unwrap().map(|found| &**found),
            Some(value.as_slice())
        );
    }
}

/// Many entries expire at once: a batch removes a limited number of them, and none is readable.
#[test]
fn entries_on_disk_expire_at_once_and_are_removed_in_parts() {
    let folder = folder();
    let disk = StateDisk::new(folder.path(), 100_000);
    let (mut store, _) = Changelog::default().restore(&disk, YOUNG);
    store.batch_time = Some(1000);
    for key in 0..25_000u32 {
        store.put(&key.to_be_bytes(), b"value", Some(500)).unwrap();
    }
    store.put(b"stays", b"value", None).unwrap();
    store.end_batch();
    store.commit();
    store.write().unwrap();
    let steps: Vec<usize> = (0..4)
        .map(|step| {
            let savepoint = store.savepoint();
            store.batch_time = Some(2000 + step);
            store.end_batch();
            store.release(savepoint);
            assert_eq!(store.get(&24_999u32.to_be_bytes()).unwrap(), None);
            assert_eq!(store.range(&[], None, 10).unwrap().len(), 1);
            store.commit();
            store.len()
        })
        .collect();
    assert!(steps[0] > 5_000 && steps[3] == 1, "{steps:?}");
    store.write().unwrap();
    assert_eq!(store.disk.as_ref().unwrap().expiry_rows(), 0);
}

#[test]
fn damaged_tables_are_discarded() {
    let folder = folder();
    let disk = StateDisk::new(folder.path(), 100_000);
    let (mut store, _) = Changelog::default().restore(&disk, YOUNG);
    for key in 0..2_000u32 {
        store.put(&key.to_be_bytes(), &[7; 100], None).unwrap();
    }
    store.commit();
    store.close().unwrap();
    for entry in fs::read_dir(folder.path().join("cluster.pipeline.transform/in/3/tables")).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("manifest") {
            continue;
        }
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 3;
        bytes[middle..middle + 64].fill(0xff);
        fs::write(&path, bytes).unwrap();
    }
    let open = || StateStore::on_disk(1 << 20, &disk, PARTITION, Some(identity(0)), YOUNG);
    // The damage is found when the tables are opened, or when the blocks are read.
    let outcome = open().and_then(|mut store| {
        let failed = (0..2_000u32).any(|key| store.get(&key.to_be_bytes()).is_err());
        assert!(failed || store.position().is_none());
        match store.take_failure() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    });
    assert!(outcome.is_ok() || outcome.is_err_and(|error| error.code == "plugin.state_damaged"));
    let store = open().unwrap();
    assert!(store.position().is_none() && store.is_empty());
}

#[test]
fn a_full_disk_is_reported_and_the_state_continues_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(folder.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("SKIP a_full_disk_is_reported: cannot mount a file system");
        return;
    }
    let run = || {
        let disk = StateDisk::new(folder.path(), 100_000);
        let mut changelog = Changelog::default();
        let (mut store, _) = changelog.restore(&disk, YOUNG);
        fs::write(folder.path().join("ballast"), vec![0; 1_500_000]).unwrap();
        let failure = (0..100u32).find_map(|batch| {
            for key in 0..100u32 {
                store.put(&(batch * 100 + key).to_be_bytes(), &[7; 100], None).unwrap();
            }
            let end = changelog.end;
            changelog.write(&store);
            store.commit();
            store.advance(end, now_ms());
            store.write().err()
        });
        let failure = failure.expect("a full disk");
        assert_eq!(failure.code, "io.disk_full", "{failure}");
        drop(store);
        fs::remove_file(folder.path().join("ballast")).unwrap();
        let (store, read) = changelog.restore(&disk, YOUNG);
        assert!(read < changelog.changes.len(), "{read} changes were read again");
        assert_eq!(store.len(), changelog.changes.len());
    };
    let outcome = std::panic::catch_unwind(run);
    let _ = Command::new("umount").arg("-l").arg(folder.path()).status();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn outdated_copies_are_removed_unless_they_are_open() {
    let folder = folder();
    let disk = StateDisk::new(folder.path(), 100_000);
    let open = |partition| {
        let mut store = StateStore::on_disk(1 << 20, &disk, ("c.p.t", "in", partition), None, YOUNG).unwrap();
        store.put(b"key", b"value", None).unwrap();
        store.commit();
        store.write().unwrap();
        store
    };
    let (_open, closed) = (open(0), open(1));
    drop(closed);
    let exists =
        || [0, 1].map(|partition| folder.path().join(format!("c.p.t/in/{partition}/tables/manifest")).exists());
    disk.remove_older_than(YOUNG);
    assert_eq!(exists(), [true, true]);
    disk.remove_older_than(Duration::ZERO);
    assert_eq!(exists(), [true, false]);
    disk.remove("c.p.t").unwrap();
    assert!(!folder.path().join("c.p.t").exists());
}

#[test]
fn a_state_is_open_once_and_the_next_owner_waits() {
    let folder = folder();
    let disk = StateDisk::new(folder.path(), 100_000);
    let open = |disk: &StateDisk| StateStore::on_disk(1 << 20, disk, PARTITION, None, YOUNG).unwrap();
    let first = open(&disk);
    let second = std::thread::spawn({
        let disk = disk.clone();
        move || open(&disk).len()
    });
    assert!(!second.is_finished());
    drop(first);
    assert_eq!(second.join().unwrap(), 0);
}
