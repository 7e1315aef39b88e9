//! The private ground of one test.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::{Exit, KafkaClient, S3, Summary, Worker, worker_binary};

/// A folder, a pipeline name that no other test has, and the workers that run it. When the test fails the folder is kept.
pub struct Case {
    name: String,
    folder: Option<TempDir>,
    brokers: String,
    binary: PathBuf,
    settings: Vec<(String, String)>,
    started: AtomicU32,
}

impl Case {
    /// A new one. `test` is a short name, of letters and dashes.
    pub fn new(test: &str, kafka: &KafkaClient) -> Self {
        let binary = worker_binary();
        // Kafka's data may be older than this process, so counting is not enough.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
        let folder = tempfile::Builder::new().prefix(&format!("trunkline-{test}-")).tempdir().unwrap();
        fs::create_dir(folder.path().join("pipelines")).unwrap();
        fs::create_dir(folder.path().join("logs")).unwrap();
        fs::create_dir(folder.path().join("lake")).unwrap();
        Self {
            name: format!("{test}-{:x}-{now:x}", std::process::id()),
            folder: Some(folder),
            brokers: kafka.brokers().into(),
            binary,
            settings: Vec::new(),
            started: AtomicU32::new(0),
        }
    }

    /// The same on another broker than it was made for: one that lies in its folder, and so comes later.
    pub fn on(mut self, kafka: &KafkaClient) -> Self {
        self.brokers = kafka.brokers().into();
        self
    }

    /// Gives all workers of this test a setting, by its environment variable.
    pub fn set(&mut self, variable: &str, value: &str) {
        self.settings.push((variable.into(), value.into()));
    }

    /// The unique name: of the cluster, and of the pipeline where there is one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the folder. `logs` and `lake` exist.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.as_ref().unwrap().path().join(relative)
    }

    /// Writes a pipeline file, in which `$NAME` stands for the unique name and `$DIR` for the folder. `file` is its name without `.toml`.
    pub fn pipeline(&self, file: &str, text: &str) {
        let text =
            text.replace("$NAME", &self.name).replace("$DIR", self.path("").to_str().unwrap().trim_end_matches('/'));
        fs::write(self.path("pipelines").join(file).with_extension("toml"), text).unwrap();
    }

    /// Takes a pipeline file away.
    pub fn remove_pipeline(&self, file: &str) {
        fs::remove_file(self.path("pipelines").join(file).with_extension("toml")).unwrap();
    }

    /// Starts a worker on all pipelines. `worker` names its data folder: the same one again takes over from the last one.
    pub fn start(&self, worker: &str, arguments: &[&str]) -> Worker {
        self.start_with(worker, arguments, &[])
    }

    /// The same, with settings of this worker alone.
    pub fn start_with(&self, worker: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Worker {
        let mut command = std::process::Command::new(&self.binary);
        command.arg("run").arg(self.path("pipelines"));
        self.launch(command, worker, arguments, settings)
    }

    /// Runs another verb on all pipelines until it ends.
    pub fn run_verb(&self, verb: &str, before: &[&str], after: &[&str], limit: Duration) -> Exit {
        let mut command = std::process::Command::new(&self.binary);
        command.arg(verb).args(before).arg(self.path("pipelines"));
        self.launch(command, verb, after, &[]).wait(limit)
    }

    fn launch(
        &self,
        mut command: std::process::Command,
        worker: &str,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> Worker {
        command.arg("--brokers").arg(&self.brokers).arg("--data").arg(self.path(&format!("data-{worker}")));
        // Settings of whoever runs the tests are not this worker's, nor are the variables of the tests themselves.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
            command.env_remove(name);
        }
        command.args(arguments).env("TRUNKLINE_CLUSTER", &self.name).envs(S3::CREDENTIALS);
        command.envs(self.settings.iter().cloned()).envs(settings.iter().copied());
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        Worker::spawn(command, &self.path(&format!("{number}-{worker}")))
    }

    /// Runs a worker until it is idle, and gives its summary, in which I3 was checked.
    pub fn until_idle(&self, worker: &str, limit: Duration) -> Summary {
        let exit = self.start(worker, &["--until-idle", "--json"]).wait(limit);
        assert_eq!(exit.code, Some(0), "{}", exit.describe());
        exit.summary()
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.folder.take().unwrap().keep();
            eprintln!("what the workers wrote is in {}", kept.display());
        }
    }
}
