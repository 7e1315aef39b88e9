//! Real servers, and a source that is driven as the runtime drives it: a fill's records count
//! together with its position.

#![allow(dead_code, reason = "every test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says by panicking that something is wrong")]

pub(crate) mod proxy;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use trunkline_connector::conformance::configure_source;
use trunkline_connector::{
    Error, Fill, MemoryBudget, RecordRef, Source, SourceBatch, SourceContext, SourceSpec, headers,
};
use trunkline_mysql::MysqlConnector;

/// The maximum duration of a wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server of this test process. The server ends and its data is removed when the script's
/// standard input closes, however the tests end.
pub(crate) struct Server {
    pub(crate) port: u16,
    folder: PathBuf,
    options: String,
    pub(crate) kind: Kind,
    _leash: ChildStdin,
}

/// The vendor of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    MySql,
    MariaDb,
}

impl Kind {
    /// The script that starts it.
    fn script(self) -> PathBuf {
        let name = if self == Self::MySql { "mysql" } else { "mariadb" };
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/services").join(name)
    }
}

impl Server {
    /// The server that harmless tests share; `None`, with the reason printed, if the machine cannot
    /// provide one.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start("")).as_ref()
    }

    /// As [`shared`](Server::shared), MariaDB.
    pub(crate) fn shared_mariadb() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start_kind(Kind::MariaDb, "")).as_ref()
    }

    /// The shared servers of both vendors that the machine can provide.
    pub(crate) fn shared_each() -> impl Iterator<Item = &'static Self> {
        [Self::shared(), Self::shared_mariadb()].into_iter().flatten()
    }

    /// A separate server of each vendor, with more options.
    pub(crate) fn start_each(options: &str) -> impl Iterator<Item = Self> {
        [Kind::MySql, Kind::MariaDb].into_iter().filter_map(move |kind| Self::start_kind(kind, options))
    }

    /// A separate MySQL, with more options.
    pub(crate) fn start(options: &str) -> Option<Self> {
        Self::start_kind(Kind::MySql, options)
    }

    /// A separate server, with more options.
    pub(crate) fn start_kind(kind: Kind, options: &str) -> Option<Self> {
        // A machine that cannot provide the server skips the test. A server that does not start is
        // a failure.
        let fetched = Command::new(kind.script()).arg("fetch").output().unwrap();
        if !fetched.status.success() {
            eprintln!("SKIP no {kind:?}: {}", String::from_utf8_lossy(&fetched.stderr).trim());
            return None;
        }
        let folder = tempfile::Builder::new().prefix("trunkline-mysql-").tempdir().unwrap().keep();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Self::launch(kind, port, &folder, options, "1");
        let leash = child.stdin.take().unwrap();
        finish(child);
        let server = Self { port, folder, options: options.to_owned(), kind, _leash: leash };
        server.run(
            "CREATE USER cdc IDENTIFIED BY 'p@ss/word'; GRANT REPLICATION SLAVE, REPLICATION CLIENT, SELECT, LOCK TABLES ON *.* TO cdc",
        );
        Some(server)
    }

    fn launch(kind: Kind, port: u16, folder: &Path, options: &str, leash: &str) -> Child {
        Command::new(kind.script())
            .arg(port.to_string())
            .arg(folder)
            .env("LEASH", leash)
            .env("MYSQL_OPTIONS", options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub(crate) fn stop(&self) {
        let stopped =
            Command::new(self.kind.script()).arg("stop").arg(self.port.to_string()).arg(&self.folder).output().unwrap();
        assert!(stopped.status.success());
    }

    pub(crate) fn start_again(&self) {
        finish(Self::launch(self.kind, self.port, &self.folder, &self.options, "0"));
    }

    /// A client that reads statements from its standard input.
    pub(crate) fn client(&self) -> Child {
        Command::new(self.kind.script())
            .args(["client", &self.port.to_string()])
            .arg(&self.folder)
            .args(["-N", "-B", "--default-character-set=utf8mb4"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs statements. Returns their output.
    pub(crate) fn run(&self, sql: &str) -> String {
        self.try_run(sql).unwrap_or_else(|error| panic!("{error}\n{sql}"))
    }

    /// As [`run`](Server::run); an error ends the statements.
    pub(crate) fn try_run(&self, sql: &str) -> Result<String, String> {
        let mut client = self.client();
        // After an error the client reads no more.
        let _ = client.stdin.take().unwrap().write_all(sql.as_bytes());
        let output = client.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    pub(crate) fn is_mariadb(&self) -> bool {
        self.kind == Kind::MariaDb
    }

    /// Kills the server.
    pub(crate) fn kill(&self) {
        let pid = std::fs::read_to_string(self.folder.join(format!("{}.pid", self.port))).unwrap();
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "it does not die");
        }
    }

    /// The folder with the files of a database.
    pub(crate) fn files(&self, database: &str) -> PathBuf {
        self.folder.join(format!("{}.data", self.port)).join(database)
    }

    /// A new database for a test.
    pub(crate) fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.run(&format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"));
        name
    }

    /// The options of a source on tables of this server.
    pub(crate) fn options(&self, tables: &str) -> String {
        let threads = threads_of_all().map(|threads| format!("snapshot_threads = {threads}\n"));
        options(self.port, "cdc:p%40ss%2Fword", tables) + &threads.unwrap_or_default()
    }

    /// As [`options`](Server::options), with this number of readers, unless the environment sets
    /// one for all tests.
    pub(crate) fn options_with_threads(&self, tables: &str, threads: usize) -> String {
        let threads =
            if threads_of_all().is_some() { String::new() } else { format!("snapshot_threads = {threads}\n") };
        self.options(tables) + &threads
    }
}

/// The number of readers of every snapshot: `TRUNKLINE_TEST_SNAPSHOT_THREADS`.
fn threads_of_all() -> Option<usize> {
    std::env::var("TRUNKLINE_TEST_SNAPSHOT_THREADS").ok().map(|threads| threads.parse().unwrap())
}

/// The options of a source on a server at this port, as this user.
pub(crate) fn options(port: u16, user: &str, tables: &str) -> String {
    format!("url = \"mysql://{user}@127.0.0.1:{port}\"\ntables = [{tables}]\n")
}

fn finish(mut child: Child) {
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success() && said.starts_with("up"), "the server does not start: {said}");
}

/// An emitted record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) table: String,
    pub(crate) key: Option<String>,
    pub(crate) value: Option<Value>,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Seen {
    pub(crate) fn op(&self) -> &str {
        self.value.as_ref().map_or("tombstone", |value| value["op"].as_str().unwrap_or("row"))
    }

    pub(crate) fn after(&self) -> &Value {
        &self.value.as_ref().unwrap()["after"]
    }
}

/// A record of a side output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SideOutput {
    pub(crate) port: &'static str,
    pub(crate) key: Value,
    pub(crate) value: Value,
    pub(crate) headers: BTreeMap<String, String>,
}

/// A source with everything that it committed.
pub(crate) struct Bench {
    options: String,
    pub(crate) task: String,
    pub(crate) until_idle: bool,
    pub(crate) max_records: usize,
    pub(crate) position: BTreeMap<String, Vec<u8>>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) side_outputs: Vec<SideOutput>,
    pub(crate) rejected: Vec<(Seen, String)>,
    pub(crate) dropped: u64,
    pub(crate) schemas: BTreeMap<String, String>,
    /// The tables that the source has announced.
    pub(crate) data_sets: Vec<Vec<(&'static str, String)>>,
    /// The order of the last record of each row, by database and table, and key.
    orders: BTreeMap<Vec<Vec<u8>>, [u64; 4]>,
    source: Option<Box<dyn Source>>,
    pub(crate) budget: MemoryBudget,
    runtime: tokio::runtime::Runtime,
}

impl Bench {
    pub(crate) fn new(options: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self {
            options: options.to_owned(),
            task: format!("tests.{}.source{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
            until_idle: true,
            max_records: 1000,
            position: BTreeMap::new(),
            seen: Vec::new(),
            side_outputs: Vec::new(),
            rejected: Vec::new(),
            dropped: 0,
            schemas: BTreeMap::new(),
            data_sets: Vec::new(),
            orders: BTreeMap::new(),
            source: None,
            budget: MemoryBudget::new(1 << 30),
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        }
    }

    pub(crate) fn spec(&self) -> Box<dyn SourceSpec> {
        let (spec, problems) = configure_source(&MysqlConnector, &self.options, Path::new("/"));
        assert!(problems.is_empty(), "{problems:#?}");
        spec.unwrap()
    }

    pub(crate) fn set_options(&mut self, options: &str) {
        self.stop();
        self.options = options.to_owned();
    }

    /// Stops the source like a crash: uncommitted records and positions are lost.
    pub(crate) fn stop(&mut self) {
        self.source = None;
    }

    pub(crate) fn fill(&mut self, wait: Duration) -> Result<Fill, Error> {
        if self.source.is_none() {
            let context = SourceContext {
                task: self.task.clone(),
                position: self.position.clone().into_iter().collect(),
                until_idle: self.until_idle,
                budget: self.budget.clone(),
                runtime: self.runtime.handle().clone(),
                scratch: std::env::temp_dir(),
            };
            self.source = Some(self.spec().open(context)?);
        }
        // The runtime reserves memory before it takes rows.
        let reserved = self.budget.reserve(64 << 10, Instant::now() + Duration::from_secs(5));
        assert!(reserved.is_some(), "the source has reserved all memory: {}", self.budget.used());
        let mut batch = SourceBatch::with_limits(1 << 20, self.max_records);
        let result = self.source.as_mut().unwrap().fill(&mut batch, Instant::now() + wait);
        self.commit(&batch);
        result
    }

    pub(crate) fn try_read(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        while self.fill(Duration::from_millis(300))? != Fill::CaughtUp {
            let (records, lag) = (self.seen.len(), self.lag());
            assert!(begun.elapsed() < PATIENCE, "not caught up after {PATIENCE:?}: {records} records, {lag:?}");
        }
        Ok(())
    }

    /// Reads until the source is caught up.
    pub(crate) fn read(&mut self) -> &mut Self {
        self.try_read().unwrap();
        self
    }

    /// The records since the last call.
    pub(crate) fn take(&mut self) -> Vec<Seen> {
        std::mem::take(&mut self.seen)
    }

    pub(crate) fn lag(&self) -> trunkline_connector::SourceLag {
        self.source.as_ref().unwrap().lag()
    }

    /// The order of a record is greater than that of every earlier record of its key: sinks drop
    /// changes with a lower one. A row may be read again, and a tombstone belongs to its delete.
    fn check_order(&mut self, record: RecordRef<'_>) {
        let Some(key) = record.key() else { return };
        let value: Option<Value> = record.value().map(|value| serde_json::from_slice(value).unwrap());
        let order = source_order(record, value.as_ref());
        let names = ["trunkline.database", "trunkline.table"].map(|name| record.header(name).unwrap().to_vec());
        let before = self.orders.insert([names.as_slice(), &[key.to_vec()]].concat(), order);
        let may_equal = value.as_ref().is_none_or(|value| value["op"] == "r" || value.get("op").is_none());
        let is_ordered = before.is_none_or(|before| before < order || may_equal && before == order);
        assert!(is_ordered, "{before:?}, then {order:?}: {}", String::from_utf8_lossy(key));
    }

    fn commit(&mut self, batch: &SourceBatch) {
        let spec = self.spec();
        for schema in batch.schemas.iter().chain(&spec.schemas()) {
            self.schemas.insert(schema.id().to_string(), schema.to_json().unwrap());
        }
        for record in batch.records.iter() {
            self.check_order(record);
            let record = seen(record);
            if let Some(id) = record.headers.get("trunkline.schema") {
                assert!(self.schemas.contains_key(id), "a record names a schema that was not emitted");
            }
            self.seen.push(record);
        }
        for record in batch.side_outputs.iter() {
            let json = |bytes: Option<&[u8]>| serde_json::from_slice(bytes.unwrap()).unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let headers: BTreeMap<_, _> =
                record.headers().map(|(name, value)| (name.to_owned(), text(value.unwrap()))).collect();
            assert!(self.schemas.contains_key(&headers["trunkline.schema"]));
            let port = spec.ports()[usize::from(record.entry().port) - 1];
            self.side_outputs.push(SideOutput { port, key: json(record.key()), value: json(record.value()), headers });
        }
        for (record, reason) in batch.rejected.iter() {
            self.rejected.push((rejected(record), reason.code.clone()));
        }
        self.dropped += batch.dropped;
        self.data_sets.extend(batch.data_sets.iter().cloned());
        for change in &batch.position {
            match &change.value {
                Some(value) => self.position.insert(change.key.clone(), value.clone()),
                None => self.position.remove(&change.key),
            };
        }
    }
}

/// Epoch, file number, position and row of a record.
pub(crate) fn source_order(record: RecordRef<'_>, value: Option<&Value>) -> [u64; 4] {
    let header = |name| record.header(name).map(|text| String::from_utf8(text.to_vec()).unwrap());
    if let Some(order) = header(headers::ORDER) {
        let numbers: Vec<u64> = order.split('.').map(|number| number.parse().unwrap()).collect();
        return numbers.try_into().unwrap();
    }
    let source = &value.unwrap()["source"];
    let file = source["file"].as_str().unwrap().rsplit('.').next().unwrap().parse().unwrap_or(0);
    let epoch = header(headers::EPOCH).unwrap().parse().unwrap();
    [epoch, file, source["pos"].as_u64().unwrap(), source["row"].as_u64().unwrap()]
}

/// A record without the headers of its order, which differ between two sources.
fn seen(record: RecordRef<'_>) -> Seen {
    seen_with(record, |value| {
        serde_json::from_slice(value).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(value)))
    })
}

/// A value that is not JSON becomes hexadecimal digits.
fn rejected(record: RecordRef<'_>) -> Seen {
    let digits = |value: &[u8]| value.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    seen_with(record, |value| serde_json::from_slice(value).unwrap_or_else(|_| Value::String(digits(value))))
}

fn seen_with(record: RecordRef<'_>, parse: impl Fn(&[u8]) -> Value) -> Seen {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut headers: BTreeMap<_, _> =
        record.headers().map(|(name, value)| (name.to_owned(), value.map(text).unwrap_or_default())).collect();
    headers.retain(|name, _| ![headers::EPOCH, headers::ORDER].contains(&name.as_str()));
    Seen {
        table: format!("{}.{}", headers["trunkline.database"], headers["trunkline.table"]),
        key: record.key().map(text),
        value: record.value().map(parse),
        headers,
    }
}

/// The final state of a reader of the topic: the newest row per key. Checks that no change
/// contradicts the one before it.
pub(crate) fn fold(records: &[Seen]) -> BTreeMap<(String, String), Value> {
    let mut rows: BTreeMap<(String, String), Value> = BTreeMap::new();
    for record in records {
        let key = (record.table.clone(), record.key.clone().unwrap());
        match record.op() {
            "tombstone" => assert!(!rows.contains_key(&key), "a tombstone of a row that is there: {key:?}"),
            "d" => {
                rows.remove(&key);
            }
            "r" => {
                // A row that changed before its chunk was read is emitted again, unchanged.
                let before = rows.insert(key.clone(), record.after().clone());
                assert!(
                    before.is_none_or(|before| before == *record.after()),
                    "a snapshot's row is older than a change: {key:?}"
                );
            }
            "c" => {
                let before = rows.insert(key.clone(), record.after().clone());
                assert_eq!(before, None, "created twice: {key:?}");
            }
            _ => {
                rows.insert(key, record.after().clone());
            }
        }
    }
    rows
}

/// Numbers determined by a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// The peak resident memory of this process.
pub(crate) fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Runs a function when the test ends, however it ends.
pub(crate) struct OnDrop<F: Fn()>(pub(crate) F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
