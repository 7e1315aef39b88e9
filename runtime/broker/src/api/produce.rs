//! Produce.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::text;
use crate::log::Appended;
use crate::log::batch::{Refusal, validate_produced};
use crate::server::connection::Close;
use crate::server::dispatch::Call;
use crate::server::response::Response;
use crate::topics::Topic;
use crate::topics::partition::Partition;

pub(crate) fn produce(call: &Call<'_>, request: ProduceRequest) -> Result<Option<Response>, Close> {
    let transactional_id = request.transactional_id.as_ref().map(|id| id.0.as_str());
    let has_valid_acks = matches!(request.acks, -1..=1);
    let mut failure = None;
    // First everything is appended, then the device is waited for: with others, and once for each partition.
    let mut appended = Vec::with_capacity(request.topic_data.len());
    for data in request.topic_data {
        let topic = call.shared.topics.get(&data.name);
        let mut partitions = Vec::with_capacity(data.partition_data.len());
        for partition in data.partition_data {
            let result = match (&topic, has_valid_acks) {
                (_, false) => Err(Refusal::new(ResponseError::InvalidRequiredAcks, "acks has to be -1, 0 or 1")),
                (None, _) => Err(unknown()),
                (Some(topic), true) => append(call, transactional_id, topic, &partition),
            };
            let found = topic.as_ref().and_then(|topic| topic.partition(partition.index));
            partitions.push((partition.index, found, result));
        }
        appended.push((data.name, partitions));
    }
    let mut responses = Vec::with_capacity(appended.len());
    for (name, partitions) in appended {
        let settle = |(index, partition, result): (i32, Option<Arc<Partition>>, Result<Appended, Refusal>)| {
            let result = result.and_then(|appended| match &partition {
                Some(partition) => partition.settle(appended.end_offset).map(|()| appended),
                None => Ok(appended),
            });
            let log_start = partition.map_or(-1, |partition| partition.with_log(|log| log.start_offset()));
            let response = describe(index, &result, log_start);
            failure = failure.take().or(result.err());
            response
        };
        let partitions = partitions.into_iter().map(settle).collect();
        responses.push(TopicProduceResponse::default().with_name(name).with_partition_responses(partitions));
    }
    if request.acks == 0 {
        // A client that wants no answer is told of an error by the end of the connection.
        return match failure {
            Some(refusal) => Err(Close::Unanswerable(refusal.message)),
            None => Ok(None),
        };
    }
    let response = ProduceResponse::default().with_responses(responses);
    call.envelope.answer::<ProduceRequest>(&response).map(Some)
}

fn unknown() -> Refusal {
    Refusal::new(ResponseError::UnknownTopicOrPartition, "This server does not host this topic-partition.")
}

fn append(
    call: &Call<'_>,
    transactional_id: Option<&str>,
    topic: &Topic,
    data: &PartitionProduceData,
) -> Result<Appended, Refusal> {
    let partition = topic.partition(data.index).ok_or_else(unknown)?;
    let config = topic.config();
    let records = data.records.as_deref().unwrap_or_default();
    let header = validate_produced(records, config.max_message_bytes)?;
    if config.cleanup_compact {
        crate::log::records::check_keys(&header, records)?;
    }
    if !header.is_transactional() {
        return partition.append(&header, records, &config);
    }
    let Some(transactional_id) = transactional_id else {
        let message = "a transactional batch came in a request without a transactional id";
        return Err(Refusal::new(ResponseError::InvalidProducerIdMapping, message));
    };
    call.shared.transactions.append(transactional_id, &partition, &header, records, &config)
}

fn describe(index: i32, result: &Result<Appended, Refusal>, log_start: i64) -> PartitionProduceResponse {
    let response = PartitionProduceResponse::default().with_index(index);
    match result {
        Ok(appended) => response
            .with_base_offset(appended.base_offset)
            .with_log_append_time_ms(appended.append_time)
            .with_log_start_offset(log_start),
        Err(refusal) => response
            .with_error_code(refusal.error.code())
            .with_error_message(Some(text(&refusal.message)))
            .with_base_offset(-1)
            .with_log_append_time_ms(-1)
            .with_log_start_offset(log_start),
    }
}
