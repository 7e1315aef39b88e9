//! Destinations: how bytes in local files become visible objects, in two steps.

pub(crate) mod bucket;
pub(crate) mod client;
pub(crate) mod directory;
pub(crate) mod errors;

use std::path::Path;

use trunkline_connector::{Error, Result, TopicPartition};

use crate::intent::{Committable, Plan, Upload};

/// A destination. Calls may block; each returns within a minute.
pub(crate) trait Store: Send {
    /// The folder for the local files of objects.
    fn spool(&self) -> &Path;

    /// What plans name as their destination.
    fn destination(&self) -> String;

    /// The final key of an object with this name below the destination.
    fn key(&self, name: &str) -> String;

    /// Brings the bytes of planned objects to the destination, invisibly. Called again after an error it goes on where it was.
    fn prepare(&mut self, plans: &[Plan]) -> Result<Vec<Vec<Option<Upload>>>>;

    /// Makes objects visible, whoever else may be doing the same.
    fn commit(&mut self, committables: &[Committable]) -> Result<()>;

    /// Removes whatever was created for a plan that never became an intent.
    fn abort(&mut self, plan: &Plan) -> Result<()>;

    /// Removes local files of the partition that an earlier task left, except those that `keep` wants.
    fn remove_leftovers(&mut self, partition: &TopicPartition, keep: &dyn Fn(&str) -> bool) -> Result<()>;
}

/// An object that was promised, and that is neither staged nor there.
pub(crate) fn prepared_object_missing(key: &str, why: &str) -> Error {
    Error::data(
        "s3.promised_object_missing",
        format!(
            "the promised object {key} is missing: {why}. Its offsets are committed already; the records are still in the topic, \
             and a replay of its offset range (it is in the name) writes them again"
        ),
    )
}

/// Somebody else's object has the name of ours.
pub(crate) fn key_taken(key: &str) -> Error {
    Error::data(
        "s3.key_taken",
        format!("{key} holds another object than the one promised, and is not overwritten; move it away, then go on"),
    )
}
