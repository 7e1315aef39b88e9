//! Waiting for something to happen: the kernel's notices of changed folders, where they are to be had, and a deadline always.
//!
//! A notice only ends a wait early. What happened is found by looking, so a notice that is lost (a queue that overflowed, a network file
//! system that sends none) costs no more than `poll_interval`.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Instant;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::discovery::identify;
use crate::position::FileId;

pub(crate) struct Watch {
    watcher: Option<RecommendedWatcher>,
    folders: HashMap<PathBuf, FileId>,
    notices: Receiver<()>,
    /// Kept so that the channel stays open without a watcher.
    _sender: SyncSender<()>,
    warned: bool,
}

impl Watch {
    pub(crate) fn new() -> Self {
        // One notice waiting is as good as many.
        let (sender, notices) = sync_channel(1);
        let notify = sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading causes notices too: those of our own reading must not wake us.
            let is_reading = matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(_)));
            if !is_reading {
                let _ = notify.try_send(());
            }
        });
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "no notices of changed files: they are polled every `poll_interval` instead");
                None
            }
        };
        Self { watcher, folders: HashMap::new(), notices, _sender: sender, warned: false }
    }

    /// Watches exactly these folders.
    pub(crate) fn follow(&mut self, folders: &BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        let current: HashMap<&Path, FileId> = folders
            .iter()
            .filter_map(|folder| Some((folder.as_path(), identify(&std::fs::metadata(folder).ok()?).0)))
            .collect();
        // A folder that was removed and made again is another one under the old name.
        self.folders.retain(|folder, id| {
            let stays = current.get(folder.as_path()) == Some(id);
            if !stays {
                let _ = watcher.unwatch(folder);
            }
            stays
        });
        for (folder, id) in current {
            if self.folders.contains_key(folder) {
                continue;
            }
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.folders.insert(folder.to_owned(), id);
                }
                Err(error) if !self.warned => {
                    self.warned = true;
                    tracing::warn!(folder = %folder.display(), %error, "no notices of changes in this folder: it is polled every `poll_interval` instead (is fs.inotify.max_user_watches reached?)");
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for a notice until `deadline`; was there one?
    pub(crate) fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.notices.recv_timeout(left) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }
}
