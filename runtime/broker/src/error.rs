//! An error that answers a request.

use kafka_protocol::ResponseError;

/// An error code of the protocol, and a message for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) code: ResponseError,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(code: ResponseError, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The topic or partition in a request does not exist.
    pub(crate) fn unknown_topic_partition() -> Self {
        Self::new(ResponseError::UnknownTopicOrPartition, "This server does not host this topic-partition.")
    }

    /// The data directory cannot be read or written.
    pub(crate) fn storage(error: &std::io::Error) -> Self {
        Self::new(ResponseError::KafkaStorageError, error.to_string())
    }
}
