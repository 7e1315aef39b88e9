//! Topics and their configuration.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::{CreateTopicsRequest, MetadataRequest, TopicName};
use rdkafka::admin::{AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::types::RDKafkaErrorCode;

use crate::common::{LONG, TestBroker, drain, eventually, is_foreign, send, unique};
use crate::raw::{PLAIN, Raw, batch, produce};

fn configured(broker: &TestBroker, topic: &str, name: &str) -> Option<String> {
    let admin = broker.admin();
    let resource = [ResourceSpecifier::Topic(topic)];
    let described = broker.block_on(admin.describe_configs(&resource, &AdminOptions::new())).unwrap();
    described[0].as_ref().unwrap().get(name).and_then(|entry| entry.value.clone())
}

#[test]
fn topics_are_created_extended_and_deleted() {
    let broker = TestBroker::any();
    let admin = broker.admin();
    let options = AdminOptions::new();
    let topic = broker.topic("life", 2, &[]);
    let duplicate = NewTopic::new(&topic, 2, TopicReplication::Fixed(1));
    let result = broker.block_on(admin.create_topics(&[duplicate], &options)).unwrap();
    assert_eq!(result, vec![Err((topic.clone(), RDKafkaErrorCode::TopicAlreadyExists))]);

    let result = broker.block_on(admin.create_partitions(&[NewPartitions::new(&topic, 5)], &options)).unwrap();
    assert_eq!(result, vec![Ok(topic.clone())]);
    let result = broker.block_on(admin.create_partitions(&[NewPartitions::new(&topic, 3)], &options)).unwrap();
    assert_eq!(result, vec![Err((topic.clone(), RDKafkaErrorCode::InvalidPartitions))]);
    let consumer = broker.consumer(&[]);
    let count = || consumer.fetch_metadata(Some(&topic), LONG).unwrap().topics()[0].partitions().len();
    eventually("5 partitions", || count() == 5);

    let producer = broker.producer(&[]);
    send(&producer, &topic, 4, "k", "v");
    drain(&producer);
    assert_eq!(broker.values(&topic, 4, "read_committed"), ["v"]);

    let result = broker.block_on(admin.delete_topics(&[&topic], &options)).unwrap();
    assert_eq!(result, vec![Ok(topic.clone())]);
    let error = || consumer.fetch_metadata(Some(&topic), LONG).unwrap().topics()[0].error();
    eventually("unknown topic", || error().is_some());
    let result = broker.block_on(admin.delete_topics(&[&topic], &options)).unwrap();
    assert_eq!(result, vec![Err((topic.clone(), RDKafkaErrorCode::UnknownTopicOrPartition))]);

    // The name is free again, and the new topic is empty.
    let again = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    eventually("created again", || {
        broker.block_on(admin.create_topics(std::slice::from_ref(&again), &options)).unwrap()[0].is_ok()
    });
    eventually("known to its broker", || consumer.fetch_watermarks(&topic, 0, LONG).is_ok());
    assert_eq!(broker.watermarks(&topic, 0, "read_committed"), (0, 0));
}

#[test]
fn all_topics_are_listed() {
    let broker = TestBroker::any();
    let topics: Vec<String> = (0..3).map(|_| broker.topic("listed", 2, &[])).collect();
    let consumer = broker.consumer(&[]);
    let metadata = consumer.fetch_metadata(None, LONG).unwrap();
    for name in &topics {
        let listed = metadata.topics().iter().find(|topic| topic.name() == name).unwrap();
        assert_eq!(listed.partitions().len(), 2);
    }
    assert_eq!(metadata.brokers().len(), 1);
}

#[test]
fn invalid_topics_are_refused() {
    let broker = TestBroker::any();
    let admin = broker.admin();
    let refused = |topic: NewTopic<'_>| {
        let result = broker.block_on(admin.create_topics(&[topic], &AdminOptions::new())).unwrap().remove(0);
        result.unwrap_err().1
    };
    let name = unique("refused");
    let one = || TopicReplication::Fixed(1);
    assert_eq!(refused(NewTopic::new("a/b", 1, one())), RDKafkaErrorCode::InvalidTopic);
    assert_eq!(refused(NewTopic::new("..", 1, one())), RDKafkaErrorCode::InvalidTopic);
    assert_eq!(refused(NewTopic::new(&"x".repeat(250), 1, one())), RDKafkaErrorCode::InvalidTopic);
    assert_eq!(refused(NewTopic::new(&name, 0, one())), RDKafkaErrorCode::InvalidPartitions);
    let three = TopicReplication::Fixed(3);
    assert_eq!(refused(NewTopic::new(&name, 1, three)), RDKafkaErrorCode::InvalidReplicationFactor);
    let unknown = NewTopic::new(&name, 1, one()).set("no.such.config", "1");
    assert_eq!(refused(unknown), RDKafkaErrorCode::InvalidConfig);
    let invalid = NewTopic::new(&name, 1, one()).set("retention.ms", "soon");
    assert_eq!(refused(invalid), RDKafkaErrorCode::InvalidConfig);
}

#[test]
fn configs_are_kept_described_and_altered() {
    let broker = TestBroker::any();
    let topic = broker.topic("configs", 1, &[("retention.ms", "12345"), ("cleanup.policy", "compact")]);
    assert_eq!(configured(&broker, &topic, "retention.ms").unwrap(), "12345");
    assert_eq!(configured(&broker, &topic, "cleanup.policy").unwrap(), "compact");
    assert_eq!(configured(&broker, &topic, "min.compaction.lag.ms").unwrap(), "0");
    let admin = broker.admin();
    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("retention.ms", "54321");
    let altered = broker.block_on(admin.alter_configs(&[change], &AdminOptions::new())).unwrap();
    assert!(altered[0].is_ok(), "{altered:?}");
    eventually("altered", || configured(&broker, &topic, "retention.ms").as_deref() == Some("54321"));
    // AlterConfigs replaces all overrides.
    assert_eq!(configured(&broker, &topic, "cleanup.policy").unwrap(), "delete");
}

#[test]
fn auto_creation_needs_the_option() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    let name = unique("demand");
    let consumer = broker.consumer(&[("allow.auto.create.topics", "true")]);
    assert!(consumer.fetch_metadata(Some(&name), LONG).unwrap().topics()[0].error().is_some());
    let broker = TestBroker::own(|options| options.auto_create_topics = true);
    let producer = broker.producer(&[]);
    send(&producer, &name, 0, "k", "v");
    drain(&producer);
    assert_eq!(broker.values(&name, 0, "read_committed"), ["v"]);
}

#[test]
fn compression_levels_are_stored_and_checked() {
    let broker = TestBroker::any();
    let levels = [("compression.gzip.level", "9"), ("compression.lz4.level", "1"), ("compression.zstd.level", "5")];
    let topic = broker.topic("levels", 1, &levels);
    for (name, value) in levels {
        assert_eq!(configured(&broker, &topic, name).as_deref(), Some(value), "{name}");
    }
    let admin = broker.admin();
    for (name, value) in [("compression.gzip.level", "0"), ("compression.lz4.level", "18"), ("segment.bytes", "14")] {
        let topic = unique("levels");
        let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set(name, value);
        let result = broker.block_on(admin.create_topics(&[new], &AdminOptions::new())).unwrap().remove(0);
        assert_eq!(result.unwrap_err().1, RDKafkaErrorCode::InvalidConfig, "{name}={value}");
    }
}

/// MirrorMaker 2 creates topics with all described configs of their source.
#[test]
fn a_topic_can_be_created_with_every_described_config() {
    let broker = TestBroker::any();
    let source = broker.topic("source", 1, &[("cleanup.policy", "compact")]);
    let admin = broker.admin();
    let resource = [ResourceSpecifier::Topic(&source)];
    let described = broker.block_on(admin.describe_configs(&resource, &AdminOptions::new())).unwrap();
    let entries = &described[0].as_ref().unwrap().entries;
    assert!(entries.len() >= 30, "{}", entries.len());
    let pairs: Vec<(&str, &str)> =
        entries.iter().map(|entry| (entry.name.as_str(), entry.value.as_deref().unwrap_or_default())).collect();
    let copy = broker.topic("copy", 1, &pairs);
    assert_eq!(configured(&broker, &copy, "cleanup.policy").as_deref(), Some("compact"));
}

#[test]
fn internal_topics_are_listed_and_closed_to_clients() {
    let broker = TestBroker::any();
    let topic = broker.topic("plain", 1, &[]);
    let group = unique("group");
    let consumer = broker.consumer(&[("group.id", &group)]);
    let mut wanted = rdkafka::TopicPartitionList::new();
    wanted.add_partition(&topic, 0);
    consumer.committed_offsets(wanted, LONG).unwrap();
    drop(broker.transactional(&unique("tx"), &[]));
    let mut raw = Raw::connect(&broker.address);
    for name in ["__consumer_offsets", "__transaction_state"] {
        let response = raw.call(12, &MetadataRequest::default().with_topics(None));
        let listed = response.topics.iter().find(|topic| topic.name.as_ref().unwrap().as_str() == name).unwrap();
        assert!(listed.is_internal && !listed.partitions.is_empty(), "{name}");
        let refused = ResponseError::InvalidTopicException.code();
        assert_eq!(produce(&mut raw, name, None, batch(PLAIN, 1)).0, refused, "{name}");
    }
    let plain = raw.call(12, &MetadataRequest::default().with_topics(None));
    assert!(plain.topics.iter().any(|listed| listed.name.as_ref().unwrap().as_str() == topic && !listed.is_internal));
    let metadata = CreatableTopic::default()
        .with_name(TopicName("__cluster_metadata".to_owned().into()))
        .with_num_partitions(1)
        .with_replication_factor(1);
    let request = CreateTopicsRequest::default().with_topics(vec![metadata]).with_timeout_ms(5000);
    assert_eq!(raw.call(7, &request).topics[0].error_code, ResponseError::InvalidRequest.code());
}
