//! Programs that nobody here wrote, run to their end.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::{Exit, Skip, Worker, repository};

/// A program behind one of the scripts in `tests/services`: it gets the arguments, and with `fetch` only sees that all of it is here.
pub struct Tool {
    script: PathBuf,
    /// For what it reads and writes.
    folder: TempDir,
    runs: AtomicU32,
}

impl Tool {
    /// More than any of them takes, on a machine that is busy with other things.
    const LIMIT: Duration = Duration::from_secs(180);

    /// Most of them are in Java and run for a second: what makes a JVM start fast.
    const JAVA_OPTS: &str = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";

    /// The program behind `tests/services/{name}`.
    pub fn find(name: &str) -> Result<Self, Skip> {
        let script = repository().join("tests/services").join(name);
        let fetched = Command::new(&script).arg("fetch").stdin(Stdio::null()).output();
        let fetched = fetched.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        if !fetched.status.success() {
            let reason = String::from_utf8_lossy(&fetched.stderr).into_owned();
            return Err(Skip::new(format!("{name} is not to be had here: {reason}")));
        }
        Ok(Self { script, folder: tempfile::tempdir().unwrap(), runs: AtomicU32::new(0) })
    }

    /// Runs it to its end, which has to be a good one; gives what it wrote to standard output.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.run_on("", arguments)
    }

    /// The same, with a text as its standard input.
    pub fn run_on(&self, input: &str, arguments: &[&str]) -> String {
        let exit = self.start_on(input, arguments).wait(Self::LIMIT);
        assert_eq!(exit.code, Some(0), "{}; its output:\n{}", exit.describe(), exit.stdout);
        exit.stdout
    }

    /// Runs it to its end, good or bad.
    pub fn try_run(&self, arguments: &[&str]) -> Exit {
        self.start(arguments).wait(Self::LIMIT)
    }

    /// Starts it, for those that run until they are told to stop.
    pub fn start(&self, arguments: &[&str]) -> Worker {
        self.start_on("", arguments)
    }

    fn start_on(&self, input: &str, arguments: &[&str]) -> Worker {
        let path = self.folder.path().join(self.runs.fetch_add(1, Ordering::Relaxed).to_string());
        let input_path = path.with_extension("stdin");
        fs::write(&input_path, input).unwrap();
        let mut command = Command::new(&self.script);
        command.args(arguments).env("JAVA_OPTS", Self::JAVA_OPTS);
        Worker::spawn_on(command, &path, File::open(input_path).unwrap().into())
    }
}
