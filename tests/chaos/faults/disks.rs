//! Disks that are full for a while: small in-memory file systems that are filled up.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use trunkline_tests::{BrokerKind, Case, Skip, wait};

use crate::fixture::{Fixture, LIMIT};
use crate::plan::Plan;

/// The code of a worker's error.
const DISK_FULL: &str = "io.disk_full";

/// Mounts the worker's data folder.
pub(crate) fn prepare_worker(_: &Plan, case: &Case) -> Result<(), Skip> {
    mount(&case.path("data-a"), 24)
}

/// Mounts the sink's folder.
pub(crate) fn prepare_sink(_: &Plan, case: &Case) -> Result<(), Skip> {
    mount(&case.path("lake"), 24)
}

/// Mounts the broker's data folder.
pub(crate) fn prepare_broker(plan: &Plan, case: &Case) -> Result<(), Skip> {
    if plan.broker == BrokerKind::Apache {
        return Err(Skip::new("Apache Kafka shuts down when its disk is full; `broker-kill` covers that"));
    }
    mount(&case.path("broker"), 64)
}

/// Fills the disk of files that wait for their upload.
pub(crate) fn worker(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let folder = fixture.case.path("data-a");
    let outcome = full(fixture, &folder, true);
    // The checks read the folder, and need no free space.
    unmount_later(fixture, folder);
    outcome
}

/// Fills the disk of published files.
pub(crate) fn sink(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let folder = fixture.case.path("lake");
    let outcome = full(fixture, &folder, true);
    unmount_later(fixture, folder);
    outcome
}

/// Fills the disk of topics.
pub(crate) fn broker(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let folder = fixture.case.path("broker");
    let outcome = full(fixture, &folder, false);
    unmount_later(fixture, folder);
    outcome
}

/// Fills the disk several times. `is_reported`: the worker reports the full disk, so that it can be
/// waited for.
fn full(fixture: &mut Fixture<'_>, folder: &Path, is_reported: bool) -> Result<(), Skip> {
    let mut worker = Some(fixture.start("a"));
    for _ in 0..fixture.plan.times(2, 5) {
        fixture.append(300);
        fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
        let filler = fill(folder);
        fixture.append(3_000);
        let running = super::running(fixture, &mut worker);
        if is_reported {
            let before = running.stderr().matches(DISK_FULL).count();
            wait::until("the worker reports the full disk", LIMIT, || {
                (running.stderr().matches(DISK_FULL).count() > before).then_some(())
            });
        } else {
            super::let_run(Duration::from_secs(3));
        }
        if fixture.random.below(3) == 0 {
            fixture.kill(worker.take().expect("it was just started"));
        }
        fs::remove_file(filler).unwrap();
        fixture.tally.faults += 1;
        fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
    }
    if let Some(worker) = worker {
        fixture.stop(worker);
    }
    Ok(())
}

/// Fills the disk; returns the filler file.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler.parquet-not");
    let mut file = fs::File::create(&path).unwrap();
    let block = [0; 4096];
    while file.write_all(&block).is_ok() {}
    path
}

/// Mounts an in-memory file system of this size on a folder. This needs root.
fn mount(folder: &Path, mebibytes: u64) -> Result<(), Skip> {
    fs::create_dir_all(folder).unwrap();
    let target = CString::new(folder.as_os_str().as_bytes()).unwrap();
    let options = CString::new(format!("size={mebibytes}m")).unwrap();
    // SAFETY: four C strings that live until the call returns; the kernel copies them.
    let mounted = unsafe {
        libc::mount(c"none".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast::<libc::c_void>())
    };
    match mounted {
        0 => Ok(()),
        _ => Err(Skip::new(format!("cannot mount a small disk: {}", std::io::Error::last_os_error()))),
    }
}

/// Unmounts the disk at the end of the run, after the checks.
fn unmount_later(fixture: &mut Fixture<'_>, folder: PathBuf) {
    fixture.mounted = Some(Mounted(folder));
}

/// Unmounts a disk when it is dropped, unless the run failed: then its files are evidence.
pub(crate) struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} stays mounted", self.0.display());
            return;
        }
        let target = CString::new(self.0.as_os_str().as_bytes()).unwrap();
        // SAFETY: a C string that lives until the call returns. Detached: the kernel unmounts it
        // when the last process has closed its files.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}
