//! Checks of the machine: the data folder, its disk, inotify, the clock.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::findings::Findings;

/// Less free space than this stops a worker soon: scratch files, compiled plugins.
const LITTLE_SPACE: u64 = 256 << 20;

/// Less free space than this is worth a warning. The embedded broker keeps its topics there.
const SOME_SPACE: u64 = 2 << 30;

/// The folder, who may use it, and the free space of its disk.
pub(super) fn check_data_folder(folder: &Path, embedded: bool, findings: &mut Findings) {
    let area = "data folder";
    // The worker creates what is missing.
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    let shown = folder.display();
    if !existing.is_dir() {
        let message = format!("{} is not a folder", existing.display());
        let fix = Some("name another folder with --data or the setting `data`".to_owned());
        return findings.error(area, "environment.data", message, fix);
    }
    let Ok(path) = CString::new(existing.as_os_str().as_bytes()) else { return };
    // SAFETY: the path ends with a zero; the call reads it only.
    if unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } != 0 {
        let message = format!("this user may not write to {}", existing.display());
        let fix =
            Some(format!("chown the folder to the user of the worker, or name another one with --data ({shown})"));
        return findings.error(area, "environment.data", message, fix);
    }
    let mode = folder.metadata().map_or(0, |metadata| metadata.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        let message = format!("other users may read {shown} (mode {mode:o}), which contains records in plain text");
        findings.warning(area, "environment.data", message, Some(format!("chmod 700 {shown}")));
    }
    let Some(free) = free_space(&path) else { return };
    let size = format!("{:.1} GiB are free for {shown}", free as f64 / f64::from(1 << 30));
    let fix = Some("free space on this disk, or name a folder on another one with --data".to_owned());
    match free {
        free if free < LITTLE_SPACE => findings.error(area, "environment.disk", size, fix),
        free if free < SOME_SPACE => {
            let use_of_it =
                if embedded { "the embedded broker keeps its topics there" } else { "sinks write scratch files there" };
            findings.warning(area, "environment.disk", format!("{size}: {use_of_it}"), fix);
        }
        _ => findings.ok(area, size),
    }
}

/// Bytes that a user without privileges may use.
fn free_space(path: &CString) -> Option<u64> {
    let mut disk = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the call reads the path and writes the given place only, completely if it succeeds.
    let disk = unsafe {
        if libc::statvfs(path.as_ptr(), disk.as_mut_ptr()) != 0 {
            return None;
        }
        disk.assume_init()
    };
    Some(disk.f_bavail * disk.f_frsize)
}

/// Whether the source `logfile` can be notified of changes. Without notifications it scans.
pub(super) fn check_inotify(findings: &mut Findings) {
    let area = "inotify";
    // SAFETY: the call takes no pointers; the descriptor is closed below.
    let descriptor = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
    if descriptor < 0 {
        let error = std::io::Error::last_os_error();
        let message =
            format!("no inotify instance is available ({error}): log files are scanned every `poll_interval`");
        let fix = Some("sysctl fs.inotify.max_user_instances=1024".to_owned());
        return findings.warning(area, "environment.inotify", message, fix);
    }
    // SAFETY: the descriptor is open and not used again.
    unsafe { libc::close(descriptor) };
    let watches = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap_or_default();
    match watches.trim().parse::<u64>() {
        Ok(count) if count < 8_192 => {
            let message = format!("a user may watch only {count} folders: others are scanned every `poll_interval`");
            let fix = Some("sysctl fs.inotify.max_user_watches=524288".to_owned());
            findings.warning(area, "environment.inotify", message, fix);
        }
        Ok(count) => findings.ok(area, format!("a user may watch {count} folders")),
        Err(_) => {}
    }
}

/// Whether the kernel's clock is synchronised. Records and positions carry its time.
pub(super) fn check_clock(findings: &mut Findings) {
    let area = "clock";
    // SAFETY: all zeros are a valid request: read, and change nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the call writes the given place only.
    match unsafe { libc::adjtimex(&raw mut state) } {
        // Not permitted, as in some containers.
        ..0 => {}
        libc::TIME_ERROR => {
            let message = "the clock of this machine is not synchronised: times of records may be wrong, and signed requests \
                           (AWS, OAuth) are refused after a few minutes of difference";
            let fix = Some("start a time service, such as systemd-timesyncd or chrony".to_owned());
            findings.warning(area, "environment.clock", message.to_owned(), fix);
        }
        _ => findings.ok(area, format!("synchronised, to {:.1} ms at most", state.maxerror as f64 / 1_000.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings::Level;
    use super::*;

    #[test]
    fn a_folder_that_does_not_exist_is_judged_by_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let mut findings = Findings::default();
        check_data_folder(&folder.path().join("a/b"), false, &mut findings);
        assert_eq!(findings.count(Level::Error), 0, "{findings:?}");
        assert!(!folder.path().join("a").exists());
        std::fs::write(folder.path().join("file"), "").unwrap();
        check_data_folder(&folder.path().join("file/b"), false, &mut findings);
        let last = findings.0.last().unwrap();
        assert!(last.level == Level::Error && last.message.contains("is not a folder"), "{findings:?}");
    }

    #[test]
    fn a_data_folder_that_others_may_read_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut findings = Findings::default();
        check_data_folder(folder.path(), false, &mut findings);
        let fix = findings.0.iter().find_map(|finding| finding.fix.clone()).unwrap();
        assert_eq!(fix, format!("chmod 700 {}", folder.path().display()));
    }
}
