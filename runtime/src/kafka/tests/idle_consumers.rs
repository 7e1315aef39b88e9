//! Consumers that pause while they are idle.

use super::*;

/// A group member of one topic, and what it has read.
struct Member {
    consumer: GroupConsumer,
    assigned: Vec<TopicPartition>,
    batches: PartitionBatches,
    read: Vec<(i32, i64)>,
}

impl Member {
    fn join(cluster: &Cluster, group: &str, member: &str) -> Self {
        let consumer = GroupConsumer::join(cluster, group, member, &["a".to_owned()], 1 << 20).unwrap();
        Self { consumer, assigned: Vec::new(), batches: PartitionBatches::default(), read: Vec::new() }
    }

    /// Polls once, as a stage does. Returns the number of records.
    fn poll(&mut self, wait: Duration) -> usize {
        let limits = FillLimits { records: 10, bytes: 1 << 20, wait };
        let records = self.consumer.fill(&limits, &mut self.batches).unwrap();
        for event in self.consumer.rebalance_events() {
            match event {
                RebalanceEvent::Assigned(partitions) => self.assigned.extend(partitions),
                RebalanceEvent::Revoked(partitions) => self.assigned.retain(|known| !partitions.contains(known)),
            }
        }
        for (partition, batch) in self.batches.iter_mut() {
            self.read.extend(batch.entries().iter().map(|entry| (partition.partition, entry.offset)));
            batch.clear();
        }
        if records == 0 {
            let assigned = self.assigned.iter().map(|partition| (partition, -1));
            self.consumer.pause_if_idle(assigned).unwrap();
        }
        records
    }

    fn poll_until(&mut self, what: &str, mut is_done: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !is_done(self) {
            assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {:?}", self.read);
            self.poll(Duration::from_millis(100));
        }
    }

    /// Reads what there is, and is idle for long enough.
    fn fall_idle(&mut self) {
        self.poll_until("the consumer is not paused", |this| {
            if !this.is_paused() {
                this.consumer.idle.borrow_mut().make_due();
            }
            this.is_paused()
        });
    }

    fn is_paused(&self) -> bool {
        self.consumer.idle.borrow().is_paused()
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

fn send(producer: &mut TransactionalProducer, partition: i32) {
    producer.send(&ProducerRecord { partition, ..record("a", b"k", b"v") }).unwrap();
}

#[test]
fn an_idle_consumer_fetches_nothing_until_a_record_is_committed() {
    let (_fixture, cluster, mut producer) = start(1);
    let mut member = Member::join(&cluster, "g", "g-1");
    let mut latencies = Vec::new();
    // A topic without records, and one that was read to its end.
    for round in 0..5 {
        member.fall_idle();
        let known_end = member.consumer.high_watermark(&member.assigned[0]);
        // Records that are larger than the send buffer are sent before the commit.
        let value = noise(400_000);
        for _ in 0..4 {
            producer.send(&record("a", b"k", &value)).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(member.poll(Duration::from_millis(200)), 0);
        }
        assert!(topic_reader::ends(&cluster, "a").unwrap()[0] > known_end.unwrap());
        assert!(member.is_paused() && member.consumer.high_watermark(&member.assigned[0]) == known_end);
        // An aborted record wakes no consumer: there is nothing to read.
        producer.abort().unwrap();
        for _ in 0..2 {
            assert_eq!(member.poll(Duration::from_millis(200)), 0);
        }
        assert!(member.is_paused());
        send(&mut producer, 0);
        producer.commit().unwrap();
        let committed = Instant::now();
        member.poll_until("the record does not arrive", |member| member.read.len() > round);
        assert!(!member.is_paused());
        latencies.push(committed.elapsed());
    }
    // Resuming alone would take half a second on average, because the connection's thread sleeps.
    latencies.sort_unstable();
    assert!(latencies[2] < Duration::from_millis(250), "{latencies:?}");
}

#[test]
fn all_idle_consumers_of_a_partition_are_woken() {
    let (_fixture, cluster, mut producer) = start(2);
    let mut members = ["g", "h"].map(|group| Member::join(&cluster, group, group));
    for round in 1..=3 {
        members.iter_mut().for_each(Member::fall_idle);
        assert_eq!(cluster.idle_watches().count(), 2);
        send(&mut producer, round % 2);
        producer.commit().unwrap();
        for member in &mut members {
            member.poll_until("the record does not arrive", |member| member.read.len() as i32 == round);
        }
        assert_eq!(cluster.idle_watches().count(), 0);
    }
    members.iter_mut().for_each(Member::fall_idle);
    drop(members);
    assert_eq!(cluster.idle_watches().count(), 0, "a closed consumer is not watched");
}

#[test]
fn a_rebalance_ends_the_pause() {
    let (_fixture, cluster, mut producer) = start(2);
    let mut first = Member::join(&cluster, "g", "g-1");
    first.poll_until("both partitions are assigned", |member| member.assigned.len() == 2);
    first.fall_idle();
    let mut second = Member::join(&cluster, "g", "g-2");
    let begun = Instant::now();
    while first.assigned.len() + second.assigned.len() != 2 || second.assigned.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?} {:?}", first.assigned, second.assigned);
        first.poll(Duration::from_millis(50));
        second.poll(Duration::from_millis(50));
    }
    send(&mut producer, 0);
    send(&mut producer, 1);
    producer.commit().unwrap();
    for member in [&mut first, &mut second] {
        member.poll_until("each member reads its partition", |member| member.read.len() == 1);
    }
    first.fall_idle();
    second.fall_idle();
    send(&mut producer, 0);
    send(&mut producer, 1);
    producer.commit().unwrap();
    for member in [&mut first, &mut second] {
        member.poll_until("each member is woken", |member| member.read.len() == 2);
    }
}

#[test]
fn a_consumer_that_its_stage_pauses_is_not_woken() {
    let (_fixture, cluster, mut producer) = start(1);
    let mut member = Member::join(&cluster, "g", "g-1");
    member.fall_idle();
    member.consumer.pause().unwrap();
    send(&mut producer, 0);
    producer.commit().unwrap();
    for _ in 0..3 {
        member.consumer.keep_alive(Duration::from_millis(300)).unwrap();
    }
    assert_eq!(member.poll(Duration::from_millis(300)), 0);
    member.consumer.resume().unwrap();
    member.poll_until("the record does not arrive", |member| member.read.len() == 1);
}

#[test]
fn an_idle_consumer_reads_again_without_the_watch() {
    let (mut fixture, cluster, mut producer) = start(1);
    let mut member = Member::join(&cluster, "g", "g-1");
    // The pause has lasted long enough.
    member.fall_idle();
    member.consumer.idle.borrow_mut().make_due();
    member.poll(Duration::from_millis(10));
    assert!(!member.is_paused());
    send(&mut producer, 0);
    producer.commit().unwrap();
    member.poll_until("the record does not arrive", |member| member.read.len() == 1);
    // The broker of the watch fails.
    member.fall_idle();
    let broker = fixture.broker.take().unwrap();
    let _ = fixture.runtime.block_on(broker.stop());
    let begun = Instant::now();
    while member.is_paused() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the failure is not noticed");
        let limits = FillLimits { records: 10, bytes: 1 << 20, wait: Duration::from_millis(100) };
        let _ = member.consumer.fill(&limits, &mut member.batches);
    }
}

#[test]
fn a_watch_from_an_earlier_offset_finds_what_the_client_has_passed() {
    let (_fixture, cluster, mut producer) = start(1);
    send(&mut producer, 0);
    producer.commit().unwrap();
    let partition = TopicPartition { topic: Arc::from("a"), partition: 0 };
    let watch = |position| {
        let (sender, woken) = std::sync::mpsc::channel();
        let wake = move || sender.send(()).unwrap_or_default();
        (cluster.idle_watches().watch(&cluster, vec![(partition.clone(), position)], wake), woken)
    };
    let limit = Duration::from_secs(30);
    let (behind, later) = watch(2);
    let (first, woken) = watch(-1);
    woken.recv_timeout(limit).unwrap();
    assert!(first.is_over() && !behind.is_over());
    let (again, woken) = watch(0);
    woken.recv_timeout(limit).unwrap();
    assert!(again.is_over() && !behind.is_over() && later.try_recv().is_err());
    send(&mut producer, 0);
    producer.commit().unwrap();
    later.recv_timeout(limit).unwrap();
    assert!(behind.is_over());
}

#[test]
fn a_record_of_a_topic_that_was_created_again_ends_the_watch() {
    let (_fixture, cluster, mut producer) = start(1);
    let partition = TopicPartition { topic: Arc::from("a"), partition: 0 };
    let (sender, woken) = std::sync::mpsc::channel();
    let wake = move || sender.send(()).unwrap_or_default();
    let _watch = cluster.idle_watches().watch(&cluster, vec![(partition, 1_000)], wake);
    send(&mut producer, 0);
    producer.commit().unwrap();
    woken.recv_timeout(Duration::from_secs(30)).unwrap();
}
