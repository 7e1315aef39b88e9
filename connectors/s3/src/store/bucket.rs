//! An S3 bucket. `prepare` uploads all parts of a multipart upload, which no reader sees; `commit`
//! completes the upload.
//!
//! # Repeated commits
//! The reply to CompleteMultipartUpload can be lost. The repeated request then gets, depending on
//! the store, success, 404 (NoSuchUpload), 412 (the key exists; we send `If-None-Match: *`) or 403.
//! In all of these cases the object decides: its metadata contain our id. The same holds when two
//! tasks commit at once.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::primitives::{ByteStream, Length};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, ServerSideEncryption};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::Instant;
use trunkline_connector::{Error, Result, TopicPartition, failpoint};

use super::{Store, key_taken, prepared_object_missing, sink_named_in, writer_prefix};
use crate::intent::{Committable, Plan, PlannedObject, PreparedObject, Upload, UploadedPart};
use crate::names::temp_prefix;
use crate::object::remove_temp;
use trunkline_objects::{BucketOptions, Checksum, Encryption, Failure, connect};

const SCHEME: &str = "s3://";
/// Name of our id in an object's metadata (`x-amz-meta-trunkline-id`).
const ID_METADATA: &str = "trunkline-id";
/// Concurrent requests without a body.
const REQUESTS_AT_ONCE: usize = 8;
/// Concurrent uploads of parts. They are streamed from disk.
const PARTS_AT_ONCE: usize = 4;
/// Objects that are listed to find earlier output.
const MAX_LISTED: usize = 100_000;
/// The end of an object that is read first; it has the footer of most files.
const FOOTER_BYTES: usize = 64 << 10;
/// S3's limit on the parts of one object.
const MAX_PARTS: u64 = 10_000;
/// Uploads of parts start within this time. Those that are not done at the deadline are abandoned;
/// the next call of `prepare` continues.
const UPLOAD_TIME: Duration = Duration::from_secs(40);
const UPLOAD_DEADLINE: Duration = Duration::from_secs(55);

/// See the module's header.
pub(crate) struct BucketStore {
    client: Arc<BucketClient>,
    runtime: Handle,
    spool: PathBuf,
    /// Uploads with missing parts, by the object's id. The next call of `prepare` continues them.
    in_progress: HashMap<String, UploadProgress>,
}

struct BucketClient {
    client: Client,
    options: BucketOptions,
}

/// An unfinished upload.
#[derive(Clone, Default)]
struct UploadProgress {
    /// `None`: the creation failed, or its reply was lost.
    upload: Option<String>,
    parts: Vec<Option<UploadedPart>>,
}

impl BucketStore {
    /// Connects, and checks that objects can be written by starting and aborting an upload.
    pub(crate) fn open(options: &BucketOptions, runtime: Handle, spool: PathBuf) -> Result<Self> {
        let client = runtime.block_on(connect(options))?;
        let client = Arc::new(BucketClient { client, options: options.clone() });
        runtime.block_on(client.check())?;
        Ok(Self { client, runtime, spool, in_progress: HashMap::new() })
    }
}

impl Store for BucketStore {
    fn spool(&self) -> &Path {
        &self.spool
    }

    fn destination(&self) -> String {
        format!("{SCHEME}{}", self.client.options.bucket)
    }

    fn key(&self, name: &str) -> String {
        match self.client.options.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    fn prepare(&mut self, plans: &[Plan]) -> Result<Vec<Vec<Option<Upload>>>> {
        let objects: Vec<&PlannedObject> = plans.iter().flat_map(|plan| &plan.objects).collect();
        let deadline = Instant::now();
        self.create_uploads(&objects)?;
        self.upload_parts(&objects, deadline)?;
        for object in &objects {
            remove_temp(&self.spool.join(&object.temp));
        }
        failpoint!("s3.spool.removed")?;
        let mut finished = |object: &PlannedObject| {
            let in_progress = self.in_progress.remove(&object.id).unwrap_or_default();
            let parts = in_progress.parts.into_iter().flatten().collect();
            let algorithm = self.client.checksum().map(|algorithm| algorithm.as_str().to_owned());
            in_progress.upload.map(|id| Upload { id, algorithm, parts })
        };
        Ok(plans.iter().map(|plan| plan.objects.iter().map(&mut finished).collect()).collect())
    }

    fn commit(&mut self, committables: &[Committable]) -> Result<()> {
        let client = &self.client;
        let results = self.runtime.block_on(all(objects(committables)?, REQUESTS_AT_ONCE, |(bucket, object)| {
            let client = Arc::clone(client);
            async move { client.complete(&bucket, &object).await }
        }));
        results.into_iter().collect()
    }

    fn check_prepared(&mut self, committables: &[Committable]) -> Result<()> {
        let client = &self.client;
        let results = self.runtime.block_on(all(objects(committables)?, REQUESTS_AT_ONCE, |(bucket, object)| {
            let client = Arc::clone(client);
            async move {
                let key = &object.planned.key;
                let known = client.uploads_to(&bucket, key).await?;
                match &object.upload {
                    // `None`: the store cannot list uploads.
                    Some(upload) if known.as_ref().is_none_or(|known| known.contains(&upload.id)) => Ok(()),
                    _ => {
                        let why = "its upload is gone: a rule of the bucket may remove incomplete uploads";
                        Err(prepared_object_missing(&format!("{SCHEME}{bucket}/{key}"), why))
                    }
                }
            }
        }));
        results.into_iter().collect()
    }

    fn discard_prepared(&mut self, committables: &[Committable]) -> Result<()> {
        let client = &self.client;
        let results = self.runtime.block_on(all(objects(committables)?, REQUESTS_AT_ONCE, |(bucket, object)| {
            let client = Arc::clone(client);
            async move {
                let Some(upload) = &object.upload else { return Ok(()) };
                client.abort_upload(&bucket, &object.planned.key, &upload.id).await
            }
        }));
        results.into_iter().collect()
    }

    fn abort(&mut self, plan: &Plan) -> Result<()> {
        let bucket = bucket_of(&plan.destination)?.to_owned();
        for object in &plan.objects {
            remove_temp(&self.spool.join(&object.temp));
            self.in_progress.remove(&object.id);
        }
        let keys: Vec<_> = plan.objects.iter().map(|object| (bucket.clone(), object.key.clone())).collect();
        let client = &self.client;
        let results = self.runtime.block_on(all(keys, REQUESTS_AT_ONCE, |(bucket, key)| {
            let client = Arc::clone(client);
            async move { client.abort_all(&bucket, &key).await }
        }));
        results.into_iter().collect()
    }

    fn existing_output(&self, sink: &str, partitions: &[TopicPartition]) -> Result<Option<String>> {
        let prefixes: BTreeSet<String> = partitions.iter().map(temp_prefix).collect();
        self.runtime.block_on(self.client.find_output(sink, &prefixes))
    }

    fn remove_leftovers(&mut self, _: &TopicPartition, _keep: &dyn Fn(&str) -> bool) -> Result<()> {
        // The scratch folder is empty at start, and recorded plans lead to the uploads.
        Ok(())
    }
}

impl BucketStore {
    fn create_uploads(&mut self, objects: &[&PlannedObject]) -> Result<()> {
        let mut jobs = Vec::new();
        for object in objects {
            let tried = self.in_progress.get(&object.id);
            if tried.is_none_or(|in_progress| in_progress.upload.is_none()) {
                jobs.push(((*object).clone(), tried.is_some()));
            }
        }
        for (object, _) in &jobs {
            self.in_progress.entry(object.id.clone()).or_default();
        }
        let client = &self.client;
        let results = self.runtime.block_on(all(jobs, REQUESTS_AT_ONCE, |(object, tried)| {
            let client = Arc::clone(client);
            async move {
                let bucket = client.options.bucket.clone();
                if tried {
                    // The last attempt may have created an upload whose reply was lost.
                    client.abort_all(&bucket, &object.key).await?;
                }
                failpoint!("s3.create.before")?;
                let upload = client.create(&bucket, &object.key, &object.id).await?;
                failpoint!("s3.create.after")?;
                Ok((object, upload))
            }
        }));
        let mut outcome = Ok(());
        for result in results {
            match result {
                Ok((object, upload)) => {
                    let parts = vec![None; self.client.parts(object.bytes).len()];
                    self.in_progress.insert(object.id, UploadProgress { upload: Some(upload), parts });
                }
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    fn upload_parts(&mut self, objects: &[&PlannedObject], started: Instant) -> Result<()> {
        let mut jobs = Vec::new();
        for object in objects {
            let Some(UploadProgress { upload: Some(upload), parts }) = self.in_progress.get(&object.id) else {
                continue;
            };
            for (index, (offset, len)) in self.client.parts(object.bytes).into_iter().enumerate() {
                if parts.get(index).is_some_and(Option::is_none) {
                    jobs.push(PartJob {
                        id: object.id.clone(),
                        key: object.key.clone(),
                        upload: upload.clone(),
                        file: self.spool.join(&object.temp),
                        index,
                        offset,
                        len,
                    });
                }
            }
        }
        let wanted = jobs.len();
        let client = &self.client;
        let results = self.runtime.block_on(all(jobs, PARTS_AT_ONCE, |job| {
            let client = Arc::clone(client);
            async move {
                if started.elapsed() > UPLOAD_TIME {
                    return Ok(None);
                }
                match tokio::time::timeout_at(started + UPLOAD_DEADLINE, client.upload_part(&job)).await {
                    Ok(result) => result.map(|part| Some((job.id, job.index, part))).map_err(|error| (job.key, error)),
                    Err(_) => Ok(None),
                }
            }
        }));
        let mut arrived = 0;
        let mut outcome = Ok(());
        for result in results {
            match result {
                Ok(Some((id, index, part))) => {
                    arrived += 1;
                    if let Some(slot) =
                        self.in_progress.get_mut(&id).and_then(|in_progress| in_progress.parts.get_mut(index))
                    {
                        *slot = Some(part);
                    }
                }
                Ok(None) => {}
                Err((key, failure)) => {
                    if failure.is("NoSuchUpload", 404) {
                        // The store removed the upload: the next attempt starts another one.
                        let ids = objects.iter().filter(|object| object.key == key).map(|object| object.id.clone());
                        self.in_progress.extend(ids.map(|id| (id, UploadProgress::default())));
                    }
                    outcome = Err(failure.into_error(&format!("upload a part of {}", self.client.url(&key))));
                }
            }
        }
        outcome?;
        if arrived < wanted {
            let message = format!(
                "uploading to {} is slow: {arrived} of {wanted} parts in {} s; the upload continues",
                self.destination(),
                UPLOAD_TIME.as_secs()
            );
            return Err(Error::external("s3.slow", message));
        }
        Ok(())
    }
}

struct PartJob {
    id: String,
    key: String,
    upload: String,
    file: PathBuf,
    index: usize,
    offset: u64,
    len: u64,
}

impl BucketClient {
    fn url(&self, key: &str) -> String {
        format!("{SCHEME}{}/{key}", self.options.bucket)
    }

    /// Offset and length of each part.
    fn parts(&self, bytes: u64) -> Vec<(u64, u64)> {
        let size = self.options.part_size.max(bytes.div_ceil(MAX_PARTS));
        (0..bytes.div_ceil(size)).map(|index| (index * size, size.min(bytes - index * size))).collect()
    }

    fn checksum(&self) -> Option<ChecksumAlgorithm> {
        match self.options.checksum {
            Checksum::Crc32c => Some(ChecksumAlgorithm::Crc32C),
            Checksum::Crc32 => Some(ChecksumAlgorithm::Crc32),
            Checksum::Sha256 => Some(ChecksumAlgorithm::Sha256),
            Checksum::None => None,
        }
    }

    /// Starts an upload. It is not retried here: after a lost reply, a retry would leave an unknown
    /// upload.
    async fn create(&self, bucket: &str, key: &str, id: &str) -> Result<String> {
        let mut request = self
            .client
            .create_multipart_upload()
            .bucket(bucket)
            .key(key)
            .content_type("application/vnd.apache.parquet")
            .metadata(ID_METADATA, id)
            .set_checksum_algorithm(self.checksum());
        match &self.options.encryption {
            Encryption::Bucket => {}
            Encryption::Aes256 => request = request.server_side_encryption(ServerSideEncryption::Aes256),
            Encryption::Kms(key) => {
                request = request.server_side_encryption(ServerSideEncryption::AwsKms).set_ssekms_key_id(key.clone());
            }
        }
        let once = aws_sdk_s3::config::Builder::new().retry_config(RetryConfig::disabled());
        let created = request.customize().config_override(once).send().await;
        let doing = || format!("begin an upload to {}", self.url(key));
        let created = created.map_err(|error| Failure::from_sdk(&error).into_error(&doing()))?;
        let upload = created.upload_id().map(str::to_owned);
        upload.ok_or_else(|| {
            Error::external("s3.bad_answer", format!("cannot {}: the store returned no upload id", doing()))
        })
    }

    async fn upload_part(&self, job: &PartJob) -> Result<UploadedPart, Failure> {
        let local = |error: Error| Failure::local(error.to_string());
        failpoint!("s3.part.before").map_err(local)?;
        let body = ByteStream::read_from()
            .path(&job.file)
            .offset(job.offset)
            .length(Length::Exact(job.len))
            .build()
            .await
            .map_err(|error| Failure::local(format!("cannot read {}: {error}", job.file.display())))?;
        let sent = self
            .client
            .upload_part()
            .bucket(&self.options.bucket)
            .key(&job.key)
            .upload_id(&job.upload)
            .part_number(part_number(job.index))
            .set_checksum_algorithm(self.checksum())
            .content_length(i64::try_from(job.len).unwrap_or(i64::MAX))
            .body(body)
            .send()
            .await
            .map_err(|error| Failure::from_sdk(&error))?;
        failpoint!("s3.part.after").map_err(local)?;
        let checksum = match self.options.checksum {
            Checksum::Crc32c => sent.checksum_crc32_c(),
            Checksum::Crc32 => sent.checksum_crc32(),
            Checksum::Sha256 => sent.checksum_sha256(),
            Checksum::None => None,
        };
        let etag = sent.e_tag().ok_or_else(|| Failure::local("the store returned no ETag for a part".to_owned()))?;
        Ok(UploadedPart { etag: etag.to_owned(), checksum: checksum.map(str::to_owned) })
    }

    async fn complete(&self, bucket: &str, object: &PreparedObject) -> Result<()> {
        let key = &object.planned.key;
        let Some(upload) = &object.upload else {
            return Err(Error::data("s3.unreadable_intent", format!("the prepared object {key} has no upload")));
        };
        let parts = upload.parts.iter().enumerate().map(|(index, part)| {
            let completed = CompletedPart::builder().part_number(part_number(index)).e_tag(&part.etag);
            let checksum = part.checksum.clone();
            // The algorithm that the upload was started with; the option may have changed.
            match upload.algorithm.as_deref().map(ChecksumAlgorithm::from) {
                Some(ChecksumAlgorithm::Crc32C) => completed.set_checksum_crc32_c(checksum),
                Some(ChecksumAlgorithm::Crc32) => completed.set_checksum_crc32(checksum),
                Some(ChecksumAlgorithm::Sha256) => completed.set_checksum_sha256(checksum),
                _ => completed,
            }
            .build()
        });
        failpoint!("s3.complete.before")?;
        let completed = self
            .client
            .complete_multipart_upload()
            .bucket(bucket)
            .key(key)
            .upload_id(&upload.id)
            .if_none_match("*")
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build())
            .send()
            .await;
        let Err(error) = completed else { return failpoint!("s3.complete.after") };
        let failure = Failure::from_sdk(&error);
        let doing = format!("commit {SCHEME}{bucket}/{key}");
        // Any other answer leaves the outcome open: the stage retries.
        if !matches!(failure.status, Some(403 | 404 | 409 | 412)) || failure.is("NoSuchBucket", 0) {
            return Err(failure.into_error(&doing));
        }
        match self.owner(bucket, key).await? {
            Some(id) if id == object.planned.id => {
                tracing::debug!(%key, "the prepared object was committed before");
                Ok(())
            }
            Some(_) => Err(key_taken(&format!("{SCHEME}{bucket}/{key}"))),
            None if failure.is("NoSuchUpload", 404) => {
                let why = format!("its upload {} is gone, and there is no object of that key", upload.id);
                Err(prepared_object_missing(&format!("{SCHEME}{bucket}/{key}"), &why))
            }
            None => Err(failure.into_error(&doing)),
        }
    }

    /// The id in the metadata of the object at `key`, empty if it has none; `None` if there is no
    /// object.
    async fn owner(&self, bucket: &str, key: &str) -> Result<Option<String>> {
        match self.client.head_object().bucket(bucket).key(key).send().await {
            Ok(head) => {
                Ok(Some(head.metadata().and_then(|metadata| metadata.get(ID_METADATA)).cloned().unwrap_or_default()))
            }
            Err(error) => {
                let failure = Failure::from_sdk(&error);
                if failure.is_not_found() {
                    return Ok(None);
                }
                Err(failure.into_error(&format!("look at {SCHEME}{bucket}/{key}")))
            }
        }
    }

    /// An object of a sink whose name begins with one of these prefixes. Without the permission to
    /// list or read, nothing is found.
    async fn find_output(&self, sink: &str, prefixes: &BTreeSet<String>) -> Result<Option<String>> {
        let bucket = &self.options.bucket;
        let folder = if self.options.prefix.is_empty() { String::new() } else { format!("{}/", self.options.prefix) };
        let mut listed = 0;
        let mut pages = self.client.list_objects_v2().bucket(bucket).prefix(&folder).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    let failure = Failure::from_sdk(&error);
                    if failure.is("AccessDenied", 403) || failure.is("NotImplemented", 501) {
                        tracing::debug!(%bucket, "earlier output is not looked for: listing objects is not permitted");
                        return Ok(None);
                    }
                    return Err(failure.into_error(&format!("list the objects of {SCHEME}{bucket}/{folder}")));
                }
            };
            for object in page.contents() {
                let Some(key) = object.key() else { continue };
                let name = key.rsplit('/').next().unwrap_or(key);
                if writer_prefix(name).is_some_and(|prefix| prefixes.contains(&prefix))
                    && self.sink_of(key, object.size().unwrap_or(0)).await.as_deref() == Some(sink)
                {
                    return Ok(Some(self.url(key)));
                }
            }
            listed += page.contents().len();
            if listed >= MAX_LISTED {
                tracing::debug!(%bucket, listed, "earlier output was looked for in a part of the objects only");
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// The sink that wrote an object; `None` if it is not one of ours or cannot be read.
    async fn sink_of(&self, key: &str, size: i64) -> Option<String> {
        let size = u64::try_from(size).ok()?;
        let mut wanted = FOOTER_BYTES;
        for _ in 0..2 {
            let range = format!("bytes={}-", size.saturating_sub(wanted as u64));
            let object =
                self.client.get_object().bucket(&self.options.bucket).key(key).range(range).send().await.ok()?;
            let bytes = object.body.collect().await.ok()?.into_bytes();
            let mut reader = ParquetMetaDataReader::new();
            match reader.try_parse_sized(&bytes, size) {
                Ok(()) => return sink_named_in(&reader.finish().ok()?),
                Err(ParquetError::NeedMoreData(bytes)) => wanted = bytes,
                Err(_) => return None,
            }
        }
        None
    }

    /// Aborts every upload to exactly this key.
    async fn abort_all(&self, bucket: &str, key: &str) -> Result<()> {
        for upload in self.uploads_to(bucket, key).await?.unwrap_or_default() {
            self.abort_upload(bucket, key, &upload).await?;
        }
        Ok(())
    }

    /// Aborts an upload; a missing one is no error.
    async fn abort_upload(&self, bucket: &str, key: &str, upload: &str) -> Result<()> {
        failpoint!("s3.abort.before")?;
        let aborted = self.client.abort_multipart_upload().bucket(bucket).key(key).upload_id(upload).send().await;
        failpoint!("s3.abort.after")?;
        match aborted.map_err(|error| Failure::from_sdk(&error)) {
            Err(failure) if !failure.is("NoSuchUpload", 404) => {
                Err(failure.into_error(&format!("abort an upload to {SCHEME}{bucket}/{key}")))
            }
            _ => Ok(()),
        }
    }

    /// The uploads to exactly this key; `None` if the store cannot list uploads.
    async fn uploads_to(&self, bucket: &str, key: &str) -> Result<Option<Vec<String>>> {
        let mut found = Vec::new();
        let (mut key_marker, mut upload_marker) = (None, None);
        loop {
            let listed = self
                .client
                .list_multipart_uploads()
                .bucket(bucket)
                .prefix(key)
                .set_key_marker(key_marker.take())
                .set_upload_id_marker(upload_marker.take())
                .send()
                .await;
            let page = match listed {
                Ok(page) => page,
                Err(error) => {
                    let failure = Failure::from_sdk(&error);
                    if failure.is("NotImplemented", 501) {
                        tracing::warn!(%bucket, "the store cannot list uploads: give it a lifecycle rule that removes incomplete ones");
                        return Ok(None);
                    }
                    return Err(failure.into_error(&format!("list the uploads to {SCHEME}{bucket}/{key}")));
                }
            };
            // The prefix also matches longer keys.
            let ours = page.uploads().iter().filter(|upload| upload.key() == Some(key));
            found.extend(ours.filter_map(|upload| upload.upload_id().map(str::to_owned)));
            if !page.is_truncated().unwrap_or(false) || page.next_key_marker().is_none() {
                return Ok(Some(found));
            }
            key_marker = page.next_key_marker().map(str::to_owned);
            upload_marker = page.next_upload_id_marker().map(str::to_owned);
        }
    }

    /// Starts and aborts an upload, which needs the same permissions as writing.
    async fn check(&self) -> Result<()> {
        let name = format!(".trunkline-check-{}", uuid::Uuid::new_v4().simple());
        let key = match self.options.prefix.as_str() {
            "" => name,
            prefix => format!("{prefix}/{name}"),
        };
        let bucket = &self.options.bucket;
        let upload = self.create(bucket, &key, "check").await?;
        let listed = self.uploads_to(bucket, &key).await;
        let aborted = self.client.abort_multipart_upload().bucket(bucket).key(&key).upload_id(upload).send().await;
        aborted
            .map_err(|error| Failure::from_sdk(&error).into_error(&format!("abort an upload to {}", self.url(&key))))?;
        listed.map(|_| ())
    }
}

/// The objects of committables, each with its bucket.
fn objects(committables: &[Committable]) -> Result<Vec<(String, PreparedObject)>> {
    let mut objects = Vec::new();
    for committable in committables {
        let bucket = bucket_of(&committable.destination)?;
        objects.extend(committable.objects.iter().map(|object| (bucket.to_owned(), object.clone())));
    }
    Ok(objects)
}

fn bucket_of(destination: &str) -> Result<&str> {
    destination.strip_prefix(SCHEME).ok_or_else(|| {
        Error::config(
            "s3.other_destination",
            format!("objects are prepared at {destination}, but the sink now writes to a bucket. Run it once more with the earlier url"),
        )
    })
}

fn part_number(index: usize) -> i32 {
    i32::try_from(index + 1).unwrap_or(i32::MAX)
}

/// Runs a job for each item, `at_once` concurrently; returns the results in the order of the items.
pub(super) async fn all<I, T, F>(items: Vec<I>, at_once: usize, job: impl Fn(I) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut results: Vec<Option<T>> = items.iter().map(|_| None).collect();
    let mut waiting = items.into_iter().enumerate();
    let mut running = JoinSet::new();
    loop {
        while running.len() < at_once
            && let Some((index, item)) = waiting.next()
        {
            let future = job(item);
            running.spawn(async move { (index, future.await) });
        }
        match running.join_next().await {
            Some(Ok((index, result))) => results[index] = Some(result),
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => return results.into_iter().flatten().collect(),
        }
    }
}
