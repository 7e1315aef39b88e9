//! A stage in an S3 bucket.

use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, ObjectIdentifier, ServerSideEncryption};
use tokio::runtime::Handle;
use trunkline_connector::tls::{TlsCodes, TlsOptions};
use trunkline_connector::{Error, Result, io_error};
use trunkline_objects::{AccessKey, BucketOptions, Checksum, Encryption, Failure, TLS_CA_CODE, connect};

use crate::stage::Stage;

/// Objects of one DeleteObjects request.
const REMOVED_AT_ONCE: usize = 1000;

/// See the module's header.
pub struct S3Stage {
    client: Client,
    options: BucketOptions,
    runtime: Handle,
}

/// A folder in S3 with temporary credentials for it.
pub struct S3Location {
    /// The bucket.
    pub bucket: String,
    /// The folder, without slashes at its ends.
    pub prefix: String,
    /// Address of the store, if it is not the region's.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// The credentials.
    pub key: AccessKey,
}

impl S3Stage {
    /// Connects to a folder that the destination has named.
    pub fn of_location(location: S3Location, runtime: Handle) -> Result<Self> {
        let S3Location { bucket, prefix, endpoint, region, key } = location;
        let options = BucketOptions {
            bucket,
            prefix,
            path_style: endpoint.is_some(),
            endpoint,
            region,
            credentials: Some(key),
            tls: TlsOptions::none(TlsCodes { ca: TLS_CA_CODE, cert: TLS_CA_CODE }),
            encryption: Encryption::Bucket,
            part_size: 16 << 20,
            checksum: Checksum::Crc32c,
        };
        Self::open(options, runtime)
    }

    /// Connects. The first upload shows whether objects can be written.
    pub fn open(options: BucketOptions, runtime: Handle) -> Result<Self> {
        let client = runtime.block_on(connect(&options))?;
        Ok(Self { client, options, runtime })
    }

    fn object_key(&self, key: &str) -> String {
        match self.options.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    fn put(&self, key: &str, body: ByteStream) -> Result<()> {
        let mut request = self.client.put_object().bucket(&self.options.bucket).key(self.object_key(key)).body(body);
        match &self.options.encryption {
            Encryption::Bucket => {}
            Encryption::Aes256 => request = request.server_side_encryption(ServerSideEncryption::Aes256),
            Encryption::Kms(key) => {
                request = request.server_side_encryption(ServerSideEncryption::AwsKms).set_ssekms_key_id(key.clone());
            }
        }
        let sent = self.runtime.block_on(request.send());
        sent.map(drop).map_err(|error| Failure::from_sdk(&error).into_error(&format!("upload {}", self.url(key))))
    }
}

impl Stage for S3Stage {
    fn url(&self, key: &str) -> String {
        format!("s3://{}/{}", self.options.bucket, self.object_key(key))
    }

    fn put_file(&self, key: &str, file: &Path) -> Result<()> {
        let body = self.runtime.block_on(ByteStream::from_path(file));
        let body = body.map_err(|error| io_error("read", file, &std::io::Error::other(error)))?;
        self.put(key, body)
    }

    fn put_bytes(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.put(key, ByteStream::from(bytes.to_vec()))
    }

    fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let root = self.object_key("").len();
        let pages = self.client.list_objects_v2().bucket(&self.options.bucket).prefix(self.object_key(prefix));
        let mut pages = pages.into_paginator().send();
        self.runtime.block_on(async {
            let mut keys = Vec::new();
            while let Some(page) = pages.next().await {
                let page =
                    page.map_err(|error| Failure::from_sdk(&error).into_error(&format!("list {}", self.url(prefix))))?;
                let found = page.contents().iter().filter_map(|object| object.key()?.get(root..).map(str::to_owned));
                keys.extend(found);
            }
            Ok(keys)
        })
    }

    fn remove(&self, keys: &[String]) -> Result<()> {
        for keys in keys.chunks(REMOVED_AT_ONCE) {
            let objects = keys.iter().map(|key| ObjectIdentifier::builder().key(self.object_key(key)).build());
            let objects = objects
                .collect::<Result<Vec<_>, _>>()
                .and_then(|objects| Delete::builder().set_objects(Some(objects)).quiet(true).build())
                .map_err(|error| Error::internal("warehouse.remove", error.to_string()))?;
            let sent = self.client.delete_objects().bucket(&self.options.bucket).delete(objects).send();
            let removed = self.runtime.block_on(sent).map_err(|error| {
                Failure::from_sdk(&error).into_error(&format!("remove files from s3://{}", self.options.bucket))
            })?;
            if let Some(error) = removed.errors().first() {
                let (key, why) = (error.key().unwrap_or_default(), error.message().unwrap_or_default());
                let message = format!(
                    "cannot remove s3://{}/{key}: {why}; the credentials need s3:DeleteObject",
                    self.options.bucket
                );
                return Err(Error::external("warehouse.stage_remove", message));
            }
        }
        Ok(())
    }
}
