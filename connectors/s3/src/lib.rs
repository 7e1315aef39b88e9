//! Sink connector `s3`: Parquet files in an S3 bucket or a local directory, each visible exactly
//! once.
//!
//! Open objects are local files. They become visible in two phases
//! ([`trunkline_connector::TwoPhaseSink`]): *prepare* brings the bytes to the destination where no
//! reader sees them (all parts of a multipart upload; a durable file in a hidden folder), and
//! *commit* makes them visible at once (CompleteMultipartUpload with `If-None-Match`; a hard link
//! to the final name). Between the two the stage records the intent together with the consumer
//! offsets (I2 a). All open objects of a topic partition share one intent.
//!
//! Columns and Parquet are in `trunkline-objects`. In the order in which a record passes them:
//!
//! | file | subject |
//! |---|---|
//! | `sink` | the running sink |
//! | `router` | records to writers: path and schema |
//! | `partition_buffer`, `object` | the open objects of a topic partition; one object |
//! | `intent` | the stored form of plans and committables |
//! | `store/` | bucket and directory: prepare, commit, abort |

mod config;
mod intent;
mod names;
mod object;
mod partition_buffer;
mod router;
mod sink;
mod store;

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{
    CommitPolicy, EachRow, Error, OutputFile, OutputListing, PreflightIssue, Result, Sink, SinkConnector, SinkContext,
    SinkSpec, Supersede, Template,
};

use config::{Config, Destination};
use store::Store;
use store::bucket::BucketStore;
use store::directory::{self, DirectoryStore};
use store::{listing, removal, rows};
use trunkline_objects::Encoders;

/// The connector `s3`.
pub struct S3Connector;

impl SinkConnector for S3Connector {
    fn name(&self) -> &'static str {
        "s3"
    }

    fn summary(&self) -> &'static str {
        "Parquet files in S3 buckets and local directories"
    }

    fn options(&self) -> &'static [OptionSpec] {
        config::OPTIONS
    }

    fn configure(&self, section: &Section<'_>, template_variables: &[&str]) -> Option<Box<dyn SinkSpec>> {
        Config::read(section, template_variables).map(|config| Box::new(S3Spec { config }) as Box<dyn SinkSpec>)
    }
}

struct S3Spec {
    config: Config,
}

impl SinkSpec for S3Spec {
    fn open(&self, context: SinkContext) -> Result<Sink> {
        let encoders = Encoders::new(context.runtime.clone(), self.config.writer);
        let store: Box<dyn Store> = match &self.config.destination {
            Destination::Directory(root) => {
                Box::new(DirectoryStore::open(root, &context.name, context.replay.as_ref())?)
            }
            Destination::Bucket(options) => Box::new(BucketStore::open(options, context.runtime, context.scratch)?),
        };
        let sink = sink::ObjectSink::new(context.name, self.config.clone(), store, encoders, context.schemas);
        Ok(Sink::TwoPhase(Box::new(sink)))
    }

    fn preflight(&self, _: &str, runtime: &tokio::runtime::Handle) -> Vec<PreflightIssue> {
        let checked = match &self.config.destination {
            Destination::Directory(root) => DirectoryStore::check(root),
            // The scratch folder is not used before there are records.
            Destination::Bucket(options) => {
                BucketStore::open(options, runtime.clone(), std::path::PathBuf::new()).map(drop)
            }
        };
        let issue = |error: Error| {
            // Advice follows the reason.
            let (message, fix) = match error.message().rsplit_once("; ") {
                Some((message, fix)) => (message.to_owned(), Some(fix.to_owned())),
                None => (error.message().to_owned(), None),
            };
            PreflightIssue { code: error.code, message, fix }
        };
        checked.err().map(issue).into_iter().collect()
    }

    fn commit_policy(&self) -> CommitPolicy {
        self.config.commit
    }

    fn destination(&self) -> Option<String> {
        Some(match &self.config.destination {
            Destination::Directory(root) => format!("file://{}", listing::absolute(root).display()),
            Destination::Bucket(options) => {
                let store = options.endpoint.as_deref().map_or("s3:/", |endpoint| endpoint.trim_end_matches('/'));
                let place = format!("{store}/{}/{}", options.bucket, options.prefix);
                place.trim_end_matches('/').to_owned()
            }
        })
    }

    fn list_output(&self, runtime: &tokio::runtime::Handle) -> Result<Option<OutputListing>> {
        match &self.config.destination {
            Destination::Directory(root) => listing::list_directory(root),
            Destination::Bucket(options) => listing::list_bucket(options, runtime),
        }
        .map(Some)
    }

    fn read_rows(
        &self,
        file: &OutputFile,
        scratch: &std::path::Path,
        runtime: &tokio::runtime::Handle,
        each: EachRow<'_>,
    ) -> Result<()> {
        match &self.config.destination {
            Destination::Directory(_) => rows::of_file(&file.name, each),
            Destination::Bucket(options) => rows::of_object(options, &file.name, scratch, runtime, each),
        }
    }

    fn folder_of(&self, file: &OutputFile) -> String {
        let root = match &self.config.destination {
            Destination::Directory(root) => root.display().to_string(),
            Destination::Bucket(options) => format!("s3://{}/{}", options.bucket, options.prefix),
        };
        let below = file.name.strip_prefix(root.trim_end_matches('/')).unwrap_or(&file.name).trim_start_matches('/');
        below.rsplit_once('/').map_or_else(String::new, |(folder, _)| folder.to_owned())
    }

    fn supersede(&self) -> Supersede {
        Supersede::Files
    }

    fn check_removal(&self, files: &[OutputFile], runtime: &tokio::runtime::Handle) -> Result<()> {
        match &self.config.destination {
            Destination::Directory(root) => directory::check_removal(root, files),
            Destination::Bucket(options) => removal::check(options, runtime),
        }
    }

    fn remove_output(&self, files: &[OutputFile], runtime: &tokio::runtime::Handle) -> Result<()> {
        match &self.config.destination {
            Destination::Directory(root) => directory::remove_files(root, files),
            Destination::Bucket(options) => removal::remove_objects(options, files, runtime),
        }
    }

    fn templates(&self) -> Vec<(&'static str, &Template)> {
        vec![("path", &self.config.path)]
    }
}
