//! CreateTopics, DeleteTopics, CreatePartitions, DeleteRecords.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteRecordsRequest,
    DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::configs::source;
use super::{repeated, text};
use crate::error::ApiError;
use crate::request::Call;
use crate::state::NODE;
use crate::topics::config::{Definition, TopicConfig, described};
use crate::topics::partition::Partition;
use crate::topics::{NewTopic, Topic};

/// "The broker's default", for the number of partitions and of replicas.
const DEFAULT: i32 = -1;

pub(crate) fn create_topics(call: &Call<'_>, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let repeated = repeated(request.topics.iter().map(|topic| topic.name.as_str()));
    let mut results = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let result = if repeated.contains(topic.name.as_str()) {
            Err(named_twice())
        } else {
            create(call, topic, request.validate_only)
        };
        results.push(describe_created(call, topic, result));
    }
    CreateTopicsResponse::default().with_topics(results)
}

fn named_twice() -> ApiError {
    ApiError::new(ResponseError::InvalidRequest, "Duplicate topic name.")
}

/// Creates a topic, or with `validate_only` returns its future properties.
fn create(
    call: &Call<'_>,
    topic: &CreatableTopic,
    validate_only: bool,
) -> Result<(Uuid, i32, Arc<TopicConfig>), ApiError> {
    let broker = call.broker;
    let new = NewTopic {
        name: topic.name.to_string(),
        partitions: partition_count(call, topic)?,
        configs: read_configs(topic)?,
    };
    if validate_only {
        let config = broker.topics.check_new(&new)?;
        return Ok((Uuid::nil(), new.partitions, Arc::new(config)));
    }
    let created = broker.topics.create(&broker.store, &new)?;
    Ok((created.id, created.partition_count(), created.config()))
}

fn partition_count(call: &Call<'_>, topic: &CreatableTopic) -> Result<i32, ApiError> {
    if topic.assignments.is_empty() {
        if !matches!(topic.replication_factor, -1 | 1) {
            let message = format!(
                "Unable to replicate the partition {} time(s): the cluster has 1 broker.",
                topic.replication_factor
            );
            return Err(ApiError::new(ResponseError::InvalidReplicationFactor, message));
        }
        let is_default = topic.num_partitions == DEFAULT;
        return Ok(if is_default { call.broker.options.default_partitions } else { topic.num_partitions });
    }
    if topic.num_partitions != DEFAULT || i32::from(topic.replication_factor) != DEFAULT {
        let message = "A manual partition assignment was specified, but a number of partitions or replicas as well.";
        return Err(ApiError::new(ResponseError::InvalidRequest, message));
    }
    let mut indexes: Vec<i32> = topic.assignments.iter().map(|assignment| assignment.partition_index).collect();
    indexes.sort_unstable();
    let is_consecutive = indexes.iter().enumerate().all(|(at, index)| at as i32 == *index);
    let is_here = topic.assignments.iter().all(|assignment| assignment.broker_ids == [NODE]);
    if is_consecutive && is_here {
        return Ok(indexes.len() as i32);
    }
    let message = "number the partitions from 0 and assign each to the only broker";
    Err(ApiError::new(ResponseError::InvalidReplicaAssignment, message))
}

fn read_configs(topic: &CreatableTopic) -> Result<BTreeMap<String, String>, ApiError> {
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let Some(value) = &config.value else {
            let message = format!("Null value not supported for topic configs: {}", config.name);
            return Err(ApiError::new(ResponseError::InvalidConfig, message));
        };
        configs.insert(config.name.to_string(), value.to_string());
    }
    Ok(configs)
}

fn describe_created(
    call: &Call<'_>,
    topic: &CreatableTopic,
    result: Result<(Uuid, i32, Arc<TopicConfig>), ApiError>,
) -> CreatableTopicResult {
    let response = CreatableTopicResult::default().with_name(topic.name.clone());
    match result {
        Ok((id, partitions, config)) => {
            let describe = |definition: &'static Definition| {
                CreatableTopicConfigs::default()
                    .with_name(StrBytes::from_static_str(definition.name))
                    .with_value(Some(text(config.value(definition))))
                    .with_config_source(source(&config, definition))
            };
            let configs = (call.version >= 5).then(|| described().map(describe).collect());
            let response = response.with_topic_id(id).with_configs(configs);
            if call.version < 5 {
                return response;
            }
            response.with_num_partitions(partitions).with_replication_factor(1)
        }
        Err(error) => {
            response.with_error_code(error.code.code()).with_error_message(Some(text(error.message))).with_configs(None)
        }
    }
}

pub(crate) fn delete_topics(call: &Call<'_>, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let by_name = |name: TopicName| DeleteTopicState::default().with_name(Some(name));
    let asked = if call.version < 6 { request.topic_names.into_iter().map(by_name).collect() } else { request.topics };
    let names = repeated(asked.iter().filter_map(|topic| topic.name.as_ref().map(|name| name.as_str())));
    let ids = repeated(asked.iter().map(|topic| topic.topic_id).filter(|id| *id != Uuid::nil()));
    let mut responses = Vec::with_capacity(asked.len());
    for topic in &asked {
        let problem = match &topic.name {
            Some(_) if topic.topic_id != Uuid::nil() => Some("You may not specify both topic name and topic id."),
            None if topic.topic_id == Uuid::nil() => Some("Neither topic name nor id was specified."),
            Some(name) if names.contains(name.as_str()) => Some("Duplicate topic name."),
            None if ids.contains(&topic.topic_id) => Some("Duplicate topic id."),
            _ => None,
        };
        let response = DeletableTopicResult::default().with_name(topic.name.clone()).with_topic_id(topic.topic_id);
        responses.push(match problem {
            Some(message) => response
                .with_error_code(ResponseError::InvalidRequest.code())
                .with_error_message(Some(StrBytes::from_static_str(message))),
            None => delete_topic(call, topic, response),
        });
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

fn delete_topic(call: &Call<'_>, asked: &DeleteTopicState, response: DeletableTopicResult) -> DeletableTopicResult {
    let broker = call.broker;
    let (topic, missing) = match &asked.name {
        Some(name) => (broker.topics.get(name), ResponseError::UnknownTopicOrPartition),
        None => (broker.topics.by_id(asked.topic_id), ResponseError::UnknownTopicId),
    };
    let Some(topic) = topic else {
        return response.with_error_code(missing.code());
    };
    let response = response.with_name(Some(TopicName(text(&topic.name)))).with_topic_id(topic.id);
    match broker.topics.delete(&broker.store, &topic) {
        Ok(()) => {
            broker.groups.topic_deleted(&broker.store, &topic.name);
            response
        }
        Err(error) => response.with_error_code(error.code.code()).with_error_message(Some(text(error.message))),
    }
}

pub(crate) fn create_partitions(call: &Call<'_>, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let topics = request.topics;
    let repeated = repeated(topics.iter().map(|topic| topic.name.as_str()));
    let grow = |asked: &CreatePartitionsTopic| {
        let result = if repeated.contains(asked.name.as_str()) {
            Err(named_twice())
        } else {
            add_partitions(call, asked, request.validate_only)
        };
        let response = CreatePartitionsTopicResult::default().with_name(asked.name.clone());
        match result {
            Ok(()) => response.with_error_message(None),
            Err(error) => response.with_error_code(error.code.code()).with_error_message(Some(text(error.message))),
        }
    };
    CreatePartitionsResponse::default().with_results(topics.iter().map(grow).collect())
}

fn add_partitions(call: &Call<'_>, asked: &CreatePartitionsTopic, validate_only: bool) -> Result<(), ApiError> {
    let broker = call.broker;
    let topic = broker.topics.get(&asked.name);
    let topic = topic.ok_or_else(|| {
        ApiError::new(ResponseError::UnknownTopicOrPartition, format!("The topic '{}' does not exist.", *asked.name))
    })?;
    if let Some(assignments) = &asked.assignments {
        let is_complete = assignments.len() as i64 == i64::from(asked.count) - i64::from(topic.partition_count());
        if !is_complete || !assignments.iter().all(|assignment| assignment.broker_ids == [NODE]) {
            let message = "assign each new partition to the only broker";
            return Err(ApiError::new(ResponseError::InvalidReplicaAssignment, message));
        }
    }
    broker.topics.add_partitions(&broker.store, &topic, asked.count, validate_only)
}

pub(crate) fn delete_records(call: &Call<'_>, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = call.broker.topics.get(&asked.name);
        let mut partitions = Vec::with_capacity(asked.partitions.len());
        for partition in asked.partitions {
            let result = delete_before(topic.as_deref(), partition.partition_index, partition.offset);
            partitions.push(
                DeleteRecordsPartitionResult::default()
                    .with_partition_index(partition.partition_index)
                    .with_low_watermark(*result.as_ref().unwrap_or(&-1))
                    .with_error_code(super::code(&result)),
            );
        }
        topics.push(DeleteRecordsTopicResult::default().with_name(asked.name).with_partitions(partitions));
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

/// Moves the start of a partition up to `offset` (-1: the end) and returns the new start.
fn delete_before(topic: Option<&Topic>, index: i32, offset: i64) -> Result<i64, ResponseError> {
    let topic = topic.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let partition: Arc<Partition> = topic.partition(index).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let config = topic.config();
    if config.cleanup_compact && !config.cleanup_delete {
        return Err(ResponseError::PolicyViolation);
    }
    let moved = partition.move_start(|log| {
        let offset = if offset == -1 { log.end_offset() } else { offset };
        if offset < 0 || offset > log.end_offset() {
            return Ok(None);
        }
        log.delete_before(offset)?;
        Ok::<_, io::Error>(Some(log.start_offset()))
    });
    moved.map_err(|_| ResponseError::KafkaStorageError)?.ok_or(ResponseError::OffsetOutOfRange)
}
