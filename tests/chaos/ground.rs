//! The ground of one run: a pipeline on its servers, what feeds it, and what was counted.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use trunkline_tests::{Case, Exit, Mysql, Random, Reader, S3, S3Faults, Skip, Worker, wait};

use crate::broker::ChaosBroker;
use crate::faults::Mounted;
use crate::feed::Feed;
use crate::logs::{Logs, check_order};
use crate::plan::{Broker, Path, Plan};
use crate::tables::Tables;

/// More than anything that is waited for should take, on a machine that is busy with other things.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// The same for everything that is to arrive after a fault, while some of it does.
const MOST_RECOVERY: Duration = Duration::from_secs(600);

/// The most memory that a worker may have resident: its budget of 256 MiB, code, and what plugins and unoptimised code add.
const MOST_RSS: u64 = 450 << 20;

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
    /// Lines that were written, or changes of rows.
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
    /// What feeds the pipeline.
    pub feed: Feed<'a>,
    /// The most memory that a worker may have.
    pub most_rss: u64,
    reader: Reader,
}

impl<'a> Ground<'a> {
    /// A new one, without a worker. The folder has been made: the broker may lie in it. There is a MySQL for the path that wants one.
    pub(crate) fn new(
        plan: Plan,
        mut case: Case,
        broker: &'a mut ChaosBroker,
        s3: &S3,
        mysql: Option<&'a mut Mysql>,
        tally: &'a mut Tally,
    ) -> Result<Self, Skip> {
        let mut random = Random::new(plan.seed ^ hash(&plan.label()));
        case.set("TRUNKLINE_TOPICS_PARTITIONS", "3");
        if let Ok(filter) = std::env::var("CHAOS_LOG") {
            case.set("TRUNKLINE_LOG", &filter);
        }
        if plan.short {
            // The least that brokers allow: who takes over from a dead worker waits for this.
            case.set("TRUNKLINE_KAFKA_SESSION_TIMEOUT_MS", "6000");
        }
        let (mut store, mut lake, mut bucket) = (None, case.path("lake"), case.path("lake"));
        if plan.path.ends_in_bucket() {
            bucket = s3.bucket(case.name());
            lake = bucket.join("logs");
            store = Some(S3Faults::start(&s3.address()));
        }
        let feed = match mysql {
            None => Feed::Logs(Logs::new(case.path("logs"), &mut random)),
            Some(mysql) => {
                case.set(Mysql::PASSWORD.0, Mysql::PASSWORD.1);
                Feed::Tables(Box::new(Tables::new(mysql, plan.times(300, 2_000), &mut random)))
            }
        };
        let reader = Reader::find()?;
        let mounted = None;
        let most_rss = MOST_RSS;
        let mut this = Self { plan, random, tally, broker, mounted, case, store, lake, bucket, feed, most_rss, reader };
        let masked = this.feed.masked();
        this.pipeline(&format!("plugin = \"mask.wasm\"\nconfig = {{ fields = [\"{masked}\"] }}\n"));
        this.begin();
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
        let (name, source) = self.feed.source();
        let transform = format!("[transforms.clean]\ninputs = [\"{name}\"]\n");
        let parts = ["name = \"$NAME\"\n", &source, &transform, plugin, &materialised, SINK, self.feed.of_sink()];
        self.case.pipeline("chaos", &(parts.concat() + &destination));
    }

    /// Has the source of a database note where it begins: from there on each change has to arrive. A log begins where the file does.
    fn begin(&mut self) {
        if let Feed::Tables(_) = self.feed {
            let exit = self.start_with("a", "source.commit.after=kill").wait(LONG);
            assert_eq!(exit.signal, Some(libc::SIGABRT), "it ended by itself: {}", exit.describe());
            self.ended(&exit);
        }
    }

    /// Has the rows of a database read once more, in the midst of all. There is no such thing with logs.
    pub(crate) fn read_again(&self) {
        if let Feed::Tables(_) = self.feed {
            let source = format!("{}.shop", self.case.name());
            let exit = self.case.run_verb("snapshot", &[&source], &["--tables", "shop.*"], LONG);
            // Then the first time is still to come.
            let too_early = exit.stderr.contains("a snapshot has read none yet");
            assert!(exit.code == Some(0) || too_early, "{}", exit.describe());
        }
    }

    /// Appends so many lines to each log, or changes so many rows for each table.
    pub(crate) fn append(&mut self, each: u64) {
        self.tally.records += self.feed.append(each);
    }

    /// The logs, on a path that begins with some.
    pub(crate) fn logs(&mut self) -> &mut Logs {
        match &mut self.feed {
            Feed::Logs(logs) => logs,
            Feed::Tables(_) => panic!("a path that begins with logs"),
        }
    }

    /// The tables, on a path that begins with some.
    pub(crate) fn tables(&mut self) -> &mut Tables<'a> {
        match &mut self.feed {
            Feed::Tables(tables) => tables,
            Feed::Logs(_) => panic!("a path that begins with tables"),
        }
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

    /// Is everything at the destination that was written?
    pub(crate) fn is_all_there(&mut self) -> bool {
        self.feed.arrived(&self.lake) == self.feed.expected()
    }

    /// Waits until everything that was written is at the destination, and notes how long after `since` that was.
    pub(crate) fn recover(&mut self, since: Instant, workers: &mut [&mut Worker]) {
        let expected = self.feed.expected();
        let mut progress = (0, Instant::now());
        // A slow machine is no failure as long as something arrives.
        let arrived = wait::within(MOST_RECOVERY, || {
            let rows = self.feed.arrived(&self.lake);
            assert!(rows <= expected, "{rows} rows of {expected} that were written: some came twice");
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
            panic!(
                "there are {rows} rows of {expected} that were written, and none came for {still:?}; the workers said:\n{said}"
            );
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

        let name = self.case.name().to_owned();
        let client = self.broker.client();
        let dead = self.feed.check_dead(client, &format!("{name}.dead-letters"));
        let records = self.feed.check_topics(client, &name);
        let summary = exit.summary();
        let of = |component: &str| {
            let counters = summary.of(&name, component);
            (counters.input, counters.output, counters.dead_lettered)
        };
        let source = self.feed.source().0;
        assert_eq!(of(source), (records, records, 0), "{source}: in, out, dead-lettered");
        assert_eq!(of("clean"), (records, records - dead, dead), "clean: in, out, dead-lettered");
        assert_eq!(of("lake"), (records - dead, records - dead, 0), "lake: in, out, dead-lettered");
        if self.plan.path == Path::Topics {
            assert_eq!(check_order(client, &format!("{name}.clean")), records - dead, "records behind the transform");
        }
        self.feed.check_lake(&self.reader, &self.lake, records - dead);
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

/// FNV-1a: the same label is the same chance on every machine.
fn hash(label: &str) -> u64 {
    label.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
