//! The folder, names and worker processes of one test.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::{Exit, KafkaClient, Process, S3, Summary, worker_binary};

/// A folder, a unique pipeline name, and the workers that run the pipeline. A failing test keeps
/// its folder.
pub struct Case {
    name: String,
    folder: Option<TempDir>,
    brokers: String,
    binary: PathBuf,
    settings: Vec<(String, String)>,
    processes: AtomicU32,
}

impl Case {
    /// A new case. `test` is a short name of letters and dashes.
    pub fn new(test: &str, kafka: &KafkaClient) -> Self {
        let binary = worker_binary();
        // A broker's data may be older than this process, so that a counter would not be unique.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
        let folder = tempfile::Builder::new().prefix(&format!("trunkline-{test}-")).tempdir().unwrap();
        for name in ["pipelines", "logs", "lake"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self {
            name: format!("{test}-{:x}-{now:x}", std::process::id()),
            folder: Some(folder),
            brokers: kafka.brokers().into(),
            binary,
            settings: Vec::new(),
            processes: AtomicU32::new(0),
        }
    }

    /// The same case on another broker: one whose data is in this case's folder starts after it.
    pub fn on(mut self, kafka: &KafkaClient) -> Self {
        self.brokers = kafka.brokers().into();
        self
    }

    /// The same case with another worker binary.
    pub fn with_binary(mut self, binary: PathBuf) -> Self {
        self.binary = binary;
        self
    }

    /// Sets an environment variable (a setting) of all workers of this case.
    pub fn set(&mut self, variable: &str, value: &str) {
        self.settings.push((variable.into(), value.into()));
    }

    /// The unique name of the cluster, and of the pipeline in most tests.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path in the folder. `logs` and `lake` exist.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.as_ref().unwrap().path().join(relative)
    }

    /// Writes the pipeline file `{file}.toml`. In `text`, `$NAME` stands for the unique name and
    /// `$DIR` for the folder.
    pub fn pipeline(&self, file: &str, text: &str) {
        let text =
            text.replace("$NAME", &self.name).replace("$DIR", self.path("").to_str().unwrap().trim_end_matches('/'));
        fs::write(self.pipeline_path(file), text).unwrap();
    }

    /// Removes the pipeline file `{file}.toml`.
    pub fn remove_pipeline(&self, file: &str) {
        fs::remove_file(self.pipeline_path(file)).unwrap();
    }

    fn pipeline_path(&self, file: &str) -> PathBuf {
        self.path("pipelines").join(file).with_extension("toml")
    }

    /// Starts a worker on all pipelines. `worker` names its data folder: a later worker with the
    /// same name continues with the same folder.
    pub fn start(&self, worker: &str, arguments: &[&str]) -> Process {
        self.start_with(worker, arguments, &[])
    }

    /// Starts a worker with additional environment variables.
    pub fn start_with(&self, worker: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Process {
        let mut command = Command::new(&self.binary);
        command.arg("run").arg(self.path("pipelines"));
        self.launch(command, worker, arguments, settings)
    }

    /// Runs another command of the binary on all pipelines, until it ends.
    pub fn run_command(&self, name: &str, before: &[&str], after: &[&str], limit: Duration) -> Exit {
        self.start_command(name, before, after).wait(limit)
    }

    /// Starts another command of the binary on all pipelines.
    pub fn start_command(&self, name: &str, before: &[&str], after: &[&str]) -> Process {
        let mut command = Command::new(&self.binary);
        command.arg(name).args(before).arg(self.path("pipelines"));
        self.launch(command, name, after, &[])
    }

    /// The same, with settings in its environment.
    pub fn start_command_with(&self, name: &str, after: &[&str], settings: &[(&str, &str)]) -> Process {
        let mut command = Command::new(&self.binary);
        command.arg(name).arg(self.path("pipelines"));
        self.launch(command, name, after, settings)
    }

    /// Runs a command that reads no pipelines, with the data folder of a worker, until it ends.
    pub fn ask_worker(&self, name: &str, worker: &str, arguments: &[&str], limit: Duration) -> Exit {
        let mut command = Command::new(&self.binary);
        command.arg(name);
        self.launch(command, worker, arguments, &[]).wait(limit)
    }

    fn launch(&self, mut command: Command, worker: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Process {
        command.arg("--brokers").arg(&self.brokers).arg("--data").arg(self.path(&format!("data-{worker}")));
        // A worker must not inherit the settings of the user who runs the tests.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
            command.env_remove(name);
        }
        command.args(arguments).env("TRUNKLINE_CLUSTER", &self.name).envs(S3::CREDENTIALS);
        // Tests search the log for texts. Another version may not know the setting.
        if self.binary == worker_binary() {
            command.env("TRUNKLINE_LOG_FORMAT", "text");
        }
        command.envs(self.settings.iter().cloned()).envs(settings.iter().copied());
        let number = self.processes.fetch_add(1, Ordering::Relaxed);
        Process::spawn(command, &self.path(&format!("{number}-{worker}")))
    }

    /// Runs a worker until it is idle; returns its summary, which satisfies I3.
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
            eprintln!("the pipelines and the workers' output are kept in {}", kept.display());
        }
    }
}
