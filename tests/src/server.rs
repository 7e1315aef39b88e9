//! A server process behind one of the scripts in `tests/services`.

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
    pid: Option<u32>,
    /// The first start's script, whose standard input we hold open: see `leash` in `tests/services/lib.sh`.
    _leash: Child,
}

impl Server {
    /// Starts `tests/services/{name}` on a free port with fresh data.
    pub(crate) fn start(name: &str, settings: &[(&str, &str)]) -> Result<Self, Skip> {
        let script = repository().join("tests/services").join(name);
        // What the machine lacks shows here, and is a skip. That a server does not start, although all of it is here, is a failure.
        let fetched =
            Command::new(&script).arg("fetch").output().unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        if !fetched.status.success() {
            return Err(Skip::new(format!(
                "{name} is not to be had here: {}",
                String::from_utf8_lossy(&fetched.stderr)
            )));
        }
        let settings = settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>();
        let port = free_ports();
        // Not dropped here: the leash removes it when this process has ended.
        let directory = tempfile::Builder::new().prefix(&format!("trunkline-{name}-")).tempdir().unwrap().keep();
        let (child, up) = run(&script, &settings, port, &directory, true);
        let pid = up.unwrap_or_else(|reason| panic!("{name} does not start, see {}: {reason}", directory.display()));
        Ok(Self { script, settings, port, directory, pid: Some(pid), _leash: child })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends the server with `signal` and waits until it is gone.
    pub(crate) fn end(&mut self, signal: i32) {
        let Some(pid) = self.pid.take() else { return };
        // SAFETY: kill has no memory effects; the pid is the server's, which nobody else ends or reaps.
        unsafe { libc::kill(pid as i32, signal) };
        wait::until("the server ends", Duration::from_secs(60), || (!runs(pid)).then_some(()));
    }

    /// Starts the server again on the same port with the same data.
    pub(crate) fn restart(&mut self) {
        self.end(libc::SIGTERM);
        let (_, up) = run(&self.script, &self.settings, self.port, &self.directory, false);
        self.pid = Some(up.unwrap_or_else(|reason| panic!("{} does not restart: {reason}", self.script.display())));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The data goes when the leash is let go: with the child's standard input, right after this.
        self.end(libc::SIGKILL);
    }
}

/// Runs a start script to its end; gives the server's pid, or the script's last words.
fn run(
    script: &Path,
    settings: &[(String, String)],
    port: u16,
    directory: &Path,
    leash: bool,
) -> (Child, Result<u32, String>) {
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
    let pid = out.split_whitespace().find_map(|word| word.strip_prefix("pid=")?.parse().ok());
    match pid {
        Some(pid) if status.success() => (child, Ok(pid)),
        _ => (child, Err(format!("{status} {out} {err}"))),
    }
}

/// Whether the process exists and is not merely waiting to be reaped by whatever became its parent.
fn runs(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // "pid (name) state ..": the name may hold anything, so look behind the last parenthesis.
    !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

/// A port which, like the one after it, is free. Below the range from which the system takes ports for outgoing connections: none of
/// those can come in between now and the server's start.
pub(crate) fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = std::process::id() as u16 % 5_000;
    for _ in 0..5_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (start.wrapping_add(step) % 5_000) * 2;
        let free = |port| net::TcpListener::bind((net::Ipv4Addr::LOCALHOST, port)).is_ok();
        if free(port) && free(port + 1) {
            return port;
        }
    }
    panic!("no two free ports from 20000 to 30000");
}
