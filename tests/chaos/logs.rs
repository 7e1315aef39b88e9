//! Logs as the input of a pipeline, and the checks of their lines at the destination.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use trunkline_tests::{KafkaClient, LogWriter, Random, Reader};

use crate::feed::published;

/// The lines of the `n`-th log are numbered from `n` times this.
const LOG: u64 = 1_000_000_000;

pub(crate) const SOURCE: &str = r#"
[sources.web]
connector = "logfile"
paths = ["$DIR/logs/*.log*"]
parser = "combined"
"#;

/// A transform with state: each line gets the line before it in its log. The state is checked with
/// [`check_previous`].
pub(crate) const PREVIOUS: &str = r#"plugin = "previous.wasm"
config = { expression = "string(int(decimal(row.path.substring(6)) / 1000000000))", into = "previous", take = ["path"] }
"#;

/// A transform with timers: they close windows of event time. The output is checked with
/// [`check_windows`]. The lines of each log are 250 ms apart, and all logs begin at `$BASE`: Kafka
/// would soon delete results that are as old as the times in the lines.
const WINDOWS: &str = r#"
[transforms.number]
inputs = ["clean"]
plugin = "project.wasm"
config = { compute = { at = "decimal(row.path.substring(6)) % 1000000000 * 250 + $BASE" } }

[transforms.clock]
inputs = ["number"]
plugin = "timestamp.wasm"
config = { field = "at", from = "unix_ms", set_timestamp = true }

[transforms.windows]
inputs = ["clock"]
plugin = "aggregate.wasm"
config = { group_by = ["method"], window = "10s", lateness = "20s", late = "port", aggregates = { n = "count()", sum = "sum(decimal(row.path.substring(6)))" } }
topic = "$NAME.windows"
"#;

/// The number of lines of a window, and the sum of their numbers.
type Sums = (u64, u64);

/// By end and method.
type Windows = BTreeMap<(u64, String), Sums>;

/// The size of these windows.
const WINDOW_MS: u64 = 10_000;
/// How late a line may be.
const LATENESS_MS: u64 = 20_000;
/// The time between two lines of a log.
const LINE_MS: u64 = 250;

/// The event time of the first line of each log: a day before the start of this program.
fn base() -> u64 {
    static BASE: OnceLock<u64> = OnceLock::new();
    *BASE.get_or_init(|| UNIX_EPOCH.elapsed().unwrap().as_millis() as u64 - 86_400_000)
}

/// The section of the transform [`WINDOWS`].
pub(crate) fn windows() -> String {
    WINDOWS.replace("$BASE", &base().to_string())
}

/// Options of the plugin `transforms/plugins/testing`: each applies to lines whose path has this
/// ending.
const POISON: &str = r#"{ trap_on = '051","protocol"', loop_on = '/item/1000000333",', flood_on = '7701","protocol', bomb_on = '8802","protocol' }"#;

fn is_poison(line: u64) -> bool {
    // Line 51 of the first log ends with "/51", not with "051".
    line % 1_000 == 51 && line > 51 || line == LOG + 333 || line % 10_000 == 7_701 || line % 10_000 == 8_802
}

/// Options of a transform that gives the lines whose number ends with 51 a text that the stand-in
/// of a warehouse refuses in place of `$TEXT`.
const REFUSED: &str =
    "plugin = \"project.wasm\"\nconfig = { compute = { note = \"row.path.endsWith('51') ? '$TEXT' : 'fine'\" } }\n";

fn is_refused(line: u64) -> bool {
    line % 100 == 51
}

/// The logs of one run.
pub(crate) struct Logs {
    folder: PathBuf,
    /// The folder of the links to the logs, if the source does not see the logs themselves.
    links: Option<PathBuf>,
    /// Each of them.
    pub all: Vec<LogWriter>,
    poison: bool,
    refuses: bool,
    counted: HashMap<PathBuf, u64>,
}

impl Logs {
    /// Three logs, empty: in `folder`, or (`linked`) next to it, with links to them in `folder`.
    pub(crate) fn new(folder: PathBuf, linked: bool, random: &mut Random) -> Self {
        let (folder, links) = match linked {
            true => (folder.with_file_name("real-logs"), Some(folder)),
            false => (folder, None),
        };
        std::fs::create_dir_all(&folder).unwrap();
        let mut this = Self { folder, links, all: Vec::new(), poison: false, refuses: false, counted: HashMap::new() };
        (0..3).for_each(|_| this.add(random));
        this
    }

    /// Adds an empty log.
    pub(crate) fn add(&mut self, random: &mut Random) {
        let number = self.all.len() as u64;
        let path = self.folder.join(format!("{number}.log"));
        if let Some(links) = &self.links {
            let target = PathBuf::from("../real-logs").join(format!("{number}.log"));
            std::os::unix::fs::symlink(target, links.join(format!("{number}.log"))).unwrap();
        }
        self.all.push(LogWriter::starting_at(path, random.number(), number * LOG));
    }

    pub(crate) fn append(&mut self, lines: u64) -> u64 {
        self.all.iter_mut().for_each(|log| log.append(lines));
        lines * self.all.len() as u64
    }

    pub(crate) fn poison(&mut self) -> &'static str {
        self.poison = true;
        POISON
    }

    pub(crate) fn refuse(&mut self, text: &str) -> String {
        self.refuses = true;
        REFUSED.replace("$TEXT", text)
    }

    pub(crate) fn lines(&self) -> u64 {
        self.all.iter().map(LogWriter::lines).sum()
    }

    /// The numbers of the lines that have been written.
    fn numbers(&self) -> impl Iterator<Item = u64> {
        let logs = self.all.iter().enumerate();
        logs.flat_map(|(n, log)| (0..log.lines()).map(move |line| n as u64 * LOG + line))
    }

    pub(crate) fn poisoned(&self) -> u64 {
        if self.poison { self.numbers().filter(|line| is_poison(*line)).count() as u64 } else { 0 }
    }

    pub(crate) fn refused(&self) -> u64 {
        if self.refuses { self.numbers().filter(|line| is_refused(*line)).count() as u64 } else { 0 }
    }

    /// Checks that each poison line and each refused line is a dead letter, once.
    pub(crate) fn check_dead(&self, client: &KafkaClient, topic: &str) {
        if !self.refuses {
            assert_eq!(client.count(topic), self.poisoned(), "dead letters");
            return;
        }
        let of = |letter: &trunkline_tests::Record| {
            let reason = letter.header("__connect.errors.exception.class.name");
            assert_eq!(reason, "warehouse.row_refused", "the reason of a dead letter");
            number_of(&letter.json())
        };
        let mut found: Vec<u64> = client.read(topic).iter().map(of).collect();
        found.sort_unstable();
        let expected: Vec<u64> = self.numbers().filter(|line| is_refused(*line)).collect();
        assert_same("numbers of the lines in the dead letters", &found, &expected);
    }

    /// The rows of the published objects, by their footers.
    pub(crate) fn arrived(&mut self, lake: &Path) -> u64 {
        let mut rows = 0;
        for path in published(lake) {
            rows += self.counted.get(&path).copied().unwrap_or_else(|| {
                // An object that the server is still writing is unreadable, and is counted later.
                let Some(rows) = footer_rows(&path) else { return 0 };
                self.counted.insert(path, rows);
                rows
            });
        }
        rows
    }

    /// Checks that the topic has each line once, and the lines of each log in order.
    pub(crate) fn check_topic(&self, client: &KafkaClient, topic: &str) -> u64 {
        let count = check_order(client, topic);
        assert_eq!(count, self.lines(), "records in {topic}");
        count
    }

    pub(crate) fn check_lake(&self, reader: &Reader, lake: &Path, records: u64) {
        let (lines, dead) = (self.lines(), self.poisoned());
        let found = reader.read_in_order(lake, "path", &["bytes"]);
        assert_eq!(
            (found.rows, found.distinct),
            (records, Some(records)),
            "rows and distinct lines in the lake, of {lines} written, {dead} of them dead letters"
        );
        let bytes: i64 = self.all.iter().map(LogWriter::bytes).sum();
        assert!(dead > 0 || found.sums["bytes"] == bytes, "sum of bytes: {}, not {bytes}", found.sums["bytes"]);
        assert!(found.out_of_order.is_empty(), "out of order (I5): {:?}", found.out_of_order);
    }
}

/// The number of a line.
fn number_of(line: &Value) -> u64 {
    line["path"].as_str().unwrap().rsplit('/').next().unwrap().parse().unwrap()
}

/// Checks that a topic has the lines of each log in order; returns their number.
pub(crate) fn check_order(client: &KafkaClient, topic: &str) -> u64 {
    let (mut count, mut last) = (0, BTreeMap::new());
    for record in client.read(topic) {
        let value = record.json();
        let number = number_of(&value);
        let before = last.insert((record.partition, number / LOG), number);
        assert!(before.is_none_or(|before| before < number), "{topic}: {number} after {before:?} (I5)");
        count += 1;
    }
    count
}

/// Checks the state of the transform [`PREVIOUS`]: each line has the line before it in its log.
pub(crate) fn check_previous(client: &KafkaClient, topic: &str) {
    let mut last: BTreeMap<(i32, u64), String> = BTreeMap::new();
    for record in client.read(topic) {
        let value = record.json();
        let path = value["path"].as_str().unwrap();
        let number: u64 = path.rsplit('/').next().unwrap().parse().unwrap();
        let before = last.insert((record.partition, number / LOG), path.to_owned());
        assert_eq!(value["previous"]["path"].as_str(), before.as_deref(), "{topic}: the state at {path}");
    }
}

/// Checks the output of the transform [`WINDOWS`]: each window that a later line has closed has one
/// result, and each late line is in its own topic. The truth needs no timers: it reads the lines of
/// each partition in order, and looks afterwards which windows are closed.
pub(crate) fn check_windows(client: &KafkaClient, name: &str) -> (u64, u64) {
    let mut late = Vec::new();
    let mut partitions: BTreeMap<i32, (u64, Windows)> = BTreeMap::new();
    for record in client.read(&format!("{name}.clean")) {
        let value = record.json();
        let path = value["path"].as_str().unwrap();
        let number: u64 = path.rsplit('/').next().unwrap().parse().unwrap();
        let (time, (now, windows)) = (base() + number % LOG * LINE_MS, partitions.entry(record.partition).or_default());
        let end = time - time % WINDOW_MS + WINDOW_MS;
        *now = time.max(*now);
        if end + LATENESS_MS <= *now {
            late.push(path.to_owned());
            continue;
        }
        let window = windows.entry((end, value["method"].as_str().unwrap().to_owned())).or_default();
        *window = (window.0 + 1, window.1 + number);
    }
    let closed = partitions.into_values().flat_map(|(now, windows)| {
        windows
            .into_iter()
            .filter(move |((end, _), _)| *end + LATENESS_MS <= now)
            .map(|((end, method), sums)| (end, method, sums))
    });
    let mut expected: Vec<(u64, String, Sums)> = closed.collect();
    expected.sort();
    let output = client.read(&format!("{name}.windows"));
    let mut found: Vec<(u64, String, Sums)> = output
        .iter()
        .map(|record| {
            let value = record.json();
            let number = |name: &str| value[name].as_u64().unwrap();
            (number("window_end"), value["method"].as_str().unwrap().to_owned(), (number("n"), number("sum")))
        })
        .collect();
    found.sort();
    assert!(expected.len() > 10, "{} windows", expected.len());
    assert_same("windows: end, method, (lines, sum of their numbers)", &found, &expected);
    let mut found_late: Vec<String> = match client.has_topic(&format!("{name}.windows.late")) {
        true => {
            let records = client.read(&format!("{name}.windows.late"));
            records.iter().map(|record| record.json()["path"].as_str().unwrap().to_owned()).collect()
        }
        false => Vec::new(),
    };
    found_late.sort();
    late.sort();
    assert_same("late lines", &found_late, &late);
    (expected.len() as u64, late.len() as u64)
}

/// Shows the first difference of two long lists.
fn assert_same<T: PartialEq + std::fmt::Debug>(what: &str, found: &[T], expected: &[T]) {
    let first = found.iter().zip(expected).position(|(found, expected)| found != expected);
    let first = first.unwrap_or(found.len().min(expected.len()));
    let (found_one, expected_one) = (found.get(first), expected.get(first));
    let (found, expected) = (found.len(), expected.len());
    assert!(
        found_one.is_none() && expected_one.is_none(),
        "{what}: {found} found, {expected} expected; at {first}: {found_one:?}, not {expected_one:?}"
    );
}

fn footer_rows(path: &Path) -> Option<u64> {
    let reader = SerializedFileReader::new(File::open(path).ok()?).ok()?;
    u64::try_from(reader.metadata().file_metadata().num_rows()).ok()
}
