//! Answers to requests that tools and test suites send, as Apache Kafka 4.3 gives them.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::describe_quorum_request;
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::fetch_request::FetchTopic;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::common::{TestBroker, eventually, is_foreign, unique};
use crate::fencing::init;
use crate::raw::{From, PLAIN, Raw, batch, produce, produce_in};

fn text(string: &str) -> StrBytes {
    string.to_owned().into()
}

fn name(topic: &str) -> TopicName {
    TopicName(text(topic))
}

fn connect() -> (TestBroker, Raw) {
    let broker = TestBroker::any();
    let raw = Raw::connect(&broker.address);
    (broker, raw)
}

/// Repeats a request until the coordinator is there, which a new Apache Kafka creates first.
fn until_coordinated(mut code: impl FnMut() -> i16) -> i16 {
    let retriable = [
        ResponseError::CoordinatorNotAvailable,
        ResponseError::NotCoordinator,
        ResponseError::CoordinatorLoadInProgress,
    ];
    let mut last = 0;
    eventually("the coordinator answers", || {
        last = code();
        retriable.iter().all(|error| error.code() != last)
    });
    last
}

#[test]
fn topics_whose_names_collide_are_refused() {
    let (_broker, mut raw) = connect();
    let base = unique("a");
    let mut create = |topic: &str| {
        let topic = CreatableTopic::default().with_name(name(topic)).with_num_partitions(1).with_replication_factor(1);
        let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
        raw.call(7, &request).topics[0].error_code
    };
    assert_eq!(create(&format!("{base}.x_y")), 0);
    for colliding in [format!("{base}_x_y"), format!("{base}.x.y"), format!("{base}_x.y")] {
        assert_eq!(create(&colliding), ResponseError::InvalidTopicException.code(), "{colliding}");
    }
    assert_eq!(create(&format!("{base}-x-y")), 0);
    assert_eq!(create(&format!("{base}.x_y")), ResponseError::TopicAlreadyExists.code());
}

#[test]
fn delete_topics_wants_a_name_or_an_id() {
    let (broker, mut raw) = connect();
    let topic = broker.topic("named", 1, &[]);
    let request = MetadataRequest::default()
        .with_topics(Some(vec![MetadataRequestTopic::default().with_name(Some(name(&topic)))]));
    let mut id = Uuid::nil();
    eventually("the topic is known", || {
        let response = raw.call(12, &request);
        id = response.topics[0].topic_id;
        response.topics[0].error_code == 0
    });
    let by_name = || DeleteTopicState::default().with_name(Some(name(&topic)));
    let by_id = || DeleteTopicState::default().with_name(None).with_topic_id(id);
    let mut delete = |topics: Vec<DeleteTopicState>| -> Vec<i16> {
        let request = DeleteTopicsRequest::default().with_topics(topics).with_timeout_ms(10_000);
        raw.call(6, &request).responses.iter().map(|response| response.error_code).collect()
    };
    let invalid = ResponseError::InvalidRequest.code();
    assert_eq!(delete(vec![by_name().with_topic_id(id)]), [invalid], "both");
    assert_eq!(delete(vec![DeleteTopicState::default().with_name(None)]), [invalid], "neither");
    assert!(delete(vec![by_name(), by_name()]).iter().all(|error| *error == invalid), "a name twice");
    assert!(delete(vec![by_id(), by_id()]).iter().all(|error| *error == invalid), "an id twice");
    assert_eq!(delete(vec![by_id()]), [0]);
    assert_eq!(delete(vec![by_id()]), [ResponseError::UnknownTopicId.code()]);
}

#[test]
fn authorized_operations_are_all_without_an_authorizer() {
    const OMITTED: i32 = i32::MIN;
    let (broker, mut raw) = connect();
    let topic = broker.topic("operations", 1, &[]);
    for (is_wanted, of_topic, of_cluster) in [(true, 3576, 8096), (false, OMITTED, OMITTED)] {
        let request = MetadataRequest::default()
            .with_topics(Some(vec![MetadataRequestTopic::default().with_name(Some(name(&topic)))]))
            .with_include_topic_authorized_operations(is_wanted)
            .with_include_cluster_authorized_operations(is_wanted);
        let response = raw.call(10, &request);
        assert_eq!(response.cluster_authorized_operations, of_cluster);
        assert_eq!(response.topics[0].topic_authorized_operations, of_topic);
        let request = DescribeClusterRequest::default()
            .with_endpoint_type(1)
            .with_include_cluster_authorized_operations(is_wanted);
        assert_eq!(raw.call(1, &request).cluster_authorized_operations, of_cluster);
    }
    let group = unique("operations");
    let offset = OffsetCommitRequestPartition::default().with_committed_offset(1);
    let offsets = OffsetCommitRequestTopic::default().with_name(name(&topic)).with_partitions(vec![offset]);
    let commit = OffsetCommitRequest::default().with_group_id(GroupId(text(&group))).with_topics(vec![offsets]);
    let commit = commit.with_generation_id_or_member_epoch(-1);
    assert_eq!(until_coordinated(|| raw.call(8, &commit).topics[0].partitions[0].error_code), 0);
    for (is_wanted, expected) in [(true, 3400), (false, OMITTED)] {
        let request = DescribeGroupsRequest::default()
            .with_groups(vec![GroupId(text(&group))])
            .with_include_authorized_operations(is_wanted);
        assert_eq!(raw.call(5, &request).groups[0].authorized_operations, expected);
    }
}

#[test]
fn log_dirs_have_the_size_of_their_volume() {
    let (_broker, mut raw) = connect();
    let response = raw.call(4, &DescribeLogDirsRequest::default().with_topics(None));
    let result = &response.results[0];
    assert!(result.total_bytes > 0 && result.usable_bytes > 0, "{result:?}");
    assert!(result.usable_bytes <= result.total_bytes);
}

#[test]
fn configs_are_documented_when_asked_for() {
    let (broker, mut raw) = connect();
    let topic = broker.topic("documented", 1, &[]);
    for (resource_type, resource, required) in [
        (2, topic.as_str(), &["retention.ms", "compression.zstd.level"][..]),
        (4, "1", &["message.max.bytes", "advertised.listeners", "num.partitions", "log.retention.ms"][..]),
    ] {
        for is_wanted in [true, false] {
            let resource = DescribeConfigsResource::default()
                .with_resource_type(resource_type)
                .with_resource_name(text(resource))
                .with_configuration_keys(None);
            let request =
                DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_documentation(is_wanted);
            let response = raw.call(4, &request);
            for wanted in required {
                let config = response.results[0].configs.iter().find(|config| &*config.name == *wanted);
                let documentation = config.unwrap_or_else(|| panic!("no {wanted}")).documentation.as_deref();
                assert_eq!(documentation.is_some_and(|text| text.len() > 10), is_wanted, "{wanted}");
            }
        }
    }
}

#[test]
fn requests_about_clusters_quotas_and_acls_are_answered() {
    let (broker, mut raw) = connect();
    let topic = broker.topic("cluster", 1, &[]);
    let named = |topic: &str| TopicPartitions::default().with_topic(name(topic)).with_partitions(vec![0]);
    let request = ElectLeadersRequest::default()
        .with_topic_partitions(Some(vec![named(&topic), named(&unique("no-such"))]))
        .with_timeout_ms(10_000);
    let response = raw.call(2, &request);
    assert_eq!(response.error_code, 0);
    let code = |at: usize| {
        let results = &response.replica_election_results;
        let result = results.iter().find(|result| (result.topic.as_str() == topic) == (at == 0)).unwrap();
        result.partition_result[0].error_code
    };
    assert_eq!(code(0), ResponseError::ElectionNotNeeded.code());
    assert_eq!(code(1), ResponseError::UnknownTopicOrPartition.code());
    let request = ElectLeadersRequest::default().with_topic_partitions(None).with_timeout_ms(10_000);
    let results = raw.call(2, &request).replica_election_results;
    assert!(results.iter().all(|result| result.partition_result.is_empty()), "{results:?}");

    let request = ListPartitionReassignmentsRequest::default().with_timeout_ms(10_000).with_topics(None);
    let response = raw.call(0, &request);
    assert_eq!((response.error_code, response.topics.len()), (0, 0));

    let response = raw.call(1, &DescribeClientQuotasRequest::default());
    assert_eq!((response.error_code, response.entries.map(|entries| entries.len())), (0, Some(0)));

    let any = |request: DescribeAclsRequest| {
        request.with_resource_type_filter(1).with_pattern_type_filter(1).with_operation(1).with_permission_type(1)
    };
    let disabled = ResponseError::SecurityDisabled.code();
    assert_eq!(raw.call(3, &any(DescribeAclsRequest::default())).error_code, disabled);

    let response = raw.call(1, &ListConfigResourcesRequest::default().with_resource_types(vec![2]));
    assert!(response.config_resources.iter().any(|resource| *resource.resource_name == *topic));
    let response = raw.call(1, &ListConfigResourcesRequest::default().with_resource_types(vec![3]));
    assert_eq!(response.error_code, ResponseError::UnsupportedVersion.code());

    let partition = describe_quorum_request::PartitionData::default().with_partition_index(0);
    let quorum = describe_quorum_request::TopicData::default()
        .with_topic_name(name("__cluster_metadata"))
        .with_partitions(vec![partition]);
    let response = raw.call(2, &DescribeQuorumRequest::default().with_topics(vec![quorum]));
    let partition = &response.topics[0].partitions[0];
    assert_eq!((response.error_code, partition.error_code), (0, 0));
    assert_eq!(partition.current_voters.len(), 1);
    assert_eq!(partition.leader_id, partition.current_voters[0].replica_id);
}

#[test]
fn incomplete_group_requests_get_kafkas_error_codes() {
    let (broker, mut raw) = connect();
    let topic = broker.topic("groups", 1, &[]);
    let group = || GroupId(text(&unique("group")));
    let inconsistent = ResponseError::InconsistentGroupProtocol.code();
    let invalid_group = ResponseError::InvalidGroupId.code();
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(vec![0u8; 4].into());
    let join = JoinGroupRequest::default()
        .with_group_id(group())
        .with_session_timeout_ms(10_000)
        .with_rebalance_timeout_ms(10_000)
        .with_protocols(vec![protocol]);
    let id_required = ResponseError::MemberIdRequired.code();
    let join_code = |raw: &mut Raw, join: &JoinGroupRequest| until_coordinated(|| raw.call(9, join).error_code);
    // Apache Kafka gives the member an id first, and refuses its second request.
    let first = join_code(&mut raw, &join);
    assert!([inconsistent, id_required].contains(&first), "{first}");
    let response = raw.call(9, &join);
    let second = join.clone().with_member_id(response.member_id);
    assert!([inconsistent, ResponseError::UnknownMemberId.code()].contains(&join_code(&mut raw, &second)));
    assert_eq!(join_code(&mut raw, &join.clone().with_group_id(GroupId::default())), invalid_group);

    let sync = SyncGroupRequest::default().with_group_id(group()).with_member_id(text("m"));
    assert_eq!(until_coordinated(|| raw.call(5, &sync).error_code), inconsistent);
    let complete = sync.clone().with_protocol_type(Some(text("consumer"))).with_protocol_name(Some(text("range")));
    assert_eq!(until_coordinated(|| raw.call(5, &complete).error_code), ResponseError::UnknownMemberId.code());
    let nameless = complete.clone().with_group_id(GroupId::default());
    assert_eq!(raw.call(5, &nameless).error_code, invalid_group);
    assert_eq!(raw.call(4, &HeartbeatRequest::default()).error_code, invalid_group);
    assert_eq!(raw.call(4, &LeaveGroupRequest::default()).error_code, invalid_group);

    let offset = OffsetCommitRequestPartition::default().with_committed_offset(1);
    let offsets = OffsetCommitRequestTopic::default().with_name(name(&topic)).with_partitions(vec![offset]);
    let commit = OffsetCommitRequest::default()
        .with_group_id(group())
        .with_member_id(text("m"))
        .with_generation_id_or_member_epoch(3)
        .with_topics(vec![offsets]);
    for (version, expected) in [(9, ResponseError::GroupIdNotFound), (8, ResponseError::IllegalGeneration)] {
        let code = until_coordinated(|| raw.call(version, &commit).topics[0].partitions[0].error_code);
        assert_eq!(code, expected.code(), "version {version}");
    }
}

/// TxnOffsetCommit of `transaction.version` 2, which adds its group to the transaction.
#[test]
fn transactional_offsets_of_unknown_groups_need_no_generation() {
    let (broker, mut raw) = connect();
    let topic = broker.topic("offsets", 1, &[]);
    let id = unique("tx");
    let (_, (producer_id, epoch)) = init(&mut raw, 5, &id, (-1, -1));
    let mut commit = |generation: i32, member: &str| {
        let offset = TxnOffsetCommitRequestPartition::default().with_committed_offset(5);
        let offsets = TxnOffsetCommitRequestTopic::default().with_name(name(&topic)).with_partitions(vec![offset]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(text(&id)))
            .with_group_id(GroupId(text(&unique("group"))))
            .with_producer_id(ProducerId(producer_id))
            .with_producer_epoch(epoch)
            .with_generation_id(generation)
            .with_member_id(text(member))
            .with_topics(vec![offsets]);
        until_coordinated(|| raw.call(5, &request).topics[0].partitions[0].error_code)
    };
    assert_eq!(commit(-1, ""), 0);
    assert_eq!(commit(4, "member"), ResponseError::IllegalGeneration.code());
}

#[test]
fn contradictory_reads_are_refused() {
    let (broker, mut raw) = connect();
    let topic = broker.topic("reads", 1, &[]);
    let fetched = FetchTopic::default().with_topic(name(&topic));
    let request = FetchRequest::default().with_session_epoch(5).with_topics(vec![fetched]).with_max_bytes(1000);
    assert_eq!(raw.call(11, &request).error_code, ResponseError::FetchSessionIdNotFound.code());
    let partition = ListOffsetsPartition::default().with_timestamp(-1);
    let listed =
        ListOffsetsTopic::default().with_name(name(&topic)).with_partitions(vec![partition.clone(), partition]);
    let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![listed]);
    let response = raw.call(7, &request);
    let errors = response.topics[0].partitions.iter().map(|partition| partition.error_code);
    assert!(errors.into_iter().all(|error| error == ResponseError::InvalidRequest.code()), "{response:?}");
}

#[test]
fn the_coordinator_epoch_comes_from_the_last_marker() {
    let (broker, mut raw) = connect();
    let topic = broker.topic("markers", 1, &[]);
    let id = unique("tx");
    let (_, (producer_id, epoch)) = init(&mut raw, 5, &id, (-1, -1));
    let describe = |raw: &mut Raw| {
        let wanted = TopicRequest::default().with_name(name(&topic)).with_partition_indexes(vec![0]);
        let response = raw.call(0, &DescribeProducersRequest::default().with_topics(vec![wanted]));
        let producers = &response.topics[0].partitions[0].active_producers;
        producers.iter().find(|state| state.producer_id.0 == producer_id).map(|state| state.coordinator_epoch)
    };
    let first = From { producer_id, epoch, sequence: 0, is_transactional: true };
    assert_eq!(produce_in(12, &mut raw, &topic, Some(&id), batch(first, 1)).0, 0);
    assert_eq!(describe(&mut raw), Some(-1));
    let request = EndTxnRequest::default()
        .with_transactional_id(TransactionalId(text(&id)))
        .with_producer_id(ProducerId(producer_id))
        .with_producer_epoch(epoch)
        .with_committed(true);
    assert_eq!(raw.call(5, &request).error_code, 0);
    eventually("the marker is written", || describe(&mut raw) == Some(0));
    if is_foreign() {
        return;
    }
    // An administrator with an older view of the coordinator is fenced.
    assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 1)).0, 0);
    let marked = write_txn_markers_request::WritableTxnMarkerTopic::default()
        .with_name(name(&topic))
        .with_partition_indexes(vec![0]);
    let marker = write_txn_markers_request::WritableTxnMarker::default()
        .with_producer_id(ProducerId(producer_id))
        .with_producer_epoch(epoch + 1)
        .with_coordinator_epoch(-1)
        .with_topics(vec![marked]);
    let response = raw.call(1, &WriteTxnMarkersRequest::default().with_markers(vec![marker]));
    let error = response.markers[0].topics[0].partitions[0].error_code;
    assert_eq!(error, ResponseError::TransactionCoordinatorFenced.code());
}

#[test]
fn an_empty_cleanup_policy_is_accepted() {
    let (broker, mut raw) = connect();
    let topic = broker.topic("kept", 1, &[("cleanup.policy", "")]);
    assert_eq!(produce(&mut raw, &topic, None, batch(PLAIN, 3)).0, 0);
    let partition = delete_records_request::DeleteRecordsPartition::default().with_offset(2);
    let wanted =
        delete_records_request::DeleteRecordsTopic::default().with_name(name(&topic)).with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default().with_topics(vec![wanted]).with_timeout_ms(10_000);
    let deleted = &raw.call(2, &request).topics[0].partitions[0];
    assert_eq!((deleted.error_code, deleted.low_watermark), (0, 2));
}
