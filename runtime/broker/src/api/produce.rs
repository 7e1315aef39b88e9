//! Produce.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::text;
use crate::clock::now_ms;
use crate::error::ApiError;
use crate::log::Appended;
use crate::log::batch::{BatchHeader, has_log_append_time, validate_produced, with_producer_timestamps};
use crate::log::validation::validate_records;
use crate::request::Call;
use crate::request::Close;
use crate::request::response::Response;
use crate::topics::config::{TimestampType, TopicConfig};
use crate::topics::partition::Partition;
use crate::topics::{Topic, is_internal};
use crate::transaction::TransactionVersion;

pub(crate) fn produce(call: &Call<'_>, request: ProduceRequest) -> Result<Option<Response>, Close> {
    let transactional_id = request.transactional_id.as_ref().map(|id| id.0.as_str());
    let has_valid_acks = matches!(request.acks, -1..=1);
    let mut failure = None;
    // Appends all batches first, then waits for the disk once for each partition.
    let mut appended = Vec::with_capacity(request.topic_data.len());
    for data in request.topic_data {
        let topic = call.broker.topics.get(&data.name);
        let mut partitions = Vec::with_capacity(data.partition_data.len());
        for partition in data.partition_data {
            let result = match (&topic, has_valid_acks) {
                (_, false) => Err(ApiError::new(ResponseError::InvalidRequiredAcks, "acks must be -1, 0 or 1")),
                (None, _) => Err(ApiError::unknown_topic_partition()),
                (Some(topic), true) => append(call, transactional_id, topic, &partition),
            };
            let found = topic.as_ref().and_then(|topic| topic.partition(partition.index));
            partitions.push((partition.index, found, result));
        }
        appended.push((data.name, partitions));
    }
    let mut responses = Vec::with_capacity(appended.len());
    for (name, partitions) in appended {
        let wait_durable = |(index, partition, result): (i32, Option<Arc<Partition>>, Result<Appended, ApiError>)| {
            let result = result.and_then(|appended| match &partition {
                Some(partition) => partition.wait_durable(appended.end_offset).map(|()| appended),
                None => Ok(appended),
            });
            let log_start = partition.map_or(-1, |partition| partition.with_log(|log| log.start_offset()));
            let response = describe(index, &result, log_start);
            failure = failure.take().or(result.err());
            response
        };
        let partitions = partitions.into_iter().map(wait_durable).collect();
        responses.push(TopicProduceResponse::default().with_name(name).with_partition_responses(partitions));
    }
    if request.acks == 0 {
        // With acks=0 closing the connection is the only way to report an error.
        return match failure {
            Some(error) => Err(Close::Unanswerable(error.message)),
            None => Ok(None),
        };
    }
    let response = ProduceResponse::default().with_responses(responses);
    call.envelope.answer::<ProduceRequest>(&response).map(Some)
}

fn append(
    call: &Call<'_>,
    transactional_id: Option<&str>,
    topic: &Topic,
    data: &PartitionProduceData,
) -> Result<Appended, ApiError> {
    if is_internal(&topic.name) {
        let message = format!("Clients may not write to the internal topic {}.", topic.name);
        return Err(ApiError::new(ResponseError::InvalidTopicException, message));
    }
    let partition = topic.partition(data.index).ok_or_else(ApiError::unknown_topic_partition)?;
    let config = topic.config();
    let records = data.records.as_deref().unwrap_or_default();
    let header = validate_produced(records, config.max_message_bytes)?;
    let max_timestamp = validate_records(&header, records, &config, now_ms())?;
    let is_wrong = max_timestamp != header.max_timestamp || has_log_append_time(&header);
    if config.timestamp_type == TimestampType::CreateTime && is_wrong {
        let (header, records) = with_producer_timestamps(records, &header, max_timestamp);
        return append_valid(call, transactional_id, &partition, &header, &records, &config);
    }
    append_valid(call, transactional_id, &partition, &header, records, &config)
}

fn append_valid(
    call: &Call<'_>,
    transactional_id: Option<&str>,
    partition: &Partition,
    header: &BatchHeader,
    records: &[u8],
    config: &TopicConfig,
) -> Result<Appended, ApiError> {
    if !header.is_transactional() {
        return partition.append(header, records, config);
    }
    let Some(transactional_id) = transactional_id else {
        let message = "a transactional batch needs a transactional id in the request";
        return Err(ApiError::new(ResponseError::InvalidProducerIdMapping, message));
    };
    let version = TransactionVersion::of(call.version, 12);
    call.broker.transactions.append(transactional_id, version, partition, (header, records), config)
}

fn describe(index: i32, result: &Result<Appended, ApiError>, log_start: i64) -> PartitionProduceResponse {
    let response = PartitionProduceResponse::default().with_index(index);
    match result {
        Ok(appended) => response
            .with_base_offset(appended.base_offset)
            .with_log_append_time_ms(appended.append_time)
            .with_log_start_offset(log_start),
        Err(error) => response
            .with_error_code(error.code.code())
            .with_error_message(Some(text(&error.message)))
            .with_base_offset(-1)
            .with_log_append_time_ms(-1)
            .with_log_start_offset(log_start),
    }
}
