//! What plans and intents say: the JSON that the stage keeps in Kafka. A later version must go on reading what an earlier one wrote.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trunkline_connector::{Error, Result, TopicPartition};

/// Objects that are about to be created (step 2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Where: `file:///directory` or `s3://bucket`. What was promised goes there even if the pipeline's url has changed since.
    pub(crate) destination: String,
    /// The claim's topic.
    pub(crate) topic: String,
    /// The claim's partition.
    pub(crate) partition: i32,
    /// The objects.
    pub(crate) objects: Vec<PlannedObject>,
}

/// One object of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedObject {
    /// Its final key, or path below the directory.
    pub(crate) key: String,
    /// Its identity, also in its metadata: tells our object from another's of the same key.
    pub(crate) id: String,
    /// The name of the local file that holds its bytes.
    pub(crate) temp: String,
    pub(crate) bytes: u64,
    pub(crate) records: u64,
    pub(crate) first_offset: i64,
    pub(crate) last_offset: i64,
}

/// Objects whose bytes are at the destination, and not visible yet (step 3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    /// As in [`Plan`].
    pub(crate) destination: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) objects: Vec<StagedObject>,
}

/// One object of an intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StagedObject {
    /// The object as planned.
    #[serde(flatten)]
    pub(crate) planned: PlannedObject,
    /// Its multipart upload; absent where the local file is the staged object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) upload: Option<Upload>,
}

/// A multipart upload of which all parts are uploaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) id: String,
    /// Algorithm of the parts' checksums, if they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) algorithm: Option<String>,
    /// In order; part numbers count from 1.
    pub(crate) parts: Vec<UploadedPart>,
}

/// What names an uploaded part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadedPart {
    pub(crate) etag: String,
    /// In the upload's algorithm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checksum: Option<String>,
}

impl Plan {
    /// Reads what [`Plan::to_json`] wrote.
    pub(crate) fn from_json(json: &Value) -> Result<Self> {
        Self::deserialize(json).map_err(|error| unreadable("plan", &error))
    }

    /// For the stage to keep.
    pub(crate) fn to_json(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| Error::internal("s3.plan", error.to_string()))
    }

    /// The intent that follows when every object has been staged.
    pub(crate) fn staged(&self, uploads: Vec<Option<Upload>>) -> Intent {
        debug_assert_eq!(uploads.len(), self.objects.len());
        let objects = self.objects.iter().cloned().zip(uploads);
        Intent {
            destination: self.destination.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            objects: objects.map(|(planned, upload)| StagedObject { planned, upload }).collect(),
        }
    }
}

impl Intent {
    /// Reads what [`Intent::to_json`] wrote.
    pub(crate) fn from_json(json: &Value) -> Result<Self> {
        Self::deserialize(json).map_err(|error| unreadable("intent", &error))
    }

    /// For the stage to keep.
    pub(crate) fn to_json(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| Error::internal("s3.intent", error.to_string()))
    }

    /// The claim it was made for.
    pub(crate) fn claim(&self) -> TopicPartition {
        TopicPartition { topic: self.topic.as_str().into(), partition: self.partition }
    }
}

fn unreadable(what: &str, error: &serde_json::Error) -> Error {
    Error::data(
        "s3.unreadable_intent",
        format!("a recorded {what} cannot be read (was it written by a later version?): {error}"),
    )
}
