//! Memberships of consumer groups: who owns which partitions, and when.

use std::collections::BTreeSet;

use trunkline_broker::{ApiKey, Fault};

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

/// A session that is longer than the limit: only an event can have caused what happens within it.
const LONG_SESSION: &str = "60000";
/// The shortest session that brokers accept, and less than it: what takes longer can have waited
/// for its end.
const SHORT_SESSION: &str = "6000";
const PART_OF_A_SESSION: Duration = Duration::from_secs(3);

// Error codes of the protocol.
const LOAD_IN_PROGRESS: i16 = 14;
const COORDINATOR_NOT_AVAILABLE: i16 = 15;
const NOT_COORDINATOR: i16 = 16;
const ILLEGAL_GENERATION: i16 = 22;
const UNKNOWN_MEMBER_ID: i16 = 25;
const REBALANCE_IN_PROGRESS: i16 = 27;

/// A member, and the partitions that it works on.
struct Stage {
    name: &'static str,
    consumer: GroupConsumer,
    owned: BTreeSet<TopicPartition>,
    /// How many partitions it has lost.
    lost: usize,
}

impl Stage {
    fn join(cluster: &Cluster, name: &'static str) -> Self {
        Self::subscribe(cluster, name, "a")
    }

    fn subscribe(cluster: &Cluster, name: &'static str, topic: &str) -> Self {
        let consumer = GroupConsumer::join(cluster, "g", name, &[topic.to_owned()], 1 << 20).unwrap();
        Self { name, consumer, owned: BTreeSet::new(), lost: 0 }
    }

    fn poll(&mut self, wait: Duration) {
        self.consumer.keep_alive(wait).unwrap();
        self.take_events();
    }

    fn take_events(&mut self) {
        for event in self.consumer.rebalance_events() {
            match event {
                RebalanceEvent::Assigned(partitions) => {
                    partitions.into_iter().for_each(|new| assert!(self.owned.insert(new), "it has the partition"));
                }
                RebalanceEvent::Revoked(partitions) => {
                    self.lost += partitions.len();
                    partitions.iter().for_each(|old| assert!(self.owned.remove(old), "it does not have the partition"));
                }
            }
        }
    }
}

/// Polls until a condition holds, and returns how long that took. No partition has two owners.
fn poll_until(what: &str, stages: &mut [&mut Stage], is_done: impl Fn(&[&mut Stage]) -> bool) -> Duration {
    let begun = Instant::now();
    while !is_done(stages) {
        let owned: Vec<_> = stages.iter().map(|stage| (stage.name, &stage.owned)).collect();
        assert!(begun.elapsed() < LIMIT, "{what}: {owned:?}");
        for stage in stages.iter_mut() {
            stage.poll(Duration::from_millis(5));
        }
        check_owners(stages.iter().map(|stage| &**stage));
    }
    begun.elapsed()
}

fn check_owners<'s>(stages: impl Iterator<Item = &'s Stage>) {
    let mut owners = BTreeMap::new();
    for stage in stages {
        for partition in &stage.owned {
            let other = owners.insert(partition.clone(), stage.name);
            assert_eq!(other, None, "{} owns {partition:?}, too", stage.name);
        }
    }
}

fn share(stages: &[&mut Stage]) -> Vec<usize> {
    stages.iter().map(|stage| stage.owned.len()).collect()
}

/// A topic with this many partitions, and members with short sessions.
fn start(partitions: i32) -> (Fixture, Cluster) {
    start_with(partitions, SHORT_SESSION)
}

fn start_with(partitions: i32, session: &str) -> (Fixture, Cluster) {
    let fixture = Fixture::start();
    let settings = [("session.timeout.ms", session), ("heartbeat.interval.ms", "50")];
    let cluster = fixture.cluster_with(&settings);
    Admin::new(&cluster).unwrap().ensure(&[spec("a", partitions, &[])]).unwrap();
    (fixture, cluster)
}

#[test]
fn a_revoked_partition_changes_its_owner_once_the_stage_has_handled_that() {
    let (_fixture, cluster) = start_with(2, LONG_SESSION);
    let mut first = Stage::join(&cluster, "g-1");
    poll_until("both partitions are assigned", &mut [&mut first], |stages| share(stages) == [2]);
    let generation = first.consumer.metadata().unwrap().generation;
    let mut second = Stage::join(&cluster, "g-2");
    let begun = Instant::now();
    while first.owned.len() == 2 {
        assert!(begun.elapsed() < LIMIT);
        first.poll(Duration::from_millis(5));
        second.poll(Duration::from_millis(5));
    }
    // It has the event, and may still commit what it has processed: its identity is current.
    assert!(first.consumer.metadata().unwrap().generation > generation);
    let identity = first.consumer.metadata().unwrap();
    for _ in 0..20 {
        second.poll(Duration::from_millis(10));
        assert!(second.owned.is_empty(), "the partition has two owners");
    }
    assert_eq!(first.consumer.metadata().unwrap(), identity);
    poll_until("the partition changes its owner", &mut [&mut first, &mut second], |s| share(s) == [1, 1]);

    second.consumer.leave();
    drop(second);
    poll_until("a member leaves", &mut [&mut first], |stages| share(stages) == [2]);
}

#[test]
fn a_member_that_returns_within_its_session_has_its_partitions_without_a_rebalance() {
    let (_fixture, cluster) = start(4);
    let mut first = Stage::join(&cluster, "g-1");
    poll_until("it has its partitions", &mut [&mut first], |stages| share(stages) == [4]);
    let generation = first.consumer.metadata().unwrap().generation;
    drop(first);
    let mut first = Stage::join(&cluster, "g-1");
    poll_until("it has its partitions", &mut [&mut first], |stages| share(stages) == [4]);
    first.poll(Duration::from_millis(200));
    assert_eq!((first.consumer.metadata().unwrap().generation, first.owned.len()), (generation, 4));
    // Another one gets them once the session has ended.
    drop(first);
    let mut second = Stage::join(&cluster, "g-2");
    let time = poll_until("the session ends", &mut [&mut second], |stages| share(stages) == [4]);
    assert!(time > PART_OF_A_SESSION, "{time:?}");
}

#[test]
fn a_member_that_is_replaced_ends() {
    let (_fixture, cluster) = start(1);
    let mut first = Stage::join(&cluster, "g-1");
    poll_until("the partition is assigned", &mut [&mut first], |stages| share(stages) == [1]);
    let mut second = Stage::join(&cluster, "g-1");
    poll_until("the partition is assigned", &mut [&mut second], |stages| share(stages) == [1]);
    let begun = Instant::now();
    let error = loop {
        match first.consumer.keep_alive(Duration::from_millis(50)) {
            Ok(_) => assert!(begun.elapsed() < LIMIT),
            Err(error) => break error,
        }
    };
    assert_eq!((error.code, error.domain), ("kafka.fenced", Domain::Fenced), "{error}");
    second.poll(Duration::from_millis(200));
    assert_eq!(second.owned.len(), 1);
}

#[test]
fn a_member_without_a_broker_gives_up_its_partitions_when_its_session_ends() {
    let (mut fixture, cluster) = start(1);
    let mut stage = Stage::join(&cluster, "g-1");
    poll_until("the partition is assigned", &mut [&mut stage], |stages| share(stages) == [1]);
    let identity = stage.consumer.metadata().unwrap();
    let broker = fixture.broker.take().unwrap();
    let port = broker.address().port();
    let _ = fixture.runtime.block_on(broker.stop());
    let time = poll_until("the session ends", &mut [&mut stage], |stages| share(stages) == [0]);
    assert!(time > PART_OF_A_SESSION, "{time:?}");
    // Brokers refuse what it would commit.
    assert_eq!(stage.consumer.metadata().unwrap(), identity);
    let mut options = BrokerOptions::new(fixture._folder.path());
    options.listen = (Ipv4Addr::LOCALHOST, port).into();
    fixture.broker = Some(fixture.runtime.block_on(Broker::start(options)).unwrap());
    poll_until("it joins again", &mut [&mut stage], |stages| share(stages) == [1]);
}

#[test]
fn topics_that_match_a_pattern_are_found() {
    let (_fixture, cluster) = start(1);
    let mut stage = Stage::subscribe(&cluster, "g-1", "^a.*");
    poll_until("the partition is assigned", &mut [&mut stage], |stages| share(stages) == [1]);
    Admin::new(&cluster).unwrap().ensure(&[spec("b", 1, &[]), spec("ab", 2, &[])]).unwrap();
    poll_until("the new topic is found", &mut [&mut stage], |stages| share(stages) == [3]);
    assert_eq!(stage.consumer.subscribed_partitions().unwrap().into_iter().collect::<BTreeSet<_>>(), stage.owned);
}

#[test]
fn a_topic_that_is_created_later_is_assigned() {
    let (_fixture, cluster) = start(1);
    let mut stage = Stage::subscribe(&cluster, "g-1", "later");
    stage.poll(Duration::from_millis(300));
    Admin::new(&cluster).unwrap().ensure(&[spec("later", 2, &[])]).unwrap();
    poll_until("the new topic is found", &mut [&mut stage], |stages| share(stages) == [2]);
}

/// The coordinator gives a static member that returns what it had before, which was nothing.
#[test]
fn a_member_that_returns_gets_topics_that_were_created_meanwhile() {
    let (_fixture, cluster) = start_with(1, LONG_SESSION);
    let mut stage = Stage::subscribe(&cluster, "g-1", "later");
    let begun = Instant::now();
    while stage.consumer.metadata().is_err() || stage.consumer.other_members().unwrap().is_none() {
        assert!(begun.elapsed() < LIMIT, "it does not join");
        stage.poll(Duration::from_millis(20));
    }
    assert!(stage.owned.is_empty());
    drop(stage);
    Admin::new(&cluster).unwrap().ensure(&[spec("later", 2, &[])]).unwrap();
    let mut stage = Stage::subscribe(&cluster, "g-1", "later");
    poll_until("the topic is assigned", &mut [&mut stage], |stages| share(stages) == [2]);
}

/// A stage that does not poll loses its partitions, and continues when it polls again.
#[test]
fn a_stage_that_hangs_gives_its_partitions_to_the_others() {
    let fixture = Fixture::start();
    let settings = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "50"), ("max.poll.interval.ms", "1000")];
    let cluster = fixture.cluster_with(&settings);
    Admin::new(&cluster).unwrap().ensure(&[spec("a", 2, &[])]).unwrap();
    let mut hanging = Stage::join(&cluster, "g-1");
    poll_until("both partitions are assigned", &mut [&mut hanging], |stages| share(stages) == [2]);
    let mut other = Stage::join(&cluster, "g-2");
    let begun = Instant::now();
    while other.owned.len() < 2 {
        assert!(begun.elapsed() < LIMIT, "{:?}", other.owned);
        other.poll(Duration::from_millis(5));
    }
    // It may be given some of them again within the same call.
    while hanging.lost < 2 {
        assert!(begun.elapsed() < LIMIT, "{:?}", hanging.owned);
        hanging.poll(Duration::from_millis(5));
    }
    // On a busy machine either may be taken for hanging, and does not know it yet: then both have
    // a partition, for a moment the same one.
    let begun = Instant::now();
    while (hanging.owned.len(), other.owned.len()) != (1, 1) || hanging.owned == other.owned {
        assert!(begun.elapsed() < LIMIT, "{:?} {:?}", hanging.owned, other.owned);
        hanging.poll(Duration::from_millis(5));
        other.poll(Duration::from_millis(5));
    }
}

/// The workers of an earlier version are members by librdkafka: versions mix during an upgrade.
#[test]
fn librdkafka_is_a_member_of_the_same_group() {
    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer as _};

    let (_fixture, cluster) = start(4);
    let mut ours = Stage::join(&cluster, "g-1");
    poll_until("all partitions are assigned", &mut [&mut ours], |stages| share(stages) == [4]);
    let other: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", cluster.brokers())
        .set("group.id", "g")
        .set("group.instance.id", "g-2")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "100")
        .create()
        .unwrap();
    other.subscribe(&["a"]).unwrap();
    let begun = Instant::now();
    let assigned = || other.assignment().unwrap().count();
    while ours.owned.len() != 2 || assigned() != 2 {
        assert!(begun.elapsed() < LIMIT, "{:?} and {}", ours.owned, assigned());
        let _ = other.poll(Duration::from_millis(5));
        ours.poll(Duration::from_millis(5));
    }
    // Now librdkafka is the leader.
    ours.consumer.leave();
    drop(ours);
    while assigned() != 4 {
        assert!(begun.elapsed() < LIMIT, "{}", assigned());
        let _ = other.poll(Duration::from_millis(5));
    }
    let mut ours = Stage::join(&cluster, "g-1");
    while ours.owned.len() != 2 || assigned() != 2 {
        assert!(begun.elapsed() < LIMIT, "{:?} and {}", ours.owned, assigned());
        let _ = other.poll(Duration::from_millis(5));
        ours.poll(Duration::from_millis(5));
    }
}

/// Members come, go, crash and hang while the coordinator fails in every way, by a fixed
/// pseudo-random sequence. A partition never has two owners, and each has one in the end.
#[test]
fn partitions_have_one_owner_whatever_happens() {
    const NAMES: [&str; 4] = ["g-1", "g-2", "g-3", "g-4"];
    let (fixture, cluster) = start(5);
    let faults = fixture.broker.as_ref().unwrap().faults();
    let mut stages: BTreeMap<&str, Stage> = BTreeMap::new();
    let mut state = 42_u32;
    let mut random = |below: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as usize % below
    };
    for _ in 0..120 {
        let name = NAMES[random(NAMES.len())];
        match (stages.remove(name), random(6)) {
            (None, _) => drop(stages.insert(name, Stage::join(&cluster, name))),
            (Some(stage), 0) => stage.consumer.leave(),
            (Some(stage), 1) => {
                drop(stage);
                stages.insert(name, Stage::join(&cluster, name));
            }
            (Some(stage), _) => drop(stages.insert(name, stage)),
        }
        let errors = [
            LOAD_IN_PROGRESS,
            COORDINATOR_NOT_AVAILABLE,
            NOT_COORDINATOR,
            ILLEGAL_GENERATION,
            UNKNOWN_MEMBER_ID,
            REBALANCE_IN_PROGRESS,
        ];
        let api = [ApiKey::JoinGroup, ApiKey::SyncGroup, ApiKey::Heartbeat][random(3)];
        let fault = match random(4) {
            0 => Fault::DropReply,
            1 => Fault::Delay(Duration::from_millis(30)),
            _ => Fault::Error(errors[random(errors.len())]),
        };
        faults.inject(api, 1 + random(3) as u64, fault);
        let hanging = NAMES[random(NAMES.len())];
        for _ in 0..4 {
            for stage in stages.values_mut().filter(|stage| stage.name != hanging) {
                stage.poll(Duration::from_millis(5));
            }
            check_owners(stages.values());
        }
    }
    faults.clear();
    for name in NAMES {
        stages.entry(name).or_insert_with(|| Stage::join(&cluster, name));
    }
    let mut left: Vec<&mut Stage> = stages.values_mut().collect();
    let is_done = |stages: &[&mut Stage]| {
        let shares = share(stages);
        shares.iter().sum::<usize>() == 5 && shares.iter().all(|share| (1..=2).contains(share))
    };
    poll_until("every partition has an owner", &mut left, is_done);
}
