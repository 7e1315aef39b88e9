//! Options of Parquet files and object stores.

use parquet::basic::Compression;
use trunkline_connector::config::Section;
use trunkline_connector::tls::TlsOptions;

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
    /// `None`: the AWS chain.
    pub credentials: Option<AccessKey>,
    /// The certificate authorities of the store.
    pub tls: TlsOptions,
    /// Encryption of new objects.
    pub encryption: Encryption,
    /// Size of a part of a multipart upload.
    pub part_size: u64,
    /// Checksum of each part.
    pub checksum: Checksum,
}

/// An access key. No `Debug`: it holds a secret (I8).
#[derive(Clone)]
pub struct AccessKey {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// The token of temporary credentials.
    pub session_token: Option<String>,
}

impl AccessKey {
    /// Reads `access_key_id`, `secret_access_key` and `session_token`; `None` if they are not given
    /// or incomplete (reported).
    pub fn read(section: &Section<'_>) -> Option<Self> {
        let id = section.optional::<String>("access_key_id");
        let secret = section.optional::<String>("secret_access_key");
        let session_token = section.optional::<String>("session_token");
        let given = |key| section.table.get(key).is_some();
        match (given("access_key_id"), given("secret_access_key")) {
            (true, false) => section.missing("secret_access_key", "it goes with `access_key_id`"),
            (false, true) => section.missing("access_key_id", "it goes with `secret_access_key`"),
            (false, false) if given("session_token") => {
                section.missing("access_key_id", "it goes with `session_token`")
            }
            _ => {}
        }
        id.zip(secret).map(|(id, secret)| Self { id, secret, session_token })
    }
}

/// The code of an error about `tls_ca`.
pub const TLS_CA_CODE: &str = "s3.tls_ca";

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
