//! [`Watch`]: learns from the kernel which files and folders change, where it reports that.
//!
//! A notification names a file, so that the source reads this file and looks at no other one. Where
//! a name appears, disappears or moves, and where notifications were lost, only a scan finds what
//! changed. A change that the kernel does not report (a network file system) is found by the scan
//! after `poll_interval`.
//!
//! All sources of the process share one inotify instance, because the kernel limits their number.
//! It reports changes only: neither the reads of a source nor those of others wake a source. Nor do
//! changes of files that the source does not know, as those of other programs in `/var/log`.

#[cfg(target_os = "linux")]
mod hub;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use trunkline_connector::SourceWaker;

use crate::discovery::identify;
use crate::position::FileId;

/// The files of a source by their paths, those of symbolic links included. `None`: a file that is
/// not tracked, so that only a scan decides whether it is read.
pub(crate) type KnownFiles = HashMap<PathBuf, Option<FileId>>;

/// What changed since changes were last taken.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// The tracked files whose content changed.
    pub(crate) files: HashSet<FileId>,
    /// Only a scan finds what else changed.
    pub(crate) needs_scan: bool,
}

/// Waits for changes in the folders of one source.
pub(crate) struct Watch {
    inbox: Arc<Inbox>,
    subscription: Option<hub::Subscription>,
    watched: HashMap<PathBuf, Watched>,
    /// All folders that exist are watched, and their file systems report all changes.
    reliable: bool,
    /// Some of the folders do not exist.
    lacks_folders: bool,
    warned: bool,
}

/// A watched folder.
struct Watched {
    id: FileId,
    is_local: bool,
}

/// Where the thread that reads the kernel's notifications leaves them for one source.
#[derive(Default)]
struct Inbox {
    state: Mutex<InboxState>,
    arrived: Condvar,
}

#[derive(Default)]
struct InboxState {
    known: Arc<KnownFiles>,
    /// A scan is running: it may find files that are not known yet.
    keeps_all: bool,
    /// A change of any other file in the folders needs a scan.
    unknown_matters: bool,
    /// Paths of files whose content changed.
    changed: HashSet<PathBuf>,
    needs_scan: bool,
    /// The source shall not wait.
    is_interrupted: bool,
}

impl Inbox {
    /// A thread that panicked while it held the lock leaves consistent sets behind.
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the content of a file changed.
    fn note_changed(&self, folder: &Path, name: &OsStr) {
        let mut state = self.lock();
        let path = folder.join(name);
        let known = state.known.get(&path).copied();
        if known.flatten().is_some() || state.keeps_all {
            state.changed.insert(path);
        } else if known.is_some() || state.unknown_matters {
            state.needs_scan = true;
        } else {
            return;
        }
        self.arrived.notify_one();
    }

    /// Notes a change that only a scan can find.
    fn note_scan(&self) {
        self.lock().needs_scan = true;
        self.arrived.notify_one();
    }

    fn interrupt(&self) {
        self.lock().is_interrupted = true;
        self.arrived.notify_one();
    }
}

impl Watch {
    pub(crate) fn new() -> Self {
        let inbox = Arc::new(Inbox::default());
        let subscription = match hub::subscribe(Arc::clone(&inbox)) {
            Ok(subscription) => Some(subscription),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the kernel sends no notifications of changed files: the source scans them every \
                     `poll_interval` instead; if fs.inotify.max_user_instances is exhausted, raise it"
                );
                None
            }
        };
        Self { inbox, subscription, watched: HashMap::new(), reliable: false, lacks_folders: false, warned: false }
    }

    /// Watches these folders and no others. Whether there are new ones: changes from before this
    /// call were not reported.
    pub(crate) fn follow(&mut self, folders: &BTreeSet<PathBuf>) -> bool {
        let Some(subscription) = &mut self.subscription else { return false };
        let current: HashMap<&Path, FileId> = folders
            .iter()
            .filter_map(|folder| Some((folder.as_path(), identify(&std::fs::metadata(folder).ok()?).0)))
            .collect();
        // A folder that was removed and created again has another identity.
        self.watched.retain(|folder, watched| {
            let stays = current.get(folder.as_path()) == Some(&watched.id);
            if !stays {
                subscription.unwatch(folder);
            }
            stays
        });
        let mut has_new = false;
        let existing = current.len();
        for (folder, id) in current {
            if self.watched.contains_key(folder) {
                continue;
            }
            match subscription.watch(folder) {
                Ok(()) => {
                    has_new = true;
                    self.watched.insert(folder.to_owned(), Watched { id, is_local: is_local(folder) });
                }
                Err(error) if !self.warned => {
                    self.warned = true;
                    tracing::warn!(
                        folder = %folder.display(), %error,
                        "the kernel sends no notifications for this folder: the source scans it every \
                         `poll_interval` instead; if fs.inotify.max_user_watches is exhausted, raise it"
                    );
                }
                Err(_) => {}
            }
        }
        self.reliable = self.watched.len() == existing && self.watched.values().all(|watched| watched.is_local);
        self.lacks_folders = existing < folders.len();
        has_new
    }

    /// Whether the kernel reports all changes in the folders. It does not for folders of network
    /// file systems, which other machines change, and for those that do not exist.
    pub(crate) fn is_reliable(&self) -> bool {
        self.reliable && !self.lacks_folders
    }

    /// Whether the kernel reports all changes, except that a folder appears which does not exist.
    pub(crate) fn only_lacks_folders(&self) -> bool {
        self.reliable && self.lacks_folders
    }

    /// Forgets all changes before a scan, which finds them. Until [`Watch::end_scan`], changes of
    /// all files are kept.
    pub(crate) fn begin_scan(&self) {
        let mut state = self.inbox.lock();
        state.changed.clear();
        state.needs_scan = false;
        state.keeps_all = true;
    }

    /// Sets the files that the scan has found. `unknown_matters`: a change of any other file in the
    /// folders needs a scan, because a file is followed whose path is not known.
    pub(crate) fn end_scan(&self, known: KnownFiles, unknown_matters: bool) {
        let mut state = self.inbox.lock();
        state.keeps_all = false;
        state.unknown_matters = unknown_matters;
        let changed = std::mem::take(&mut state.changed);
        for path in changed {
            match known.get(&path) {
                Some(Some(_)) => {
                    state.changed.insert(path);
                }
                Some(None) => state.needs_scan = true,
                None => state.needs_scan |= unknown_matters,
            }
        }
        state.known = Arc::new(known);
    }

    /// The changes since the last call, or since the scan after it.
    pub(crate) fn take(&self) -> Changes {
        let mut state = self.inbox.lock();
        let needs_scan = std::mem::take(&mut state.needs_scan);
        if state.changed.is_empty() {
            return Changes { files: HashSet::new(), needs_scan };
        }
        let (changed, known) = (std::mem::take(&mut state.changed), Arc::clone(&state.known));
        drop(state);
        let files = changed.iter().filter_map(|path| known.get(path).copied().flatten()).collect();
        Changes { files, needs_scan }
    }

    /// Ends the current wait, or the next one, from any thread.
    pub(crate) fn waker(&self) -> SourceWaker {
        let inbox = Arc::clone(&self.inbox);
        Arc::new(move || inbox.interrupt())
    }

    /// Whether a wait was interrupted since the last call.
    pub(crate) fn take_interruption(&self) -> bool {
        std::mem::take(&mut self.inbox.lock().is_interrupted)
    }

    /// Whether there are changes to take.
    pub(crate) fn has_changes(&self) -> bool {
        self.wait(Instant::now())
    }

    /// Waits for a change until `deadline`, or until an interruption; returns whether there is one.
    pub(crate) fn wait(&self, deadline: Instant) -> bool {
        let mut state = self.inbox.lock();
        loop {
            if state.needs_scan || !state.changed.is_empty() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.is_interrupted {
                return false;
            }
            state = self.inbox.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Whether a folder is on a file system that only this machine changes.
#[cfg(target_os = "linux")]
fn is_local(folder: &Path) -> bool {
    // Of file systems that other machines, or programs, change: NFS, SMB, CIFS, SMB2, FUSE, 9P,
    // Ceph, AFS, Coda, Lustre, GFS2, OCFS2.
    const SHARED: [u32; 12] = [
        0x6969,
        0x517b,
        0xff53_4d42,
        0xfe53_4d42,
        0x6573_5546,
        0x0102_1997,
        0x00c3_6400,
        0x5346_414f,
        0x7375_7245,
        0x0bd0_0bd0,
        0x0116_1970,
        0x7461_636f,
    ];
    let Ok(path) = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()) else { return false };
    let mut information = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the path ends in NUL, and both pointers are valid until the call returns.
    let result = unsafe { libc::statfs(path.as_ptr(), information.as_mut_ptr()) };
    if result != 0 {
        return false;
    }
    // SAFETY: the call succeeded and has filled the structure.
    let kind = unsafe { information.assume_init() }.f_type;
    !SHARED.contains(&(kind as u32))
}

#[cfg(not(target_os = "linux"))]
fn is_local(_: &Path) -> bool {
    false
}

/// Other systems have no notifications here: sources scan every `poll_interval`.
#[cfg(not(target_os = "linux"))]
mod hub {
    use std::io;
    use std::path::Path;
    use std::sync::Arc;

    use super::Inbox;

    pub(super) struct Subscription;

    pub(super) fn subscribe(_: Arc<Inbox>) -> io::Result<Subscription> {
        Err(io::ErrorKind::Unsupported.into())
    }

    impl Subscription {
        pub(super) fn watch(&mut self, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn unwatch(&mut self, _: &Path) {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(100)
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    /// A watch of a folder that knows one file.
    fn watch_of(folder: &Path, file: &str, id: FileId) -> Watch {
        let mut watch = Watch::new();
        watch.begin_scan();
        assert!(watch.follow(&BTreeSet::from([folder.to_owned()])));
        assert!(!watch.follow(&BTreeSet::from([folder.to_owned()])));
        assert!(watch.is_reliable() || !is_local(folder));
        watch.end_scan(KnownFiles::from([(folder.join(file), Some(id))]), false);
        watch
    }

    fn id(inode: u64) -> FileId {
        FileId { device: 1, inode }
    }

    #[test]
    fn changes_wake_all_sources_and_reads_wake_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.log");
        std::fs::write(&file, "one").unwrap();
        let watches = [(); 2].map(|()| watch_of(folder.path(), "a.log", id(1)));
        assert_eq!(std::fs::read(&file).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(watches.iter().all(|watch| !watch.wait(soon())), "a read was reported");
        std::fs::write(&file, "two").unwrap();
        assert!(watches.iter().all(|watch| watch.wait(late())), "a change was not reported");
        // A source that ends leaves the watch of the other one.
        let [first, second] = watches;
        drop(first);
        while second.wait(soon()) {
            second.take();
        }
        std::fs::write(folder.path().join("b.log"), "new").unwrap();
        assert!(second.wait(late()), "a change was not reported");
        assert!(second.take().needs_scan);
    }

    #[test]
    fn a_change_names_its_file_and_other_files_wake_nobody() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.log", "b.log", "other"] {
            std::fs::write(folder.path().join(name), "one").unwrap();
        }
        let watch = watch_of(folder.path(), "a.log", id(7));
        let append = |name: &str| {
            use std::io::Write;
            let mut file = std::fs::File::options().append(true).open(folder.path().join(name)).unwrap();
            file.write_all(b"more").unwrap();
        };
        append("other");
        assert!(!watch.wait(soon()));
        append("a.log");
        assert!(watch.wait(late()));
        assert_eq!(watch.take(), Changes { files: HashSet::from([id(7)]), needs_scan: false });
        assert!(!watch.wait(soon()));
        // During a scan, files that it may find are noted; the others are forgotten at its end.
        watch.begin_scan();
        append("b.log");
        append("other");
        assert!(watch.wait(late()));
        while watch.inbox.lock().changed.len() < 2 {
            std::thread::yield_now();
        }
        watch.end_scan(KnownFiles::from([(folder.path().join("b.log"), Some(id(8)))]), false);
        assert_eq!(watch.take(), Changes { files: HashSet::from([id(8)]), needs_scan: false });
        // A known file that is not tracked needs a scan, as does any file while one is followed
        // whose path is not known.
        watch.end_scan(KnownFiles::from([(folder.path().join("b.log"), None)]), false);
        append("b.log");
        assert!(watch.wait(late()));
        assert_eq!(watch.take(), Changes { files: HashSet::new(), needs_scan: true });
        watch.end_scan(KnownFiles::new(), true);
        append("other");
        assert!(watch.wait(late()));
        assert!(watch.take().needs_scan);
    }

    #[test]
    fn an_interruption_ends_one_wait_from_another_thread() {
        let folder = tempfile::tempdir().unwrap();
        let watch = watch_of(folder.path(), "a.log", id(1));
        let wake = watch.waker();
        std::thread::scope(|scope| {
            scope.spawn(|| wake());
            assert!(!watch.wait(late()));
        });
        assert!(watch.take_interruption() && !watch.take_interruption());
        std::fs::write(folder.path().join("a.log"), "one").unwrap();
        assert!(watch.wait(late()));
    }

    #[test]
    fn a_scan_finds_the_changes_from_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.log");
        std::fs::write(&file, "one").unwrap();
        let watch = watch_of(folder.path(), "a.log", id(1));
        std::fs::rename(&file, folder.path().join("a.log.1")).unwrap();
        assert!(watch.wait(late()));
        while watch.wait(soon()) {
            watch.begin_scan();
        }
        assert_eq!(watch.take(), Changes::default());
    }
}
