//! Error codes in the answers of brokers.
//!
//! Source: <https://kafka.apache.org/protocol#protocol_error_codes>.

use kafka_protocol::error::ResponseError;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

/// librdkafka's name of an error, which the classification of errors uses.
pub(in crate::kafka) fn code(error: i16) -> RDKafkaErrorCode {
    RDKafkaRespErr::try_from(i32::from(error)).map_or(RDKafkaErrorCode::Unknown, Into::into)
}

/// Whether the same request succeeds after a while, perhaps at another broker.
pub(in crate::kafka) fn is_transient(error: i16) -> bool {
    use ResponseError as Code;
    matches!(
        ResponseError::try_from_code(error),
        Some(
            Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::ConcurrentTransactions
                | Code::UnknownTopicOrPartition
                | Code::LeaderNotAvailable
                | Code::NotLeaderOrFollower
                | Code::ReplicaNotAvailable
                | Code::RequestTimedOut
                | Code::NetworkException
                | Code::NotEnoughReplicas
                | Code::NotEnoughReplicasAfterAppend
                | Code::KafkaStorageError
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::OffsetNotAvailable
                | Code::CorruptMessage
                | Code::UnstableOffsetCommit
        )
    )
}

/// Whether the broker is the right one, and only needs time.
pub(in crate::kafka::wire) fn is_busy(error: i16) -> bool {
    use ResponseError as Code;
    matches!(
        ResponseError::try_from_code(error),
        Some(
            Code::CoordinatorLoadInProgress
                | Code::ConcurrentTransactions
                | Code::UnknownTopicOrPartition
                | Code::RequestTimedOut
                | Code::UnstableOffsetCommit
        )
    )
}
