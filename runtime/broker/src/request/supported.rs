//! The supported APIs and versions.
//!
//! The ranges cover librdkafka 2.x, the Java client 3.x and 4.x, franz-go and kafkajs. They include
//! the versions of the feature `transaction.version` 2 (KIP-890 part 2: Produce 12, TxnOffsetCommit
//! 5, EndTxn 5). AddPartitionsToTxn ends before version 4, which only brokers send.

use kafka_protocol::messages::ApiKey;

/// An API in a range of versions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Supported {
    pub(crate) key: ApiKey,
    pub(crate) min: i16,
    pub(crate) max: i16,
}

const fn supported(key: ApiKey, min: i16, max: i16) -> Supported {
    Supported { key, min, max }
}

/// All APIs that the broker answers.
pub(crate) const SUPPORTED: &[Supported] = &[
    supported(ApiKey::Produce, 3, 12),
    supported(ApiKey::Fetch, 4, 17),
    supported(ApiKey::ListOffsets, 1, 9),
    supported(ApiKey::Metadata, 0, 13),
    supported(ApiKey::OffsetCommit, 2, 9),
    supported(ApiKey::OffsetFetch, 1, 9),
    supported(ApiKey::FindCoordinator, 0, 5),
    supported(ApiKey::JoinGroup, 0, 9),
    supported(ApiKey::Heartbeat, 0, 4),
    supported(ApiKey::LeaveGroup, 0, 5),
    supported(ApiKey::SyncGroup, 0, 5),
    supported(ApiKey::DescribeGroups, 0, 6),
    supported(ApiKey::ListGroups, 0, 5),
    supported(ApiKey::SaslHandshake, 1, 1),
    supported(ApiKey::ApiVersions, 0, 4),
    supported(ApiKey::CreateTopics, 2, 7),
    supported(ApiKey::DeleteTopics, 1, 6),
    supported(ApiKey::DeleteRecords, 0, 2),
    supported(ApiKey::InitProducerId, 0, 5),
    supported(ApiKey::OffsetForLeaderEpoch, 2, 4),
    supported(ApiKey::AddPartitionsToTxn, 0, 3),
    supported(ApiKey::AddOffsetsToTxn, 0, 4),
    supported(ApiKey::EndTxn, 0, 5),
    supported(ApiKey::TxnOffsetCommit, 0, 5),
    supported(ApiKey::DescribeConfigs, 1, 4),
    supported(ApiKey::AlterConfigs, 0, 2),
    supported(ApiKey::DescribeLogDirs, 1, 4),
    supported(ApiKey::SaslAuthenticate, 0, 2),
    supported(ApiKey::CreatePartitions, 0, 3),
    supported(ApiKey::DeleteGroups, 0, 2),
    supported(ApiKey::IncrementalAlterConfigs, 0, 1),
    supported(ApiKey::OffsetDelete, 0, 0),
    supported(ApiKey::DescribeCluster, 0, 2),
    supported(ApiKey::WriteTxnMarkers, 1, 1),
    supported(ApiKey::DescribeProducers, 0, 0),
    supported(ApiKey::DescribeTransactions, 0, 0),
    supported(ApiKey::ListTransactions, 0, 1),
    supported(ApiKey::DescribeAcls, 1, 3),
    supported(ApiKey::CreateAcls, 1, 3),
    supported(ApiKey::DeleteAcls, 1, 3),
    supported(ApiKey::ElectLeaders, 0, 2),
    supported(ApiKey::ListPartitionReassignments, 0, 0),
    supported(ApiKey::DescribeClientQuotas, 0, 1),
    supported(ApiKey::DescribeQuorum, 0, 2),
    supported(ApiKey::ListConfigResources, 0, 1),
];

/// The entry of an API, if supported.
pub(crate) fn find(key: ApiKey) -> Option<&'static Supported> {
    SUPPORTED.iter().find(|supported| supported.key == key)
}

impl Supported {
    /// The lowest announced version. librdkafka before 2.8 assumes that a broker without Produce
    /// 0-2 cannot store record batches, although it never sends these versions. Apache Kafka 4 also
    /// announces them (KAFKA-18659). librdkafka also looks for SaslHandshake 0 there, and sends
    /// version 1.
    pub(crate) fn announced_min(&self) -> i16 {
        if matches!(self.key, ApiKey::Produce | ApiKey::SaslHandshake) { 0 } else { self.min }
    }
}

/// The feature that lets clients use
/// [`TransactionVersion::V2`](crate::transaction::TransactionVersion).
pub(crate) const TRANSACTION_VERSION: (&str, i16) = ("transaction.version", 2);
