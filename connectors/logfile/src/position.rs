//! The stored position: one keyed value for each file.
//!
//! The key is `{device}:{inode}:{hash of the head when the key was made}`. It does not change while
//! the file is followed, whatever its name, and is removed when the file is gone and was read to
//! its end. The value is JSON: the offset of the next line, the fingerprint of the content before
//! it, the size and time of the file when it was last read to its end (a file that still has them
//! need not be opened), the path that its records carry, and the ordering key.

use std::os::unix::fs::MetadataExt as _;

use serde::{Deserialize, Serialize};
use trunkline_connector::{Error, Result};

use crate::fingerprint::Fingerprint;

/// Present once the source has started: later files are read from their beginning, whatever
/// `read_from` says.
pub(crate) const STARTED_KEY: &str = "started";

/// Device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// Size and modification time. A file that keeps both has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stat {
    pub(crate) size: u64,
    /// Nanoseconds since the Unix epoch.
    #[serde(rename = "mtime")]
    pub(crate) modified: i64,
}

/// The stored value of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilePosition {
    /// The path under which the file was first seen; its records carry it.
    pub(crate) path: String,
    #[serde(flatten)]
    pub(crate) read: Fingerprint,
    /// State of the file when it was read to its end; absent while more is left.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub(crate) at_end: Option<Stat>,
    // Positions that earlier versions stored have this name; another one would not find them.
    #[serde(rename = "lane")]
    pub(crate) ordering_key: u32,
    /// The last line was emitted before its delimiter was written. A delimiter that follows ends
    /// that line and makes no empty one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) cut: bool,
    /// Where the file was when it was last read, without symbolic links, if that is not `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) real_path: Option<String>,
}

/// The key of a file.
pub(crate) fn key(id: FileId, read: &Fingerprint) -> String {
    format!("{}:{}:{:016x}", id.device, id.inode, read.head.hash)
}

/// Serialises a value.
pub(crate) fn encode(saved: &FilePosition) -> Result<Vec<u8>> {
    serde_json::to_vec(saved).map_err(|error| {
        Error::internal("logfile.position", format!("cannot serialise the position of {}: {error}", saved.path))
    })
}

/// Parses one keyed value.
pub(crate) fn decode(key: &str, value: &[u8]) -> Result<(FileId, FilePosition)> {
    let invalid = |why: String| {
        Error::data(
            "logfile.position",
            format!(
                "the stored position `{key}` cannot be read ({why}); a newer version of Trunkline may have \
                 written it: run that version, or remove the key"
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

/// The files of another node's position that exist here, each with the bytes that the node has
/// read.
pub(crate) fn existing_files(position: &[(String, Vec<u8>)]) -> Vec<String> {
    let existing = |(key, value): &(String, Vec<u8>)| {
        let (id, saved) = decode(key, value).ok()?;
        let paths = [saved.real_path.as_deref(), Some(saved.path.as_str())];
        let is_same = |path: &&str| {
            std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (id.device, id.inode))
        };
        let path = paths.into_iter().flatten().find(is_same)?;
        Some(format!("{path} ({} bytes)", saved.read.offset))
    };
    position.iter().filter(|(key, _)| key != STARTED_KEY).filter_map(existing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_a_round_trip() {
        let id = FileId { device: 66305, inode: 1234 };
        for at_end in [None, Some(Stat { size: 30, modified: 5 })] {
            let read = Fingerprint::at(3, b"ab\n", b"ab\n");
            let saved = FilePosition {
                path: "/v/a.log".to_owned(),
                read,
                at_end,
                ordering_key: 7,
                cut: false,
                real_path: None,
            };
            let value = encode(&saved).unwrap();
            assert_eq!(decode(&key(id, &read), &value).unwrap(), (id, saved));
        }
    }

    #[test]
    fn positions_of_earlier_versions_are_read() {
        let stored = br#"{"path":"/v/a.log","offset":3,"head":[3,"5c9a47ff9aff3d72"],
            "tail":[3,"5c9a47ff9aff3d72"],"size":30,"mtime":5,"lane":7}"#;
        let (id, position) = decode("66305:1234:5c9a47ff9aff3d72", stored).unwrap();
        assert_eq!(id, FileId { device: 66305, inode: 1234 });
        assert_eq!((position.path.as_str(), position.read.offset, position.ordering_key), ("/v/a.log", 3, 7));
        assert_eq!((position.at_end, position.cut), (Some(Stat { size: 30, modified: 5 }), false));
        assert_eq!(position.real_path, None);
    }

    #[test]
    fn errors_name_the_unreadable_key() {
        for (key, value) in [("x", "{}"), ("1:2:3", "{}"), ("1:2:3", "nonsense")] {
            assert!(decode(key, value.as_bytes()).unwrap_err().message().contains(key));
        }
    }
}
