//! [`TestSource`]: a folder with log files and a source that reads it. It is driven like by the
//! runtime: the records of a fill are committed with the position.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its files has failed")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use trunkline_connector::conformance::configure_source;
use trunkline_connector::{Error, Fill, MemoryBudget, Source, SourceBatch, SourceContext, SourceSpec, SourceWaker};
use trunkline_logfile::LogfileConnector;

/// Limit of every wait in a test.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// An emitted line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) offset: u64,
    pub(crate) ordering_key: u32,
    /// The message, or the whole value if a parser made it.
    pub(crate) text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenRejected {
    pub(crate) path: String,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
    pub(crate) code: String,
    pub(crate) message: String,
}

/// Operations of writers and log rotation on the files of a folder.
#[derive(Clone)]
pub(crate) struct Files(PathBuf);

impl Files {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_ref()).unwrap();
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        std::fs::rename(self.path(from), self.path(to)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    /// Like `copytruncate` of logrotate.
    pub(crate) fn copy_truncate(&self, from: &str, to: &str) {
        std::fs::copy(self.path(from), self.path(to)).unwrap();
        self.truncate(from);
    }

    pub(crate) fn truncate(&self, name: &str) {
        OpenOptions::new().write(true).open(self.path(name)).unwrap().set_len(0).unwrap();
    }

    /// Like gzip: the compressed file is complete before the other one is removed.
    pub(crate) fn gzip(&self, from: &str, to: &str) {
        self.gzip_keep(from, to);
        let modified = std::fs::metadata(self.path(from)).unwrap().modified().unwrap();
        File::options().write(true).open(self.path(to)).unwrap().set_modified(modified).unwrap();
        self.remove(from);
    }

    pub(crate) fn gzip_keep(&self, from: &str, to: &str) {
        write_gzip(&self.path(to), &std::fs::read(self.path(from)).unwrap());
    }

    /// Sets a file's modification time to `seconds` ago.
    pub(crate) fn age(&self, name: &str, seconds: u64) {
        let time = std::time::SystemTime::now() - Duration::from_secs(seconds);
        OpenOptions::new().write(true).open(self.path(name)).unwrap().set_modified(time).unwrap();
    }
}

/// The folder, the options, and all committed records and positions.
pub(crate) struct TestSource {
    pub(crate) folder: TempDir,
    _parent: TempDir,
    pub(crate) files: Files,
    options: String,
    pub(crate) until_idle: bool,
    pub(crate) position: BTreeMap<String, Vec<u8>>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) rejected: Vec<SeenRejected>,
    pub(crate) dropped: u64,
    pub(crate) budget: MemoryBudget,
    /// The source learns what is committed.
    pub(crate) acknowledges: bool,
    source: Option<Box<dyn Source>>,
    /// How long a fill may wait without data.
    pub(crate) max_wait: Duration,
    runtime: tokio::runtime::Runtime,
}

impl std::ops::Deref for TestSource {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.files
    }
}

impl TestSource {
    /// Uses the options and, for options that they do not set, `paths = ["*.log*"]` and short
    /// waits.
    pub(crate) fn new(options: &str) -> Self {
        let mut all = options.to_owned();
        for (key, default) in [
            ("paths", "paths = [\"*.log*\"]"),
            ("poll_interval", "poll_interval = \"10ms\""),
            ("rotate_wait", "rotate_wait = \"20ms\""),
        ] {
            if !options.contains(key) {
                all.push_str(&format!("\n{default}"));
            }
        }
        // The source looks for renamed files in the folders next to its own. Those of other tests,
        // whose files may have equal lines and a reused inode, must not be among them.
        let parent = tempfile::tempdir().unwrap();
        let folder = tempfile::tempdir_in(&parent).unwrap();
        Self {
            files: Files(folder.path().to_owned()),
            folder,
            _parent: parent,
            options: all,
            until_idle: true,
            position: BTreeMap::new(),
            seen: Vec::new(),
            rejected: Vec::new(),
            dropped: 0,
            budget: MemoryBudget::new(1 << 30),
            acknowledges: true,
            source: None,
            max_wait: Duration::ZERO,
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        }
    }

    /// Without `--until-idle`.
    pub(crate) fn following(options: &str) -> Self {
        Self { until_idle: false, ..Self::new(options) }
    }

    pub(crate) fn spec(&self) -> Box<dyn SourceSpec> {
        let (spec, problems) = configure_source(&LogfileConnector, &self.options, self.folder.path());
        assert!(problems.is_empty(), "{problems:#?}");
        spec.unwrap()
    }

    /// Stops the source like a crash: uncommitted state is lost.
    pub(crate) fn stop(&mut self) {
        self.source = None;
    }

    /// One fill of a batch of at most `max_records`.
    pub(crate) fn fill(&mut self, max_records: usize, wait: Duration) -> Result<Fill, Error> {
        if self.source.is_none() {
            let context = SourceContext {
                task: "suite.tested.source".to_owned(),
                position: self.position.clone().into_iter().collect(),
                until_idle: self.until_idle,
                budget: self.budget.clone(),
                runtime: self.runtime.handle().clone(),
                scratch: self.folder.path().join("scratch"),
            };
            self.source = Some(self.spec().open(context)?);
        }
        let mut batch = SourceBatch::with_limits(1 << 20, max_records);
        batch.max_wait = self.max_wait;
        let result = self.source.as_mut().unwrap().fill(&mut batch, Instant::now() + wait);
        self.commit(&batch);
        if self.acknowledges {
            self.source.as_mut().unwrap().committed(&batch.position)?;
        }
        result
    }

    /// Reads a batch, and is killed before it is committed.
    pub(crate) fn kill(&mut self, max_records: usize) {
        if let Some(mut source) = self.source.take() {
            let mut batch = SourceBatch::with_limits(1 << 20, max_records);
            source.fill(&mut batch, Instant::now() + Duration::from_millis(1)).unwrap();
        }
    }

    /// Reads until the source has caught up.
    pub(crate) fn read(&mut self) -> &mut Self {
        self.try_read().unwrap();
        self
    }

    pub(crate) fn try_read(&mut self) -> Result<(), Error> {
        let begun = Instant::now();
        loop {
            let before = self.seen.len() + self.rejected.len();
            let filled = self.fill(1000, Duration::from_millis(if self.until_idle { 2000 } else { 150 }))?;
            // The notifications of a change may arrive one by one.
            let is_quiet = self.until_idle || self.seen.len() + self.rejected.len() == before;
            if filled == Fill::CaughtUp && is_quiet {
                return Ok(());
            }
            assert!(
                begun.elapsed() < TEST_TIMEOUT,
                "not caught up after {TEST_TIMEOUT:?}, with {} lines",
                self.seen.len()
            );
        }
    }

    /// Reads until `lines` lines were emitted or rejected in total.
    pub(crate) fn read_until(&mut self, lines: usize) -> &mut Self {
        self.read_while(|source| source.seen.len() + source.rejected.len() < lines)
    }

    /// Reads while `waiting` holds.
    pub(crate) fn read_while(&mut self, waiting: impl Fn(&Self) -> bool) -> &mut Self {
        let begun = Instant::now();
        while waiting(self) {
            self.fill(1000, Duration::from_millis(50)).unwrap();
            assert!(begun.elapsed() < TEST_TIMEOUT, "still waiting after {TEST_TIMEOUT:?}; seen: {:?}", self.texts());
        }
        self
    }

    pub(crate) fn waker(&self) -> SourceWaker {
        self.source.as_ref().unwrap().waker().unwrap()
    }

    pub(crate) fn lag(&self) -> trunkline_connector::SourceLag {
        self.source.as_ref().unwrap().lag()
    }

    pub(crate) fn texts(&self) -> Vec<&str> {
        self.seen.iter().map(|seen| seen.text.as_str()).collect()
    }

    /// Lines emitted since the last call.
    pub(crate) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.seen).into_iter().map(|seen| seen.text).collect()
    }

    fn commit(&mut self, batch: &SourceBatch) {
        for record in batch.records.iter() {
            let value = record.value().unwrap();
            let json: serde_json::Value = serde_json::from_slice(value).unwrap();
            let text = json.get("message").and_then(|message| message.as_str()).map(str::to_owned);
            assert!(record.timestamp().is_some());
            self.seen.push(Seen {
                path: header(record.header("trunkline.path")),
                offset: header(record.header("trunkline.offset")).parse().unwrap(),
                ordering_key: record.entry().ordering_key(),
                text: text.unwrap_or_else(|| String::from_utf8(value.to_vec()).unwrap()),
            });
        }
        for (record, reason) in batch.rejected.iter() {
            self.rejected.push(SeenRejected {
                path: header(record.header("trunkline.path")),
                offset: header(record.header("trunkline.offset")).parse().unwrap(),
                bytes: record.value().unwrap().to_vec(),
                code: reason.code.clone(),
                message: reason.message.clone(),
            });
        }
        self.dropped += batch.dropped;
        for change in &batch.position {
            match &change.value {
                Some(value) => self.position.insert(change.key.clone(), value.clone()),
                None => self.position.remove(&change.key),
            };
        }
    }
}

pub(crate) fn write_gzip(path: &Path, content: &[u8]) {
    let mut encoder = flate2::write::GzEncoder::new(File::create(path).unwrap(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap();
}

fn header(value: Option<&[u8]>) -> String {
    String::from_utf8(value.unwrap().to_vec()).unwrap()
}

/// `prefix 0\nprefix 1\n..`
pub(crate) fn numbered(prefix: &str, range: std::ops::Range<usize>) -> String {
    range.map(|number| format!("{prefix} {number}\n")).collect()
}

pub(crate) fn numbered_lines(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("{prefix} {number}")).collect()
}

/// Runs something and returns what it logged at INFO and above, one line for each event.
pub(crate) fn logged<T>(run: impl FnOnce() -> T) -> (T, Vec<String>) {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .without_time()
        .finish();
    let result = tracing::subscriber::with_default(subscriber, run);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    (result, text.lines().map(str::to_owned).collect())
}

/// The warnings among logged lines.
pub(crate) fn warnings(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).filter(|line| line.contains("WARN")).collect()
}

pub(crate) fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}
