//! From the bytes of a request to the function that answers it.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Request};

use super::connection::{Close, Peer};
use super::response::{Envelope, Response};
use super::{shape, versions};
use crate::api;
use crate::options::FlushPolicy;
use crate::shared::Shared;

/// Everything an API function may need besides its request.
#[derive(Debug, Clone)]
pub(crate) struct Call<'call> {
    pub(crate) shared: &'call Arc<Shared>,
    pub(crate) peer: Peer,
    pub(crate) version: i16,
    pub(crate) client_id: String,
    pub(crate) envelope: Envelope,
}

/// Serves one request. `None` when it wants no answer.
pub(crate) async fn dispatch(shared: &Arc<Shared>, peer: Peer, mut frame: Bytes) -> Result<Option<Response>, Close> {
    if frame.len() < 8 {
        return Err(Close::hostile("a request shorter than its header"));
    }
    let (mut key_bytes, mut version_bytes) = (&frame[..2], &frame[2..4]);
    let (key_number, version) = (key_bytes.get_i16(), version_bytes.get_i16());
    let Some(supported) = ApiKey::try_from(key_number).ok().and_then(versions::find) else {
        return Err(Close::hostile(format!("unknown API {key_number}")));
    };
    let key = supported.key;
    if !(supported.min..=supported.max).contains(&version) {
        if key == ApiKey::ApiVersions {
            let correlation_id = (&frame[4..8]).get_i32();
            return api::versions::unsupported(correlation_id).map(Some);
        }
        return Err(Close::hostile(format!("{key:?} version {version} is not supported")));
    }
    let header_version = key.request_header_version(version);
    shape::check(&frame, key, version, header_version).map_err(|error| Close::hostile(error.to_string()))?;
    let header = RequestHeader::decode(&mut frame, header_version).map_err(malformed)?;
    let envelope = Envelope { correlation_id: header.correlation_id, version };
    let client_id = header.client_id.map(|id| id.to_string()).unwrap_or_default();
    let call = Call { shared, peer, version, client_id, envelope };

    #[cfg(feature = "fault-injection")]
    let injected = shared.faults.next(key);
    #[cfg(feature = "fault-injection")]
    if let Some(response) = injected.before(&call, key, &frame).await? {
        return Ok(Some(response));
    }

    let response = match key {
        ApiKey::Produce => {
            let request = decode::<ProduceRequest>(frame, version)?;
            unhurried(shared, key, || api::produce::produce(&call, request))?
        }
        ApiKey::Fetch => Some(api::fetch::fetch(&call, decode::<FetchRequest>(frame, version)?).await?),
        ApiKey::JoinGroup => Some(api::membership::join(&call, decode::<JoinGroupRequest>(frame, version)?).await?),
        ApiKey::SyncGroup => Some(api::membership::sync(&call, decode::<SyncGroupRequest>(frame, version)?).await?),
        _ => Some(unhurried(shared, key, || answer(&call, key, frame))?),
    };

    #[cfg(feature = "fault-injection")]
    injected.after().await?;
    Ok(response)
}

/// Does work that may wait for the device where it holds up no other connection. Everything else ends in the page cache.
fn unhurried<T>(shared: &Shared, key: ApiKey, work: impl FnOnce() -> T) -> T {
    const SLOW: [ApiKey; 4] =
        [ApiKey::CreateTopics, ApiKey::DeleteTopics, ApiKey::CreatePartitions, ApiKey::DeleteRecords];
    if shared.options.flush == FlushPolicy::Always || SLOW.contains(&key) {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

/// The APIs that are answered at once.
fn answer(call: &Call<'_>, key: ApiKey, frame: Bytes) -> Result<Response, Close> {
    match key {
        ApiKey::ApiVersions => serve::<ApiVersionsRequest>(call, frame, api::versions::api_versions),
        ApiKey::Metadata => serve::<MetadataRequest>(call, frame, api::cluster::metadata),
        ApiKey::DescribeCluster => serve::<DescribeClusterRequest>(call, frame, api::cluster::describe_cluster),
        ApiKey::FindCoordinator => serve::<FindCoordinatorRequest>(call, frame, api::cluster::find_coordinator),
        ApiKey::DescribeLogDirs => serve::<DescribeLogDirsRequest>(call, frame, api::cluster::describe_log_dirs),
        ApiKey::ListOffsets => serve::<ListOffsetsRequest>(call, frame, api::list_offsets::list_offsets),
        ApiKey::OffsetForLeaderEpoch => {
            serve::<OffsetForLeaderEpochRequest>(call, frame, api::list_offsets::offset_for_leader_epoch)
        }
        ApiKey::Heartbeat => serve::<HeartbeatRequest>(call, frame, api::membership::heartbeat),
        ApiKey::LeaveGroup => serve::<LeaveGroupRequest>(call, frame, api::membership::leave),
        ApiKey::OffsetCommit => serve::<OffsetCommitRequest>(call, frame, api::offsets::offset_commit),
        ApiKey::OffsetFetch => serve::<OffsetFetchRequest>(call, frame, api::offsets::offset_fetch),
        ApiKey::OffsetDelete => serve::<OffsetDeleteRequest>(call, frame, api::offsets::offset_delete),
        ApiKey::DescribeGroups => serve::<DescribeGroupsRequest>(call, frame, api::groups::describe_groups),
        ApiKey::ListGroups => serve::<ListGroupsRequest>(call, frame, api::groups::list_groups),
        ApiKey::DeleteGroups => serve::<DeleteGroupsRequest>(call, frame, api::groups::delete_groups),
        ApiKey::CreateTopics => serve::<CreateTopicsRequest>(call, frame, api::topics::create_topics),
        ApiKey::DeleteTopics => serve::<DeleteTopicsRequest>(call, frame, api::topics::delete_topics),
        ApiKey::CreatePartitions => serve::<CreatePartitionsRequest>(call, frame, api::topics::create_partitions),
        ApiKey::DeleteRecords => serve::<DeleteRecordsRequest>(call, frame, api::topics::delete_records),
        ApiKey::DescribeConfigs => serve::<DescribeConfigsRequest>(call, frame, api::configs::describe_configs),
        ApiKey::AlterConfigs => serve::<AlterConfigsRequest>(call, frame, api::configs::alter_configs),
        ApiKey::IncrementalAlterConfigs => {
            serve::<IncrementalAlterConfigsRequest>(call, frame, api::configs::incremental_alter_configs)
        }
        ApiKey::InitProducerId => serve::<InitProducerIdRequest>(call, frame, api::transactions::init_producer_id),
        ApiKey::AddPartitionsToTxn => {
            serve::<AddPartitionsToTxnRequest>(call, frame, api::transactions::add_partitions_to_txn)
        }
        ApiKey::AddOffsetsToTxn => serve::<AddOffsetsToTxnRequest>(call, frame, api::transactions::add_offsets_to_txn),
        ApiKey::TxnOffsetCommit => serve::<TxnOffsetCommitRequest>(call, frame, api::transactions::txn_offset_commit),
        ApiKey::EndTxn => serve::<EndTxnRequest>(call, frame, api::transactions::end_txn),
        ApiKey::WriteTxnMarkers => serve::<WriteTxnMarkersRequest>(call, frame, api::markers::write_txn_markers),
        ApiKey::DescribeProducers => {
            serve::<DescribeProducersRequest>(call, frame, api::introspection::describe_producers)
        }
        ApiKey::DescribeTransactions => {
            serve::<DescribeTransactionsRequest>(call, frame, api::introspection::describe_transactions)
        }
        ApiKey::ListTransactions => {
            serve::<ListTransactionsRequest>(call, frame, api::introspection::list_transactions)
        }
        _ => Err(Close::hostile(format!("{key:?} has no handler"))),
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

pub(crate) fn decode<R: Request>(mut frame: Bytes, version: i16) -> Result<R, Close> {
    R::decode(&mut frame, version).map_err(malformed)
}

fn malformed(error: impl std::fmt::Display) -> Close {
    Close::hostile(format!("malformed request: {error}"))
}
