//! Requests about replicas, controllers, quotas and ACLs. A single node without authentication
//! answers them as Apache Kafka does when there is nothing to report.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_acls_response::AclCreationResult;
use kafka_protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use kafka_protocol::messages::describe_quorum_response::{Listener, Node, PartitionData, ReplicaState, TopicData};
use kafka_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_protocol::messages::list_config_resources_response::ConfigResource;
use kafka_protocol::messages::{
    BrokerId, CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse, DescribeAclsRequest,
    DescribeAclsResponse, DescribeClientQuotasRequest, DescribeClientQuotasResponse, DescribeQuorumRequest,
    DescribeQuorumResponse, ElectLeadersRequest, ElectLeadersResponse, ListConfigResourcesRequest,
    ListConfigResourcesResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::cluster::advertised;
use super::text;
use crate::clock::now_ms;
use crate::log::batch::LEADER_EPOCH;
use crate::request::Call;
use crate::state::NODE;
use crate::topics::METADATA_TOPIC;

/// The only replica is the leader. Kafka reports this only for partitions that the request names.
pub(crate) fn elect_leaders(call: &Call<'_>, request: ElectLeadersRequest) -> ElectLeadersResponse {
    let elect = |topic: &TopicName, index: i32| {
        let error = match call.broker.topics.partition(topic, index) {
            Some(_) => ResponseError::ElectionNotNeeded,
            None => ResponseError::UnknownTopicOrPartition,
        };
        PartitionResult::default()
            .with_partition_id(index)
            .with_error_code(error.code())
            .with_error_message(Some(text(error.to_string())))
    };
    let mut results = Vec::new();
    for named in request.topic_partitions.unwrap_or_default() {
        let partitions = named.partitions.iter().map(|index| elect(&named.topic, *index)).collect();
        results.push(ReplicaElectionResult::default().with_topic(named.topic).with_partition_result(partitions));
    }
    ElectLeadersResponse::default().with_replica_election_results(results)
}

pub(crate) fn list_partition_reassignments(
    _: &Call<'_>,
    _: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    ListPartitionReassignmentsResponse::default().with_error_message(None)
}

pub(crate) fn describe_client_quotas(_: &Call<'_>, _: DescribeClientQuotasRequest) -> DescribeClientQuotasResponse {
    DescribeClientQuotasResponse::default().with_error_message(None).with_entries(Some(Vec::new()))
}

const NO_AUTHORIZER: &str = "No Authorizer is configured.";

pub(crate) fn describe_acls(_: &Call<'_>, _: DescribeAclsRequest) -> DescribeAclsResponse {
    DescribeAclsResponse::default()
        .with_error_code(ResponseError::SecurityDisabled.code())
        .with_error_message(Some(StrBytes::from_static_str(NO_AUTHORIZER)))
}

pub(crate) fn create_acls(_: &Call<'_>, request: CreateAclsRequest) -> CreateAclsResponse {
    let refused = AclCreationResult::default()
        .with_error_code(ResponseError::SecurityDisabled.code())
        .with_error_message(Some(StrBytes::from_static_str(NO_AUTHORIZER)));
    CreateAclsResponse::default().with_results(vec![refused; request.creations.len()])
}

pub(crate) fn delete_acls(_: &Call<'_>, request: DeleteAclsRequest) -> DeleteAclsResponse {
    let refused = DeleteAclsFilterResult::default()
        .with_error_code(ResponseError::SecurityDisabled.code())
        .with_error_message(Some(StrBytes::from_static_str(NO_AUTHORIZER)));
    DeleteAclsResponse::default().with_filter_results(vec![refused; request.filters.len()])
}

/// The resources that DescribeConfigs knows. Version 0 lists client metrics only.
pub(crate) fn list_config_resources(
    call: &Call<'_>,
    request: ListConfigResourcesRequest,
) -> ListConfigResourcesResponse {
    const TOPIC: i8 = 2;
    const BROKER: i8 = 4;
    // Broker loggers, client metrics and groups: Kafka accepts these types, but none has configs
    // here.
    const SUPPORTED: [i8; 5] = [TOPIC, BROKER, 8, 16, 32];
    if call.version == 0 {
        return ListConfigResourcesResponse::default();
    }
    let wanted = if request.resource_types.is_empty() { SUPPORTED.to_vec() } else { request.resource_types };
    if wanted.iter().any(|resource_type| !SUPPORTED.contains(resource_type)) {
        return ListConfigResourcesResponse::default().with_error_code(ResponseError::UnsupportedVersion.code());
    }
    let mut resources: BTreeMap<i8, Vec<String>> = BTreeMap::new();
    resources.insert(TOPIC, call.broker.topics.all().iter().map(|topic| topic.name.clone()).collect());
    resources.insert(BROKER, vec![NODE.0.to_string()]);
    let mut listed = Vec::new();
    for (resource_type, names) in resources.into_iter().filter(|(resource_type, _)| wanted.contains(resource_type)) {
        listed.extend(
            names
                .into_iter()
                .map(|name| ConfigResource::default().with_resource_type(resource_type).with_resource_name(text(name))),
        );
    }
    ListConfigResourcesResponse::default().with_config_resources(listed)
}

/// The quorum of the metadata log: this node is its leader and its only voter.
pub(crate) fn describe_quorum(call: &Call<'_>, request: DescribeQuorumRequest) -> DescribeQuorumResponse {
    let describe = |topic: &str, index: i32| {
        let partition = PartitionData::default().with_partition_index(index).with_error_message(None);
        if topic != METADATA_TOPIC || index != 0 {
            return partition.with_error_code(ResponseError::UnknownTopicOrPartition.code());
        }
        let now = now_ms();
        let voter = ReplicaState::default()
            .with_replica_id(NODE)
            .with_log_end_offset(0)
            .with_last_fetch_timestamp(now)
            .with_last_caught_up_timestamp(now);
        partition
            .with_leader_id(NODE)
            .with_leader_epoch(LEADER_EPOCH)
            .with_high_watermark(0)
            .with_current_voters(vec![voter])
    };
    let mut topics = Vec::with_capacity(request.topics.len());
    for named in request.topics {
        let indexes = named.partitions.iter().map(|partition| partition.partition_index);
        let partitions = indexes.map(|index| describe(&named.topic_name, index)).collect();
        topics.push(TopicData::default().with_topic_name(named.topic_name).with_partitions(partitions));
    }
    let response = DescribeQuorumResponse::default().with_error_message(None).with_topics(topics);
    if call.version < 2 {
        return response;
    }
    let (host, port) = advertised(call);
    let listener = Listener::default()
        .with_name(StrBytes::from_static_str("PLAINTEXT"))
        .with_host(text(host))
        .with_port(u16::try_from(port).unwrap_or_default());
    response.with_nodes(vec![Node::default().with_node_id(BrokerId(NODE.0)).with_listeners(vec![listener])])
}
