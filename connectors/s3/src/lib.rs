//! Sink connector `s3`: Parquet files on an S3 object store or in a local directory, each published exactly once.
//!
//! Open objects are local files, and become visible in two steps ([`trunkline_connector::Sink`]): *stage* brings the bytes to the
//! destination where nobody sees them (all parts of a multipart upload; a durable file in a hidden folder), and *publish* makes them
//! visible at once (CompleteMultipartUpload with `If-None-Match`; a new name for the file). Between the two the stage commits the
//! promise together with the consumer offsets (I2). All open objects of a claim are published together under one promise.
//!
//! ```text
//! sink      records -> lanes (path, schema) -> rows          claims    open objects of a claim, when they are due
//! columns/  JSON -> columns: types, inference, widening       object    one open object
//! store/    directory, bucket: stage, publish, abort          encoding  its rows -> Parquet, in another thread
//! protocol  what plans and intents say
//! ```

mod claims;
mod columns;
mod config;
mod encoding;
mod names;
mod object;
mod protocol;
mod sink;
mod store;

use trunkline_connector::config::{OptionSpec, Section};
use trunkline_connector::{Result, Sink, SinkConnector, SinkContext, SinkSpec};

use config::{Config, Destination};
use encoding::Encoders;
use store::Store;
use store::bucket::BucketStore;
use store::directory::DirectoryStore;

/// The connector `s3`.
pub struct S3Connector;

impl SinkConnector for S3Connector {
    fn name(&self) -> &'static str {
        "s3"
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
    fn open(&self, context: SinkContext) -> Result<Box<dyn Sink>> {
        let encoders = Encoders::new(context.runtime.clone(), self.config.writer);
        let store: Box<dyn Store> = match &self.config.destination {
            Destination::Directory(root) => Box::new(DirectoryStore::open(root, &context.name)?),
            Destination::Bucket(options) => Box::new(BucketStore::open(options, context.runtime, context.scratch)?),
        };
        Ok(Box::new(sink::ObjectSink::new(context.name, self.config.clone(), store, encoders, context.schemas)))
    }
}
