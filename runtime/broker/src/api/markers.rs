//! WriteTxnMarkers: ends a transaction in single partitions.
//!
//! Between brokers this request carries out the coordinator's decision. With one broker only
//! administrators send it, to abort a hanging transaction (`kafka-transactions abort`, KIP-664).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::write_txn_markers_request::{WritableTxnMarker, WritableTxnMarkerTopic};
use kafka_protocol::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};
use kafka_protocol::messages::{WriteTxnMarkersRequest, WriteTxnMarkersResponse};

use super::code;
use crate::log::batch::Marker;
use crate::log::producer_state::NO_COORDINATOR_EPOCH;
use crate::request::Call;
use crate::transaction::NO_EPOCH;

pub(crate) fn write_txn_markers(call: &Call<'_>, request: WriteTxnMarkersRequest) -> WriteTxnMarkersResponse {
    let answer = |marker: &WritableTxnMarker| {
        let topics = marker.topics.iter().map(|topic| {
            let answer = |index: &i32| {
                WritableTxnMarkerPartitionResult::default()
                    .with_partition_index(*index)
                    .with_error_code(code(&write_marker(call, marker, topic, *index)))
            };
            let partitions = topic.partition_indexes.iter().map(answer).collect();
            WritableTxnMarkerTopicResult::default().with_name(topic.name.clone()).with_partitions(partitions)
        });
        WritableTxnMarkerResult::default().with_producer_id(marker.producer_id).with_topics(topics.collect())
    };
    WriteTxnMarkersResponse::default().with_markers(request.markers.iter().map(answer).collect())
}

fn write_marker(
    call: &Call<'_>,
    marker: &WritableTxnMarker,
    asked: &WritableTxnMarkerTopic,
    index: i32,
) -> Result<(), ResponseError> {
    let topic = call.broker.topics.get(&asked.name).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let partition = topic.partition(index).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let producer_id = marker.producer_id.0;
    let (epoch, coordinator_epoch) = partition.with_log(|log| {
        let producer = log.producers().get(producer_id);
        producer.map_or((NO_EPOCH, NO_COORDINATOR_EPOCH), |producer| (producer.epoch, producer.coordinator_epoch))
    });
    if marker.producer_epoch < epoch {
        return Err(ResponseError::InvalidProducerEpoch);
    }
    if marker.coordinator_epoch < coordinator_epoch {
        return Err(ResponseError::TransactionCoordinatorFenced);
    }
    let commit = marker.transaction_result;
    tracing::warn!(topic = topic.name, partition = index, producer_id, commit, "an administrator ends a transaction");
    let written = Marker { commit, coordinator_epoch: marker.coordinator_epoch };
    let ended = partition.end_transaction(producer_id, marker.producer_epoch, written, &topic.config());
    ended.map_err(|error| error.code)
}
