//! A server of one or several processes, started by a script in `tests/services`.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use std::{fs, net};

use crate::{Skip, paths, wait};

/// A running or stopped server. Script, port and data folder stay the same across restarts.
pub(crate) struct Server {
    script: PathBuf,
    settings: Vec<(String, String)>,
    port: u16,
    directory: PathBuf,
    /// Its processes, in the order of the script's output; `None` where one was ended.
    pids: Vec<Option<u32>>,
    /// The first start's script. Its standard input stays open: see `leash` in
    /// `tests/services/lib.sh`.
    _leash: Child,
}

impl Server {
    /// Starts `tests/services/{name}` with new data, on the first port of `pairs` free pairs.
    pub(crate) fn start(name: &str, settings: &[(&str, &str)], pairs: u16) -> Result<Self, Skip> {
        let script = script(name);
        // A failed start after it is a failure.
        fetch(name, settings)?;
        let settings = settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>();
        let port = free_ports(pairs);
        // The leash removes the folder after this process has ended.
        let directory = tempfile::Builder::new().prefix(&format!("trunkline-{name}-")).tempdir().unwrap().keep();
        let (child, started) = run_script(&script, &settings, port, &directory, true);
        let pids =
            started.unwrap_or_else(|reason| panic!("{name} does not start, see {}: {reason}", directory.display()));
        Ok(Self { script, settings, port, directory, pids, _leash: child })
    }

    /// Sends a request with a JSON body; returns the status and the answer.
    pub(crate) fn call(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let mut stream = net::TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its first process; `None` if that was ended.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pids.first().copied().flatten()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Sends `signal` to all its processes and waits until they have ended.
    pub(crate) fn end(&mut self, signal: i32) {
        (0..self.pids.len()).for_each(|process| self.end_process(process, signal));
    }

    /// Sends `signal` to one of its processes and waits until it has ended.
    pub(crate) fn end_process(&mut self, process: usize, signal: i32) {
        let Some(pid) = self.pids[process].take() else { return };
        // SAFETY: kill has no memory effects; the pid is the server's, which only this value ends.
        unsafe { libc::kill(pid as i32, signal) };
        wait::until("the server ends", Duration::from_secs(60), || (!is_running(pid)).then_some(()));
    }

    /// Starts the ended processes again, on the same ports and data.
    pub(crate) fn start_again(&mut self) {
        let (_, started) = run_script(&self.script, &self.settings, self.port, &self.directory, false);
        self.pids = started.unwrap_or_else(|reason| panic!("{} does not restart: {reason}", self.script.display()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The leash removes the data when the child's standard input is closed, directly after
        // this.
        self.end(libc::SIGKILL);
    }
}

fn script(name: &str) -> PathBuf {
    paths::repository().join("tests/services").join(name)
}

/// Downloads `tests/services/{name}`; returns the script's output. A failed download is a skip: the
/// machine lacks something.
pub(crate) fn fetch(name: &str, settings: &[(&str, &str)]) -> Result<String, Skip> {
    let script = script(name);
    let fetched = Command::new(&script)
        .arg("fetch")
        .envs(settings.iter().copied())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    if !fetched.status.success() {
        let reason = String::from_utf8_lossy(&fetched.stderr);
        return Err(Skip::new(format!("{name} is not available here: {reason}")));
    }
    Ok(String::from_utf8_lossy(&fetched.stdout).trim().to_owned())
}

/// Runs a start script to its end. Returns the pids, or the script's output.
fn run_script(
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
    // wait() would close it.
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

/// Whether the process exists and is not a zombie.
fn is_running(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // "pid (name) state ..": the name may contain anything, so search for the last parenthesis.
    !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

/// The first of `2 * pairs` consecutive free ports. They are below the ephemeral ports, so that no
/// outgoing connection takes one before the server starts.
pub(crate) fn free_ports(pairs: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Successive processes begin far apart: a server may need seconds until it listens on its port.
    let start = (std::process::id().wrapping_mul(0x9E37_79B9) >> 16) as u16 % 5_000;
    for _ in 0..5_000 {
        let step = NEXT.fetch_add(pairs, Ordering::Relaxed);
        let port = 20_000 + (start.wrapping_add(step) % 5_000) * 2;
        let is_free = |port| net::TcpListener::bind((net::Ipv4Addr::LOCALHOST, port)).is_ok();
        // The last pairs may exceed the range a little; those ports are not ephemeral either.
        if (port..port + 2 * pairs).all(is_free) {
            return port;
        }
    }
    panic!("no {pairs} pairs of free ports from 20000 to 30000");
}
