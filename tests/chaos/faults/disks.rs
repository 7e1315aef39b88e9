//! Disks that are full for a while: small ones, of memory, that are filled up.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use trunkline_tests::{Case, Skip, wait};

use crate::ground::{Ground, LONG};
use crate::plan::{Broker, Plan};

/// What a worker says when it meets one.
const SAID: &str = "io.disk_full";

/// The worker's data folder.
pub(crate) fn prepare_worker(_: &Plan, case: &Case) -> Result<(), Skip> {
    mount(&case.path("data-a"), 24)
}

/// The folder with the objects.
pub(crate) fn prepare_sink(_: &Plan, case: &Case) -> Result<(), Skip> {
    mount(&case.path("lake"), 24)
}

/// The broker's data folder.
pub(crate) fn prepare_broker(plan: &Plan, case: &Case) -> Result<(), Skip> {
    if plan.broker == Broker::Apache {
        return Err(Skip::new("Apache Kafka shuts down when its disk is full, which `broker-kill` has"));
    }
    mount(&case.path("broker"), 64)
}

/// Files that wait for their upload do not fit.
pub(crate) fn worker(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let folder = ground.case.path("data-a");
    let outcome = full(ground, &folder, true);
    // The checks that follow look at it, and need no room.
    unmount_later(ground, folder);
    outcome
}

/// Objects do not fit.
pub(crate) fn sink(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let folder = ground.case.path("lake");
    let outcome = full(ground, &folder, true);
    unmount_later(ground, folder);
    outcome
}

/// Records do not fit.
pub(crate) fn broker(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let folder = ground.case.path("broker");
    let outcome = full(ground, &folder, false);
    unmount_later(ground, folder);
    outcome
}

fn full(ground: &mut Ground<'_>, folder: &Path, said: bool) -> Result<(), Skip> {
    let mut worker = Some(ground.start("a"));
    for _ in 0..ground.plan.times(2, 5) {
        ground.append(300);
        ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
        let filler = fill(folder);
        ground.append(3_000);
        let running = super::running(ground, &mut worker);
        if said {
            let before = running.stderr().matches(SAID).count();
            wait::until("the worker meets the full disk", LONG, || {
                (running.stderr().matches(SAID).count() > before).then_some(())
            });
        } else {
            super::hold(Duration::from_secs(3));
        }
        if ground.random.below(3) == 0 {
            ground.kill(worker.take().expect("it was just started"));
        }
        fs::remove_file(filler).unwrap();
        ground.tally.faults += 1;
        ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
    }
    if let Some(worker) = worker {
        ground.stop(worker);
    }
    Ok(())
}

/// Takes all the room there is.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler.parquet-not");
    let mut file = fs::File::create(&path).unwrap();
    let block = [0; 4096];
    while file.write_all(&block).is_ok() {}
    path
}

/// A disk of so many MiB in place of a folder. It needs root.
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
        _ => Err(Skip::new(format!("no small disk can be mounted: {}", std::io::Error::last_os_error()))),
    }
}

/// When everything was checked.
fn unmount_later(ground: &mut Ground<'_>, folder: PathBuf) {
    ground.mounted = Some(Mounted(folder));
}

/// A disk that is unmounted when this is dropped, unless a run failed on it: then it is evidence.
pub(crate) struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} is left mounted", self.0.display());
            return;
        }
        let target = CString::new(self.0.as_os_str().as_bytes()).unwrap();
        // SAFETY: a C string that lives until the call returns. Detached: it goes when the last process has closed its files.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}
