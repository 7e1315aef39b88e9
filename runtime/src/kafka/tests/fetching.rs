//! Group consumers: what they fetch, and when.

use trunkline_broker::{ApiKey, Fault};

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

/// A group member of the topic `a`, and what it has read.
struct Member {
    consumer: GroupConsumer,
    assigned: Vec<TopicPartition>,
    batches: PartitionBatches,
    /// Partition, offset and value of each record.
    read: Vec<(i32, i64, Vec<u8>)>,
    /// Records of one poll at most.
    records: usize,
}

impl Member {
    fn join(cluster: &Cluster, group: &str, member: &str) -> Self {
        Self::of(GroupConsumer::join(cluster, group, member, &["a".to_owned()], 1 << 20).unwrap())
    }

    fn of(consumer: GroupConsumer) -> Self {
        let batches = PartitionBatches::default();
        Self { consumer, assigned: Vec::new(), batches, read: Vec::new(), records: 10 }
    }

    /// Polls once, as a stage does. Returns the number of records.
    fn try_poll(&mut self, wait: Duration) -> trunkline_connector::Result<usize> {
        let limits = FillLimits { records: self.records, bytes: 1 << 20, wait };
        let records = self.consumer.fill(&limits, &mut self.batches)?;
        for event in self.consumer.rebalance_events() {
            match event {
                RebalanceEvent::Assigned(partitions) => self.assigned.extend(partitions),
                RebalanceEvent::Revoked(partitions) => {
                    self.assigned.retain(|known| !partitions.contains(known));
                    partitions.iter().for_each(|partition| self.batches.remove(partition));
                }
            }
        }
        let mut found = 0;
        for (partition, batch) in self.batches.iter_mut() {
            found += batch.len();
            let value = |record: trunkline_connector::RecordRef<'_>| record.value().unwrap_or_default().to_vec();
            self.read.extend(batch.iter().map(|record| (partition.partition, record.entry().offset, value(record))));
            batch.clear();
        }
        assert_eq!(found, records);
        Ok(records)
    }

    fn poll(&mut self, wait: Duration) -> usize {
        self.try_poll(wait).unwrap()
    }

    fn poll_until(&mut self, what: &str, mut is_done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !is_done(self) {
            let read = self.read.len();
            assert!(begun.elapsed() < LIMIT, "{what}: {read} records, assigned {:?}", self.assigned);
            self.poll(Duration::from_millis(100));
        }
    }

    /// Waits until its broker waits for records for seconds.
    fn fall_idle(&mut self) {
        self.poll_until("the consumer does not fall idle", |this| {
            this.consumer.fetcher.borrow().waits_longer_than(Duration::from_secs(2))
        });
    }

    /// The time until a condition holds.
    fn time_until(&mut self, what: &str, is_done: impl FnMut(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        self.poll_until(what, is_done);
        begun.elapsed()
    }

    fn answers(&self) -> u64 {
        self.consumer.fetcher.borrow().answers()
    }
}

/// A topic with this many partitions.
fn start(partitions: i32) -> (Fixture, Cluster, TransactionalProducer) {
    let fixture = Fixture::start();
    let cluster = fixture.cluster();
    Admin::new(&cluster).unwrap().ensure(&[spec("a", partitions, &[])]).unwrap();
    let producer = TransactionalProducer::new(&cluster, "p", 1 << 20).unwrap();
    (fixture, cluster, producer)
}

fn send(producer: &mut TransactionalProducer, partition: i32, value: &[u8]) {
    producer.send(&ProducerRecord { partition, ..record("a", b"k", value) }).unwrap();
}

/// Faster than the end of a long fetch, and slow enough for a busy machine.
const AT_ONCE: Duration = Duration::from_millis(1_500);

#[test]
fn an_idle_consumer_asks_rarely_and_gets_a_record_at_once() {
    let (_fixture, cluster, mut producer) = start(1);
    let mut member = Member::join(&cluster, "g", "g-1");
    for round in 1..=3 {
        member.fall_idle();
        let answers = member.answers();
        // Records that are larger than the send buffer are sent before the commit.
        for _ in 0..4 {
            send(&mut producer, 0, &noise(400_000));
        }
        assert_eq!(member.poll(Duration::from_millis(200)), 0);
        producer.abort().unwrap();
        assert_eq!(member.poll(Duration::from_millis(200)), 0);
        // Its batches and its marker are passed, one answer for each at most.
        let asked = member.answers() - answers;
        assert!((1..=6).contains(&asked), "{asked} answers for a transaction that was aborted");
        send(&mut producer, 0, b"v");
        producer.commit().unwrap();
        let latency = member.time_until("the record does not arrive", |member| member.read.len() == round);
        assert!(latency < AT_ONCE, "{latency:?}");
    }
}

#[test]
fn a_change_does_not_wait_for_a_long_fetch() {
    let (_fixture, cluster, mut producer) = start(2);
    let mut member = Member::join(&cluster, "g", "g-1");
    for partition in [0, 1] {
        send(&mut producer, partition, b"v");
    }
    producer.commit().unwrap();
    member.poll_until("both records arrive", |member| member.read.len() == 2);
    let [first, second] = [0, 1].map(|partition| TopicPartition { topic: Arc::from("a"), partition });

    member.fall_idle();
    member.consumer.seek(&first, 0);
    let latency = member.time_until("the record is read again", |member| member.read.len() == 3);
    assert!(latency < AT_ONCE, "{latency:?}");
    member.fall_idle();
    member.consumer.seek(&first, -1);
    let latency = member.time_until("the record is read again", |member| member.read.len() == 4);
    assert!(latency < AT_ONCE, "{latency:?}");

    // A paused partition is not fetched, and is from the position on when it is resumed.
    member.fall_idle();
    member.consumer.pause_partitions(std::slice::from_ref(&second));
    for partition in [0, 1] {
        send(&mut producer, partition, b"w");
    }
    producer.commit().unwrap();
    member.poll_until("the other partition is read", |member| member.read.len() == 5);
    member.fall_idle();
    assert_eq!(member.read.len(), 5);
    member.consumer.resume();
    let latency = member.time_until("the resumed partition is read", |member| member.read.len() == 6);
    assert!(latency < AT_ONCE, "{latency:?}");
    assert_eq!(member.read[5], (1, 2, b"w".to_vec()));
}

#[test]
fn a_consumer_that_its_stage_pauses_returns_nothing() {
    let (_fixture, cluster, mut producer) = start(1);
    let mut member = Member::join(&cluster, "g", "g-1");
    member.records = 2;
    for number in 0..6_u8 {
        send(&mut producer, 0, &[number]);
    }
    producer.commit().unwrap();
    member.poll_until("the first records arrive", |member| member.read.len() == 2);
    let has_reached = |end| member.consumer.has_reached(&member.assigned[0], end);
    assert_eq!([has_reached(2), has_reached(3)], [Some(true), Some(false)]);
    // Four records were fetched already.
    member.consumer.pause();
    for _ in 0..3 {
        member.consumer.keep_alive(Duration::from_millis(50)).unwrap();
    }
    assert_eq!(member.poll(Duration::from_millis(100)), 0);
    assert_eq!(member.consumer.positions(&member.assigned), [Some(2)]);
    member.consumer.resume();
    member.poll_until("all records arrive", |member| member.read.len() == 6);
    assert_eq!(member.read.iter().map(|(_, offset, _)| *offset).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_member_knows_whether_it_has_reached_the_end() {
    let (_fixture, cluster, mut producer) = start(1);
    let partition = TopicPartition::new("a", 0);
    send(&mut producer, 0, b"first");
    producer.commit().unwrap();
    let mut member = Member::join(&cluster, "g", "g-1");
    assert_eq!(member.consumer.has_reached(&partition, 2), None, "it is not assigned");
    member.poll_until("the partition is assigned", |member| !member.assigned.is_empty());
    // Its position may not be known yet.
    assert!(member.consumer.has_reached(&partition, 2) == Some(false) || !member.read.is_empty());
    assert_eq!(member.consumer.has_reached(&partition, 0), Some(true), "there is nothing before the first offset");
    // The marker is passed, too.
    member.poll_until("the end is reached", |member| member.consumer.has_reached(&partition, 2) == Some(true));
    assert_eq!(member.read.len(), 1);
    assert_eq!(member.consumer.has_reached(&partition, 3), Some(false));
    member.consumer.pause_partitions(std::slice::from_ref(&partition));
    assert_eq!(member.consumer.has_reached(&partition, 3), Some(false), "its position is known");
}

#[test]
fn partitions_that_change_their_owner_are_read_once() {
    let (_fixture, cluster, mut producer) = start(2);
    let mut first = Member::join(&cluster, "g", "g-1");
    first.poll_until("both partitions are assigned", |member| member.assigned.len() == 2);
    first.fall_idle();
    let mut second = Member::join(&cluster, "g", "g-2");
    let begun = Instant::now();
    while first.assigned.len() + second.assigned.len() != 2 || second.assigned.is_empty() {
        assert!(begun.elapsed() < LIMIT, "{:?} {:?}", first.assigned, second.assigned);
        first.poll(Duration::from_millis(50));
        second.poll(Duration::from_millis(50));
    }
    for round in 1..=2 {
        send(&mut producer, 0, b"v");
        send(&mut producer, 1, b"v");
        producer.commit().unwrap();
        for member in [&mut first, &mut second] {
            let latency = member.time_until("each member reads its partition", |member| member.read.len() == round);
            assert!(latency < AT_ONCE, "{latency:?}");
            assert!(member.read.iter().all(|(partition, ..)| *partition == member.assigned[0].partition));
            assert_eq!(member.poll(Duration::from_millis(50)), 0);
        }
    }
    // The partition of a member that leaves is read from the committed offset on: there is none.
    second.consumer.leave();
    let begun = Instant::now();
    while first.assigned.len() < 2 {
        assert!(begun.elapsed() < LIMIT, "{:?}", first.assigned);
        first.poll(Duration::from_millis(50));
    }
    first.poll_until("the partition is read from its start", |member| member.read.len() == 4);
}

#[test]
fn committed_records_are_read_once_in_order_whatever_happens() {
    let (fixture, cluster, mut producer) = start(3);
    let mut member = Member::join(&cluster, "g", "g-1");
    let faults = fixture.broker.as_ref().unwrap().faults();
    let mut expected: [Vec<Vec<u8>>; 3] = Default::default();
    for round in 0..30_usize {
        let mut sent = Vec::new();
        for number in 0..40 * (round % 5) {
            let (partition, filler) = (number % 3, noise((round * 131 + number * 17) % 3_000));
            let value = [format!("{round}-{number}-").as_bytes(), &filler].concat();
            send(&mut producer, partition as i32, &value);
            sent.push((partition, value));
        }
        if round % 4 == 1 {
            producer.abort().unwrap();
        } else {
            producer.commit().unwrap();
            sent.into_iter().for_each(|(partition, value)| expected[partition].push(value));
        }
        match round % 6 {
            1 => faults.inject(ApiKey::Fetch, 1, Fault::DropReply),
            // Not the leader, a fenced leader epoch, offset not available, storage error.
            2 => [6, 74, 78, 56]
                .iter()
                .zip(1..)
                .for_each(|(error, nth)| faults.inject(ApiKey::Fetch, nth, Fault::Error(*error))),
            3 => faults.inject(ApiKey::Fetch, 1, Fault::Delay(Duration::from_millis(30))),
            4 => faults.inject(ApiKey::Metadata, 1, Fault::DropReply),
            _ => {}
        }
        member.records = 1 + round * 7 % 50;
        for _ in 0..4 {
            member.poll(Duration::from_millis(5));
        }
        // A partition goes back to where it is.
        let at = member.consumer.positions(&member.assigned);
        for (partition, position) in member.assigned.iter().zip(at).skip(round % 3).take(1) {
            match (round % 4, position) {
                (0, Some(position)) => member.consumer.seek(partition, position),
                (1, _) => member.consumer.pause_partitions(std::slice::from_ref(partition)),
                _ => member.consumer.resume(),
            }
        }
    }
    member.consumer.resume();
    let count: usize = expected.iter().map(Vec::len).sum();
    member.poll_until("all records are read", |member| member.read.len() >= count);
    assert_eq!(member.poll(Duration::from_millis(300)), 0);
    for (partition, expected) in expected.iter().enumerate() {
        let of_partition = member.read.iter().filter(|(number, ..)| *number == partition as i32);
        let values: Vec<&Vec<u8>> = of_partition.map(|(.., value)| value).collect();
        assert!(values == expected.iter().collect::<Vec<_>>(), "partition {partition}: {} records", values.len());
    }
    // Everything was passed, markers and aborted records included.
    for partition in &member.assigned {
        let ends = topic_reader::ends(&cluster, "a").unwrap();
        let end = Some(ends[partition.partition as usize]);
        assert_eq!(member.consumer.positions([partition]), [end], "{partition:?}");
        assert_eq!(member.consumer.high_watermark(partition), end);
    }
}

#[test]
fn records_that_are_larger_than_a_fetch_arrive() {
    let (_fixture, cluster, mut producer) = start(1);
    let mut member = Member::join(&cluster, "g", "g-1");
    let large = noise(5 << 20);
    for value in [&b"before"[..], &large, b"after"] {
        send(&mut producer, 0, value);
    }
    producer.commit().unwrap();
    member.poll_until("all records arrive", |member| member.read.len() == 3);
    assert!(member.read[1].2 == large && member.read[2].2 == b"after");
}

#[test]
fn an_offset_that_no_longer_exists_is_the_first_one_or_an_error() {
    let (fixture, cluster, mut producer) = start(1);
    send(&mut producer, 0, b"v");
    producer.commit().unwrap();
    let faults = fixture.broker.as_ref().unwrap().faults();
    const OFFSET_OUT_OF_RANGE: i16 = 1;
    let mut member = Member::join(&cluster, "g", "g-1");
    member.poll_until("the record arrives", |member| member.read.len() == 1);
    faults.inject(ApiKey::Fetch, 1, Fault::Error(OFFSET_OUT_OF_RANGE));
    // The first offset is asked for again after an error.
    faults.inject(ApiKey::ListOffsets, 1, Fault::Error(6));
    member.poll_until("the record is read again", |member| member.read.len() == 2);

    let strict = GroupConsumer::join_strictly(&cluster, "h", "h-1", &["a".to_owned()], 1 << 20).unwrap();
    let mut member = Member::of(strict);
    let begun = Instant::now();
    let error = loop {
        // There is no committed offset.
        match member.try_poll(Duration::from_millis(100)) {
            Ok(_) => assert!(begun.elapsed() < LIMIT),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, "replay.deleted", "{error}");
    assert!(member.read.is_empty());
    member.consumer.seek(&member.assigned[0], 0);
    member.poll_until("the record arrives", |member| member.read.len() == 1);
    faults.inject(ApiKey::Fetch, 1, Fault::Error(OFFSET_OUT_OF_RANGE));
    let error = loop {
        match member.try_poll(Duration::from_millis(100)) {
            Ok(_) => assert!(begun.elapsed() < LIMIT),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, error.domain), ("replay.deleted", Domain::Data));
    assert!(error.message().contains("topic `a`") && error.message().contains("group `h`"), "{error}");
}

#[test]
fn a_topic_that_may_not_be_read_is_a_permanent_error() {
    let (fixture, cluster, _producer) = start(1);
    const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
    fixture.broker.as_ref().unwrap().faults().inject(ApiKey::Fetch, 1, Fault::Error(TOPIC_AUTHORIZATION_FAILED));
    let mut member = Member::join(&cluster, "g", "g-1");
    let begun = Instant::now();
    let error = loop {
        match member.try_poll(Duration::from_millis(100)) {
            Ok(_) => assert!(begun.elapsed() < LIMIT),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, error.retry), ("kafka.access_denied", Retry::Never));
    assert!(
        error.message().contains("grant the right Read on the topic") && error.message().contains("--topic a"),
        "{error}"
    );
}

#[test]
fn a_broker_that_returns_is_read_again() {
    let (mut fixture, cluster, mut producer) = start(1);
    let mut member = Member::join(&cluster, "g", "g-1");
    send(&mut producer, 0, b"v");
    producer.commit().unwrap();
    member.poll_until("the record arrives", |member| member.read.len() == 1);
    member.fall_idle();
    drop(producer);
    let broker = fixture.broker.take().unwrap();
    let port = broker.address().port();
    let _ = fixture.runtime.block_on(broker.stop());
    for _ in 0..5 {
        // It stays a member as long as the group's session lasts.
        member.poll(Duration::from_millis(100));
    }
    let mut options = BrokerOptions::new(fixture._folder.path());
    options.listen = (Ipv4Addr::LOCALHOST, port).into();
    fixture.broker = Some(fixture.runtime.block_on(Broker::start(options)).unwrap());
    let mut producer = TransactionalProducer::new(&cluster, "p", 1 << 20).unwrap();
    send(&mut producer, 0, b"w");
    producer.commit().unwrap();
    member.poll_until("the next record arrives", |member| member.read.iter().any(|(.., value)| value == b"w"));
}
