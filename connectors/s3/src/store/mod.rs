//! Destinations: how bytes in local files become visible objects, in two phases.

pub(crate) mod bucket;
pub(crate) mod directory;
pub(crate) mod listing;
pub(crate) mod removal;
pub(crate) mod rows;

use std::path::Path;

use parquet::file::metadata::ParquetMetaData;
use trunkline_connector::{Error, Result, TopicPartition};

use crate::intent::{Committable, Plan, Upload};
use crate::object::footer;

/// A destination. Calls may block; each returns within a minute.
pub(crate) trait Store: Send {
    /// The folder for the local files of objects.
    fn spool(&self) -> &Path;

    /// The destination as plans name it.
    fn destination(&self) -> String;

    /// The final key of an object with this name below the destination.
    fn key(&self, name: &str) -> String;

    /// Brings the bytes of planned objects to the destination, invisibly. A repeated call continues
    /// after an error.
    fn prepare(&mut self, plans: &[Plan]) -> Result<Vec<Vec<Option<Upload>>>>;

    /// Makes prepared objects visible, also while another task does the same.
    fn commit(&mut self, committables: &[Committable]) -> Result<()>;

    /// Removes everything that was created for a plan without an intent.
    fn abort(&mut self, plan: &Plan) -> Result<()>;

    /// Checks that prepared objects can still be committed.
    fn check_prepared(&mut self, committables: &[Committable]) -> Result<()>;

    /// Removes prepared objects that will never be committed.
    fn discard_prepared(&mut self, committables: &[Committable]) -> Result<()>;

    /// The name of a visible object of this sink with records of one of these topic partitions.
    fn existing_output(&self, sink: &str, partitions: &[TopicPartition]) -> Result<Option<String>> {
        let _ = (sink, partitions);
        Ok(None)
    }

    /// Removes local files of the partition that an earlier task left, except those that `keep`
    /// wants.
    fn remove_leftovers(&mut self, partition: &TopicPartition, keep: &dyn Fn(&str) -> bool) -> Result<()>;
}

/// The start of an object's name that names its topic partition.
fn writer_prefix(name: &str) -> Option<String> {
    let mut parts = name.splitn(3, '+');
    parts.next().zip(parts.next()).map(|(topic, number)| format!("{topic}+{number}+"))
}

/// The sink that a file's footer names.
fn sink_named_in(metadata: &ParquetMetaData) -> Option<String> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    pairs.iter().find(|pair| pair.key == footer::SINK)?.value.clone()
}

/// A prepared object that is neither uploaded nor visible.
pub(crate) fn prepared_object_missing(key: &str, why: &str) -> Error {
    Error::data(
        "s3.prepared_object_missing",
        format!(
            "the prepared object {key} is missing: {why}. Its offsets are committed; the records are still in the topic, in the offset \
             range that the name contains"
        ),
    )
}

/// Another object has our object's key.
pub(crate) fn key_taken(key: &str) -> Error {
    Error::data(
        "s3.key_taken",
        format!(
            "{key} holds another object than the prepared one, and is not overwritten. Move it away; the sink then continues"
        ),
    )
}
