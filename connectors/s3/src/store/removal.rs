//! Removes visible objects of a bucket, for replays that supersede them.

use std::sync::Arc;

use aws_sdk_s3::Client;
use tokio::runtime::Handle;
use trunkline_connector::{Error, OutputFile, Result};
use trunkline_objects::{BucketOptions, Failure, connect};

use super::bucket::all;

/// Concurrent requests.
const REQUESTS_AT_ONCE: usize = 16;

/// Checks the permission to remove objects, with a name that no object has. A bucket with versions
/// then has a delete marker of that name.
pub(crate) fn check(options: &BucketOptions, runtime: &Handle) -> Result<()> {
    let name = format!(".trunkline-check-{}", uuid::Uuid::new_v4().simple());
    let key = if options.prefix.is_empty() { name } else { format!("{}/{name}", options.prefix) };
    remove_keys(options, vec![key], runtime)
}

/// Removes objects. A missing object is no error.
pub(crate) fn remove_objects(options: &BucketOptions, files: &[OutputFile], runtime: &Handle) -> Result<()> {
    // Names are read from Kafka, so they must be below the prefix.
    let root = match options.prefix.as_str() {
        "" => format!("s3://{}/", options.bucket),
        prefix => format!("s3://{}/{prefix}/", options.bucket),
    };
    let bucket = format!("s3://{}/", options.bucket);
    let key_of = |file: &OutputFile| match file.name.strip_prefix(&bucket) {
        Some(key) if file.name.starts_with(&root) => Ok(key.to_owned()),
        _ => {
            let message = format!("{} is not below {root}: has the sink's url changed?", file.name);
            Err(Error::config("s3.other_destination", message))
        }
    };
    remove_keys(options, files.iter().map(key_of).collect::<Result<_>>()?, runtime)
}

fn remove_keys(options: &BucketOptions, keys: Vec<String>, runtime: &Handle) -> Result<()> {
    let client: Arc<Client> = Arc::new(runtime.block_on(connect(options))?);
    // Single requests: many stores refuse requests for several objects without a checksum of MD5.
    let removed = runtime.block_on(all(keys, REQUESTS_AT_ONCE, |key| {
        let (client, bucket) = (Arc::clone(&client), options.bucket.clone());
        async move {
            match client.delete_object().bucket(&bucket).key(&key).send().await {
                Ok(_) => Ok(()),
                Err(error) => {
                    let failure = Failure::from_sdk(&error);
                    let doing = format!("remove s3://{bucket}/{key}");
                    if failure.is("NoSuchKey", 404) { Ok(()) } else { Err(failure.into_error(&doing)) }
                }
            }
        }
    }));
    removed.into_iter().collect()
}
