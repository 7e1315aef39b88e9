//! The connectors that were created by REST, as pipeline files in a folder of the worker. They are
//! read and reloaded as the user's files are.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use trunkline_connector::{Error, Result, io_error};

use crate::checkpoint::ConnectorRow;
use crate::plan::{ConnectorFile, Registry};
use crate::worker::control::Control;
use crate::worker::create_private_folder;

/// Keeps a folder equal to the stored connectors.
pub(super) struct StoredConnectors {
    control: Control,
    folder: PathBuf,
    /// The connectors of the files.
    written: BTreeMap<String, ConnectorRow>,
}

impl StoredConnectors {
    /// `folder` is empty or absent.
    pub(super) fn new(control: Control, folder: PathBuf) -> Self {
        Self { control, folder, written: BTreeMap::new() }
    }

    /// Writes and removes files. Returns whether a connector has changed since the last call.
    pub(super) fn update(&mut self) -> bool {
        let stored = self.control.view().connectors().clone();
        if stored == self.written {
            return false;
        }
        for name in self.written.keys().filter(|name| !stored.contains_key(*name)) {
            // A file that is gone already is what is wanted.
            let _ = std::fs::remove_file(self.file(name));
        }
        for (name, row) in stored.iter().filter(|(name, row)| self.written.get(*name) != Some(row)) {
            if let Err(error) = write(&self.file(name), name, row) {
                tracing::error!(connector = name, %error, "a connector that was created by REST cannot run on this worker");
            }
        }
        self.written = stored;
        true
    }

    /// The files, by name.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.written.keys().map(|name| self.file(name)).filter(|file| file.exists())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }
}

fn write(file: &Path, name: &str, row: &ConnectorRow) -> Result<()> {
    let text = ConnectorFile::new(name, &row.config, &Registry::new());
    let text =
        text.map_err(|problem| Error::config("http.bad_connector", format!("{}: {}", problem.key, problem.message)))?;
    let written = || {
        create_private_folder(file.parent().unwrap_or(Path::new(".")))?;
        let mut open = std::fs::OpenOptions::new();
        open.write(true).create(true).truncate(true).mode(0o600).open(file)?.write_all(text.text.as_bytes())
    };
    written().map_err(|error| io_error("write", file, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::ControlRow;

    #[test]
    fn files_follow_the_stored_connectors() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::default();
        let mut connectors = StoredConnectors::new(control.clone(), folder.path().join("connectors"));
        assert!(!connectors.update());
        let store = |name: &str, class: Option<&str>| {
            let pairs = class.map(|class| [("connector.class", class), ("paths", "/a.log")]);
            let row = pairs.map(|pairs| ConnectorRow {
                config: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            });
            control.apply(ControlRow::Connector(name.to_owned(), row));
        };
        store("web.log", Some("logfile"));
        // A newer worker knows other connectors.
        store("web.queue", Some("rabbitmq"));
        assert!(connectors.update() && !connectors.update());
        let files: Vec<PathBuf> = connectors.files().collect();
        assert_eq!(files, [folder.path().join("connectors/web.log.toml")]);
        assert!(std::fs::read_to_string(&files[0]).unwrap().contains("[sources.\"log\"]"));
        store("web.log", None);
        assert!(connectors.update());
        assert!(!files[0].exists() && connectors.files().count() == 0);
    }
}
