//! Feeds recorded binlogs with random changes to everything that reads them: packets, events,
//! compressed transactions, table maps, rows, JSON, and the follower. The result must be records or
//! an error, never a panic, an endless loop, or an allocation for bytes that do not exist.
//!
//! `TRUNKLINE_FUZZ_SECONDS=60 TRUNKLINE_FUZZ_SEED=7 cargo test --workspace --lib -- --nocapture
//! fuzz`; 2 s by default. A failure prints the seed that repeats it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::conformance::configure_source;
use trunkline_connector::{Error, SourceBatch, SourceConnector, SourceSpec};

use crate::binlog::follower::Follower;
use crate::config::MysqlOptions;
use crate::connection::dialect::ServerFlavor;
use crate::connection::protocol::packet::tests::block_on;
use crate::connection::server_info::ServerInfo;
use crate::gtid::{Domains, GtidSet, UuidSet};
use crate::position::StreamPosition;
use crate::replication::ReplicationError;
use crate::replication::event_frame::Header;
use crate::replication::event_stream::tests::{connection, events_of, packet_of};
use crate::schema::charset::{Charset, Charsets};
use crate::snapshot::tracker::SnapshotTracker;

/// The maximum time per binlog, far above the usual one.
const MAX_TIME: Duration = Duration::from_secs(5);
/// The maximum growth of memory.
const MAX_MEMORY: u64 = 512 << 20;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// The binlog of a server, as encoded events without checksums.
struct Recorded {
    flavor: ServerFlavor,
    events: Vec<Vec<u8>>,
}

fn recorded(flavor: ServerFlavor, file: &[u8]) -> Recorded {
    const MAGIC: usize = 4;
    const CHECKSUM: usize = 4;
    let mut rest = &file[MAGIC..];
    let mut events = Vec::new();
    while !rest.is_empty() {
        let size = u32::from_le_bytes(rest[9..13].try_into().unwrap()) as usize;
        events.push(rest[..size - CHECKSUM].to_vec());
        rest = &rest[size..];
    }
    Recorded { flavor, events }
}

/// Captures the options of a pipeline file.
#[derive(Default)]
struct Capture(Mutex<Option<MysqlOptions>>);

impl SourceConnector for Capture {
    fn name(&self) -> &'static str {
        "mysql"
    }

    fn summary(&self) -> &'static str {
        "Captures the options of a pipeline file for the fuzz tests"
    }

    fn options(&self) -> &'static [OptionSpec] {
        crate::config::OPTIONS
    }

    fn configure(&self, section: &Section<'_>) -> Option<Box<dyn SourceSpec>> {
        *self.0.lock().unwrap() = MysqlOptions::read(section);
        None
    }
}

/// The options of a user `u` with the password `p`.
pub(crate) fn options() -> Arc<MysqlOptions> {
    options_with("")
}

fn options_with(more: &str) -> Arc<MysqlOptions> {
    let capture = Capture::default();
    configure_source(&capture, &format!("url = \"mysql://u:p@h\"\ntables = [\"*.*\"]\n{more}"), Path::new("/"));
    Arc::new(capture.0.into_inner().unwrap().unwrap())
}

fn charsets() -> Arc<Charsets> {
    let names = ["utf8mb4", "utf16", "sjis", "utf32", "gbk"];
    let mut charsets: Vec<Charset> = names.iter().map(|name| Charset::multi_byte(name).unwrap()).collect();
    charsets.extend(Charset::single_byte("latin1", (0..=255u8).map(char::from).collect()));
    let named = |id: u64| match id {
        8 => "latin1",
        13 => "sjis",
        54 | 101 => "utf16",
        28 => "gbk",
        60 => "utf32",
        _ => "utf8mb4",
    };
    let collations = (1..4000).filter(|id| *id != 63).map(|id| (id, named(id).to_owned())).collect();
    Arc::new(Charsets::new(charsets, collations))
}

struct Fixture {
    options: Arc<MysqlOptions>,
    charsets: Arc<Charsets>,
}

/// The result of reading a connection.
#[derive(Default)]
struct Reading {
    records: usize,
    /// The bytes that were rejected.
    rejected: Vec<Vec<u8>>,
    /// The error that stopped it before its end.
    error: Option<Error>,
    position: StreamPosition,
}

impl Fixture {
    /// Reads a connection. Returns the number of records, and whether it was read to its end.
    fn read(&self, flavor: ServerFlavor, connection: &[u8]) -> (usize, bool) {
        let reading = self.read_all(flavor, connection);
        (reading.records, reading.error.is_none())
    }

    fn read_all(&self, flavor: ServerFlavor, connection: &[u8]) -> Reading {
        let server = ServerInfo {
            charsets: Arc::clone(&self.charsets),
            flavor,
            server_id: 1,
            identity: String::new(),
            retention: None,
        };
        let processed = match flavor {
            ServerFlavor::MySqlWithoutGtids => None,
            ServerFlavor::MySql => Some(GtidSet::MySql(UuidSet::default())),
            ServerFlavor::MariaDb => Some(GtidSet::MariaDb(Domains::default())),
        };
        let position = StreamPosition { processed, ..StreamPosition::default() };
        let mut follower = Follower::new(Arc::clone(&self.options), server, position).unwrap();
        let mut tracker = SnapshotTracker::new(BTreeMap::new(), []);
        let mut reading = Reading::default();
        // The compressed transaction of the corpus is larger, so it is spooled.
        let mut events = events_of(connection, 300);
        block_on(async {
            loop {
                let mut out = SourceBatch::with_limits(1 << 20, 1000);
                let event = match events.next().await {
                    Ok(event) => event,
                    Err(ReplicationError::Closed) => {
                        reading.position = follower.position;
                        return reading;
                    }
                    Err(failure) => {
                        reading.error = Some(Error::external("fuzz.stream", format!("{failure:?}")));
                        return reading;
                    }
                };
                reading.error = follower.process(event, &mut out, &mut tracker).err();
                reading
                    .rejected
                    .extend(out.rejected.records.iter().filter_map(|record| record.value().map(<[u8]>::to_vec)));
                out.clear();
                if reading.error.is_some() {
                    return reading;
                }
                // Each call emits a row or is the last one.
                while follower.has_rows() {
                    let before = follower.position.clone();
                    reading.error = follower.emit_rows(&mut out, &mut tracker).err();
                    if reading.error.is_some() {
                        return reading;
                    }
                    assert!(!follower.has_rows() || follower.position != before, "rows are never emitted");
                    reading.records += out.records.len();
                    reading
                        .rejected
                        .extend(out.rejected.records.iter().filter_map(|record| record.value().map(<[u8]>::to_vec)));
                    out.clear();
                }
            }
        })
    }
}

/// The bytes of a connection that sends these events after the file's format description.
fn connection_of(file: &Recorded, events: &[Vec<u8>]) -> Vec<u8> {
    const CLOSED: [u8; 5] = [0xfe, 0, 0, 2, 0];
    let events = file.events.iter().take(1).chain(events);
    let packets: Vec<_> = events.map(|event| packet_of(event.clone(), true)).chain([CLOSED.to_vec()]).collect();
    connection(&packets)
}

/// Bytes at which encodings of lengths and counts change.
const EDGES: [u8; 10] = [0, 1, 0x7f, 0x80, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff];

fn mutate(random: &mut Random, events: &mut [Vec<u8>]) {
    for _ in 0..1 + random.below(3) {
        let (at, other) = (random.below(events.len()), random.below(events.len()));
        let donor = events[other].clone();
        let event = &mut events[at];
        // Of the header, only the type matters.
        let place =
            if random.below(12) == 0 { 4 } else { Header::LENGTH + random.below(event.len() - Header::LENGTH + 1) };
        match random.below(8) {
            0 => event.truncate(place.max(Header::LENGTH)),
            1 => {
                let end = (place + random.below(9)).min(event.len());
                event.drain(place.max(Header::LENGTH).min(end)..end);
            }
            2 => {
                let from = random.below(donor.len());
                let part = &donor[from..(from + 1 + random.below(40)).min(donor.len())];
                let place = place.clamp(Header::LENGTH, event.len());
                event.splice(place..place, part.iter().copied());
            }
            3 => {
                let part = &donor[Header::LENGTH..];
                event.truncate(place.max(Header::LENGTH));
                event.extend_from_slice(&part[random.below(part.len() + 1)..]);
            }
            kind => {
                for offset in 0..1 + random.below(4) {
                    if let Some(byte) = event.get_mut(place + offset) {
                        *byte = match kind {
                            4 => EDGES[random.below(EDGES.len())],
                            5 => *byte ^ 1 << random.below(8),
                            6 => byte.wrapping_add(1),
                            _ => random.next() as u8,
                        };
                    }
                }
            }
        }
    }
}

/// The peak resident memory of this process.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a whole number"))
}

/// Reads changed binlogs, starting with a seed. Sends each seed before its use.
fn try_seeds(first: u64, seconds: u64, seeds: &Sender<u64>) {
    let fixture = Fixture { options: options(), charsets: charsets() };
    let files = [
        recorded(ServerFlavor::MySql, include_bytes!("../tests/corpus/mysql.binlog")),
        recorded(ServerFlavor::MariaDb, include_bytes!("../tests/corpus/mariadb.binlog")),
    ];
    // Unchanged binlogs are read up to an event that the follower rejects, and to the end.
    let whole: Vec<_> =
        files.iter().map(|file| fixture.read(file.flavor, &connection_of(file, &file.events))).collect();
    assert!(whole[0].0 > 5 && whole[1].0 > 15 && whole[1].1, "{whole:?}");
    // Single transactions, because a change in a file hides everything after it.
    let begins = |event: &Vec<u8>| matches!(event[4], 33 | 34 | 42 | 162);
    let transactions: Vec<(&Recorded, &[Vec<u8>])> = files
        .iter()
        .flat_map(|file| file.events.chunk_by(|_, next| !begins(next)).map(move |part| (file, part)))
        .collect();
    let (begun, memory) = (Instant::now(), peak_memory());
    let (mut seed, mut refused) = (first, 0u64);
    while begun.elapsed() < Duration::from_secs(seconds) || seed == first {
        let mut random = Random(seed);
        let (file, events) = transactions[random.below(transactions.len())];
        let mut events = events.to_vec();
        // Usually checksums and frames match the changed event: otherwise no change would pass
        // them.
        let is_raw_change = random.below(8) == 0;
        if !is_raw_change {
            mutate(&mut random, &mut events);
        }
        let mut bytes = connection_of(file, &events);
        if is_raw_change {
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
        }
        seeds.send(seed).unwrap();
        let (_, whole) = fixture.read(file.flavor, &bytes);
        refused += u64::from(!whole);
        seed = seed.wrapping_add(1);
    }
    let grown = peak_memory().saturating_sub(memory);
    assert!(grown < MAX_MEMORY, "{} MiB; from TRUNKLINE_FUZZ_SEED={first} on", grown >> 20);
    eprintln!("{} binlogs from seed {first} on, {refused} refused, {} MiB", seed.wrapping_sub(first), grown >> 20);
}

#[test]
fn fuzz() {
    let seconds = number("TRUNKLINE_FUZZ_SECONDS", 2);
    let first = number("TRUNKLINE_FUZZ_SEED", u64::from(std::process::id()) << 32);
    let (sender, seeds) = channel();
    // A separate thread, so that an endless loop can be reported.
    let trying = std::thread::spawn(move || try_seeds(first, seconds, &sender));
    let mut last = first;
    loop {
        match seeds.recv_timeout(MAX_TIME) {
            Ok(seed) => last = seed,
            Err(RecvTimeoutError::Timeout) => panic!("more than {MAX_TIME:?}: TRUNKLINE_FUZZ_SEED={last} repeats it"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(trying.join().is_ok(), "TRUNKLINE_FUZZ_SEED={last} repeats it");
}

#[test]
fn a_compressed_transaction_that_cannot_be_unpacked_is_never_skipped() {
    const PAYLOAD: u8 = 40;
    let fixture = Fixture { options: options(), charsets: charsets() };
    let file = recorded(ServerFlavor::MySql, include_bytes!("../tests/corpus/mysql.binlog"));
    let at = file.events.iter().position(|event| event[4] == PAYLOAD).unwrap();
    let whole = &file.events[at - 1..=at + 1];
    assert_eq!(fixture.read(ServerFlavor::MySql, &connection_of(&file, whole)), (1, true));
    for cut in Header::LENGTH..whole[1].len() {
        let mut events = whole.to_vec();
        events[1].truncate(cut);
        assert_eq!(fixture.read(ServerFlavor::MySql, &connection_of(&file, &events)), (0, false), "{cut}");
    }
}

#[test]
fn rows_that_cannot_be_decoded_are_rejected_and_the_others_are_not() {
    const ROWS: [u8; 6] = [23, 24, 25, 30, 31, 32];
    let stops = Fixture { options: options(), charsets: charsets() };
    let rejects = Fixture { options: options_with("on_malformed = \"dead_letter\""), charsets: charsets() };
    let file = recorded(ServerFlavor::MariaDb, include_bytes!("../tests/corpus/mariadb.binlog"));
    let whole = rejects.read_all(file.flavor, &connection_of(&file, &file.events));
    assert!(whole.error.is_none() && whole.rejected.is_empty() && whole.records > 15);
    let (mut in_rows, mut in_events, mut in_xa) = (0, 0, std::collections::BTreeSet::new());
    for at in (0..file.events.len()).filter(|at| ROWS.contains(&file.events[*at][4])) {
        for place in Header::LENGTH..file.events[at].len() {
            let mut events = file.events.clone();
            events[at][place] = if events[at][place] == 0xff { 0 } else { 0xff };
            let connection = connection_of(&file, &events);
            let stopped = stops.read_all(file.flavor, &connection);
            let rejecting = rejects.read_all(file.flavor, &connection);
            let Some(error) = stopped.error.filter(|error| error.code == "mysql.malformed") else {
                assert!(rejecting.rejected.is_empty(), "{at}:{place}");
                continue;
            };
            let is_event = error.message().contains("a rows event near");
            // An event of an XA transaction that is not committed yet stops the source.
            if is_event && rejecting.error.as_ref().is_some_and(|other| other.message() == error.message()) {
                in_xa.insert(at);
                continue;
            }
            // The source reads to the end, and its position covers the rejected bytes.
            assert!(rejecting.error.is_none(), "{at}:{place}: {error}: {:?}", rejecting.error);
            assert_eq!(rejecting.position, whole.position, "{at}:{place}");
            let [bytes] = rejecting.rejected.as_slice() else { panic!("{at}:{place}: {}", rejecting.rejected.len()) };
            assert!(!bytes.is_empty() && events[at].windows(bytes.len()).any(|part| part == bytes), "{at}:{place}");
            assert!(rejecting.records >= stopped.records, "{at}:{place}");
            in_rows += usize::from(error.message().contains("a row near"));
            in_events += usize::from(is_event);
        }
    }
    assert!(in_rows > 20 && in_events > 20 && in_xa.len() <= 2, "{in_rows} {in_events} {in_xa:?}");
}
