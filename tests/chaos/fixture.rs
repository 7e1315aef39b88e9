//! The fixture of one run: a pipeline on its servers, its input, and the counts of the run.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use trunkline_tests::{
    BrokerKind, Case, Exit, Mysql, OpenSearch, Process, Random, Reader, S3, S3Faults, Skip, TlsFiles, wait,
};

use crate::broker::ChaosBroker;
use crate::faults::Mounted;
use crate::feed::{Feed, published};
use crate::logs::{self, Logs, PREVIOUS, check_order, check_previous, check_windows};
use crate::plan::{Path, Plan};
use crate::tables::Tables;
use crate::warehouse::{Server, Warehouse};

/// More than any single step needs, even on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// More than recovery needs after a fault. It fails earlier if no row arrives for [`LIMIT`].
const RECOVERY_LIMIT: Duration = Duration::from_secs(600);

/// The limit of a worker's resident memory: its budget of 256 MiB, code, and plugins, in a build
/// without optimisation.
const MAX_RSS: u64 = 450 << 20;

// The sink closes files early: more files give more moments at which a kill matters.
const SINK: &str = r#"
[sinks.lake]
connector = "s3"
inputs = ["clean"]
rotate = { records = 2_000, age = "2s", idle = "300ms" }
"#;

// Small requests: more of them give more moments at which a kill matters.
const SEARCH_SINK: &str = r#"
[sinks.lake]
connector = "elasticsearch"
inputs = ["clean"]
index = "$NAME"
commit = { records = 500 }
"#;

/// The servers in which pipelines end.
pub(crate) struct Destinations<'a> {
    /// For paths that end in a bucket.
    pub s3: &'a S3,
    /// For the path `search`.
    pub search: Option<&'a mut OpenSearch>,
    /// For the paths `snowflake` and `redshift`.
    pub warehouse: Option<Server<'a>>,
}

/// The counts of a run.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    /// Killed workers and brokers.
    pub kills: u64,
    /// Other faults.
    pub faults: u64,
    /// Lines written, or rows changed.
    pub records: u64,
    /// The times from the end of each fault until all records were at the destination.
    pub recoveries: Vec<Duration>,
    /// The highest resident memory of any worker.
    pub peak_rss: u64,
}

impl Tally {
    /// Adds the counts of another run.
    pub(crate) fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.faults += other.faults;
        self.records += other.records;
        self.recoveries.extend(&other.recoveries);
        self.peak_rss = self.peak_rss.max(other.peak_rss);
    }
}

/// A pipeline on its servers, its input, and the counts of the run.
pub(crate) struct Fixture<'a> {
    /// The run.
    pub plan: Plan,
    /// The source of all random choices.
    pub random: Random,
    /// The counts of the run.
    pub tally: &'a mut Tally,
    /// The broker.
    pub broker: &'a mut ChaosBroker,
    /// A small disk in the case's folder. Field order matters: it is unmounted before the folder is
    /// removed.
    pub mounted: Option<Mounted>,
    /// Folder, names and workers.
    pub case: Case,
    /// The server of the path `search`.
    pub search: Option<&'a mut OpenSearch>,
    /// The warehouse of the paths `snowflake` and `redshift`.
    pub warehouse: Option<Warehouse<'a>>,
    /// The proxy for the object store or the search server; with a warehouse, for its stage. The
    /// paths `topics` and `state` have none.
    pub store: Option<S3Faults>,
    /// The certificate of that proxy, if workers reach it over TLS.
    tls: Option<TlsFiles>,
    /// The folder of published files.
    pub lake: PathBuf,
    /// The whole bucket, including hidden files; with a warehouse, its stage.
    pub bucket: PathBuf,
    /// The input of the pipeline.
    pub feed: Feed<'a>,
    /// The limit of a worker's resident memory.
    pub max_rss: u64,
    reader: Reader,
}

impl<'a> Fixture<'a> {
    /// A new fixture without a running worker. Paths with tables need `mysql`.
    pub(crate) fn new(
        plan: Plan,
        mut case: Case,
        broker: &'a mut ChaosBroker,
        destinations: Destinations<'a>,
        mysql: Option<&'a mut Mysql>,
        tally: &'a mut Tally,
    ) -> Result<Self, Skip> {
        let mut random = Random::new(plan.seed ^ hash(&plan.label()));
        case.set("TRUNKLINE_TOPICS_PARTITIONS", "3");
        // State is larger than its cache, and is copied to disk with almost every commit.
        case.set("TRUNKLINE_STATE_CACHE", "4KiB");
        if let Ok(filter) = std::env::var("CHAOS_LOG") {
            case.set("TRUNKLINE_LOG", &filter);
        }
        if plan.short {
            // The minimum that brokers allow: a takeover waits until the dead worker's session
            // ends.
            case.set("TRUNKLINE_KAFKA_SESSION_TIMEOUT_MS", "6000");
        }
        let (mut store, mut lake, mut bucket) = (None, case.path("lake"), case.path("lake"));
        let Destinations { s3, search, warehouse } = destinations;
        let has_keys = plan.path == Path::RedshiftKeys;
        let warehouse = warehouse.map(|server| Warehouse::new(server, case.name(), has_keys));
        let tls = broker.tls_files();
        let start_proxy = |server: &str| match &tls {
            Some(tls) => S3Faults::start_tls(server, tls),
            None => S3Faults::start(server),
        };
        if let Some(search) = &search {
            store = Some(start_proxy(&search.address()));
        }
        if warehouse.is_some() {
            bucket = s3.bucket(case.name());
            store = Some(S3Faults::start(&s3.address()));
        }
        if plan.path.ends_in_bucket() {
            bucket = s3.bucket(case.name());
            lake = bucket.join("logs");
            store = Some(start_proxy(&s3.address()));
        }
        let feed = match mysql {
            None => Feed::Logs(Logs::new(case.path("logs"), plan.hostile, &mut random)),
            Some(mysql) => {
                case.set(Mysql::PASSWORD.0, Mysql::PASSWORD.1);
                Feed::Tables(Box::new(Tables::new(mysql, plan.times(300, 2_000), plan.secured, &mut random)))
            }
        };
        let reader = Reader::find()?;
        let mounted = None;
        let max_rss = MAX_RSS;
        let mut this = Self {
            plan,
            random,
            tally,
            broker,
            mounted,
            case,
            search,
            warehouse,
            store,
            tls,
            lake,
            bucket,
            feed,
            max_rss,
            reader,
        };
        let masked = this.feed.masked();
        match plan.path {
            Path::State => this.pipeline(PREVIOUS),
            _ => this.pipeline(&format!("plugin = \"mask.wasm\"\nconfig = {{ fields = [\"{masked}\"] }}\n")),
        }
        this.record_first_position();
        Ok(this)
    }

    /// Writes the pipeline file. `plugin` are the options of its transform.
    pub(crate) fn pipeline(&self, plugin: &str) {
        let authority =
            self.tls.as_ref().map_or_else(String::new, |tls| format!("tls_ca = \"{}\"\n", tls.ca.display()));
        let (materialised, destination) = match &self.store {
            Some(_) if self.warehouse.is_some() => (String::new(), String::new()),
            None => ("topic = \"$NAME.clean\"\n".to_owned(), "url = \"file://$DIR/lake\"\n".to_owned()),
            Some(store) if self.search.is_some() => (String::new(), format!("url = \"{}\"\n{authority}", store.url())),
            Some(store) => (
                String::new(),
                format!(
                    "url = \"s3://$NAME/logs\"\nendpoint = \"{}\"\nregion = \"{}\"\npath_style = true\n{authority}",
                    store.url(),
                    S3::REGION
                ),
            ),
        };
        let (name, source) = self.feed.source();
        let transform = format!("[transforms.clean]\ninputs = [\"{name}\"]\n");
        let sink = match (&self.warehouse, &self.store) {
            (Some(warehouse), Some(store)) => warehouse.sink(self.case.name(), store.address()),
            _ if self.search.is_some() => SEARCH_SINK.to_owned(),
            _ => SINK.to_owned(),
        };
        let windows = if self.plan.path == Path::State { logs::windows() } else { String::new() };
        let sink_options = self.feed.sink_options();
        let parts = ["name = \"$NAME\"\n", &source, &transform, plugin, &materialised, &windows, &sink, sink_options];
        self.case.pipeline("chaos", &(parts.concat() + &destination));
    }

    /// Has the source of a database commit its first position: every later change must arrive. (The
    /// first position of a log is its beginning.)
    fn record_first_position(&mut self) {
        if let Feed::Tables(_) = self.feed {
            let exit = self.start_with("a", "source.commit.after=kill").wait(LIMIT);
            assert_eq!(exit.signal, Some(libc::SIGABRT), "the worker ended by itself: {}", exit.describe());
            self.record_exit(&exit);
        }
    }

    /// Requests another snapshot of the tables. On paths with logs, does nothing.
    pub(crate) fn request_snapshot(&self) {
        if let Feed::Tables(_) = self.feed {
            let source = format!("{}.shop", self.case.name());
            let exit = self.case.run_command("snapshot", &[&source], &["--tables", "shop.*"], LIMIT);
            // The first snapshot may not have begun yet.
            let too_early = exit.stderr.contains("[mysql.tables]");
            assert!(exit.code == Some(0) || too_early, "{}", exit.describe());
        }
    }

    /// Appends `each` lines to each log, or changes `each` rows per table.
    pub(crate) fn append(&mut self, each: u64) {
        self.tally.records += self.feed.append(each);
    }

    /// From now on, the warehouse refuses some of the lines that are written.
    pub(crate) fn refuse_rows(&mut self) {
        let text = self.warehouse.as_mut().expect("a path with a warehouse").refuse_rows();
        let transform = self.feed.refuse(text);
        self.pipeline(&transform);
    }

    /// The logs. Panics on a path with tables.
    pub(crate) fn logs(&mut self) -> &mut Logs {
        match &mut self.feed {
            Feed::Logs(logs) => logs,
            Feed::Tables(_) => panic!("the fault needs a path with logs"),
        }
    }

    /// The tables. Panics on a path with logs.
    pub(crate) fn tables(&mut self) -> &mut Tables<'a> {
        match &mut self.feed {
            Feed::Tables(tables) => tables,
            Feed::Logs(_) => panic!("the fault needs a path with tables"),
        }
    }

    /// A seeded time below `limit`.
    pub(crate) fn random_delay(&mut self, limit: Duration) -> Duration {
        Duration::from_millis(self.random.below(limit.as_millis() as u64))
    }

    /// Starts a worker with failpoints.
    pub(crate) fn start_with(&self, worker: &str, failpoints: &str) -> Process {
        self.case.start_with(worker, &[], &[("TRUNKLINE_FAILPOINTS", failpoints)])
    }

    /// Starts a worker.
    pub(crate) fn start(&self, worker: &str) -> Process {
        self.case.start(worker, &[])
    }

    /// Kills a running worker.
    pub(crate) fn kill(&mut self, worker: Process) {
        let exit = worker.kill9();
        assert_eq!(exit.signal, Some(libc::SIGKILL), "the worker ended by itself: {}", exit.describe());
        self.tally.kills += 1;
        self.record_exit(&exit);
    }

    /// Stops a worker with SIGTERM; it must exit with 0.
    pub(crate) fn stop(&mut self, mut worker: Process) {
        // Until then it may not have installed its signal handler.
        wait::within(LIMIT / 8, || worker.stderr().contains(" partitions=").then_some(()));
        worker.sigterm();
        wait::within(LIMIT, || {
            let runs = worker.is_running();
            resume_if_suspended(&mut worker);
            (!runs).then_some(())
        });
        let exit = worker.wait(Duration::ZERO);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        self.record_exit(&exit);
    }

    /// Records the memory that a worker used, and checks its limit.
    pub(crate) fn record_exit(&mut self, exit: &Exit) {
        self.tally.peak_rss = self.tally.peak_rss.max(exit.peak_rss);
        let (used, limit) = (exit.peak_rss >> 20, self.max_rss >> 20);
        assert!(used <= limit, "{used} MiB resident exceed the limit of {limit}: {}", exit.describe());
    }

    /// Whether all written records are at the destination.
    pub(crate) fn has_all_arrived(&mut self) -> bool {
        self.arrived() == self.feed.expected()
    }

    /// The number of records at the destination.
    fn arrived(&mut self) -> u64 {
        match (&self.search, &mut self.warehouse) {
            (Some(search), _) => search.documents(&format!("{}*", self.case.name())),
            (None, Some(warehouse)) => warehouse.arrived(),
            (None, None) => self.feed.arrived(&self.lake),
        }
    }

    /// Waits until all written records are at the destination, and records the time since `since`.
    pub(crate) fn wait_for_recovery(&mut self, since: Instant, workers: &mut [&mut Process]) {
        let expected = self.feed.expected();
        let mut progress = (0, Instant::now());
        // A slow machine is not a failure as long as rows arrive.
        let arrived = wait::within(RECOVERY_LIMIT, || {
            let rows = self.arrived();
            assert!(rows <= expected, "duplicates: {rows} rows, but {expected} were written");
            if rows > progress.0 {
                progress = (rows, Instant::now());
            }
            workers.iter_mut().for_each(|worker| resume_if_suspended(worker));
            (rows == expected || progress.1.elapsed() > LIMIT).then_some(())
        });
        if arrived.is_none() || progress.0 < expected {
            let said = workers.iter().map(|worker| worker.stderr()).map(|text| last_lines(&text, 20));
            let said = said.collect::<Vec<_>>().join("\n---\n");
            let (rows, still) = (progress.0, progress.1.elapsed());
            panic!("{rows} of {expected} written rows arrived, the last one {still:?} ago; the workers' logs:\n{said}");
        }
        self.tally.recoveries.push(since.elapsed());
        for worker in workers {
            assert!(worker.is_running(), "the worker ended by itself:\n{}", last_lines(&worker.stderr(), 30));
        }
    }

    /// Runs a worker until it is idle, and does the checks that `tests/README.md` lists.
    pub(crate) fn finish(mut self) {
        let limit = LIMIT * 2;
        let exit = self.case.start("a", &["--until-idle", "--json"]).wait(limit);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        self.record_exit(&exit);

        let name = self.case.name().to_owned();
        let client = self.broker.client();
        let (poisoned, refused) = self.feed.check_dead(client, &format!("{name}.dead-letters"));
        let dead = poisoned + refused;
        let records = self.feed.check_topics(client, &name);
        let summary = exit.summary();
        let of = |component: &str| {
            let counters = summary.of(&name, component);
            (counters.input, counters.output, counters.dead_lettered)
        };
        let source = self.feed.source().0;
        assert_eq!(of(source), (records, records, 0), "{source}: in, out, dead-lettered");
        assert_eq!(of("clean"), (records, records - poisoned, poisoned), "clean: in, out, dead-lettered");
        assert_eq!(of("lake"), (records - poisoned, records - dead, refused), "lake: in, out, dead-lettered");
        if matches!(self.plan.path, Path::Topics | Path::State) {
            assert_eq!(check_order(client, &format!("{name}.clean")), records - dead, "records after the transform");
        }
        if self.plan.path == Path::State {
            check_previous(client, &format!("{name}.clean"));
            let (results, late) = check_windows(client, &name);
            let windows = summary.of(&name, "windows");
            assert_eq!(
                (windows.input, windows.output, windows.extra, windows.dropped, windows.dead_lettered),
                (records, results + late, results, records - late, 0),
                "windows: in, out, extra, dropped, dead-lettered"
            );
        }
        match (&self.search, &self.warehouse) {
            // Every line once: the ids of documents are their offsets.
            (Some(search), _) => {
                let found = search.count(&format!("{name}*"), "path.keyword");
                assert_eq!(found, (records - dead, records - dead), "documents and distinct lines");
            }
            (None, Some(warehouse)) => {
                let bytes = self.feed.bytes();
                warehouse.check(records - dead, (dead == 0).then_some(bytes));
            }
            (None, None) => self.feed.check_lake(&self.reader, &self.lake, records - dead),
        }
        // A killed worker leaves files in its scratch folder. The next start of the worker removes
        // them.
        for worker in self.workers_with_scratch_files() {
            let exit = self.case.start(&worker, &["--until-idle"]).wait(limit);
            assert_eq!(exit.code, Some(0), "{}", exit.describe());
        }
        let left = self.leftovers();
        assert!(left.is_empty(), "uploads or temporary files remain: {left:?}");
        // Its data is in the case's folder, which is removed now.
        if self.plan.broker == BrokerKind::Embedded {
            self.broker.stop();
        }
    }

    /// Workers whose scratch folders have files.
    fn workers_with_scratch_files(&self) -> Vec<String> {
        let folders = fs::read_dir(self.case.path("")).unwrap().flatten();
        let workers = folders
            .filter_map(|entry| Some((entry.file_name().to_str()?.strip_prefix("data-")?.to_owned(), entry.path())));
        let left = workers.filter(|(_, path)| !files_left(vec![path.join("scratch")]).is_empty());
        left.map(|(worker, _)| worker).collect()
    }

    /// Files that must not remain: hidden files at the destination, incomplete uploads, scratch
    /// files.
    fn leftovers(&self) -> Vec<PathBuf> {
        let workers = fs::read_dir(self.case.path("")).unwrap().flatten().map(|entry| entry.path().join("scratch"));
        let mut left = files_left(workers.chain([self.bucket.clone()]).collect());
        if self.warehouse.is_some() {
            // A stage publishes nothing.
            left.extend(published(&self.bucket));
        }
        left
    }
}

/// All files in these folders except published ones.
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

/// Resumes a worker that a failpoint has suspended: on a slow machine it may reach the failpoint
/// late.
fn resume_if_suspended(worker: &mut Process) {
    if worker.is_suspended() {
        worker.sigcont();
    }
}

/// The last lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines = text.lines().collect::<Vec<_>>();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// FNV-1a: one label gives the same random choices on every machine.
fn hash(label: &str) -> u64 {
    label.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
