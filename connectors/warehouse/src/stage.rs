//! [`Stage`]: where files wait for their load.

use std::path::Path;

use trunkline_connector::Result;

/// A file in the stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedFile {
    /// Its key below the stage's root.
    pub key: String,
    /// Its url, as [`Stage::url`] returns it.
    pub url: String,
    /// Its size.
    pub bytes: u64,
    /// Its rows.
    pub rows: u64,
}

/// Where files wait for their load: a prefix of a bucket that the warehouse reads, or a stage of
/// the warehouse itself. Calls block; each returns within a minute or returns an external error.
/// Keys are `{sink}/{topic}+{partition}/{load}/{file}` and consist of ASCII letters, digits and
/// `-_.+/`.
pub trait Stage: Send + Sync {
    /// The url of a key, for COPY: `s3://bucket/prefix/key`, or `key` where COPY names the stage.
    fn url(&self, key: &str) -> String;

    /// Uploads a local file, replacing one of that key.
    fn put_file(&self, key: &str, file: &Path) -> Result<()>;

    /// Uploads bytes, replacing an object of that key.
    fn put_bytes(&self, key: &str, bytes: &[u8]) -> Result<()>;

    /// All keys that begin with a prefix.
    fn list(&self, prefix: &str) -> Result<Vec<String>>;

    /// Removes objects; missing ones are fine.
    fn remove(&self, keys: &[String]) -> Result<()>;
}
