//! [`Watch`]: waits for changes in folders, with the kernel's notifications where they are
//! available.
//!
//! A notification only ends a wait early; a scan finds the change. A lost notification (an
//! overflowed queue, a network file system) therefore delays a change by at most `poll_interval`.
//!
//! All sources of the process share one inotify instance, because the kernel limits their number.
//! It reports changes only: neither the reads of a source nor those of others wake a source.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Instant;

use crate::discovery::identify;
use crate::position::FileId;

/// Waits for changes in the folders of one source.
pub(crate) struct Watch {
    subscription: Option<hub::Subscription>,
    folders: HashMap<PathBuf, FileId>,
    notifications: Receiver<()>,
    /// Keeps the channel open without a subscription.
    _sender: SyncSender<()>,
    warned: bool,
}

impl Watch {
    pub(crate) fn new() -> Self {
        // One pending notification is enough.
        let (sender, notifications) = sync_channel(1);
        let subscription = match hub::subscribe(sender.clone()) {
            Ok(subscription) => Some(subscription),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the kernel sends no notifications of changed files: the source scans them every `poll_interval` instead; if \
                     fs.inotify.max_user_instances is exhausted, raise it"
                );
                None
            }
        };
        Self { subscription, folders: HashMap::new(), notifications, _sender: sender, warned: false }
    }

    /// Watches these folders and no others.
    pub(crate) fn follow(&mut self, folders: &BTreeSet<PathBuf>) {
        let Some(subscription) = &mut self.subscription else { return };
        let current: HashMap<&Path, FileId> = folders
            .iter()
            .filter_map(|folder| Some((folder.as_path(), identify(&std::fs::metadata(folder).ok()?).0)))
            .collect();
        // A folder that was removed and created again has another identity.
        self.folders.retain(|folder, id| {
            let stays = current.get(folder.as_path()) == Some(id);
            if !stays {
                subscription.unwatch(folder);
            }
            stays
        });
        for (folder, id) in current {
            if self.folders.contains_key(folder) {
                continue;
            }
            match subscription.watch(folder) {
                Ok(()) => {
                    self.folders.insert(folder.to_owned(), id);
                }
                Err(error) if !self.warned => {
                    self.warned = true;
                    tracing::warn!(
                        folder = %folder.display(), %error,
                        "the kernel sends no notifications for this folder: the source scans it every `poll_interval` instead; if \
                         fs.inotify.max_user_watches is exhausted, raise it"
                    );
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

/// The inotify instance of the process.
#[cfg(target_os = "linux")]
mod hub {
    use std::collections::HashMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::mpsc::SyncSender;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};

    /// Changes of a folder's entries and of their content.
    const CHANGES: WatchMask = WatchMask::CREATE
        .union(WatchMask::DELETE)
        .union(WatchMask::MODIFY)
        .union(WatchMask::MOVED_FROM)
        .union(WatchMask::MOVED_TO)
        .union(WatchMask::ONLYDIR);

    /// The instance, once a source has subscribed. It lives as long as the process.
    static HUB: Mutex<Option<Arc<Hub>>> = Mutex::new(None);

    struct Hub {
        state: Mutex<State>,
    }

    struct State {
        watches: Watches,
        next_subscriber: u64,
        /// Subscribers of each watched folder. A source that watches a folder under two paths is in
        /// the list twice.
        folders: HashMap<WatchDescriptor, Vec<(u64, SyncSender<()>)>>,
    }

    /// The share of one source.
    pub(super) struct Subscription {
        hub: Arc<Hub>,
        id: u64,
        sender: SyncSender<()>,
        watched: HashMap<PathBuf, WatchDescriptor>,
    }

    pub(super) fn subscribe(sender: SyncSender<()>) -> io::Result<Subscription> {
        let mut running = lock(&HUB);
        let hub = match &*running {
            Some(hub) => Arc::clone(hub),
            None => {
                let inotify = Inotify::init()?;
                let state = State { watches: inotify.watches(), next_subscriber: 0, folders: HashMap::new() };
                let hub = Arc::new(Hub { state: Mutex::new(state) });
                let thread_hub = Arc::clone(&hub);
                std::thread::Builder::new()
                    .name("logfile-inotify".to_owned())
                    .spawn(move || thread_hub.forward(inotify))?;
                Arc::clone(running.insert(hub))
            }
        };
        let mut state = lock(&hub.state);
        let id = state.next_subscriber;
        state.next_subscriber += 1;
        drop(state);
        Ok(Subscription { hub, id, sender, watched: HashMap::new() })
    }

    /// A thread that panicked while it held a lock leaves consistent maps behind.
    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    impl Hub {
        /// Forwards events to subscribers until the instance fails.
        fn forward(&self, mut inotify: Inotify) {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let events = match inotify.read_events_blocking(&mut buffer) {
                    Ok(events) => events,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        tracing::warn!(%error, "the kernel's notifications of changed files ended: sources scan every `poll_interval`");
                        return;
                    }
                };
                let mut state = lock(&self.state);
                for event in events {
                    if event.mask.contains(EventMask::Q_OVERFLOW) {
                        state.folders.values().flatten().for_each(notify);
                    } else if event.mask.contains(EventMask::IGNORED) {
                        state.folders.remove(&event.wd).iter().flatten().for_each(notify);
                    } else {
                        state.folders.get(&event.wd).into_iter().flatten().for_each(notify);
                    }
                }
            }
        }
    }

    fn notify((_, sender): &(u64, SyncSender<()>)) {
        // A full channel has a notification already.
        let _ = sender.try_send(());
    }

    impl Subscription {
        pub(super) fn watch(&mut self, folder: &Path) -> io::Result<()> {
            let mut state = lock(&self.hub.state);
            let descriptor = state.watches.add(folder, CHANGES)?;
            state.folders.entry(descriptor.clone()).or_default().push((self.id, self.sender.clone()));
            drop(state);
            if let Some(previous) = self.watched.insert(folder.to_owned(), descriptor) {
                self.release(previous);
            }
            Ok(())
        }

        pub(super) fn unwatch(&mut self, folder: &Path) {
            if let Some(descriptor) = self.watched.remove(folder) {
                self.release(descriptor);
            }
        }

        /// Removes one entry of this source; the last entry ends the watch.
        fn release(&self, descriptor: WatchDescriptor) {
            let mut state = lock(&self.hub.state);
            // The kernel ends the watch of a removed folder itself.
            let Some(subscribers) = state.folders.get_mut(&descriptor) else { return };
            if let Some(at) = subscribers.iter().position(|(id, _)| *id == self.id) {
                subscribers.swap_remove(at);
            }
            if subscribers.is_empty() {
                state.folders.remove(&descriptor);
                let _ = state.watches.remove(descriptor);
            }
        }
    }

    impl Drop for Subscription {
        fn drop(&mut self) {
            for descriptor in std::mem::take(&mut self.watched).into_values() {
                self.release(descriptor);
            }
        }
    }
}

/// Other systems have no notifications here: sources scan every `poll_interval`.
#[cfg(not(target_os = "linux"))]
mod hub {
    use std::io;
    use std::path::Path;
    use std::sync::mpsc::SyncSender;

    pub(super) struct Subscription;

    pub(super) fn subscribe(_: SyncSender<()>) -> io::Result<Subscription> {
        Err(io::ErrorKind::Unsupported.into())
    }

    impl Subscription {
        pub(super) fn watch(&mut self, _: &Path) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) fn unwatch(&mut self, _: &Path) {}
    }
}
