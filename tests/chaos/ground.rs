//! The ground of one run: a pipeline on its servers, the logs that feed it, and what was counted.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parquet::file::reader::{FileReader, SerializedFileReader};
use trunkline_tests::{Case, Exit, LogWriter, Random, Reader, S3, S3Faults, Skip, Worker, wait};

use crate::broker::ChaosBroker;
use crate::faults::Mounted;
use crate::plan::{Broker, Path, Plan};

/// More than anything that is waited for should take, on a machine that is busy with other things.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// The same for everything that is to arrive after a fault, while some of it does.
const MOST_RECOVERY: Duration = Duration::from_secs(600);

/// Lines of the `n`-th log are numbered from `n` times this.
pub(crate) const LOG: u64 = 1_000_000_000;

/// The most memory that a worker may have resident: its budget of 256 MiB, code, and what plugins and unoptimised code add.
const MOST_RSS: u64 = 450 << 20;

const SOURCE: &str = r#"
name = "$NAME"

[sources.web]
connector = "logfile"
paths = ["$DIR/logs/*.log*"]
parser = "combined"

[transforms.clean]
inputs = ["web"]
"#;

const MASK: &str = r#"plugin = "mask.wasm"
config = { fields = ["remote_addr"] }
"#;

// Files are closed early, so that there are many of them, and many moments in which to be killed.
const SINK: &str = r#"
[sinks.lake]
connector = "s3"
inputs = ["clean"]
rotate = { records = 2_000, age = "2s", idle = "300ms" }
"#;

/// What was done in a run, and how it went.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    /// Workers and brokers that were killed.
    pub kills: u64,
    /// Other faults that happened.
    pub faults: u64,
    /// Lines that were written.
    pub records: u64,
    /// From the end of each fault until everything written was at the destination.
    pub recoveries: Vec<Duration>,
    /// The most memory that any worker had resident.
    pub peak_rss: u64,
}

impl Tally {
    /// Adds another run's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.faults += other.faults;
        self.records += other.records;
        self.recoveries.extend(&other.recoveries);
        self.peak_rss = self.peak_rss.max(other.peak_rss);
    }
}

/// See the module's header.
pub(crate) struct Ground<'a> {
    /// What is run.
    pub plan: Plan,
    /// All chance comes from here.
    pub random: Random,
    /// What is counted.
    pub tally: &'a mut Tally,
    /// The broker.
    pub broker: &'a mut ChaosBroker,
    /// A small disk that the run is on. It goes before the folder does that it lies in.
    pub mounted: Option<Mounted>,
    /// Folder, names, workers.
    pub case: Case,
    /// A proxy before the object store, if the path ends in a bucket.
    pub store: Option<S3Faults>,
    /// Where objects are plain files.
    pub lake: PathBuf,
    /// All of a bucket, with what is hidden in it.
    pub bucket: PathBuf,
    /// The logs.
    pub logs: Vec<LogWriter>,
    /// Does this line go to the dead letters?
    pub bad: fn(u64) -> bool,
    /// The most memory that a worker may have.
    pub most_rss: u64,
    reader: Reader,
    counted: HashMap<PathBuf, u64>,
}

impl<'a> Ground<'a> {
    /// A new one, without a worker. The folder has been made: the broker may lie in it.
    pub(crate) fn new(
        plan: Plan,
        case: Case,
        broker: &'a mut ChaosBroker,
        s3: &S3,
        tally: &'a mut Tally,
    ) -> Result<Self, Skip> {
        let random = Random::new(plan.seed ^ hash(&plan.label()));
        let mut this = Self {
            plan,
            random,
            tally,
            broker,
            store: None,
            lake: case.path("lake"),
            bucket: case.path("lake"),
            logs: Vec::new(),
            bad: |_| false,
            most_rss: MOST_RSS,
            mounted: None,
            reader: Reader::find()?,
            counted: HashMap::new(),
            case,
        };
        this.case.set("TRUNKLINE_TOPICS_PARTITIONS", "3");
        if let Ok(filter) = std::env::var("CHAOS_LOG") {
            this.case.set("TRUNKLINE_LOG", &filter);
        }
        if plan.short {
            // The least that brokers allow: who takes over from a dead worker waits for this.
            this.case.set("TRUNKLINE_KAFKA_SESSION_TIMEOUT_MS", "6000");
        }
        if plan.path == Path::Bucket {
            let name = this.case.name().to_owned();
            this.bucket = s3.bucket(&name);
            this.lake = this.bucket.join("logs");
            this.store = Some(S3Faults::start(&s3.address()));
        }
        this.pipeline(MASK);
        (0..3).for_each(|_| this.add_log());
        Ok(this)
    }

    /// Writes the pipeline file, with this plugin in its transform.
    pub(crate) fn pipeline(&self, plugin: &str) {
        let (materialised, destination) = match &self.store {
            None => ("topic = \"$NAME.clean\"\n".to_owned(), "url = \"file://$DIR/lake\"\n".to_owned()),
            Some(store) => (
                String::new(),
                format!(
                    "url = \"s3://$NAME/logs\"\nendpoint = \"http://{}\"\nregion = \"{}\"\npath_style = true\n",
                    store.address(),
                    S3::REGION
                ),
            ),
        };
        self.case.pipeline("access", &[SOURCE, plugin, &materialised, SINK, &destination].concat());
    }

    /// One more log, empty.
    pub(crate) fn add_log(&mut self) {
        let number = self.logs.len() as u64;
        let path = self.case.path("logs").join(format!("{number}.log"));
        self.logs.push(LogWriter::starting_at(path, self.random.number(), number * LOG));
    }

    /// Appends so many lines to each log.
    pub(crate) fn append(&mut self, lines: u64) {
        for log in &mut self.logs {
            log.append(lines);
            self.tally.records += lines;
        }
    }

    /// Lines written.
    pub(crate) fn lines(&self) -> u64 {
        self.logs.iter().map(LogWriter::lines).sum()
    }

    /// Lines that end in the dead letters.
    pub(crate) fn dead(&self) -> u64 {
        let logs = self.logs.iter().enumerate();
        logs.map(|(n, log)| (0..log.lines()).filter(|line| (self.bad)(n as u64 * LOG + line)).count() as u64).sum()
    }

    /// A seeded moment below `limit`.
    pub(crate) fn moment(&mut self, limit: Duration) -> Duration {
        Duration::from_millis(self.random.below(limit.as_millis() as u64))
    }

    /// Starts a worker with failpoints.
    pub(crate) fn start_with(&self, worker: &str, failpoints: &str) -> Worker {
        self.case.start_with(worker, &[], &[("TRUNKLINE_FAILPOINTS", failpoints)])
    }

    /// Starts a worker.
    pub(crate) fn start(&self, worker: &str) -> Worker {
        self.case.start(worker, &[])
    }

    /// Kills a worker that must still run.
    pub(crate) fn kill(&mut self, worker: Worker) {
        let exit = worker.kill9();
        assert_eq!(exit.signal, Some(libc::SIGKILL), "it ended by itself: {}", exit.describe());
        self.tally.kills += 1;
        self.ended(&exit);
    }

    /// Asks a worker to stop, which must end well.
    pub(crate) fn stop(&mut self, mut worker: Worker) {
        // Before that it may not have come so far as to listen.
        wait::within(LONG / 8, || worker.stderr().contains("claimed").then_some(()));
        worker.sigterm();
        wait::within(LONG, || {
            let runs = worker.runs();
            wake(&mut worker);
            (!runs).then_some(())
        });
        let exit = worker.wait(Duration::ZERO);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        self.ended(&exit);
    }

    /// Takes down what a process used.
    pub(crate) fn ended(&mut self, exit: &Exit) {
        self.tally.peak_rss = self.tally.peak_rss.max(exit.peak_rss);
        let (used, most) = (exit.peak_rss >> 20, self.most_rss >> 20);
        assert!(used <= most, "memory: {used} MiB resident, at most {most} expected: {}", exit.describe());
    }

    /// Rows in published objects, by their footers: how far things are. What they are is for the independent reader to say.
    pub(crate) fn rows(&mut self) -> u64 {
        let mut folders = vec![self.lake.clone()];
        let mut rows = 0;
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                if name.starts_with('.') {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if name.ends_with(".parquet") {
                    rows += self.counted.get(&path).copied().unwrap_or_else(|| {
                        // Unreadable: a server that is still writing it. It counts at the next look.
                        let Some(rows) = footer_rows(&path) else { return 0 };
                        self.counted.insert(path, rows);
                        rows
                    });
                }
            }
        }
        rows
    }

    /// Waits until everything that was written is at the destination, and notes how long after `since` that was.
    pub(crate) fn recover(&mut self, since: Instant, workers: &mut [&mut Worker]) {
        let expected = self.lines() - self.dead();
        let mut progress = (0, Instant::now());
        // A slow machine is no failure as long as something arrives.
        let arrived = wait::within(MOST_RECOVERY, || {
            let rows = self.rows();
            assert!(rows <= expected, "{rows} rows of {expected} lines: some came twice");
            if rows > progress.0 {
                progress = (rows, Instant::now());
            }
            workers.iter_mut().for_each(|worker| wake(worker));
            (rows == expected || progress.1.elapsed() > LONG).then_some(())
        });
        if arrived.is_none() || progress.0 < expected {
            let said = workers.iter().map(|worker| worker.stderr()).map(|text| last_lines(&text, 20));
            let said = said.collect::<Vec<_>>().join("\n---\n");
            let (rows, still) = (progress.0, progress.1.elapsed());
            panic!("there are {rows} rows of {expected} lines, and none came for {still:?}; the workers said:\n{said}");
        }
        self.tally.recoveries.push(since.elapsed());
        for worker in workers {
            assert!(worker.runs(), "a worker ended by itself:\n{}", last_lines(&worker.stderr(), 30));
        }
    }

    /// Runs a worker until it is idle, and checks everything there is to check at the destination. See `tests/README.md`.
    pub(crate) fn finish(mut self) {
        let limit = LONG * 2;
        let exit = self.case.start("a", &["--until-idle", "--json"]).wait(limit);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        self.ended(&exit);
        let (lines, dead) = (self.lines(), self.dead());

        let summary = exit.summary();
        let name = self.case.name().to_owned();
        let of = |component: &str| {
            let counters = summary.of(&name, component);
            (counters.input, counters.output, counters.dead_lettered)
        };
        assert_eq!(of("web"), (lines, lines, 0), "web: in, out, dead-lettered");
        assert_eq!(of("clean"), (lines, lines - dead, dead), "clean: in, out, dead-lettered");
        assert_eq!(of("lake"), (lines - dead, lines - dead, 0), "lake: in, out, dead-lettered");

        let found = self.reader.read_in_order(&self.lake, "path", &["bytes"]);
        assert_eq!(
            (found.rows, found.distinct),
            (lines - dead, Some(lines - dead)),
            "rows and different lines in the lake, of {lines} written, {dead} of them dead letters"
        );
        let bytes: i64 = self.logs.iter().map(LogWriter::bytes).sum();
        assert!(dead > 0 || found.sums["bytes"] == bytes, "bytes: {} and not {bytes}", found.sums["bytes"]);
        assert!(found.disordered.is_empty(), "out of order (I5): {:?}", found.disordered);

        self.check_topic(&format!("{name}.web"), lines);
        if self.plan.path == Path::Topics {
            self.check_topic(&format!("{name}.clean"), lines - dead);
        }
        assert_eq!(self.broker.client().count(&format!("{name}.dead-letters")), dead, "dead letters");
        // One that was killed and never came back left in its scratch folder what it was writing: coming back clears it away.
        for worker in self.killed_for_good() {
            let exit = self.case.start(&worker, &["--until-idle"]).wait(limit);
            assert_eq!(exit.code, Some(0), "{}", exit.describe());
        }
        let left = self.leftovers();
        assert!(left.is_empty(), "uploads or temporary files are left over: {left:?}");
        // It lies in the folder that goes now.
        if self.plan.broker == Broker::Embedded {
            self.broker.stop();
        }
    }

    /// Each line once, and the lines of each log in their order.
    fn check_topic(&self, topic: &str, lines: u64) {
        let (mut count, mut last) = (0, BTreeMap::new());
        for record in self.broker.client().read(topic) {
            let value = record.json();
            let number: u64 = value["path"].as_str().unwrap().rsplit('/').next().unwrap().parse().unwrap();
            let before = last.insert((record.partition, number / LOG), number);
            assert!(before.is_none_or(|before| before < number), "{topic}: {number} after {before:?} (I5)");
            count += 1;
        }
        assert_eq!(count, lines, "records in {topic}");
    }

    /// Workers whose scratch folders hold files.
    fn killed_for_good(&self) -> Vec<String> {
        let folders = fs::read_dir(self.case.path("")).unwrap().flatten();
        let workers = folders
            .filter_map(|entry| Some((entry.file_name().to_str()?.strip_prefix("data-")?.to_owned(), entry.path())));
        let left = workers.filter(|(_, path)| !files_left(vec![path.join("scratch")]).is_empty());
        left.map(|(worker, _)| worker).collect()
    }

    /// Files that should not be there any more: hidden ones at the destination, uploads that nobody completes, scratch files.
    fn leftovers(&self) -> Vec<PathBuf> {
        let workers = fs::read_dir(self.case.path("")).unwrap().flatten().map(|entry| entry.path().join("scratch"));
        files_left(workers.chain([self.bucket.clone()]).collect())
    }
}

/// All files in these folders but published ones.
fn files_left(mut folders: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|extension| extension != "parquet") {
                found.push(path);
            }
        }
    }
    found
}

/// Lets a worker go on that has stopped at a step: on a slow machine the step at which it was to stop may come when it is over.
fn wake(worker: &mut Worker) {
    if worker.is_stopped() {
        worker.sigcont();
    }
}

/// The last lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines = text.lines().collect::<Vec<_>>();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn footer_rows(path: &std::path::Path) -> Option<u64> {
    let reader = SerializedFileReader::new(File::open(path).ok()?).ok()?;
    u64::try_from(reader.metadata().file_metadata().num_rows()).ok()
}

/// FNV-1a: the same label is the same chance on every machine.
fn hash(label: &str) -> u64 {
    label.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
