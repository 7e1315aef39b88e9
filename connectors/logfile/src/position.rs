//! What is remembered of a file between runs: one keyed value of the source's position a file.
//!
//! The key is `{device}:{inode}:{hash of the head when the key was made}`. It stays the same for as long as the file is followed, whatever
//! its name, and is removed when the file is gone and read to its end. The value is JSON: where the next line starts, the fingerprint of what
//! was read before it, the size and time of the file when it was last read to its end (a file that still has them need not be opened), the path that
//! its records carry, and the ordering key.

use serde::{Deserialize, Serialize};
use trunkline_connector::{Error, Result};

use crate::fingerprint::Fingerprint;

/// Marks that the source has started once: files found later are read from their beginning whatever `read_from` says.
pub(crate) const STARTED_KEY: &str = "started";

/// Device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// Size and modification time, compared to tell that nothing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stat {
    pub(crate) size: u64,
    /// Nanoseconds since the Unix epoch.
    #[serde(rename = "mtime")]
    pub(crate) modified: i64,
}

/// The value of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// The path that the file was first seen under; its records carry it.
    pub(crate) path: String,
    #[serde(flatten)]
    pub(crate) read: Fingerprint,
    /// Present when the file was read to its end.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub(crate) at_end: Option<Stat>,
    #[serde(rename = "lane")] // The name in stored positions.
    pub(crate) ordering_key: u32,
    /// The last line was handed out before its delimiter came: if it comes, it ends that line, and is no line of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) cut: bool,
}

/// The key of a file.
pub(crate) fn key(id: FileId, read: &Fingerprint) -> String {
    format!("{}:{}:{:016x}", id.device, id.inode, read.head.hash)
}

/// The value as stored.
pub(crate) fn encode(saved: &Saved) -> Result<Vec<u8>> {
    serde_json::to_vec(saved).map_err(|error| {
        Error::internal("logfile.position", format!("the position of {} cannot be written: {error}", saved.path))
    })
}

/// Reads one keyed value.
pub(crate) fn decode(key: &str, value: &[u8]) -> Result<(FileId, Saved)> {
    let invalid = |why: String| {
        Error::data(
            "logfile.position",
            format!(
                "the stored position `{key}` cannot be read ({why}); expected what a version of Trunkline not newer than this one wrote"
            ),
        )
    };
    let mut parts = key.split(':').map(str::parse::<u64>);
    let (Some(Ok(device)), Some(Ok(inode))) = (parts.next(), parts.next()) else {
        return Err(invalid("its key is not `device:inode:hash`".to_owned()));
    };
    let saved = serde_json::from_slice(value).map_err(|error| invalid(error.to_string()))?;
    Ok((FileId { device, inode }, saved))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_written() {
        let id = FileId { device: 66305, inode: 1234 };
        for at_end in [None, Some(Stat { size: 30, modified: 5 })] {
            let read = Fingerprint::at(3, b"ab\n", b"ab\n");
            let saved = Saved { path: "/v/a.log".to_owned(), read, at_end, ordering_key: 7, cut: false };
            let value = encode(&saved).unwrap();
            assert_eq!(decode(&key(id, &read), &value).unwrap(), (id, saved));
        }
    }

    #[test]
    fn what_cannot_be_read_names_its_key() {
        for (key, value) in [("x", "{}"), ("1:2:3", "{}"), ("1:2:3", "nonsense")] {
            assert!(decode(key, value.as_bytes()).unwrap_err().message().contains(key));
        }
    }
}
