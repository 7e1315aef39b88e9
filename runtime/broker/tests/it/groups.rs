//! Groups: members share partitions, static members keep theirs, and offsets are kept.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::common::{LONG, TestBroker, drain, eventually, is_foreign, pause, send, unique};

fn member(broker: &TestBroker, topic: &str, group: &str, settings: &[(&str, &str)]) -> BaseConsumer {
    let base = [
        ("group.id", group),
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "300"),
        ("isolation.level", "read_committed"),
    ];
    let consumer = broker.consumer(&[&base[..], settings].concat());
    consumer.subscribe(&[topic]).unwrap();
    consumer
}

fn assigned(consumer: &BaseConsumer) -> BTreeSet<i32> {
    let _ = consumer.poll(Duration::from_millis(20));
    consumer.assignment().unwrap().elements().iter().map(|element| element.partition()).collect()
}

/// Whether the members own all partitions, each partition once, and each member has one.
fn is_shared(members: &[&BaseConsumer], partitions: usize) -> bool {
    let shares: Vec<BTreeSet<i32>> = members.iter().map(|consumer| assigned(consumer)).collect();
    let total: usize = shares.iter().map(BTreeSet::len).sum();
    let union: BTreeSet<i32> = shares.iter().flatten().copied().collect();
    total == partitions && union.len() == partitions && shares.iter().all(|share| !share.is_empty())
}

#[test]
fn members_share_the_partitions_and_take_over_from_each_other() {
    let broker = TestBroker::any();
    for strategy in ["range", "roundrobin", "cooperative-sticky"] {
        let topic = broker.topic("share", 4, &[]);
        let group = unique("group");
        let settings = [("partition.assignment.strategy", strategy)];
        let first = member(&broker, &topic, &group, &settings);
        eventually("the first has all", || assigned(&first).len() == 4);
        let second = member(&broker, &topic, &group, &settings);
        eventually("two share", || is_shared(&[&first, &second], 4));
        let third = member(&broker, &topic, &group, &settings);
        eventually("three share", || is_shared(&[&first, &second, &third], 4));
        drop(first);
        eventually("two share again", || is_shared(&[&second, &third], 4));
        drop(second);
        eventually("the last has all", || assigned(&third).len() == 4);
    }
}

#[test]
fn a_group_continues_at_its_committed_offset() {
    let broker = TestBroker::any();
    let topic = broker.topic("resume", 1, &[]);
    let producer = broker.producer(&[("linger.ms", "100")]);
    for number in 0..100 {
        send(&producer, &topic, 0, "k", &number.to_string());
    }
    drain(&producer);
    let group = unique("group");
    let consumer = member(&broker, &topic, &group, &[]);
    let mut seen = 0;
    let deadline = Instant::now() + LONG;
    while seen < 40 {
        assert!(Instant::now() < deadline);
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            let message = message.unwrap();
            consumer.store_offset_from_message(&message).unwrap_or(());
            seen += 1;
        }
    }
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(40)).unwrap();
    consumer.commit(&list, CommitMode::Sync).unwrap();
    drop(consumer);
    let consumer = member(&broker, &topic, &group, &[]);
    let deadline = Instant::now() + LONG;
    let first = loop {
        assert!(Instant::now() < deadline);
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            break rdkafka::Message::offset(&message.unwrap());
        }
    };
    assert_eq!(first, 40);
}

#[test]
fn a_static_member_rejoins_without_a_rebalance() {
    let broker = TestBroker::any();
    let topic = broker.topic("static", 4, &[]);
    let group = unique("group");
    let settings =
        |id: &'static str| [("partition.assignment.strategy", "cooperative-sticky"), ("group.instance.id", id)];
    let first = member(&broker, &topic, &group, &settings("one"));
    let second = member(&broker, &topic, &group, &settings("two"));
    eventually("two share", || is_shared(&[&first, &second], 4));
    let before = assigned(&second);
    // A static member that closes keeps its partitions.
    drop(second);
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        assert_eq!(assigned(&first).len(), 2);
    }
    let second = member(&broker, &topic, &group, &settings("two"));
    eventually("it has its own again", || assigned(&second) == before);
    assert_eq!(assigned(&first).len(), 2);
}

#[test]
fn a_second_static_member_of_the_same_name_fences_the_first() {
    let broker = TestBroker::any();
    let topic = broker.topic("fenced", 2, &[]);
    let group = unique("group");
    let settings = [("partition.assignment.strategy", "cooperative-sticky"), ("group.instance.id", "only")];
    let first = member(&broker, &topic, &group, &settings);
    eventually("the first has all", || assigned(&first).len() == 2);
    let second = member(&broker, &topic, &group, &settings);
    eventually("the second has all", || assigned(&second).len() == 2);
    eventually("the first is fenced", || {
        let _ = first.poll(Duration::from_millis(50));
        first.client().fatal_error().is_some()
    });
}

#[test]
fn a_lost_member_is_replaced_when_its_session_ends() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|options| options.min_session_timeout = Duration::from_millis(500));
    let topic = broker.topic("lost", 2, &[]);
    let group = unique("group");
    // Without a poll for this long librdkafka stops its heartbeats, like a process that hangs.
    let settings = [("session.timeout.ms", "1000"), ("max.poll.interval.ms", "1000"), ("heartbeat.interval.ms", "200")];
    let first = member(&broker, &topic, &group, &settings);
    eventually("the first has all", || assigned(&first).len() == 2);
    let second = member(&broker, &topic, &group, &settings);
    eventually("two share", || is_shared(&[&first, &second], 2));
    eventually("the second has all", || assigned(&second).len() == 2);
}

#[test]
fn the_first_member_of_a_group_starts_at_once() {
    if is_foreign() {
        return;
    }
    let broker = TestBroker::own(|_| {});
    let topic = broker.topic("quick", 1, &[]);
    let producer = broker.producer(&[]);
    send(&producer, &topic, 0, "k", "v");
    drain(&producer);
    let begun = Instant::now();
    let consumer = member(&broker, &topic, &unique("group"), &[]);
    while consumer.poll(Duration::from_millis(10)).is_none() {
        assert!(begun.elapsed() < LONG);
    }
    let took = begun.elapsed();
    println!("first record after {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_group_and_its_offsets_survive_a_restart() {
    if is_foreign() {
        return;
    }
    let mut broker = TestBroker::own(|_| {});
    let topic = broker.topic("survive", 1, &[]);
    let group = unique("group");
    let consumer = member(&broker, &topic, &group, &[]);
    eventually("it has all", || assigned(&consumer).len() == 1);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(7)).unwrap();
    consumer.commit(&list, CommitMode::Sync).unwrap();
    let generation = consumer.group_metadata().is_some();
    broker.restart(|_| {});
    // The same member commits in the same generation.
    list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(8)).unwrap();
    eventually("committed again", || consumer.commit(&list, CommitMode::Sync).is_ok());
    assert!(generation);
    pause(Duration::from_millis(10));
    let reader = broker.consumer(&[("group.id", &group)]);
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(&topic, 0);
    assert_eq!(reader.committed_offsets(wanted, LONG).unwrap().elements()[0].offset(), Offset::Offset(8));
}

/// The committed offset of partition 0.
fn committed(consumer: &BaseConsumer, topic: &str) -> Offset {
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition(topic, 0);
    consumer.committed_offsets(wanted, LONG).unwrap().elements()[0].offset()
}

#[test]
fn offsets_of_empty_groups_expire() {
    if is_foreign() {
        return;
    }
    let mut broker = TestBroker::own(|options| options.offsets_retention = Duration::from_secs(1));
    let topic = broker.topic("expire", 1, &[]);
    let commit = |consumer: &BaseConsumer, offset: i64| {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Offset(offset)).unwrap();
        consumer.commit(&list, CommitMode::Sync).unwrap();
    };
    let (busy, idle) = (unique("busy"), unique("idle"));
    let active = member(&broker, &topic, &busy, &[]);
    eventually("it has its partition", || assigned(&active).len() == 1);
    commit(&active, 5);
    let outside = broker.consumer(&[("group.id", &idle)]);
    commit(&outside, 7);
    assert_eq!(committed(&outside, &topic), Offset::Offset(7));
    eventually("those of the group without members are gone", || committed(&outside, &topic) == Offset::Invalid);
    // These offsets are older, but the group has a member.
    assert_eq!(committed(&active, &topic), Offset::Offset(5));
    let begun = Instant::now();
    drop(active);
    let reader = broker.consumer(&[("group.id", &busy)]);
    eventually("those of the group that was left as well", || committed(&reader, &topic) == Offset::Invalid);
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    broker.restart(|_| {});
    assert_eq!(committed(&reader, &topic), Offset::Invalid);
}
