//! An S3 server.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::Skip;
use crate::server::Server;

/// A real S3 server (versitygw), started by `tests/services/s3`.
pub struct S3(Server);

impl S3 {
    /// Its credentials, as the environment variables of the AWS credentials chain.
    pub const CREDENTIALS: [(&'static str, &'static str); 2] =
        [("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", "SKTESTSK")];

    /// Its region.
    pub const REGION: &'static str = "us-east-1";

    /// The server that all tests of this process share. Their buckets have different names.
    pub fn shared() -> Result<&'static Self, Skip> {
        static SHARED: OnceLock<Result<S3, Skip>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().map_err(Skip::clone)
    }

    /// Starts a server without buckets.
    pub fn start() -> Result<Self, Skip> {
        Ok(Self(Server::start("s3", &[], 1)?))
    }

    /// Its host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port())
    }

    /// The folder of its buckets.
    pub(crate) fn root(&self) -> PathBuf {
        self.0.directory().join("root")
    }

    /// Creates a bucket; returns the folder in which its objects are plain files.
    pub fn bucket(&self, name: &str) -> PathBuf {
        let folder = self.root().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}
