//! External programs that run to their end.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::{Exit, Process, Skip, repository};

/// A program behind a script in `tests/services`. The script passes its arguments on; with `fetch`
/// it only checks that the program is available.
pub struct Tool {
    script: PathBuf,
    /// For its input and output.
    folder: TempDir,
    runs: AtomicU32,
}

impl Tool {
    /// More than any tool needs, even on a busy machine.
    const LIMIT: Duration = Duration::from_secs(180);

    /// Options for a JVM that starts fast: most tools are Java programs that run for a second.
    const JAVA_OPTS: &str = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";

    /// The program behind `tests/services/{name}`.
    pub fn find(name: &str) -> Result<Self, Skip> {
        let script = repository().join("tests/services").join(name);
        let fetched = Command::new(&script).arg("fetch").stdin(Stdio::null()).output();
        let fetched = fetched.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        if !fetched.status.success() {
            let reason = String::from_utf8_lossy(&fetched.stderr).into_owned();
            return Err(Skip::new(format!("{name} is not available here: {reason}")));
        }
        Ok(Self { script, folder: tempfile::tempdir().unwrap(), runs: AtomicU32::new(0) })
    }

    /// Runs it until it exits with 0; returns its standard output.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.run_with_input("", arguments)
    }

    /// Runs it with `input` as its standard input, until it exits with 0; returns its standard
    /// output.
    pub fn run_with_input(&self, input: &str, arguments: &[&str]) -> String {
        let exit = self.start_with_input(input, arguments).wait(Self::LIMIT);
        assert_eq!(exit.code, Some(0), "{}; its output:\n{}", exit.describe(), exit.stdout);
        exit.stdout
    }

    /// Runs it with `input` as its standard input, until it exits with any code.
    pub fn try_run_with_input(&self, input: &str, arguments: &[&str]) -> Exit {
        self.start_with_input(input, arguments).wait(Self::LIMIT)
    }

    /// Runs it until it exits with any code.
    pub fn try_run(&self, arguments: &[&str]) -> Exit {
        self.start(arguments).wait(Self::LIMIT)
    }

    /// Starts a program that runs until it is stopped.
    pub fn start(&self, arguments: &[&str]) -> Process {
        self.start_with_input("", arguments)
    }

    fn start_with_input(&self, input: &str, arguments: &[&str]) -> Process {
        let path = self.folder.path().join(self.runs.fetch_add(1, Ordering::Relaxed).to_string());
        let input_path = path.with_extension("stdin");
        fs::write(&input_path, input).unwrap();
        let mut command = Command::new(&self.script);
        command.args(arguments).env("JAVA_OPTS", Self::JAVA_OPTS);
        Process::spawn_with_input(command, &path, File::open(input_path).unwrap().into())
    }
}
