//! A worker process.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{io, mem};

use crate::{Summary, wait};

/// A process that was started, mostly a worker. It is killed when this goes out of scope.
pub struct Worker {
    /// Waited for by wait4, which tells what the process used; the standard library's own wait is never called.
    process: Child,
    command: String,
    output: PathBuf,
    started: Instant,
    /// The highest `VmHWM` seen so far.
    peak_rss: u64,
    exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its exit code, if it was not killed.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// From its start to its end.
    pub elapsed: Duration,
    /// Processor time, user and system, of all its threads.
    pub cpu: Duration,
    /// The most memory that it had resident, in bytes, as it was seen while it was waited for. Not `ru_maxrss`: a process takes that over from
    /// the one that starts it.
    pub peak_rss: u64,
    /// The command line.
    pub command: String,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Worker {
    /// Starts `command`; its output goes to the files `{output}.stdout` and `{output}.stderr`.
    pub fn spawn(command: Command, output: &Path) -> Self {
        Self::spawn_on(command, output, Stdio::null())
    }

    /// The same, with a standard input.
    pub(crate) fn spawn_on(mut command: Command, output: &Path, input: Stdio) -> Self {
        let file = |kind| File::create(output.with_added_extension(kind)).unwrap();
        command.stdin(input).stdout(file("stdout")).stderr(file("stderr"));
        // SAFETY: prctl is async-signal-safe and touches nothing of ours.
        unsafe {
            command.pre_exec(|| {
                // A worker does not outlive its test, even if that is killed: the signal comes when the thread that started it ends.
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let started = Instant::now();
        let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { process, command: format!("{command:?}"), output: output.into(), started, peak_rss: 0, exit: None }
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.reap(libc::WNOHANG);
        self.exit.is_none()
    }

    /// The most memory that it had resident until now, in bytes.
    pub fn peak_rss(&mut self) -> u64 {
        self.reap(libc::WNOHANG);
        self.peak_rss
    }

    /// What it wrote to standard error until now.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.output.with_added_extension("stderr")).unwrap()).into_owned()
    }

    /// Asks it to stop.
    pub fn sigterm(&mut self) {
        self.signal(libc::SIGTERM);
    }

    /// Asks it to read its pipeline files again.
    pub fn sighup(&mut self) {
        self.signal(libc::SIGHUP);
    }

    /// Stops it where it is, as a machine does that hangs for a while; returns when no thread of it runs any more.
    pub fn sigstop(&mut self) {
        self.signal(libc::SIGSTOP);
        wait::until("the process is stopped", Duration::from_secs(10), || self.is_stopped().then_some(()));
    }

    /// Is it stopped, by [`Worker::sigstop`] or by itself?
    pub fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // "pid (name) state ..": see `runs` in server.rs.
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    /// Lets it go on after [`Worker::sigstop`].
    pub fn sigcont(&mut self) {
        self.signal(libc::SIGCONT);
    }

    /// Whether it has a file open: which of several workers reads it, asked of nobody who could be wrong.
    pub fn has_open(&self, path: &Path) -> bool {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", self.pid())) else { return false };
        descriptors.flatten().any(|open| fs::read_link(open.path()).is_ok_and(|target| target == path))
    }

    /// Kills it and waits for its end.
    pub fn kill9(mut self) -> Exit {
        self.signal(libc::SIGKILL);
        self.reap(0);
        self.exit.clone().unwrap()
    }

    /// Kills it after `delay`, unless it ends by itself before that.
    pub fn kill9_after(mut self, delay: Duration) -> Exit {
        wait::within(delay, || (!self.runs()).then_some(()));
        self.kill9()
    }

    /// Waits for its end; panics with the end of its standard error when that takes longer than `limit`.
    pub fn wait(mut self, limit: Duration) -> Exit {
        if wait::within(limit, || (!self.runs()).then_some(())).is_none() {
            let exit = self.kill9();
            panic!("did not end within {limit:?}: {}", exit.describe());
        }
        self.exit.clone().unwrap()
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.process.id() as i32
    }

    fn signal(&mut self, signal: i32) {
        if self.runs() {
            // SAFETY: kill has no memory effects. The pid is ours: it is not reused before wait4 has reaped it.
            unsafe { libc::kill(self.pid(), signal) };
        }
    }

    fn reap(&mut self, options: i32) {
        if self.exit.is_some() {
            return;
        }
        self.peak_rss = self.peak_rss.max(memory_of(self.pid(), "VmHWM").unwrap_or(0));
        let mut status = 0;
        // SAFETY: rusage is plain numbers; wait4 writes to the two places given, for a child that was not reaped yet.
        let (reaped, usage) = unsafe {
            let mut usage: libc::rusage = mem::zeroed();
            (libc::wait4(self.pid(), &mut status, options, &mut usage), usage)
        };
        assert!(reaped >= 0, "wait4: {}", io::Error::last_os_error());
        if reaped == 0 {
            return;
        }
        let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
        self.exit = Some(Exit {
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            elapsed: self.started.elapsed(),
            cpu: time(usage.ru_utime) + time(usage.ru_stime),
            peak_rss: self.peak_rss,
            command: self.command.clone(),
            stdout: String::from_utf8_lossy(&fs::read(self.output.with_added_extension("stdout")).unwrap())
                .into_owned(),
            stderr: self.stderr(),
        });
    }
}

/// `VmHWM` (the most that it ever had resident), `VmRSS` or the like of a process, in bytes; none once it has ended.
pub fn memory_of(pid: i32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        self.reap(0);
    }
}

impl Exit {
    /// The summary on its last line, in which I3 was checked.
    pub fn summary(&self) -> Summary {
        assert!(!self.stdout.trim().is_empty(), "no summary: {}", self.describe());
        Summary::parse(&self.stdout)
    }

    /// For a message: how it ended, and its last words.
    pub fn describe(&self) -> String {
        let lines = self.stderr.lines().collect::<Vec<_>>();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        format!(
            "{}: code {:?}, signal {:?}, after {:?}; it said:\n{last}",
            self.command, self.code, self.signal, self.elapsed
        )
    }
}
