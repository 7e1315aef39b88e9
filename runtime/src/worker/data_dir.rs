//! The worker's data directory: a lock for one worker at a time, the worker's id, scratch space,
//! compiled plugins, and the addresses of the running worker. Its files contain records in plain
//! text, so only the worker's user may read them.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use trunkline_connector::{Error, Result, failpoint, io_error};

/// Permissions of new folders and files.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const PLUGINS: &str = "plugins";
const ADDRESSES: &str = "addresses.json";

/// The code of the error that another process uses the directory.
pub const IN_USE: &str = "worker.data_in_use";

/// Time for the system to release the locks of a process that was killed.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// Where the worker of a data directory can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Addresses {
    /// The worker's HTTP server, if it runs.
    pub http: Option<String>,
    /// Kafka's bootstrap servers: those of the embedded broker, or of the settings.
    pub brokers: String,
}

/// A data directory, locked for this process.
pub struct DataDir {
    worker_id: String,
    scratch: PathBuf,
    plugins: PathBuf,
    node: PathBuf,
    addresses: PathBuf,
    _lock: File,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // A worker that was killed leaves the file: `read_addresses` checks the lock.
        let _ = std::fs::remove_file(&self.addresses);
    }
}

/// The folder of connectors in the scratch space.
const CONNECTORS: &str = "connectors";

impl DataDir {
    /// Opens a directory as [`DataDir::open`] does, and waits a moment if another process uses it:
    /// the system needs some time to release the locks of a process that was killed.
    pub fn open_after_last(path: &Path, new_worker_id: bool) -> Result<Self> {
        let begun = Instant::now();
        loop {
            match Self::open(path, new_worker_id) {
                Err(error) if error.code == IN_USE && begun.elapsed() < RELEASE_LIMIT => {
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                outcome => return outcome,
            }
        }
    }

    /// Opens a directory and creates it if it is missing. Fails if another worker uses it. With
    /// `new_worker_id`, replaces the worker's id: for a directory that was copied from another
    /// worker's.
    pub fn open(path: &Path, new_worker_id: bool) -> Result<Self> {
        create_private_folder(path).map_err(|error| io_error("create the data directory", path, &error))?;
        warn_if_readable_by_others(path);
        let lock_path = path.join("worker.lock");
        let lock = private_file()
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| io_error("open", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "the data directory {} is in use by another worker: give each worker its own with --data, or stop the \
                     other one",
                    path.display()
                );
                return Err(Error::config(IN_USE, message));
            }
            Err(TryLockError::Error(error)) => return Err(io_error("lock", &lock_path, &error)),
        }
        let scratch = path.join("scratch");
        match std::fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("clear", &scratch, &error));
            }
            _ => {}
        }
        let plugins = path.join(PLUGINS);
        for folder in [&scratch, &plugins] {
            create_private_folder(folder).map_err(|error| io_error("create", folder, &error))?;
        }
        let worker_id = worker_id(&path.join("worker-id"), new_worker_id)?;
        let node = path.join("node");
        if new_worker_id {
            remove_if_present(&node)?;
        }
        Ok(Self { worker_id, scratch, plugins, node, addresses: path.join(ADDRESSES), _lock: lock })
    }

    /// Publishes where this worker can be reached, for commands on the same machine.
    pub fn write_addresses(&self, addresses: &Addresses) -> Result<()> {
        let text = json!({ "http": addresses.http, "brokers": addresses.brokers }).to_string();
        replace_file(&self.addresses, text.as_bytes()).map_err(|error| io_error("write", &self.addresses, &error))
    }

    /// Where the worker of a data directory can be reached. `None` if no worker runs there.
    pub fn read_addresses(path: &Path) -> Result<Option<Addresses>> {
        let lock = match File::open(path.join("worker.lock")) {
            Ok(lock) => lock,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", &path.join("worker.lock"), &error)),
        };
        if !matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)) {
            return Ok(None);
        }
        let file = path.join(ADDRESSES);
        match std::fs::read(&file) {
            // The worker is starting, or its version is another one.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &file, &error)),
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        }
    }

    /// The folder of the pipeline files of connectors that were created by REST.
    pub fn stored_connectors(&self) -> PathBuf {
        self.scratch.join(CONNECTORS)
    }

    /// The same folder of the worker that runs with a data directory, if one runs and has such
    /// connectors.
    pub fn connectors_of_running(path: &Path) -> Option<PathBuf> {
        Self::read_addresses(path).ok().flatten()?;
        Some(path.join("scratch").join(CONNECTORS)).filter(|folder| folder.is_dir())
    }

    /// The compile cache of plugins in an existing data directory, for commands that do not open
    /// the directory. `None` if no worker has created it.
    pub fn plugin_cache(path: &Path) -> Option<PathBuf> {
        Some(path.join(PLUGINS)).filter(|cache| cache.is_dir())
    }

    /// The worker's id. It is random, and stays the same for this directory.
    pub fn worker_id(&self) -> &str {
        &self.worker_id
    }

    /// The name of this node: the configured one, or, if `is_default` (the host name), the one of
    /// the last run. A position of log files belongs to a node: with another name they are read
    /// again.
    pub fn node(&self, configured: &str, is_default: bool) -> Result<String> {
        let stored = match std::fs::read_to_string(&self.node) {
            Ok(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error("read", &self.node, &error)),
        };
        match stored {
            Some(stored) if stored == configured => return Ok(stored),
            Some(stored) if is_default => {
                tracing::warn!(
                    "the host name was `{stored}` and is now `{configured}`; this worker keeps the node name `{stored}`, \
                     under which the positions of its log files are stored. Set `node` to choose the name"
                );
                return Ok(stored);
            }
            Some(stored) => tracing::warn!(
                "the setting `node` was `{stored}` and is now `{configured}`: log files are read again from their \
                 beginning. To continue where the worker was, set `node = \"{stored}\"`"
            ),
            None => {}
        }
        replace_file(&self.node, configured.as_bytes()).map_err(|error| io_error("write", &self.node, &error))?;
        Ok(configured.to_owned())
    }

    /// The folder for the temporary files of tasks. It is empty after the start.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The folder for compiled plugins.
    pub fn plugins(&self) -> &Path {
        &self.plugins
    }
}

/// Creates a folder that only this user may read. An existing folder is not changed.
pub fn create_private_folder(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

fn private_file() -> std::fs::OpenOptions {
    let mut options = File::options();
    options.write(true).mode(FILE_MODE);
    options
}

fn warn_if_readable_by_others(path: &Path) {
    // A folder that cannot be examined fails in the next step.
    let Ok(metadata) = path.metadata() else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(
            "other users may read the data directory {0} (mode {mode:o}), which contains records in plain text: \
             chmod 700 {0}",
            path.display()
        );
    }
}

fn worker_id(path: &Path, replace: bool) -> Result<String> {
    match std::fs::read_to_string(path) {
        _ if replace => {}
        Ok(text) => {
            let id = text.trim();
            let legal = id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            return if legal {
                Ok(id.to_owned())
            } else {
                Err(Error::config(
                    "worker.id",
                    format!("{} does not contain a worker id; remove the file to get a new id", path.display()),
                ))
            };
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("read", path, &error)),
    }
    let id = uuid::Uuid::new_v4().simple().to_string()[..16].to_owned();
    failpoint!("worker.id.before")?;
    // A truncated id would be another worker.
    replace_file(path, id.as_bytes()).map_err(|error| io_error("write", path, &error))?;
    failpoint!("worker.id.after")?;
    Ok(id)
}

/// Writes a file atomically.
fn replace_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = private_file().create(true).truncate(true).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

fn remove_if_present(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path, &error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<DataDir> {
        DataDir::open(path, false)
    }

    #[test]
    fn one_worker_at_a_time_and_the_id_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        let id = first.worker_id().to_owned();
        assert_eq!(open(folder.path()).err().unwrap().code, IN_USE);
        std::fs::write(first.scratch().join("left-over"), "x").unwrap();
        drop(first);
        let second = open(folder.path()).unwrap();
        assert_eq!(second.worker_id(), id);
        assert_eq!(std::fs::read_dir(second.scratch()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_is_opened_as_soon_as_the_last_worker_has_released_it() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| sender.send(DataDir::open_after_last(folder.path(), false).map(drop)).unwrap());
            // The other thread finds the lock, now or later.
            assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err());
            drop(first);
            assert!(receiver.recv().unwrap().is_ok());
        });
        let _second = open(folder.path()).unwrap();
        assert_eq!(DataDir::open_after_last(folder.path(), false).err().unwrap().code, IN_USE);
    }

    #[test]
    fn the_addresses_of_a_running_worker_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let read = || DataDir::read_addresses(folder.path()).unwrap();
        assert_eq!(read(), None);
        let data = open(folder.path()).unwrap();
        assert_eq!(read(), None);
        let addresses = Addresses { http: Some("127.0.0.1:1".to_owned()), brokers: "127.0.0.1:2".to_owned() };
        data.write_addresses(&addresses).unwrap();
        assert_eq!(read(), Some(addresses.clone()));
        drop(data);
        assert_eq!(read(), None);
        // As after kill -9: the file is there, and the lock is free.
        std::fs::write(folder.path().join(ADDRESSES), r#"{"brokers":"127.0.0.1:2"}"#).unwrap();
        assert_eq!(read(), None);
    }

    #[test]
    fn a_copied_directory_gets_a_new_id_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let id = open(folder.path()).unwrap().worker_id().to_owned();
        let replaced = DataDir::open(folder.path(), true).unwrap().worker_id().to_owned();
        assert_ne!(replaced, id);
        assert_eq!(open(folder.path()).unwrap().worker_id(), replaced);
    }

    #[test]
    fn a_changed_host_name_does_not_change_the_node() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(open(folder.path()).unwrap().node("pod-1", true).unwrap(), "pod-1");
        assert_eq!(open(folder.path()).unwrap().node("pod-2", true).unwrap(), "pod-1");
        // A configured name takes precedence, and is then kept.
        assert_eq!(open(folder.path()).unwrap().node("rack-7", false).unwrap(), "rack-7");
        assert_eq!(open(folder.path()).unwrap().node("pod-2", true).unwrap(), "rack-7");
        // A copied directory belongs to another machine.
        assert_eq!(DataDir::open(folder.path(), true).unwrap().node("pod-2", true).unwrap(), "pod-2");
    }

    #[test]
    fn a_broken_id_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("worker-id"), "?").unwrap();
        assert_eq!(open(folder.path()).err().unwrap().code, "worker.id");
    }

    #[test]
    fn only_the_user_may_read_the_directory_and_its_files() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("new/data");
        let data = open(&path).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        for folder in [&path, data.scratch(), data.plugins(), &parent.path().join("new")] {
            assert_eq!(mode(folder), 0o700, "{}", folder.display());
        }
        for file in ["worker.lock", "worker-id"] {
            assert_eq!(mode(&path.join(file)), 0o600, "{file}");
        }
    }
}
