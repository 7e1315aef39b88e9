//! The option `remove_after`: removes files whose lines are committed in Kafka.

use std::time::Instant;

use trunkline_connector::PositionChange;

use super::Tracker;
use crate::discovery::identify;
use crate::file::MissingReason;
use crate::position::{self, FileId};

impl Tracker {
    /// Notes which offsets are committed.
    pub(crate) fn committed(&mut self, changes: &[PositionChange]) {
        if self.options.remove_after.is_none() {
            return;
        }
        for PositionChange { key, value } in changes {
            let Some(Ok((id, saved))) = value.as_ref().map(|value| position::decode(key, value)) else { continue };
            if let Some(file) = self.files.get_mut(&id).filter(|file| file.key.as_ref() == Some(key)) {
                file.committed = Some(saved.read.offset);
            }
        }
    }

    /// Removes the files that `remove_after` allows.
    pub(super) fn remove_committed(&mut self, now: Instant) {
        let Some(wait) = self.options.remove_after else { return };
        let due: Vec<FileId> =
            self.files.values().filter(|file| file.may_be_removed(wait, now)).map(|file| file.id).collect();
        for id in due {
            let Some(file) = self.files.get_mut(&id) else { continue };
            // It may have changed since the scan.
            let is_same =
                |metadata: std::fs::Metadata| identify(&metadata) == (file.id, file.stat) && metadata.is_file();
            if !std::fs::symlink_metadata(&file.path).is_ok_and(is_same) {
                continue;
            }
            let path = file.path.display();
            match std::fs::remove_file(&file.path) {
                Ok(()) => {
                    tracing::info!(%path, bytes = file.read.offset, "file was removed: its lines are committed");
                    self.remove_as_missing(id, MissingReason::Finished);
                }
                Err(error) if !file.removal_failed => {
                    tracing::warn!("cannot remove {path}: {error}; allow the worker's user to write to its folder");
                    file.removal_failed = true;
                }
                Err(_) => {}
            }
        }
    }
}
