//! Plans and committables, in the form in which the stage stores them in Kafka. Later versions must
//! read what earlier ones wrote.

use serde::{Deserialize, Serialize};

/// The objects that `prepare` will create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// `file:///directory` or `s3://bucket`. Prepared objects are committed there even if the
    /// pipeline's url has changed since.
    pub(crate) destination: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) objects: Vec<PlannedObject>,
}

/// One object of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedObject {
    /// Its final key, or path below the directory.
    pub(crate) key: String,
    /// Its identity, also in its metadata: distinguishes it from another object with the same key.
    pub(crate) id: String,
    /// The name of the local file that holds its bytes.
    pub(crate) temp: String,
    pub(crate) bytes: u64,
    pub(crate) records: u64,
    pub(crate) first_offset: i64,
    pub(crate) last_offset: i64,
}

/// Objects whose bytes are at the destination and not visible yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committable {
    /// As in [`Plan`].
    pub(crate) destination: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) objects: Vec<PreparedObject>,
}

/// One object of a committable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PreparedObject {
    /// The object as planned.
    #[serde(flatten)]
    pub(crate) planned: PlannedObject,
    /// Its multipart upload; absent in a directory, where the local file is the prepared object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upload: Option<Upload>,
}

/// A multipart upload with all parts uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) id: String,
    /// Algorithm of the parts' checksums; absent if they have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) algorithm: Option<String>,
    /// In order; part numbers count from 1.
    pub(crate) parts: Vec<UploadedPart>,
}

/// Identifies an uploaded part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadedPart {
    pub(crate) etag: String,
    /// By the upload's algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checksum: Option<String>,
}

impl Plan {
    /// The committable of this plan once every object was uploaded; one upload for each object.
    pub(crate) fn prepared(&self, uploads: Vec<Option<Upload>>) -> Committable {
        debug_assert_eq!(uploads.len(), self.objects.len());
        let objects = self.objects.iter().cloned().zip(uploads);
        Committable {
            destination: self.destination.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            objects: objects.map(|(planned, upload)| PreparedObject { planned, upload }).collect(),
        }
    }
}
