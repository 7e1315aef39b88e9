//! Options of Parquet files and object stores.

use parquet::basic::Compression;

/// An object store. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub struct BucketOptions {
    /// The bucket.
    pub bucket: String,
    /// Without slashes at its ends.
    pub prefix: String,
    /// Address of a store other than Amazon S3.
    pub endpoint: Option<String>,
    /// The region; `None`: that of the environment.
    pub region: Option<String>,
    /// `https://host/bucket/key` instead of `https://bucket.host/key`.
    pub path_style: bool,
    /// Key id and secret; `None`: the AWS chain.
    pub credentials: Option<(String, String)>,
    /// Encryption of new objects.
    pub encryption: Encryption,
    /// Size of a part of a multipart upload.
    pub part_size: u64,
    /// Checksum of each part.
    pub checksum: Checksum,
}

/// Requested server-side encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// The bucket's default.
    Bucket,
    /// The store's own keys.
    Aes256,
    /// A KMS key; `None`: the account's default one.
    Kms(Option<String>),
}

/// Checksum of every part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// CRC-32C.
    Crc32c,
    /// CRC-32.
    Crc32,
    /// SHA-256.
    Sha256,
    /// No checksum, for stores that do not support them.
    None,
}

/// Options of the Parquet writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterOptions {
    /// Compression of the column chunks.
    pub compression: Compression,
    /// Encoded bytes of a row group.
    pub row_group: usize,
}
