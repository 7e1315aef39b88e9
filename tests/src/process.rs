//! A child process, in most cases a worker.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{io, mem};

use crate::{Summary, wait};

/// A child process that is killed when this value is dropped.
pub struct Process {
    /// Only `reap` waits for it, by wait4, which returns the resources that the process used.
    child: Child,
    command: String,
    output: PathBuf,
    started: Instant,
    /// The highest `VmHWM` so far.
    peak_rss: u64,
    exit: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Its exit code, if it was not killed by a signal.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// From its start to its end.
    pub elapsed: Duration,
    /// User and system processor time of all its threads.
    pub cpu: Duration,
    /// The highest resident memory in bytes, sampled while waiting for it. `ru_maxrss` is not used,
    /// because a child process starts with the value of its parent.
    pub peak_rss: u64,
    /// The command line.
    pub command: String,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command`; its output goes to the files `{output}.stdout` and `{output}.stderr`.
    pub fn spawn(command: Command, output: &Path) -> Self {
        Self::spawn_with_input(command, output, Stdio::null())
    }

    /// Starts `command` with a standard input.
    pub(crate) fn spawn_with_input(mut command: Command, output: &Path, input: Stdio) -> Self {
        let file = |kind| File::create(output.with_added_extension(kind)).unwrap();
        command.stdin(input).stdout(file("stdout")).stderr(file("stderr"));
        // SAFETY: prctl is async-signal-safe and does not access this process's memory.
        unsafe {
            command.pre_exec(|| {
                // The process does not outlive its test, even if that is killed: the kernel sends
                // this signal when the thread that started the process ends.
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        let started = Instant::now();
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, command: format!("{command:?}"), output: output.into(), started, peak_rss: 0, exit: None }
    }

    /// Whether it is running.
    pub fn is_running(&mut self) -> bool {
        self.reap(libc::WNOHANG);
        self.exit.is_none()
    }

    /// The highest resident memory so far, in bytes.
    pub fn peak_rss(&mut self) -> u64 {
        self.reap(libc::WNOHANG);
        self.peak_rss
    }

    /// Its standard output so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.output.with_added_extension("stdout")).unwrap()).into_owned()
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.output.with_added_extension("stderr")).unwrap()).into_owned()
    }

    /// Sends SIGTERM.
    pub fn sigterm(&mut self) {
        self.signal(libc::SIGTERM);
    }

    /// Sends SIGHUP: a worker reloads its pipeline files.
    pub fn sighup(&mut self) {
        self.signal(libc::SIGHUP);
    }

    /// Suspends it, as a hanging machine does; returns when none of its threads runs.
    pub fn sigstop(&mut self) {
        self.signal(libc::SIGSTOP);
        wait::until("the process is suspended", Duration::from_secs(10), || self.is_suspended().then_some(()));
    }

    /// Whether it is suspended, by [`Process::sigstop`] or by itself.
    pub fn is_suspended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // "pid (name) state ..": see `is_running` in server.rs.
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    /// Resumes it after [`Process::sigstop`].
    pub fn sigcont(&mut self) {
        self.signal(libc::SIGCONT);
    }

    /// Whether it has a file open, according to the kernel: the worker that reads a log has it
    /// open.
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

    /// Kills it after `delay`, unless it ends before.
    pub fn kill9_after(mut self, delay: Duration) -> Exit {
        wait::within(delay, || (!self.is_running()).then_some(()));
        self.kill9()
    }

    /// Waits for its end. After `limit`, panics with the end of its standard error.
    pub fn wait(mut self, limit: Duration) -> Exit {
        if wait::within(limit, || (!self.is_running()).then_some(())).is_none() {
            let exit = self.kill9();
            panic!("did not end within {limit:?}: {}", exit.describe());
        }
        self.exit.clone().unwrap()
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn signal(&mut self, signal: i32) {
        if self.is_running() {
            // SAFETY: kill has no memory effects. The pid is not reused before wait4 has reaped it.
            unsafe { libc::kill(self.pid(), signal) };
        }
    }

    fn reap(&mut self, options: i32) {
        if self.exit.is_some() {
            return;
        }
        self.peak_rss = self.peak_rss.max(memory_of(self.pid(), "VmHWM").unwrap_or(0));
        let mut status = 0;
        // SAFETY: rusage is plain numbers; wait4 writes to the two given places, for a child that
        // is not reaped yet.
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

/// A field of `/proc/PID/status` such as `VmHWM` (peak resident) or `VmRSS`, in bytes; `None` once
/// the process has ended.
pub fn memory_of(pid: i32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        self.reap(0);
    }
}

impl Exit {
    /// The summary on the last line of its output, which satisfies I3.
    pub fn summary(&self) -> Summary {
        assert!(!self.stdout.trim().is_empty(), "no summary: {}", self.describe());
        Summary::parse(&self.stdout)
    }

    /// How it ended, and the end of its standard error, for a message.
    pub fn describe(&self) -> String {
        let lines = self.stderr.lines().collect::<Vec<_>>();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        format!(
            "{}: code {:?}, signal {:?}, after {:?}; stderr:\n{last}",
            self.command, self.code, self.signal, self.elapsed
        )
    }
}
