//! What the members of a group tell each other through the coordinator: a version, then the
//! subscription of a member, or its assignment.
//!
//! Version 1 of a subscription has the partitions that the member owns (KIP-429), version 2 also
//! the generation in which it got them (KIP-792).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition as AssignedTopic;
use kafka_protocol::messages::consumer_protocol_subscription::TopicPartition as OwnedTopic;
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use trunkline_connector::TopicPartition;

/// The name of this protocol in JoinGroup.
pub(super) const TYPE: &str = "consumer";

/// How the leader divides the partitions. Every member must know it: librdkafka and the Java client
/// have the same name.
pub(super) const STRATEGY: &str = "cooperative-sticky";

/// The version of subscriptions and assignments that are written.
const SUBSCRIPTION_VERSION: i16 = 2;
const ASSIGNMENT_VERSION: i16 = 1;

/// The last versions that are known. Later ones have further fields at their end.
const MAX_SUBSCRIPTION_VERSION: i16 = 3;
const MAX_ASSIGNMENT_VERSION: i16 = 3;

/// What a member tells the leader of its group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Subscription {
    pub(super) topics: BTreeSet<Arc<str>>,
    pub(super) owned: BTreeSet<TopicPartition>,
    /// The generation in which the member got them; -1 if it does not say.
    pub(super) generation: i32,
}

impl Subscription {
    pub(super) fn encode(&self) -> Option<Bytes> {
        let mut owned = Vec::new();
        for (topic, partitions) in by_topic(&self.owned) {
            owned.push(OwnedTopic::default().with_topic(name(topic)).with_partitions(partitions));
        }
        let topics = self.topics.iter().map(|topic| StrBytes::from_string(topic.to_string())).collect();
        let subscription = ConsumerProtocolSubscription::default()
            .with_topics(topics)
            .with_owned_partitions(owned)
            .with_generation_id(self.generation);
        with_version(SUBSCRIPTION_VERSION, &subscription)
    }

    /// `None` if the bytes are no subscription.
    pub(super) fn decode(bytes: &Bytes) -> Option<Self> {
        let (_, found) = without_version::<ConsumerProtocolSubscription>(bytes, MAX_SUBSCRIPTION_VERSION)?;
        let owned = found.owned_partitions.iter().map(|owned| (owned.topic.as_str(), owned.partitions.as_slice()));
        Some(Self {
            topics: found.topics.iter().map(|topic| Arc::from(topic.as_str())).collect(),
            owned: partitions(owned).into_iter().collect(),
            generation: found.generation_id,
        })
    }
}

/// The partitions of a member, as the leader sends them.
pub(in crate::kafka) fn assignment<'p>(partitions: impl IntoIterator<Item = &'p TopicPartition>) -> Option<Bytes> {
    let mut assigned = Vec::new();
    for (topic, partitions) in by_topic(partitions) {
        assigned.push(AssignedTopic::default().with_topic(name(topic)).with_partitions(partitions));
    }
    with_version(ASSIGNMENT_VERSION, &ConsumerProtocolAssignment::default().with_assigned_partitions(assigned))
}

/// The partitions of an assignment; `None` if the bytes are none. A member without partitions may
/// have no bytes.
pub(in crate::kafka) fn partitions_of(bytes: &Bytes) -> Option<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let (_, found) = without_version::<ConsumerProtocolAssignment>(bytes, MAX_ASSIGNMENT_VERSION)?;
    let assigned = &found.assigned_partitions;
    Some(partitions(assigned.iter().map(|assigned| (assigned.topic.as_str(), assigned.partitions.as_slice()))))
}

fn partitions<'t>(topics: impl Iterator<Item = (&'t str, &'t [i32])>) -> Vec<TopicPartition> {
    let mut found = Vec::new();
    for (topic, numbers) in topics {
        let topic: Arc<str> = Arc::from(topic);
        found.extend(numbers.iter().map(|partition| TopicPartition { topic: topic.clone(), partition: *partition }));
    }
    found
}

fn by_topic<'p>(partitions: impl IntoIterator<Item = &'p TopicPartition>) -> BTreeMap<&'p Arc<str>, Vec<i32>> {
    let mut topics = BTreeMap::<&Arc<str>, Vec<i32>>::new();
    for partition in partitions {
        topics.entry(&partition.topic).or_default().push(partition.partition);
    }
    topics
}

fn name(topic: &Arc<str>) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_string()))
}

/// `None` if a topic's name is too long, which no broker accepts.
fn with_version(version: i16, message: &impl Encodable) -> Option<Bytes> {
    let mut bytes = BytesMut::new();
    bytes.put_i16(version);
    message.encode(&mut bytes, version).ok()?;
    Some(bytes.freeze())
}

fn without_version<M: Decodable>(bytes: &Bytes, max: i16) -> Option<(i16, M)> {
    let mut bytes = bytes.clone();
    let version = bytes.try_get_i16().ok().filter(|version| *version >= 0)?.min(max);
    Some((version, M::decode(&mut bytes, version).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition { topic: Arc::from(topic), partition }
    }

    #[test]
    fn subscriptions_are_read_as_they_were_written() {
        let subscription = Subscription {
            topics: [Arc::from("a"), Arc::from("b")].into(),
            owned: [partition("a", 0), partition("a", 7), partition("b", 1)].into(),
            generation: 3,
        };
        assert_eq!(Subscription::decode(&subscription.encode().unwrap()), Some(subscription));
        let nothing = Subscription { generation: -1, ..Subscription::default() };
        assert_eq!(Subscription::decode(&nothing.encode().unwrap()), Some(nothing));
    }

    /// As librdkafka writes it: version 1, no user data.
    #[test]
    fn subscriptions_of_other_clients_are_read() {
        let owned = [&[0, 0, 0, 1, 0, 1, b'a'][..], &1_i32.to_be_bytes(), &5_i32.to_be_bytes()].concat();
        let one = [&[0, 1, 0, 0, 0, 1, 0, 1, b'a', 0, 0, 0, 0][..], &owned].concat();
        let expected =
            Subscription { topics: [Arc::from("a")].into(), owned: [partition("a", 5)].into(), generation: -1 };
        assert_eq!(Subscription::decode(&one.into()), Some(expected.clone()));
        // A later version with a field that is not known yet, and the first one without partitions.
        let later = [&[0, 9, 0, 0, 0, 1, 0, 1, b'a', 0, 0, 0, 0][..], &owned, &[255; 4], &[255; 2], &[1, 2]].concat();
        assert_eq!(Subscription::decode(&later.into()), Some(expected.clone()));
        let first = Bytes::from_static(&[0, 0, 0, 0, 0, 1, 0, 1, b'a', 255, 255, 255, 255]);
        assert_eq!(Subscription::decode(&first).unwrap().owned, BTreeSet::new());
    }

    #[test]
    fn assignments_are_read_as_they_were_written_and_truncated_ones_are_refused() {
        let partitions = [partition("a", 0), partition("a", 2), partition("b", 1)];
        let bytes = assignment(&partitions).unwrap();
        assert_eq!(partitions_of(&bytes), Some(partitions.to_vec()));
        assert_eq!(partitions_of(&Bytes::new()), Some(Vec::new()));
        (1..bytes.len() - 4)
            .for_each(|length| assert_eq!(partitions_of(&bytes.slice(..length)), None, "{length} bytes"));
    }
}
