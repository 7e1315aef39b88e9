//! ListOffsets (KIP-79, KIP-734) and OffsetForLeaderEpoch (KIP-320).

use std::io;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{
    ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
};

use super::repeated;
use crate::log::batch::LEADER_EPOCH;
use crate::log::{Isolation, PartitionLog, records};
use crate::request::Call;
use crate::topics::partition::Partition;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
/// With tiered storage: the earliest offset on the local disk. All records are on the local disk.
const EARLIEST_LOCAL: i64 = -4;
/// With tiered storage: the last offset in remote storage. There is no remote storage.
const LATEST_TIERED: i64 = -5;
const NONE: i64 = -1;

pub(crate) fn list_offsets(call: &Call<'_>, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let isolation = Isolation::from_wire(request.isolation_level);
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = call.broker.topics.get(&asked.name);
        let repeated = repeated(asked.partitions.iter().map(|partition| partition.partition_index));
        let answer = |partition: ListOffsetsPartition| {
            if repeated.contains(&partition.partition_index) {
                return failed(&partition, ResponseError::InvalidRequest);
            }
            let found = topic.as_ref().and_then(|topic| topic.partition(partition.partition_index));
            list(call.version, found.as_deref(), &partition, isolation)
        };
        let partitions = asked.partitions.into_iter().map(answer).collect();
        topics.push(ListOffsetsTopicResponse::default().with_name(asked.name).with_partitions(partitions));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

fn failed(request: &ListOffsetsPartition, error: ResponseError) -> ListOffsetsPartitionResponse {
    ListOffsetsPartitionResponse::default()
        .with_partition_index(request.partition_index)
        .with_error_code(error.code())
        .with_offset(NONE)
        .with_timestamp(NONE)
}

fn list(
    version: i16,
    partition: Option<&Partition>,
    request: &ListOffsetsPartition,
    isolation: Isolation,
) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse::default().with_partition_index(request.partition_index);
    let Some(partition) = partition else {
        return failed(request, ResponseError::UnknownTopicOrPartition);
    };
    if request.current_leader_epoch > LEADER_EPOCH {
        return failed(request, ResponseError::UnknownLeaderEpoch);
    }
    match partition.with_log(|log| find(log, request.timestamp, isolation)) {
        Ok(Ok((timestamp, offset))) => {
            let epoch = if version >= 4 && offset >= 0 { LEADER_EPOCH } else { -1 };
            response.with_timestamp(timestamp).with_offset(offset).with_leader_epoch(epoch)
        }
        Ok(Err(error)) => failed(request, error),
        Err(error) => {
            tracing::error!(topic = partition.topic, partition = partition.index, %error, "cannot read the log");
            failed(request, ResponseError::KafkaStorageError)
        }
    }
}

/// The (timestamp, offset) that answers a request for `timestamp`.
fn find(log: &PartitionLog, timestamp: i64, isolation: Isolation) -> io::Result<Result<(i64, i64), ResponseError>> {
    let found = match timestamp {
        LATEST => return Ok(Ok((NONE, log.visible_end(isolation)))),
        EARLIEST | EARLIEST_LOCAL => return Ok(Ok((NONE, log.start_offset()))),
        LATEST_TIERED => return Ok(Ok((NONE, NONE))),
        MAX_TIMESTAMP => log.find_max_timestamp()?,
        _ if timestamp < 0 => return Ok(Err(ResponseError::InvalidRequest)),
        _ => log.find_timestamp(timestamp, isolation)?,
    };
    let Some(found) = found else {
        return Ok(Ok((NONE, NONE)));
    };
    let header = &found.located.header;
    let wanted = if timestamp == MAX_TIMESTAMP { header.max_timestamp } else { timestamp };
    let record = records::first_at(header, &found.batch, wanted, log.start_offset());
    // If the records cannot be read, the answer is the batch.
    let (timestamp, offset) = record.unwrap_or((header.max_timestamp, header.base_offset));
    Ok(Ok((timestamp, offset)))
}

pub(crate) fn offset_for_leader_epoch(
    call: &Call<'_>,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = call.broker.topics.get(&asked.topic);
        let answer = |partition: OffsetForLeaderPartition| {
            let found = topic.as_ref().and_then(|topic| topic.partition(partition.partition));
            end_of_epoch(found.as_deref(), &partition)
        };
        let partitions = asked.partitions.into_iter().map(answer).collect();
        topics.push(OffsetForLeaderTopicResult::default().with_topic(asked.topic).with_partitions(partitions));
    }
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

/// The log has one leader epoch, which ends at the log's end.
fn end_of_epoch(partition: Option<&Partition>, request: &OffsetForLeaderPartition) -> EpochEndOffset {
    let response = EpochEndOffset::default().with_partition(request.partition);
    let Some(partition) = partition else {
        return response.with_error_code(ResponseError::UnknownTopicOrPartition.code());
    };
    if request.current_leader_epoch > LEADER_EPOCH {
        return response.with_error_code(ResponseError::UnknownLeaderEpoch.code());
    }
    if request.leader_epoch != LEADER_EPOCH {
        return response;
    }
    response.with_leader_epoch(LEADER_EPOCH).with_end_offset(partition.with_log(|log| log.end_offset()))
}
