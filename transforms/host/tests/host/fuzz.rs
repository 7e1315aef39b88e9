//! A hostile plugin: it makes random calls with valid and invalid arguments, and returns changed
//! verdicts. Each record has one outcome or the batch fails and changes nothing; the host never
//! panics, and stays within its limits.
//!
//! `TRUNKLINE_FUZZ_SECONDS=60 TRUNKLINE_FUZZ_SEED=7 cargo test --workspace --test host --
//! --nocapture fuzz::` runs it for longer, or repeats a seed.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use trunkline_connector::{Batch, Rejections};
use trunkline_transform_host::{Instance, Limits, StateStore};

use crate::support::{assert_conserved, hostile_plugin};

const MAX_STATE: usize = 1 << 20;
/// Time of one seed, on a busy machine.
const MAX_TIME: Duration = Duration::from_secs(60);

/// Errors that a plugin can cause. Any other one is a defect of the host.
const EXPECTED: [&str; 6] =
    ["plugin.failed", "plugin.protocol", "plugin.output", "plugin.state_full", "plugin.timer_loop", "plugin.start"];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn program(&mut self) -> Vec<u8> {
        let len = [0, 3, 12, 40][self.below(4)];
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn batch(&mut self, time: &mut i64) -> Batch {
        let mut batch = Batch::default();
        let topic = batch.topic_index("in");
        for offset in 0..1 + self.below(6) {
            *time += [0, 0, 1, 5, 60, -20][self.below(6)];
            let mut record = batch.record();
            record.timestamp((*time).max(-1)).read_from(topic, 3, offset as i64).key(b"k").value(&self.program());
            record.header("h", Some(b"v"));
            record.finish();
        }
        batch
    }
}

fn limits() -> Limits {
    Limits {
        memory: 16 << 20,
        timeout: Duration::from_millis(500),
        output_bytes: 64 << 10,
        chained_timers: 50,
        crashes_per_minute: usize::MAX,
        ..Limits::default()
    }
}

type Entries = BTreeMap<Vec<u8>, (Vec<u8>, Option<i64>)>;

fn contents(store: &StateStore) -> (Entries, Option<i64>) {
    let entries = store.entries().map(|(key, entry)| (key.to_vec(), (entry.value.to_vec(), entry.expires_at)));
    (entries.collect(), store.time())
}

/// A sum over all parts of all records: a position out of range panics.
fn read_all(batch: &Batch) -> u64 {
    let mut hasher = std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default().build_hasher();
    for record in batch.iter() {
        hasher.write(record.key().unwrap_or_default());
        hasher.write(record.value().unwrap_or_default());
        record.headers().for_each(|(name, value)| hasher.write(&[name.as_bytes(), value.unwrap_or_default()].concat()));
        hasher.write(record.topic().as_bytes());
    }
    hasher.finish()
}

/// Runs some batches of one seed. Returns the outcomes that occurred.
fn try_seed(seed: u64, instance: &mut Instance) -> HashSet<String> {
    let mut random = Random(seed);
    let (mut store, mut time, mut seen) = (StateStore::new(MAX_STATE), 0, HashSet::new());
    for _ in 0..4 {
        let mut batch = random.batch(&mut time);
        let (before, records, count) = (contents(&store), read_all(&batch), batch.len() as u64);
        let mut rejected = Rejections::default();
        let outcome = match random.below(6) {
            0 => {
                let (mut out, to) = (Batch::default(), time + 30);
                let outcome = instance.advance_time(to, "in", 3, &mut out, &mut rejected, &mut store);
                outcome.map(|counts| (counts, 0, out))
            }
            _ => instance
                .process_with_state(&mut batch, &mut rejected, &mut store)
                .map(|counts| (counts, count, batch.clone())),
        };
        match outcome {
            Ok((counts, records_in, out)) => {
                assert_conserved(counts, &out, &rejected);
                assert_eq!(counts.records_in, records_in);
                read_all(&out);
                read_all(&rejected.records);
                seen.extend(rejected.reasons.iter().map(|reason| reason.code.clone()));
                seen.extend((counts.extra > 0).then(|| "extra".to_owned()));
            }
            Err(error) => {
                assert!(EXPECTED.contains(&error.code), "{error}");
                assert_eq!(contents(&store), before, "{error}");
                assert_eq!((read_all(&batch), rejected.len()), (records, 0), "{error}");
                seen.insert(error.code.to_owned());
            }
        }
        assert!(store.bytes() <= MAX_STATE);
        match random.below(3) {
            0 => store.abort(),
            _ => store.commit(),
        }
    }
    seen
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn hostile_plugin_costs_dead_letters_or_a_stopped_stage() {
    let seconds = Duration::from_secs(number("TRUNKLINE_FUZZ_SECONDS", 2));
    let first = number("TRUNKLINE_FUZZ_SEED", u64::from(std::process::id()) << 32);
    let (sender, seeds) = channel();
    // A separate thread, so that an endless loop can be reported.
    let trying = std::thread::spawn(move || {
        let mut instance = hostile_plugin().start(&serde_json::json!({}), &limits()).unwrap();
        let (begun, mut seen, mut seed) = (Instant::now(), HashSet::new(), first);
        while begun.elapsed() < seconds || seed == first {
            sender.send(seed).unwrap();
            seen.extend(try_seed(seed, &mut instance));
            seed = seed.wrapping_add(1);
        }
        (seen, seed.wrapping_sub(first))
    });
    let mut last = first;
    loop {
        match seeds.recv_timeout(MAX_TIME) {
            Ok(seed) => last = seed,
            Err(RecvTimeoutError::Timeout) => panic!("more than {MAX_TIME:?}: TRUNKLINE_FUZZ_SEED={last} repeats it"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let (seen, count) = trying.join().unwrap_or_else(|_| panic!("TRUNKLINE_FUZZ_SEED={last} repeats it"));
    println!("{count} seeds from {first} on: {seen:?}");
    // The test itself must reach the code: with this many seeds, each of these has occurred.
    if count >= 200 {
        for code in ["plugin.trap", "plugin.protocol", "plugin.failed", "extra"] {
            assert!(seen.contains(code), "{code} has not occurred in {count} seeds: {seen:?}");
        }
    }
}
