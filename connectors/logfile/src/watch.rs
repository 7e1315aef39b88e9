//! [`Watch`]: waits for changes in folders, with the kernel's notifications where they are
//! available.
//!
//! A notification only ends a wait early; a scan finds the change. A lost notification (an
//! overflowed queue, a network file system) therefore delays a change by at most `poll_interval`.

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
    notifications: Receiver<()>,
    /// Kept so that the channel stays open without a watcher.
    _sender: SyncSender<()>,
    warned: bool,
}

impl Watch {
    pub(crate) fn new() -> Self {
        // One pending notification is enough.
        let (sender, notifications) = sync_channel(1);
        let notify = sender.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading causes notifications too: the source's own reads must not wake it.
            let is_reading = matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(_)));
            if !is_reading {
                let _ = notify.try_send(());
            }
        });
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(%error, "the kernel sends no notifications of changed files: the source scans them every `poll_interval` instead");
                None
            }
        };
        Self { watcher, folders: HashMap::new(), notifications, _sender: sender, warned: false }
    }

    /// Watches these folders and no others.
    pub(crate) fn follow(&mut self, folders: &BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        let current: HashMap<&Path, FileId> = folders
            .iter()
            .filter_map(|folder| Some((folder.as_path(), identify(&std::fs::metadata(folder).ok()?).0)))
            .collect();
        // A folder that was removed and created again has another identity.
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
                    tracing::warn!(folder = %folder.display(), %error, "the kernel sends no notifications for this folder: the source scans it every `poll_interval` instead; if fs.inotify.max_user_watches is exhausted, raise it");
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for a notification until `deadline`; returns whether there was one.
    pub(crate) fn wait(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.notifications.recv_timeout(left) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }
}
