//! The worker's data directory: a lock for one worker at a time, the worker's id, scratch space,
//! compiled plugins.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use trunkline_connector::{Error, Result, failpoint, io_error};

/// A data directory, locked for this process.
pub struct DataDir {
    worker_id: String,
    scratch: PathBuf,
    plugins: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Opens a directory and creates it if it is missing. Fails if another worker uses it.
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|error| io_error("create the data directory", path, &error))?;
        let lock_path = path.join("worker.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|error| io_error("open", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "the data directory {} is in use by another worker: give each worker its own with --data, or stop the other one",
                    path.display()
                );
                return Err(Error::config("worker.data_in_use", message));
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
        let plugins = path.join("plugins");
        for folder in [&scratch, &plugins] {
            std::fs::create_dir_all(folder).map_err(|error| io_error("create", folder, &error))?;
        }
        Ok(Self { worker_id: worker_id(&path.join("worker-id"))?, scratch, plugins, _lock: lock })
    }

    /// The worker's id. It is random, and stays the same for this directory.
    pub fn worker_id(&self) -> &str {
        &self.worker_id
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

fn worker_id(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
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
    // Atomically: a truncated id would be another worker.
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(id.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    failpoint!("worker.id.before")?;
    write().map_err(|error| io_error("write", path, &error))?;
    failpoint!("worker.id.after")?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_at_a_time_and_the_id_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        let id = first.worker_id().to_owned();
        assert_eq!(DataDir::open(folder.path()).err().unwrap().code, "worker.data_in_use");
        std::fs::write(first.scratch().join("left-over"), "x").unwrap();
        drop(first);
        let second = DataDir::open(folder.path()).unwrap();
        assert_eq!(second.worker_id(), id);
        assert_eq!(std::fs::read_dir(second.scratch()).unwrap().count(), 0);
    }

    #[test]
    fn a_broken_id_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("worker-id"), "?").unwrap();
        assert_eq!(DataDir::open(folder.path()).err().unwrap().code, "worker.id");
    }
}
