//! The APIs: decoded request to response, one file for each family of APIs. `topics`, `log`,
//! `group` and `transaction` hold the state.

mod broker_configs;
pub(crate) mod cluster;
pub(crate) mod configs;
pub(crate) mod fetch;
pub(crate) mod groups;
pub(crate) mod introspection;
pub(crate) mod list_offsets;
pub(crate) mod markers;
pub(crate) mod membership;
pub(crate) mod offsets;
pub(crate) mod produce;
pub(crate) mod single_node;
pub(crate) mod topics;
pub(crate) mod transactions;
pub(crate) mod versions;

use std::collections::HashSet;
use std::hash::Hash;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Request, StrBytes};

use crate::options::FlushPolicy;
use crate::request::response::Response;
use crate::request::{Call, Close, decode};
use crate::state::BrokerState;

/// The error code of a result.
fn code<T>(result: &Result<T, ResponseError>) -> i16 {
    result.as_ref().err().map_or(0, ResponseError::code)
}

/// The operations that a client may perform, as bits: without an authorizer all that the resource
/// has.
mod authorized {
    /// READ, WRITE, CREATE, DELETE, ALTER, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS.
    pub(super) const TOPIC: i32 = 0b1101_1111_1000;
    /// CREATE, ALTER, DESCRIBE, CLUSTER_ACTION, DESCRIBE_CONFIGS, ALTER_CONFIGS, IDEMPOTENT_WRITE.
    pub(super) const CLUSTER: i32 = 0b1_1111_1010_0000;
    /// READ, DELETE, DESCRIBE, DESCRIBE_CONFIGS, ALTER_CONFIGS.
    pub(super) const GROUP: i32 = 0b1101_0100_1000;
    /// The client did not ask.
    pub(super) const OMITTED: i32 = i32::MIN;

    pub(super) fn operations(bits: i32, is_wanted: bool) -> i32 {
        if is_wanted { bits } else { OMITTED }
    }
}

fn text(string: impl Into<String>) -> StrBytes {
    StrBytes::from_string(string.into())
}

/// The items that occur more than once. A request that names an item twice is refused for that
/// item.
fn repeated<T: Eq + Hash + Copy>(things: impl Iterator<Item = T>) -> HashSet<T> {
    let mut seen = HashSet::new();
    things.filter(|thing| !seen.insert(*thing)).collect()
}

/// The APIs whose response may wait for other clients. They keep no bytes of their request while
/// they wait.
pub(crate) const WAITING: [ApiKey; 3] = [ApiKey::Fetch, ApiKey::JoinGroup, ApiKey::SyncGroup];

/// Answers a request. `None`: the client wants no response.
pub(crate) async fn dispatch(call: &Call<'_>, key: ApiKey, frame: Bytes) -> Result<Option<Response>, Close> {
    let version = call.version;
    match key {
        ApiKey::Produce => {
            let length = frame.len();
            let request = decode::<ProduceRequest>(frame, version)?;
            run_blocking(call.broker, key, length, || produce::produce(call, request))
        }
        ApiKey::Fetch => fetch::fetch(call, decode::<FetchRequest>(frame, version)?).await.map(Some),
        ApiKey::JoinGroup => membership::join(call, decode::<JoinGroupRequest>(frame, version)?).await.map(Some),
        ApiKey::SyncGroup => membership::sync(call, decode::<SyncGroupRequest>(frame, version)?).await.map(Some),
        _ => run_blocking(call.broker, key, frame.len(), || answer(call, key, frame)).map(Some),
    }
}

/// Runs work that waits for the disk, or checks many records, where it does not block other
/// connections. Other work is short and ends in the page cache.
fn run_blocking<T>(broker: &BrokerState, key: ApiKey, length: usize, work: impl FnOnce() -> T) -> T {
    const LONG_REQUEST: usize = 1 << 20;
    const WAITS_FOR_DISK: [ApiKey; 4] =
        [ApiKey::CreateTopics, ApiKey::DeleteTopics, ApiKey::CreatePartitions, ApiKey::DeleteRecords];
    let is_slow = WAITS_FOR_DISK.contains(&key) || length > LONG_REQUEST;
    if is_slow || broker.options.flush == FlushPolicy::Always { tokio::task::block_in_place(work) } else { work() }
}

/// The APIs that answer without waiting for other clients.
fn answer(call: &Call<'_>, key: ApiKey, frame: Bytes) -> Result<Response, Close> {
    match key {
        ApiKey::ApiVersions => serve::<ApiVersionsRequest>(call, frame, versions::api_versions),
        ApiKey::Metadata => serve::<MetadataRequest>(call, frame, cluster::metadata),
        ApiKey::DescribeCluster => serve::<DescribeClusterRequest>(call, frame, cluster::describe_cluster),
        ApiKey::FindCoordinator => serve::<FindCoordinatorRequest>(call, frame, cluster::find_coordinator),
        ApiKey::DescribeLogDirs => serve::<DescribeLogDirsRequest>(call, frame, cluster::describe_log_dirs),
        ApiKey::ListOffsets => serve::<ListOffsetsRequest>(call, frame, list_offsets::list_offsets),
        ApiKey::OffsetForLeaderEpoch => {
            serve::<OffsetForLeaderEpochRequest>(call, frame, list_offsets::offset_for_leader_epoch)
        }
        ApiKey::Heartbeat => serve::<HeartbeatRequest>(call, frame, membership::heartbeat),
        ApiKey::LeaveGroup => serve::<LeaveGroupRequest>(call, frame, membership::leave),
        ApiKey::OffsetCommit => serve::<OffsetCommitRequest>(call, frame, offsets::offset_commit),
        ApiKey::OffsetFetch => serve::<OffsetFetchRequest>(call, frame, offsets::offset_fetch),
        ApiKey::OffsetDelete => serve::<OffsetDeleteRequest>(call, frame, offsets::offset_delete),
        ApiKey::DescribeGroups => serve::<DescribeGroupsRequest>(call, frame, groups::describe_groups),
        ApiKey::ListGroups => serve::<ListGroupsRequest>(call, frame, groups::list_groups),
        ApiKey::DeleteGroups => serve::<DeleteGroupsRequest>(call, frame, groups::delete_groups),
        ApiKey::CreateTopics => serve::<CreateTopicsRequest>(call, frame, topics::create_topics),
        ApiKey::DeleteTopics => serve::<DeleteTopicsRequest>(call, frame, topics::delete_topics),
        ApiKey::CreatePartitions => serve::<CreatePartitionsRequest>(call, frame, topics::create_partitions),
        ApiKey::DeleteRecords => serve::<DeleteRecordsRequest>(call, frame, topics::delete_records),
        ApiKey::DescribeConfigs => serve::<DescribeConfigsRequest>(call, frame, configs::describe_configs),
        ApiKey::AlterConfigs => serve::<AlterConfigsRequest>(call, frame, configs::alter_configs),
        ApiKey::IncrementalAlterConfigs => {
            serve::<IncrementalAlterConfigsRequest>(call, frame, configs::incremental_alter_configs)
        }
        ApiKey::InitProducerId => serve::<InitProducerIdRequest>(call, frame, transactions::init_producer_id),
        ApiKey::AddPartitionsToTxn => {
            serve::<AddPartitionsToTxnRequest>(call, frame, transactions::add_partitions_to_txn)
        }
        ApiKey::AddOffsetsToTxn => serve::<AddOffsetsToTxnRequest>(call, frame, transactions::add_offsets_to_txn),
        ApiKey::TxnOffsetCommit => serve::<TxnOffsetCommitRequest>(call, frame, transactions::txn_offset_commit),
        ApiKey::EndTxn => serve::<EndTxnRequest>(call, frame, transactions::end_txn),
        ApiKey::WriteTxnMarkers => serve::<WriteTxnMarkersRequest>(call, frame, markers::write_txn_markers),
        ApiKey::DescribeProducers => serve::<DescribeProducersRequest>(call, frame, introspection::describe_producers),
        ApiKey::DescribeTransactions => {
            serve::<DescribeTransactionsRequest>(call, frame, introspection::describe_transactions)
        }
        ApiKey::ListTransactions => serve::<ListTransactionsRequest>(call, frame, introspection::list_transactions),
        ApiKey::ElectLeaders => serve::<ElectLeadersRequest>(call, frame, single_node::elect_leaders),
        ApiKey::ListPartitionReassignments => {
            serve::<ListPartitionReassignmentsRequest>(call, frame, single_node::list_partition_reassignments)
        }
        ApiKey::DescribeClientQuotas => {
            serve::<DescribeClientQuotasRequest>(call, frame, single_node::describe_client_quotas)
        }
        ApiKey::DescribeAcls => serve::<DescribeAclsRequest>(call, frame, single_node::describe_acls),
        ApiKey::CreateAcls => serve::<CreateAclsRequest>(call, frame, single_node::create_acls),
        ApiKey::DeleteAcls => serve::<DeleteAclsRequest>(call, frame, single_node::delete_acls),
        ApiKey::ListConfigResources => {
            serve::<ListConfigResourcesRequest>(call, frame, single_node::list_config_resources)
        }
        ApiKey::DescribeQuorum => serve::<DescribeQuorumRequest>(call, frame, single_node::describe_quorum),
        _ => Err(Close::protocol_violation(format!("{key:?} has no handler"))),
    }
}

fn serve<R: Request>(
    call: &Call<'_>,
    frame: Bytes,
    handle: impl FnOnce(&Call<'_>, R) -> R::Response,
) -> Result<Response, Close> {
    let request = decode::<R>(frame, call.version)?;
    call.envelope.answer::<R>(&handle(call, request))
}
