//! The outlines of all supported requests: the encodings of their fields in order, without tagged
//! fields.
//!
//! They follow the schemas of Kafka's protocol, <https://kafka.apache.org/protocol>, in the
//! versions of [`supported`](crate::request::supported). The tests of [`wire_outline`](super)
//! compare them with the encoder.

use kafka_protocol::messages::ApiKey;

use super::Field;
use super::Kind::{self, Array, Bytes, Fixed, List, Text};

/// The request has no flexible version.
const NEVER: i16 = i16::MAX;

const fn within(since: i16, until: i16, kind: Kind) -> Field {
    Field { kind, since, until }
}

const fn always(kind: Kind) -> Field {
    within(0, i16::MAX, kind)
}

const fn since(since: i16, kind: Kind) -> Field {
    within(since, i16::MAX, kind)
}

const fn until(until: i16, kind: Kind) -> Field {
    within(0, until, kind)
}

/// The first flexible version of a request, and its fields.
pub(super) fn find(key: ApiKey) -> Option<(i16, &'static [Field])> {
    OUTLINES.iter().find(|(other, ..)| *other == key).map(|(_, flexible_since, fields)| (*flexible_since, *fields))
}

/// An access rule, or a filter of access rules.
const ACL: &[Field] = &[
    always(Fixed(1)),   // resource_type
    always(Text),       // resource_name
    since(1, Fixed(1)), // pattern_type
    always(Text),       // principal
    always(Text),       // host
    always(Fixed(1)),   // operation
    always(Fixed(1)),   // permission_type
];

const OUTLINES: &[(ApiKey, i16, &[Field])] = &[
    (ApiKey::SaslHandshake, NEVER, &[always(Text)]), // mechanism
    (ApiKey::SaslAuthenticate, 2, &[always(Bytes)]), // auth_bytes
    (
        ApiKey::Produce,
        9,
        &[
            always(Text),     // transactional_id
            always(Fixed(2)), // acks
            always(Fixed(4)), // timeout_ms
            // topic_data
            always(Array(&[
                always(Text), // name
                // partition_data
                always(Array(&[
                    always(Fixed(4)), // index
                    always(Bytes),    // records
                ])),
            ])),
        ],
    ),
    (
        ApiKey::Fetch,
        12,
        &[
            until(14, Fixed(4)), // replica_id
            always(Fixed(4)),    // max_wait_ms
            always(Fixed(4)),    // min_bytes
            always(Fixed(4)),    // max_bytes
            always(Fixed(1)),    // isolation_level
            since(7, Fixed(4)),  // session_id
            since(7, Fixed(4)),  // session_epoch
            // topics
            always(Array(&[
                until(12, Text),      // topic
                since(13, Fixed(16)), // topic_id
                // partitions
                always(Array(&[
                    always(Fixed(4)),    // partition
                    since(9, Fixed(4)),  // current_leader_epoch
                    always(Fixed(8)),    // fetch_offset
                    since(12, Fixed(4)), // last_fetched_epoch
                    since(5, Fixed(8)),  // log_start_offset
                    always(Fixed(4)),    // partition_max_bytes
                ])),
            ])),
            // forgotten_topics_data
            since(
                7,
                Array(&[
                    within(7, 12, Text),       // topic
                    since(13, Fixed(16)),      // topic_id
                    since(7, List(&Fixed(4))), // partitions
                ]),
            ),
            since(11, Text), // rack_id
        ],
    ),
    (
        ApiKey::ListOffsets,
        6,
        &[
            always(Fixed(4)),   // replica_id
            since(2, Fixed(1)), // isolation_level
            // topics
            always(Array(&[
                always(Text), // name
                // partitions
                always(Array(&[
                    always(Fixed(4)),   // partition_index
                    since(4, Fixed(4)), // current_leader_epoch
                    always(Fixed(8)),   // timestamp
                ])),
            ])),
        ],
    ),
    (
        ApiKey::Metadata,
        9,
        &[
            // topics
            always(Array(&[
                since(10, Fixed(16)), // topic_id
                always(Text),         // name
            ])),
            since(4, Fixed(1)),      // allow_auto_topic_creation
            within(8, 10, Fixed(1)), // include_cluster_authorized_operations
            since(8, Fixed(1)),      // include_topic_authorized_operations
        ],
    ),
    (
        ApiKey::OffsetCommit,
        8,
        &[
            always(Text),       // group_id
            always(Fixed(4)),   // generation_id_or_member_epoch
            always(Text),       // member_id
            since(7, Text),     // group_instance_id
            until(4, Fixed(8)), // retention_time_ms
            // topics
            always(Array(&[
                always(Text), // name
                // partitions
                always(Array(&[
                    always(Fixed(4)),   // partition_index
                    always(Fixed(8)),   // committed_offset
                    since(6, Fixed(4)), // committed_leader_epoch
                    always(Text),       // committed_metadata
                ])),
            ])),
        ],
    ),
    (
        ApiKey::OffsetFetch,
        6,
        &[
            until(7, Text), // group_id
            // topics
            until(
                7,
                Array(&[
                    until(7, Text),            // name
                    until(7, List(&Fixed(4))), // partition_indexes
                ]),
            ),
            // groups
            since(
                8,
                Array(&[
                    since(8, Text),     // group_id
                    since(9, Text),     // member_id
                    since(9, Fixed(4)), // member_epoch
                    // topics
                    since(
                        8,
                        Array(&[
                            since(8, Text),            // name
                            since(8, List(&Fixed(4))), // partition_indexes
                        ]),
                    ),
                ]),
            ),
            since(7, Fixed(1)), // require_stable
        ],
    ),
    (
        ApiKey::FindCoordinator,
        3,
        &[
            until(3, Text),        // key
            since(1, Fixed(1)),    // key_type
            since(4, List(&Text)), // coordinator_keys
        ],
    ),
    (
        ApiKey::JoinGroup,
        6,
        &[
            always(Text),       // group_id
            always(Fixed(4)),   // session_timeout_ms
            since(1, Fixed(4)), // rebalance_timeout_ms
            always(Text),       // member_id
            since(5, Text),     // group_instance_id
            always(Text),       // protocol_type
            // protocols
            always(Array(&[
                always(Text),  // name
                always(Bytes), // metadata
            ])),
            since(8, Text), // reason
        ],
    ),
    (
        ApiKey::Heartbeat,
        4,
        &[
            always(Text),     // group_id
            always(Fixed(4)), // generation_id
            always(Text),     // member_id
            since(3, Text),   // group_instance_id
        ],
    ),
    (
        ApiKey::LeaveGroup,
        4,
        &[
            always(Text),   // group_id
            until(2, Text), // member_id
            // members
            since(
                3,
                Array(&[
                    since(3, Text), // member_id
                    since(3, Text), // group_instance_id
                    since(5, Text), // reason
                ]),
            ),
        ],
    ),
    (
        ApiKey::SyncGroup,
        4,
        &[
            always(Text),     // group_id
            always(Fixed(4)), // generation_id
            always(Text),     // member_id
            since(3, Text),   // group_instance_id
            since(5, Text),   // protocol_type
            since(5, Text),   // protocol_name
            // assignments
            always(Array(&[
                always(Text),  // member_id
                always(Bytes), // assignment
            ])),
        ],
    ),
    (
        ApiKey::DescribeGroups,
        5,
        &[
            always(List(&Text)), // groups
            since(3, Fixed(1)),  // include_authorized_operations
        ],
    ),
    (
        ApiKey::ListGroups,
        3,
        &[
            since(4, List(&Text)), // states_filter
            since(5, List(&Text)), // types_filter
        ],
    ),
    (
        ApiKey::ApiVersions,
        3,
        &[
            since(3, Text), // client_software_name
            since(3, Text), // client_software_version
        ],
    ),
    (
        ApiKey::CreateTopics,
        5,
        &[
            // topics
            always(Array(&[
                always(Text),     // name
                always(Fixed(4)), // num_partitions
                always(Fixed(2)), // replication_factor
                // assignments
                always(Array(&[
                    always(Fixed(4)),        // partition_index
                    always(List(&Fixed(4))), // broker_ids
                ])),
                // configs
                always(Array(&[
                    always(Text), // name
                    always(Text), // value
                ])),
            ])),
            always(Fixed(4)), // timeout_ms
            always(Fixed(1)), // validate_only
        ],
    ),
    (
        ApiKey::DeleteTopics,
        4,
        &[
            // topics
            since(
                6,
                Array(&[
                    since(6, Text),      // name
                    since(6, Fixed(16)), // topic_id
                ]),
            ),
            until(5, List(&Text)), // topic_names
            always(Fixed(4)),      // timeout_ms
        ],
    ),
    (
        ApiKey::DeleteRecords,
        2,
        &[
            // topics
            always(Array(&[
                always(Text), // name
                // partitions
                always(Array(&[
                    always(Fixed(4)), // partition_index
                    always(Fixed(8)), // offset
                ])),
            ])),
            always(Fixed(4)), // timeout_ms
        ],
    ),
    (
        ApiKey::InitProducerId,
        2,
        &[
            always(Text),       // transactional_id
            always(Fixed(4)),   // transaction_timeout_ms
            since(3, Fixed(8)), // producer_id
            since(3, Fixed(2)), // producer_epoch
        ],
    ),
    (
        ApiKey::OffsetForLeaderEpoch,
        4,
        &[
            since(3, Fixed(4)), // replica_id
            // topics
            always(Array(&[
                always(Text), // topic
                // partitions
                always(Array(&[
                    always(Fixed(4)), // partition
                    always(Fixed(4)), // current_leader_epoch
                    always(Fixed(4)), // leader_epoch
                ])),
            ])),
        ],
    ),
    (
        ApiKey::AddPartitionsToTxn,
        3,
        &[
            always(Text),     // v3_and_below_transactional_id
            always(Fixed(8)), // v3_and_below_producer_id
            always(Fixed(2)), // v3_and_below_producer_epoch
            // v3_and_below_topics
            always(Array(&[
                always(Text),            // name
                always(List(&Fixed(4))), // partitions
            ])),
        ],
    ),
    (
        ApiKey::AddOffsetsToTxn,
        3,
        &[
            always(Text),     // transactional_id
            always(Fixed(8)), // producer_id
            always(Fixed(2)), // producer_epoch
            always(Text),     // group_id
        ],
    ),
    (
        ApiKey::EndTxn,
        3,
        &[
            always(Text),     // transactional_id
            always(Fixed(8)), // producer_id
            always(Fixed(2)), // producer_epoch
            always(Fixed(1)), // committed
        ],
    ),
    (
        ApiKey::TxnOffsetCommit,
        3,
        &[
            always(Text),       // transactional_id
            always(Text),       // group_id
            always(Fixed(8)),   // producer_id
            always(Fixed(2)),   // producer_epoch
            since(3, Fixed(4)), // generation_id
            since(3, Text),     // member_id
            since(3, Text),     // group_instance_id
            // topics
            always(Array(&[
                always(Text), // name
                // partitions
                always(Array(&[
                    always(Fixed(4)),   // partition_index
                    always(Fixed(8)),   // committed_offset
                    since(2, Fixed(4)), // committed_leader_epoch
                    always(Text),       // committed_metadata
                ])),
            ])),
        ],
    ),
    (
        ApiKey::DescribeConfigs,
        4,
        &[
            // resources
            always(Array(&[
                always(Fixed(1)),    // resource_type
                always(Text),        // resource_name
                always(List(&Text)), // configuration_keys
            ])),
            always(Fixed(1)),   // include_synonyms
            since(3, Fixed(1)), // include_documentation
        ],
    ),
    (
        ApiKey::AlterConfigs,
        2,
        &[
            // resources
            always(Array(&[
                always(Fixed(1)), // resource_type
                always(Text),     // resource_name
                // configs
                always(Array(&[
                    always(Text), // name
                    always(Text), // value
                ])),
            ])),
            always(Fixed(1)), // validate_only
        ],
    ),
    (
        ApiKey::DescribeLogDirs,
        2,
        &[
            // topics
            always(Array(&[
                always(Text),            // topic
                always(List(&Fixed(4))), // partitions
            ])),
        ],
    ),
    (
        ApiKey::CreatePartitions,
        2,
        &[
            // topics
            always(Array(&[
                always(Text),     // name
                always(Fixed(4)), // count
                // assignments
                always(Array(&[
                    always(List(&Fixed(4))), // broker_ids
                ])),
            ])),
            always(Fixed(4)), // timeout_ms
            always(Fixed(1)), // validate_only
        ],
    ),
    (
        ApiKey::DeleteGroups,
        2,
        &[
            always(List(&Text)), // groups_names
        ],
    ),
    (
        ApiKey::IncrementalAlterConfigs,
        1,
        &[
            // resources
            always(Array(&[
                always(Fixed(1)), // resource_type
                always(Text),     // resource_name
                // configs
                always(Array(&[
                    always(Text),     // name
                    always(Fixed(1)), // config_operation
                    always(Text),     // value
                ])),
            ])),
            always(Fixed(1)), // validate_only
        ],
    ),
    (
        ApiKey::OffsetDelete,
        NEVER,
        &[
            always(Text), // group_id
            // topics
            always(Array(&[
                always(Text), // name
                // partitions
                always(Array(&[
                    always(Fixed(4)), // partition_index
                ])),
            ])),
        ],
    ),
    (
        ApiKey::DescribeCluster,
        0,
        &[
            always(Fixed(1)),   // include_cluster_authorized_operations
            since(1, Fixed(1)), // endpoint_type
            since(2, Fixed(1)), // include_fenced_brokers
        ],
    ),
    (
        ApiKey::WriteTxnMarkers,
        1,
        &[
            // markers
            always(Array(&[
                always(Fixed(8)), // producer_id
                always(Fixed(2)), // producer_epoch
                always(Fixed(1)), // transaction_result
                // topics
                always(Array(&[
                    always(Text),            // name
                    always(List(&Fixed(4))), // partition_indexes
                ])),
                always(Fixed(4)), // coordinator_epoch
            ])),
        ],
    ),
    (
        ApiKey::DescribeProducers,
        0,
        &[
            // topics
            always(Array(&[
                always(Text),            // name
                always(List(&Fixed(4))), // partition_indexes
            ])),
        ],
    ),
    (
        ApiKey::DescribeTransactions,
        0,
        &[
            always(List(&Text)), // transactional_ids
        ],
    ),
    (
        ApiKey::ListTransactions,
        0,
        &[
            always(List(&Text)),     // state_filters
            always(List(&Fixed(8))), // producer_id_filters
            since(1, Fixed(8)),      // duration_filter
        ],
    ),
    (ApiKey::DescribeAcls, 2, ACL),
    (
        ApiKey::CreateAcls,
        2,
        &[
            always(Array(ACL)), // creations
        ],
    ),
    (
        ApiKey::DeleteAcls,
        2,
        &[
            always(Array(ACL)), // filters
        ],
    ),
    (
        ApiKey::ElectLeaders,
        2,
        &[
            since(1, Fixed(1)), // election_type
            // topic_partitions
            always(Array(&[
                always(Text),            // topic
                always(List(&Fixed(4))), // partitions
            ])),
            always(Fixed(4)), // timeout_ms
        ],
    ),
    (
        ApiKey::ListPartitionReassignments,
        0,
        &[
            always(Fixed(4)), // timeout_ms
            // topics
            always(Array(&[
                always(Text),            // name
                always(List(&Fixed(4))), // partition_indexes
            ])),
        ],
    ),
    (
        ApiKey::DescribeClientQuotas,
        1,
        &[
            // components
            always(Array(&[
                always(Text),     // entity_type
                always(Fixed(1)), // match_type
                always(Text),     // match
            ])),
            always(Fixed(1)), // strict
        ],
    ),
    (
        ApiKey::DescribeQuorum,
        0,
        &[
            // topics
            always(Array(&[
                always(Text), // topic_name
                // partitions
                always(Array(&[
                    always(Fixed(4)), // partition_index
                ])),
            ])),
        ],
    ),
    (
        ApiKey::ListConfigResources,
        0,
        &[
            since(1, List(&Fixed(1))), // resource_types
        ],
    ),
];
