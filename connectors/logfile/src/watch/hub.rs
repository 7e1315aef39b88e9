//! The inotify instance of the process.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};

use super::Inbox;

/// Changes of a folder's entries and of their content.
const CHANGES: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MODIFY)
    .union(WatchMask::MOVED_FROM)
    .union(WatchMask::MOVED_TO)
    .union(WatchMask::ONLYDIR);

/// Time between two deliveries of changes: each wakes the sources, which costs more than a change.
/// The first change after a pause is delivered at once.
const DELIVERY_GAP: Duration = Duration::from_millis(20);

/// After this many events at once there may be more, which must be read before the kernel's queue
/// is full (16,384 events by default).
const MANY_EVENTS: usize = 500;

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
    folders: HashMap<WatchDescriptor, Vec<Subscriber>>,
}

/// A source that watches a folder.
struct Subscriber {
    id: u64,
    /// The path under which it watches the folder.
    folder: PathBuf,
    inbox: Arc<Inbox>,
}

/// The share of one source.
pub(super) struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    inbox: Arc<Inbox>,
    watched: HashMap<PathBuf, WatchDescriptor>,
}

pub(super) fn subscribe(inbox: Arc<Inbox>) -> io::Result<Subscription> {
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
    Ok(Subscription { hub, id, inbox, watched: HashMap::new() })
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
                    tracing::warn!(%error, "the kernel's notifications of changed files ended: sources scan \
                        every two seconds");
                    return;
                }
            };
            let mut state = lock(&self.state);
            let mut count = 0;
            for event in events {
                state.forward(event.mask, &event.wd, event.name);
                count += 1;
            }
            drop(state);
            if count < MANY_EVENTS {
                std::thread::park_timeout(DELIVERY_GAP);
            }
        }
    }
}

impl State {
    fn forward(&mut self, mask: EventMask, folder: &WatchDescriptor, name: Option<&OsStr>) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            // Events of any folder were lost.
            self.folders.values().flatten().for_each(|subscriber| subscriber.inbox.note_scan());
        } else if mask.contains(EventMask::IGNORED) {
            // The folder was removed, and with it its watch.
            self.folders.remove(folder).iter().flatten().for_each(|subscriber| subscriber.inbox.note_scan());
        } else {
            for Subscriber { folder, inbox, .. } in self.folders.get(folder).into_iter().flatten() {
                match name {
                    Some(name) if mask.contains(EventMask::MODIFY) => inbox.note_changed(folder, name),
                    _ => inbox.note_scan(),
                }
            }
        }
    }
}

impl Subscription {
    pub(super) fn watch(&mut self, folder: &Path) -> io::Result<()> {
        let mut state = lock(&self.hub.state);
        let descriptor = state.watches.add(folder, CHANGES)?;
        let subscriber = Subscriber { id: self.id, folder: folder.to_owned(), inbox: Arc::clone(&self.inbox) };
        state.folders.entry(descriptor.clone()).or_default().push(subscriber);
        drop(state);
        if let Some(previous) = self.watched.insert(folder.to_owned(), descriptor) {
            self.release(folder, previous);
        }
        Ok(())
    }

    pub(super) fn unwatch(&mut self, folder: &Path) {
        if let Some(descriptor) = self.watched.remove(folder) {
            self.release(folder, descriptor);
        }
    }

    /// Removes one entry of this source; the last entry ends the watch.
    fn release(&self, folder: &Path, descriptor: WatchDescriptor) {
        let mut state = lock(&self.hub.state);
        // The kernel ends the watch of a removed folder itself.
        let Some(subscribers) = state.folders.get_mut(&descriptor) else { return };
        if let Some(at) = subscribers.iter().position(|one| one.id == self.id && one.folder == folder) {
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
        for (folder, descriptor) in std::mem::take(&mut self.watched) {
            self.release(&folder, descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_events_and_removed_folders_need_a_scan() {
        let folder = tempfile::tempdir().unwrap();
        let mut watches = Inotify::init().unwrap().watches();
        let descriptor = watches.add(folder.path(), CHANGES).unwrap();
        for mask in [EventMask::Q_OVERFLOW, EventMask::IGNORED, EventMask::MOVED_FROM, EventMask::CREATE] {
            let inbox = Arc::new(Inbox::default());
            let subscriber = Subscriber { id: 0, folder: folder.path().to_owned(), inbox: Arc::clone(&inbox) };
            let folders = HashMap::from([(descriptor.clone(), vec![subscriber])]);
            let mut state = State { watches: watches.clone(), next_subscriber: 1, folders };
            state.forward(EventMask::MODIFY, &descriptor, Some(OsStr::new("unknown.log")));
            assert!(!inbox.lock().needs_scan);
            state.forward(mask, &descriptor, None);
            assert!(inbox.lock().needs_scan, "{mask:?}");
        }
    }
}
