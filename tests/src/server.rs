//! A server, of one process or several, behind one of the scripts in `tests/services`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use std::{fs, net};

use crate::{Skip, repository, wait};

/// A running (or stopped) server: script, port and data folder stay the same over restarts.
pub(crate) struct Server {
    script: PathBuf,
    settings: Vec<(String, String)>,
    port: u16,
    directory: PathBuf,
    /// Its processes, in the order in which the script names them; none where one was ended.
    pids: Vec<Option<u32>>,
    /// The first start's script, whose standard input we hold open: see `leash` in `tests/services/lib.sh`.
    _leash: Child,
}

impl Server {
    /// Starts `tests/services/{name}` with fresh data, on the first of `pairs` pairs of free ports.
    pub(crate) fn start(name: &str, settings: &[(&str, &str)], pairs: u16) -> Result<Self, Skip> {
        let script = repository().join("tests/services").join(name);
        // What the machine lacks shows here, and is a skip. That a server does not start, although all of it is here, is a failure.
        let fetched = Command::new(&script)
            .arg("fetch")
            .envs(settings.iter().copied())
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        if !fetched.status.success() {
            return Err(Skip::new(format!(
                "{name} is not to be had here: {}",
                String::from_utf8_lossy(&fetched.stderr)
            )));
        }
        let settings = settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>();
        let port = free_ports(pairs);
        // Not dropped here: the leash removes it when this process has ended.
        let directory = tempfile::Builder::new().prefix(&format!("trunkline-{name}-")).tempdir().unwrap().keep();
        let (child, up) = run(&script, &settings, port, &directory, true);
        let pids = up.unwrap_or_else(|reason| panic!("{name} does not start, see {}: {reason}", directory.display()));
        Ok(Self { script, settings, port, directory, pids, _leash: child })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its first process; none if that was ended.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pids.first().copied().flatten()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends all its processes with `signal` and waits until they are gone.
    pub(crate) fn end(&mut self, signal: i32) {
        (0..self.pids.len()).for_each(|process| self.end_one(process, signal));
    }

    /// Ends one of its processes with `signal` and waits until that is gone.
    pub(crate) fn end_one(&mut self, process: usize, signal: i32) {
        let Some(pid) = self.pids[process].take() else { return };
        // SAFETY: kill has no memory effects; the pid is the server's, which nobody else ends or reaps.
        unsafe { libc::kill(pid as i32, signal) };
        wait::until("the server ends", Duration::from_secs(60), || (!runs(pid)).then_some(()));
    }

    /// Starts again, on the same ports with the same data, what was ended of it.
    pub(crate) fn start_again(&mut self) {
        let (_, up) = run(&self.script, &self.settings, self.port, &self.directory, false);
        self.pids = up.unwrap_or_else(|reason| panic!("{} does not restart: {reason}", self.script.display()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The data goes when the leash is let go: with the child's standard input, right after this.
        self.end(libc::SIGKILL);
    }
}

/// Runs a start script to its end; gives the pids, or the script's last words.
fn run(
    script: &Path,
    settings: &[(String, String)],
    port: u16,
    directory: &Path,
    leash: bool,
) -> (Child, Result<Vec<Option<u32>>, String>) {
    let mut command = Command::new(script);
    command.arg(port.to_string()).arg(directory).envs(settings.iter().cloned());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("LEASH", if leash { "1" } else { "0" });
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    // Keeps the write end open: wait() would close it.
    let stdin = child.stdin.take();
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let status = child.wait().unwrap();
    child.stdin = stdin;
    let pid = |word: &str| word.strip_prefix("pid=")?.parse().ok();
    let pids = out.split_whitespace().filter_map(pid).map(Some).collect::<Vec<_>>();
    if status.success() && !pids.is_empty() { (child, Ok(pids)) } else { (child, Err(format!("{status} {out} {err}"))) }
}

/// Whether the process exists and is not merely waiting to be reaped by whatever became its parent.
fn runs(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // "pid (name) state ..": the name may hold anything, so look behind the last parenthesis.
    !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

/// The first of `pairs` times two ports that are free and follow each other. Below the range from which the system takes ports for
/// outgoing connections: none of those can come in between now and the server's start.
pub(crate) fn free_ports(pairs: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Far apart for processes that follow each other: a port that is free now is still free when the other one's server takes seconds to start.
    let start = (std::process::id().wrapping_mul(0x9E37_79B9) >> 16) as u16 % 5_000;
    for _ in 0..5_000 {
        let step = NEXT.fetch_add(pairs, Ordering::Relaxed);
        let port = 20_000 + (start.wrapping_add(step) % 5_000) * 2;
        let free = |port| net::TcpListener::bind((net::Ipv4Addr::LOCALHOST, port)).is_ok();
        // The last pairs of the range may reach a little beyond it, which harms nobody.
        if (port..port + 2 * pairs).all(free) {
            return port;
        }
    }
    panic!("no {pairs} pairs of free ports from 20000 to 30000");
}
