//! An S3 server.

use std::fs;
use std::path::PathBuf;

use crate::Skip;
use crate::server::Server;

/// A real S3 server (versitygw) of this test, through `tests/services/s3`.
pub struct S3(Server);

impl S3 {
    /// The credentials it takes, as the environment variables of the usual chain.
    pub const CREDENTIALS: [(&'static str, &'static str); 2] =
        [("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", "SKTESTSK")];

    /// The region it takes.
    pub const REGION: &'static str = "us-east-1";

    /// Starts one with no buckets.
    pub fn start() -> Result<Self, Skip> {
        Ok(Self(Server::start("s3", &[], 1)?))
    }

    /// Its host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.0.port())
    }

    /// Creates a bucket; gives the folder in which its objects lie as plain files.
    pub fn bucket(&self, name: &str) -> PathBuf {
        let folder = self.0.directory().join("root").join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}
