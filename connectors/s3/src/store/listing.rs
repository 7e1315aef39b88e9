//! The visible objects of a destination, described by the metadata in their footers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_sdk_s3::Client;
use parquet::file::metadata::{FooterTail, ParquetMetaData, ParquetMetaDataReader};
use tokio::runtime::Handle;
use trunkline_connector::{Error, OutputFile, OutputListing, Result, TopicPartition, io_error};
use trunkline_objects::{BucketOptions, Failure, connect};

use super::bucket::all;
use crate::object::footer;

/// Length of the end of a Parquet file: the length of the footer, and a magic number.
const TAIL: usize = 8;

/// The first request for an object's end. Most footers fit.
const FIRST_READ: u64 = 64 << 10;

/// Concurrent requests.
const REQUESTS_AT_ONCE: usize = 8;

/// The absolute path of a directory that may not exist yet.
pub(crate) fn absolute(root: &Path) -> PathBuf {
    let absolute = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    for existing in absolute.ancestors() {
        if let Ok(found) = existing.canonicalize() {
            // A path starts with each of its ancestors.
            return absolute
                .strip_prefix(existing)
                .map_or(found.clone(), |rest| found.join(rest))
                .components()
                .collect();
        }
    }
    absolute
}

/// The files below a directory. Hidden files and folders are no output.
pub(crate) fn list_directory(root: &Path) -> Result<OutputListing> {
    let mut listing = OutputListing::default();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|error| io_error("list", &folder, &error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| io_error("list", &folder, &error))?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
                continue;
            }
            let file = File::open(&path).map_err(|error| io_error("read", &path, &error))?;
            let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).ok();
            add(&mut listing, path.display().to_string(), metadata.as_ref());
        }
    }
    Ok(sorted(listing))
}

/// The objects of a bucket below the prefix of the options.
pub(crate) fn list_bucket(options: &BucketOptions, runtime: &Handle) -> Result<OutputListing> {
    let client = Arc::new(runtime.block_on(connect(options))?);
    let objects = runtime.block_on(keys(&client, options))?;
    let footers = runtime.block_on(all(objects, REQUESTS_AT_ONCE, |(key, bytes)| {
        let (client, bucket) = (Arc::clone(&client), options.bucket.clone());
        async move { Ok((read_footer(&client, &bucket, &key, bytes).await?, key)) }
    }));
    let mut listing = OutputListing::default();
    for outcome in footers {
        let (metadata, key) = outcome?;
        add(&mut listing, format!("s3://{}/{key}", options.bucket), metadata.as_ref());
    }
    Ok(sorted(listing))
}

/// The keys below the prefix, with their sizes.
async fn keys(client: &Client, options: &BucketOptions) -> Result<Vec<(String, u64)>> {
    let prefix = if options.prefix.is_empty() { String::new() } else { format!("{}/", options.prefix) };
    let mut objects = Vec::new();
    let mut token = None;
    loop {
        let request = client.list_objects_v2().bucket(&options.bucket).prefix(&prefix).set_continuation_token(token);
        let page = request
            .send()
            .await
            .map_err(|error| Failure::from_sdk(&error).into_error(&format!("list s3://{}/{prefix}", options.bucket)))?;
        for object in page.contents() {
            let size = object.size().and_then(|size| u64::try_from(size).ok());
            objects.extend(object.key().zip(size).map(|(key, size)| (key.to_owned(), size)));
        }
        token = page.next_continuation_token().map(str::to_owned);
        if token.is_none() {
            return Ok(objects);
        }
    }
}

/// The footer of an object; `None` if it is not a Parquet file, or was removed meanwhile.
async fn read_footer(client: &Client, bucket: &str, key: &str, bytes: u64) -> Result<Option<ParquetMetaData>> {
    let mut wanted = FIRST_READ.min(bytes);
    loop {
        if wanted < TAIL as u64 {
            return Ok(None);
        }
        let range = format!("bytes={}-{}", bytes - wanted, bytes - 1);
        let doing = format!("read s3://{bucket}/{key}");
        let answer = match client.get_object().bucket(bucket).key(key).range(range).send().await {
            Ok(answer) => answer,
            Err(error) => {
                let failure = Failure::from_sdk(&error);
                return if failure.is("NoSuchKey", 404) { Ok(None) } else { Err(failure.into_error(&doing)) };
            }
        };
        let end = answer.body.collect().await;
        let end = end.map_err(|error| Error::external("s3.bad_answer", format!("cannot {doing}: {error}")))?.to_vec();
        let Some(tail) = end.last_chunk::<TAIL>().and_then(|tail| FooterTail::try_new(tail).ok()) else {
            return Ok(None);
        };
        let footer = tail.metadata_length() + TAIL;
        if footer <= end.len() {
            let encoded = &end[end.len() - footer..end.len() - TAIL];
            return Ok(ParquetMetaDataReader::decode_metadata(encoded).ok());
        }
        if footer as u64 > bytes {
            return Ok(None);
        }
        wanted = footer as u64;
    }
}

/// Adds an object by the metadata in its footer.
fn add(listing: &mut OutputListing, name: String, metadata: Option<&ParquetMetaData>) {
    match metadata.and_then(|metadata| describe(&name, metadata)) {
        Some(file) => listing.files.push(file),
        None => listing.foreign.push(name),
    }
}

/// `None` if the file is not one of ours.
fn describe(name: &str, metadata: &ParquetMetaData) -> Option<OutputFile> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    let value = |key: &str| pairs.iter().find(|pair| pair.key == key)?.value.as_deref();
    Some(OutputFile {
        name: name.to_owned(),
        id: value(footer::ID)?.to_owned(),
        sink: value(footer::SINK)?.to_owned(),
        partition: TopicPartition::new(value(footer::TOPIC)?, value(footer::PARTITION)?.parse().ok()?),
        first: value(footer::FIRST_OFFSET)?.parse().ok()?,
        last: value(footer::LAST_OFFSET)?.parse().ok()?,
        // The rows themselves, not what was intended.
        records: u64::try_from(metadata.file_metadata().num_rows()).ok()?,
    })
}

fn sorted(mut listing: OutputListing) -> OutputListing {
    listing.files.sort_by(|one, other| one.name.cmp(&other.name));
    listing.foreign.sort_unstable();
    listing
}
