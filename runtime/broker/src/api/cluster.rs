//! Identity and address of the broker: Metadata, DescribeCluster, FindCoordinator, DescribeLogDirs.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    DescribeClusterRequest, DescribeClusterResponse, DescribeLogDirsRequest, DescribeLogDirsResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse, TopicName,
};
use uuid::Uuid;

use super::authorized::{CLUSTER, TOPIC, operations};
use super::text;
use crate::error::ApiError;
use crate::log::batch::LEADER_EPOCH;
use crate::request::Call;
use crate::state::NODE;
use crate::topics::{GROUP_TOPIC, NewTopic, TRANSACTION_TOPIC, Topic, check_name, is_internal};

/// The host and port that clients connect to.
pub(super) fn advertised(call: &Call<'_>) -> (String, i32) {
    match &call.broker.options.advertised {
        Some((host, port)) => (host.clone(), i32::from(*port)),
        None => (call.peer.local.ip().to_string(), i32::from(call.peer.local.port())),
    }
}

pub(crate) fn metadata(call: &Call<'_>, request: MetadataRequest) -> MetadataResponse {
    let (host, port) = advertised(call);
    // In version 0 an empty list means all topics; in later versions null does.
    let wants_all = match &request.topics {
        None => true,
        Some(topics) => call.version == 0 && topics.is_empty(),
    };
    let topic_operations = operations(TOPIC, request.include_topic_authorized_operations);
    let cluster_operations = operations(CLUSTER, request.include_cluster_authorized_operations);
    let mut topics: Vec<MetadataResponseTopic> = if wants_all {
        call.broker.topics.all().iter().map(describe).collect()
    } else {
        let may_create =
            call.broker.options.auto_create_topics && (call.version < 4 || request.allow_auto_topic_creation);
        request.topics.unwrap_or_default().into_iter().map(|wanted| describe_wanted(call, wanted, may_create)).collect()
    };
    for topic in topics.iter_mut().filter(|topic| topic.error_code == 0) {
        topic.topic_authorized_operations = topic_operations;
    }
    MetadataResponse::default()
        .with_cluster_authorized_operations(cluster_operations)
        .with_brokers(vec![MetadataResponseBroker::default().with_node_id(NODE).with_host(text(host)).with_port(port)])
        .with_cluster_id(Some(text(&call.broker.cluster_id)))
        .with_controller_id(NODE)
        .with_topics(topics)
}

fn describe(topic: &Arc<Topic>) -> MetadataResponseTopic {
    let describe_partition = |index: i32| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(NODE)
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(vec![NODE])
            .with_isr_nodes(vec![NODE])
    };
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(&topic.name))))
        .with_topic_id(topic.id)
        .with_is_internal(is_internal(&topic.name))
        .with_partitions((0..topic.partition_count()).map(describe_partition).collect())
}

fn describe_wanted(call: &Call<'_>, wanted: MetadataRequestTopic, may_create: bool) -> MetadataResponseTopic {
    let topics = &call.broker.topics;
    if wanted.topic_id != Uuid::nil() {
        return match topics.by_id(wanted.topic_id) {
            Some(topic) => describe(&topic),
            None => MetadataResponseTopic::default()
                .with_topic_id(wanted.topic_id)
                .with_error_code(ResponseError::UnknownTopicId.code()),
        };
    }
    let name = wanted.name.clone().unwrap_or_default();
    let found = match topics.get(&name) {
        Some(topic) => Ok(topic),
        None => check_name(&name).and_then(|()| {
            if may_create { auto_create(call, &name) } else { Err(ApiError::unknown_topic_partition()) }
        }),
    };
    match found {
        Ok(topic) => describe(&topic),
        Err(error) => MetadataResponseTopic::default().with_name(wanted.name).with_error_code(error.code.code()),
    }
}

fn auto_create(call: &Call<'_>, name: &str) -> Result<Arc<Topic>, ApiError> {
    let broker = call.broker;
    let new =
        NewTopic { name: name.to_owned(), partitions: broker.options.default_partitions, configs: BTreeMap::new() };
    match broker.topics.create(&broker.store, &new) {
        Err(error) if error.code == ResponseError::TopicAlreadyExists => broker.topics.get(name).ok_or(error),
        result => result,
    }
}

pub(crate) fn describe_cluster(call: &Call<'_>, request: DescribeClusterRequest) -> DescribeClusterResponse {
    let response = DescribeClusterResponse::default().with_endpoint_type(request.endpoint_type);
    // Endpoint type 2 asks for controllers. Clients do not connect to controllers.
    if request.endpoint_type != 1 {
        return response
            .with_error_code(ResponseError::MismatchedEndpointType.code())
            .with_error_message(Some(text("The request was sent to an endpoint of the wrong type.")));
    }
    let (host, port) = advertised(call);
    response
        .with_cluster_id(text(&call.broker.cluster_id))
        .with_controller_id(NODE)
        .with_cluster_authorized_operations(operations(CLUSTER, request.include_cluster_authorized_operations))
        .with_brokers(vec![DescribeClusterBroker::default().with_broker_id(NODE).with_host(text(host)).with_port(port)])
}

pub(crate) fn find_coordinator(call: &Call<'_>, request: FindCoordinatorRequest) -> FindCoordinatorResponse {
    const GROUP: i8 = 0;
    const TRANSACTION: i8 = 1;
    let (host, port) = advertised(call);
    let is_known = matches!(request.key_type, GROUP | TRANSACTION);
    if is_known {
        let internal = if request.key_type == GROUP { GROUP_TOPIC } else { TRANSACTION_TOPIC };
        call.broker.topics.create_internal(&call.broker.store, internal);
    }
    if call.version < 4 {
        if !is_known {
            return FindCoordinatorResponse::default().with_error_code(ResponseError::InvalidRequest.code());
        }
        return FindCoordinatorResponse::default().with_node_id(NODE).with_host(text(host)).with_port(port);
    }
    let locate = |key| {
        let coordinator = Coordinator::default().with_key(key);
        if !is_known {
            return coordinator.with_error_code(ResponseError::InvalidRequest.code());
        }
        coordinator.with_node_id(NODE).with_host(text(&host)).with_port(port)
    };
    FindCoordinatorResponse::default().with_coordinators(request.coordinator_keys.into_iter().map(locate).collect())
}

/// The size of a volume that cannot be determined.
const UNKNOWN_BYTES: i64 = -1;

pub(crate) fn describe_log_dirs(call: &Call<'_>, request: DescribeLogDirsRequest) -> DescribeLogDirsResponse {
    let mut topics = Vec::new();
    for topic in call.broker.topics.all() {
        let wanted =
            request.topics.as_ref().map(|wanted| wanted.iter().find(|entry| entry.topic.0.as_str() == topic.name));
        if let Some(None) = wanted {
            continue;
        }
        let is_wanted = |index: i32| wanted.flatten().is_none_or(|entry| entry.partitions.contains(&index));
        let partitions = topic.partitions();
        let sizes = partitions.iter().filter(|partition| is_wanted(partition.index)).map(|partition| {
            DescribeLogDirsPartition::default()
                .with_partition_index(partition.index)
                .with_partition_size(partition.with_log(|log| log.size()) as i64)
        });
        let described =
            DescribeLogDirsTopic::default().with_name(TopicName(text(&topic.name))).with_partitions(sizes.collect());
        topics.push(described);
    }
    let directory = &call.broker.options.data_dir;
    let bytes = |space: io::Result<u64>| space.map_or(UNKNOWN_BYTES, |bytes| bytes as i64);
    let result = DescribeLogDirsResult::default()
        .with_log_dir(text(directory.display().to_string()))
        .with_topics(topics)
        .with_total_bytes(bytes(fs4::total_space(directory)))
        .with_usable_bytes(bytes(fs4::available_space(directory)));
    DescribeLogDirsResponse::default().with_results(vec![result])
}
