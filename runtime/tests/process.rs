//! The process of a worker: how it stops without brokers, and its limit of open files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PIPELINE: &str = r#"
name = "web"

[sources.logs]
connector = "logfile"
paths = ["access.log"]
"#;

/// A stop takes less than 5 s; twice the time is for a busy machine.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// More than any wait here should take.
const LIMIT: Duration = Duration::from_secs(60);

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("web.toml"), PIPELINE).unwrap();
    std::fs::write(folder.path().join("access.log"), "one line\n").unwrap();
    folder
}

/// A command that runs the binary without the `TRUNKLINE_*` settings of the test's environment.
fn command(folder: &Path, program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TRUNKLINE_")) {
        command.env_remove(name);
    }
    command.env("TRUNKLINE_LOG_FORMAT", "text");
    command.current_dir(folder).stdout(Stdio::null()).stderr(std::fs::File::create(folder.join("stderr")).unwrap());
    command
}

/// A worker, killed when the test ends.
struct Worker<'f> {
    process: Child,
    folder: &'f Path,
}

impl<'f> Worker<'f> {
    fn start(folder: &'f Path, brokers: &str) -> Self {
        let mut command = command(folder, env!("CARGO_BIN_EXE_trunkline"));
        let process = command.args(["run", "web.toml", "--brokers", brokers]).spawn().unwrap();
        Self { process, folder }
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder.join("stderr")).unwrap()
    }

    fn wait_for_log(&mut self, text: &str) {
        let begun = Instant::now();
        while !self.stderr().contains(text) {
            assert!(
                begun.elapsed() < LIMIT && self.process.try_wait().unwrap().is_none(),
                "no {text:?}: {}",
                self.stderr()
            );
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the call has no memory effects; the process was not reaped yet.
        unsafe { libc::kill(self.process.id() as i32, signal) };
    }

    /// Waits for the end; returns the exit code and the time that it took.
    fn wait(&mut self) -> (Option<i32>, Duration) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return (status.code(), begun.elapsed());
            }
            assert!(begun.elapsed() < LIMIT, "does not end: {}", self.stderr());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_worker_stops_soon_although_no_broker_answers() {
    // One address refuses connections, the other accepts them and never answers.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let refusing = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap()
    };
    for brokers in [silent.local_addr().unwrap().to_string(), refusing.to_string()] {
        let folder = folder();
        let mut worker = Worker::start(folder.path(), &brokers);
        worker.wait_for_log("connecting to Kafka");
        worker.signal(libc::SIGTERM);
        let (code, elapsed) = worker.wait();
        assert_eq!(code, Some(0), "{}", worker.stderr());
        assert!(elapsed < STOP_LIMIT, "{elapsed:?}: {}", worker.stderr());
    }
}

#[test]
fn an_unreachable_broker_is_reported_with_its_address_and_the_setting() {
    let folder = folder();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut worker = Worker::start(folder.path(), &address.to_string());
    worker.wait_for_log("Connection refused");
    let line = worker.stderr().lines().find(|line| line.contains("Connection refused")).unwrap_or_default().to_owned();
    assert!(line.contains(&address.to_string()) && line.contains("setting `brokers`"), "{line}");
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let folder = folder();
    let mut worker = Worker::start(folder.path(), &silent.local_addr().unwrap().to_string());
    worker.wait_for_log("connecting to Kafka");
    worker.signal(libc::SIGINT);
    worker.wait_for_log("a second signal ends the process");
    // Signals right after the first one belong to it.
    let begun = Instant::now();
    while worker.process.try_wait().unwrap().is_none() && begun.elapsed() < LIMIT {
        worker.signal(libc::SIGINT);
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let (code, _) = worker.wait();
    assert_eq!(code, Some(1), "{}", worker.stderr());
    assert!(worker.stderr().contains("stopped by a second signal"), "{}", worker.stderr());
}

#[test]
fn a_small_soft_limit_of_open_files_is_raised() {
    let folder = folder();
    std::fs::write(folder.path().join("trunkline.toml"), "[topics]\npartitions = 100\n").unwrap();
    let job = format!("ulimit -S -n 100 && exec '{}' run web.toml --until-idle", env!("CARGO_BIN_EXE_trunkline"));
    let mut command = command(folder.path(), "/bin/sh");
    let mut process = command.args(["-c", &job]).spawn().unwrap();
    let status = process.wait().unwrap();
    let mut stderr = String::new();
    std::fs::File::open(folder.path().join("stderr")).unwrap().read_to_string(&mut stderr).unwrap();
    assert!(status.success(), "{stderr}");
}

#[test]
fn a_hard_limit_that_is_too_small_is_reported_with_the_need_and_the_remedy() {
    let folder = folder();
    std::fs::write(folder.path().join("trunkline.toml"), "[topics]\npartitions = 100\n").unwrap();
    let job = format!("ulimit -n 150 && exec '{}' run web.toml --until-idle", env!("CARGO_BIN_EXE_trunkline"));
    let mut command = command(folder.path(), "/bin/sh");
    let mut process = command.args(["-c", &job]).spawn().unwrap();
    let begun = Instant::now();
    let stderr = loop {
        let stderr = std::fs::read_to_string(folder.path().join("stderr")).unwrap();
        let has_ended = process.try_wait().unwrap().is_some();
        if stderr.contains("open files") || has_ended || begun.elapsed() > LIMIT {
            break stderr;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let _ = process.kill();
    let _ = process.wait();
    assert!(stderr.contains("may open 150") && stderr.contains("LimitNOFILE"), "{stderr}");
}
