//! Administration requests, including those that librdkafka has no call for: validation without
//! effect, operations on single config entries, deletion of a group's offsets.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic};
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, GroupId, IncrementalAlterConfigsRequest, OffsetDeleteRequest, TopicName,
};
use rdkafka::admin::{AdminOptions, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::common::{LONG, TestBroker, eventually, unique};
use crate::raw::Raw;

fn name(topic: &str) -> TopicName {
    TopicName(topic.to_owned().into())
}

fn code(error: ResponseError) -> i16 {
    error.code()
}

/// A request to increase the partitions of a topic to `count`.
fn grown(topic: &str, count: i32) -> CreatePartitionsTopic {
    CreatePartitionsTopic::default().with_name(name(topic)).with_count(count).with_assignments(None)
}

/// The same, with the replicas of each new partition.
fn assigned(topic: &str, count: i32, brokers: &[&[i32]]) -> CreatePartitionsTopic {
    let assign = |ids: &&[i32]| {
        CreatePartitionsAssignment::default().with_broker_ids(ids.iter().map(|id| BrokerId(*id)).collect())
    };
    grown(topic, count).with_assignments(Some(brokers.iter().map(assign).collect()))
}

#[test]
fn partitions_are_added_unless_only_validated() {
    let broker = TestBroker::any();
    let topic = broker.topic("grow", 2, &[]);
    let mut raw = Raw::connect(&broker.address);
    let mut grow = |topics: Vec<CreatePartitionsTopic>, validate_only: bool| -> Vec<i16> {
        let request = CreatePartitionsRequest::default()
            .with_topics(topics)
            .with_timeout_ms(10_000)
            .with_validate_only(validate_only);
        raw.call(3, &request).results.iter().map(|result| result.error_code).collect()
    };
    let consumer = broker.consumer(&[]);
    let count = || consumer.fetch_metadata(Some(&topic), LONG).unwrap().topics()[0].partitions().len();

    let invalid = code(ResponseError::InvalidPartitions);
    let misplaced = code(ResponseError::InvalidReplicaAssignment);
    for validate_only in [true, false] {
        for too_few in [2, 1, 0, -1] {
            assert_eq!(grow(vec![grown(&topic, too_few)], validate_only), [invalid], "{too_few}");
        }
        let unknown = code(ResponseError::UnknownTopicOrPartition);
        assert_eq!(grow(vec![grown(&unique("no-such"), 3)], validate_only), [unknown]);
        let twice = grow(vec![grown(&topic, 3), grown(&topic, 4)], validate_only);
        assert!(twice.iter().all(|error| *error == code(ResponseError::InvalidRequest)), "{twice:?}");
        assert_eq!(grow(vec![assigned(&topic, 4, &[&[1]])], validate_only), [misplaced], "one place for two");
        assert_eq!(grow(vec![assigned(&topic, 3, &[&[77]])], validate_only), [misplaced], "no such broker");
        assert_eq!(grow(vec![assigned(&topic, 3, &[&[1, 1]])], validate_only), [misplaced], "one broker twice");
    }
    assert_eq!(grow(vec![grown(&topic, 4)], true), [0]);
    assert_eq!(grow(vec![assigned(&topic, 4, &[&[1], &[1]])], true), [0]);
    assert_eq!(count(), 2);
    assert_eq!(grow(vec![assigned(&topic, 3, &[&[1]])], false), [0]);
    eventually("three partitions", || count() == 3);
    assert_eq!(grow(vec![grown(&topic, 5)], false), [0]);
    eventually("five partitions", || count() == 5);
}

const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

/// Key, operation, value.
type Change<'text> = (&'text str, i8, Option<&'text str>);

/// Config entries of one topic, changed by single operations.
struct Configs {
    broker: TestBroker,
    topic: String,
    raw: Raw,
}

impl Configs {
    fn new(configs: &[(&str, &str)]) -> Self {
        let broker = TestBroker::any();
        let topic = broker.topic("incremental", 1, configs);
        let raw = Raw::connect(&broker.address);
        Self { broker, topic, raw }
    }

    fn request(&self, changes: &[Change<'_>]) -> IncrementalAlterConfigsRequest {
        let change = |(key, operation, value): &Change<'_>| {
            AlterableConfig::default()
                .with_name((*key).to_owned().into())
                .with_config_operation(*operation)
                .with_value(value.map(|value| value.to_owned().into()))
        };
        let resource = AlterConfigsResource::default()
            .with_resource_type(2)
            .with_resource_name(self.topic.clone().into())
            .with_configs(changes.iter().map(change).collect());
        IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
    }

    fn try_alter(&mut self, changes: &[Change<'_>]) -> i16 {
        let request = self.request(changes);
        self.raw.call(1, &request).responses[0].error_code
    }

    fn alter(&mut self, key: &str, operation: i8, value: Option<&str>, expected: &str) {
        assert_eq!(self.try_alter(&[(key, operation, value)]), 0, "{key} {operation} {value:?}");
        eventually(&format!("{key} {operation} {value:?} makes {expected}"), || self.value(key).0 == expected);
    }

    /// The value, and whether it is a topic override.
    fn value(&self, key: &str) -> (String, bool) {
        let resource = [ResourceSpecifier::Topic(&self.topic)];
        let admin = self.broker.admin();
        let described = self.broker.block_on(admin.describe_configs(&resource, &AdminOptions::new())).unwrap();
        let entry = described[0].as_ref().unwrap().get(key).unwrap();
        (entry.value.clone().unwrap_or_default(), entry.source == rdkafka::admin::ConfigSource::DynamicTopic)
    }
}

#[test]
fn single_config_entries_are_set_deleted_appended_and_subtracted() {
    let mut configs = Configs::new(&[("segment.bytes", "2000000")]);
    configs.alter("retention.ms", SET, Some("12345"), "12345");
    configs.alter("retention.ms", SET, Some("23456"), "23456");
    assert_eq!(configs.value("segment.bytes"), ("2000000".to_owned(), true));
    configs.alter("retention.ms", DELETE, None, "604800000");
    assert!(!configs.value("retention.ms").1);
    // Deleting an entry that is not set succeeds.
    configs.alter("retention.ms", DELETE, None, "604800000");

    configs.alter("cleanup.policy", APPEND, Some("compact"), "delete,compact");
    configs.alter("cleanup.policy", APPEND, Some("compact"), "delete,compact");
    configs.alter("cleanup.policy", SUBTRACT, Some("delete"), "compact");
    configs.alter("cleanup.policy", SUBTRACT, Some("delete"), "compact");
    configs.alter("cleanup.policy", SET, Some("compact,delete"), "compact,delete");
    configs.alter("cleanup.policy", DELETE, None, "delete");
}

#[test]
fn invalid_config_changes_are_refused_as_a_whole() {
    let mut configs = Configs::new(&[("retention.ms", "12345"), ("cleanup.policy", "compact")]);
    let invalid = code(ResponseError::InvalidConfig);
    let bad_request = code(ResponseError::InvalidRequest);
    let cases: [(&[Change<'_>], i16); 8] = [
        (&[("no.such.config", SET, Some("1"))], invalid),
        (&[("retention.ms", SET, Some("soon"))], invalid),
        (&[("retention.ms", SET, Some("-2"))], invalid),
        (&[("retention.ms", APPEND, Some("1"))], invalid),
        (&[("retention.ms", SUBTRACT, Some("1"))], invalid),
        (&[("cleanup.policy", APPEND, Some("shred"))], invalid),
        (&[("retention.ms", SET, Some("1")), ("retention.ms", SET, Some("2"))], bad_request),
        // One invalid entry makes the whole resource fail.
        (&[("segment.bytes", SET, Some("2000000")), ("retention.ms", SET, Some("soon"))], invalid),
    ];
    for (changes, expected) in cases {
        assert_eq!(configs.try_alter(changes), expected, "{changes:?}");
    }
    // Brokers answer these with different errors.
    assert_ne!(configs.try_alter(&[("retention.ms", SET, None)]), 0);
    assert_ne!(configs.try_alter(&[("retention.ms", 9, Some("1"))]), 0);

    let request = configs.request(&[("retention.ms", SET, Some("99"))]).with_validate_only(true);
    assert_eq!(configs.raw.call(1, &request).responses[0].error_code, 0);
    let request = configs.request(&[("retention.ms", SET, Some("soon"))]).with_validate_only(true);
    assert_eq!(configs.raw.call(1, &request).responses[0].error_code, invalid);
    let mut request = configs.request(&[("retention.ms", SET, Some("1"))]);
    request.resources[0].resource_name = unique("no-such").into();
    let unknown = code(ResponseError::UnknownTopicOrPartition);
    assert_eq!(configs.raw.call(1, &request).responses[0].error_code, unknown);
    let mut request = configs.request(&[("retention.ms", SET, Some("1"))]);
    request.resources.push(request.resources[0].clone());
    let twice = configs.raw.call(1, &request);
    assert!(twice.responses.iter().all(|response| response.error_code == bad_request), "{twice:?}");

    assert_eq!(configs.value("retention.ms"), ("12345".to_owned(), true));
    assert_eq!(configs.value("cleanup.policy"), ("compact".to_owned(), true));
    assert!(!configs.value("segment.bytes").1);
}

fn commit(consumer: &BaseConsumer, offsets: &[(&str, i32, i64)]) {
    let mut list = TopicPartitionList::new();
    for (topic, partition, offset) in offsets {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset)).unwrap();
    }
    consumer.commit(&list, CommitMode::Sync).unwrap();
}

fn committed(consumer: &BaseConsumer, topic: &str, partition: i32) -> Offset {
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(topic, partition);
    consumer.committed_offsets(wanted, LONG).unwrap().elements()[0].offset()
}

/// Deletes offsets of a group. Returns the error of the request and those of its partitions.
fn delete_offsets(raw: &mut Raw, group: &str, offsets: &[(&str, i32)]) -> (i16, BTreeMap<(String, i32), i16>) {
    let mut partitions: BTreeMap<&str, Vec<OffsetDeleteRequestPartition>> = BTreeMap::new();
    for (topic, partition) in offsets {
        let partition = OffsetDeleteRequestPartition::default().with_partition_index(*partition);
        partitions.entry(topic).or_default().push(partition);
    }
    let topic =
        |(topic, partitions)| OffsetDeleteRequestTopic::default().with_name(name(topic)).with_partitions(partitions);
    let request = OffsetDeleteRequest::default()
        .with_group_id(GroupId(group.to_owned().into()))
        .with_topics(partitions.into_iter().map(topic).collect());
    let response = raw.call(0, &request);
    let mut errors = BTreeMap::new();
    for topic in &response.topics {
        for partition in &topic.partitions {
            errors.insert((topic.name.to_string(), partition.partition_index), partition.error_code);
        }
    }
    (response.error_code, errors)
}

fn errors(expected: &[(&str, i32, i16)]) -> BTreeMap<(String, i32), i16> {
    expected.iter().map(|(topic, partition, error)| (((*topic).to_owned(), *partition), *error)).collect()
}

#[test]
fn offsets_of_unsubscribed_topics_can_be_deleted() {
    let broker = TestBroker::any();
    let (read, left) = (broker.topic("read", 2, &[]), broker.topic("left", 1, &[]));
    let group = unique("group");
    let settings = [("group.id", group.as_str()), ("session.timeout.ms", "6000")];
    let mut raw = Raw::connect(&broker.address);
    let unknown_group = code(ResponseError::GroupIdNotFound);
    eventually("the coordinator answers", || delete_offsets(&mut raw, &group, &[(&left, 0)]).0 == unknown_group);

    let outside = broker.consumer(&settings);
    commit(&outside, &[(&read, 0, 10), (&read, 1, 11), (&left, 0, 12)]);
    let unknown = code(ResponseError::UnknownTopicOrPartition);
    let deleted = delete_offsets(&mut raw, &group, &[(&read, 0), (&read, 7)]);
    assert_eq!(deleted, (0, errors(&[(&read, 0, 0), (&read, 7, unknown)])));
    assert_eq!(committed(&outside, &read, 0), Offset::Invalid);
    assert_eq!(committed(&outside, &read, 1), Offset::Offset(11));
    // Deleting a missing offset succeeds.
    assert_eq!(delete_offsets(&mut raw, &group, &[(&read, 0)]), (0, errors(&[(&read, 0, 0)])));
    let no_such = unique("no-such");
    assert_eq!(delete_offsets(&mut raw, &group, &[(&no_such, 0)]), (0, errors(&[(&no_such, 0, unknown)])));

    let member = broker.consumer(&settings);
    member.subscribe(&[&read]).unwrap();
    eventually("it has its partitions", || {
        let _ = member.poll(std::time::Duration::from_millis(20));
        member.assignment().unwrap().count() == 2
    });
    let in_use = code(ResponseError::GroupSubscribedToTopic);
    let deleted = delete_offsets(&mut raw, &group, &[(&read, 1), (&left, 0)]);
    assert_eq!(deleted, (0, errors(&[(&read, 1, in_use), (&left, 0, 0)])));
    assert_eq!(committed(&outside, &read, 1), Offset::Offset(11));
    assert_eq!(committed(&outside, &left, 0), Offset::Invalid);
}
