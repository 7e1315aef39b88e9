//! The requests of a fetcher: Fetch, and ListOffsets for the first offset of a partition.
//!
//! Fetch sessions (KIP-227) would shorten the requests for thousands of partitions. They are not
//! used: a request names all partitions that are wanted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{FetchRequest, ListOffsetsRequest, ListOffsetsResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use trunkline_connector::TopicPartition;

use super::fetcher::FetchOptions;
use super::partition::Wanted;

/// The versions of Fetch that name topics. Later ones have the ids of topics.
pub(in crate::kafka::wire) const FETCH_VERSIONS: std::ops::RangeInclusive<i16> = 4..=12;

/// The versions of ListOffsets that answer with one offset.
pub(in crate::kafka::wire) const LIST_OFFSETS_VERSIONS: std::ops::RangeInclusive<i16> = 1..=6;

/// The first version with the client's rack (KIP-392).
const RACK_VERSION: i16 = 11;

const EARLIEST: i64 = -2;
const LATEST: i64 = -1;

/// Compressed bytes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) struct FetchLimits {
    /// Of one partition.
    pub(in crate::kafka) partition_bytes: i32,
    /// Of all partitions. A batch that is larger still comes (KIP-74).
    pub(in crate::kafka) answer_bytes: i32,
}

/// A request for records of these partitions. The broker answers at once if it has any,
/// and otherwise after `wait`. Partitions that come first have precedence.
pub(in crate::kafka::wire) fn fetch(
    version: i16,
    wanted: &[(TopicPartition, Wanted)],
    options: &FetchOptions,
    wait: Duration,
) -> FetchRequest {
    let asked = |(TopicPartition { topic, partition }, wanted): &(TopicPartition, Wanted)| {
        let asked = FetchPartition::default()
            .with_partition(*partition)
            .with_fetch_offset(wanted.offset)
            .with_partition_max_bytes(options.limits.partition_bytes);
        (topic.clone(), asked)
    };
    let topics = by_topic(wanted.iter().map(asked))
        .into_iter()
        .map(|(topic, asked)| FetchTopic::default().with_topic(name(&topic)).with_partitions(asked))
        .collect();
    let request = FetchRequest::default()
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .with_min_bytes(1)
        .with_max_bytes(options.limits.answer_bytes)
        .with_isolation_level(options.isolation as i8)
        .with_topics(topics);
    if version < RACK_VERSION { request } else { request.with_rack_id(StrBytes::from_string(options.rack.clone())) }
}

/// A request for the first offsets of these partitions.
pub(in crate::kafka::wire) fn first_offsets(wanted: &[(TopicPartition, Wanted)]) -> ListOffsetsRequest {
    let asked = |(TopicPartition { topic, partition }, _): &(TopicPartition, Wanted)| {
        (topic.clone(), ListOffsetsPartition::default().with_partition_index(*partition).with_timestamp(EARLIEST))
    };
    let topics = by_topic(wanted.iter().map(asked))
        .into_iter()
        .map(|(topic, asked)| ListOffsetsTopic::default().with_name(name(&topic)).with_partitions(asked))
        .collect();
    ListOffsetsRequest::default().with_topics(topics)
}

/// Which records a reader sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Isolation {
    /// Those of open and of aborted transactions, too. The numbers are those of the protocol.
    Uncommitted = 0,
    Committed = 1,
}

/// An end of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Bound {
    /// The first offset.
    First,
    /// The offset after the last record, or the last stable offset: the end of what is decided.
    End(Isolation),
}

/// A request for an end of a partition.
pub(in crate::kafka) fn bound(topic: &str, partition: i32, which: Bound) -> ListOffsetsRequest {
    let (timestamp, isolation) = match which {
        Bound::First => (EARLIEST, Isolation::Uncommitted),
        Bound::End(isolation) => (LATEST, isolation),
    };
    let asked = ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(timestamp);
    let topic = ListOffsetsTopic::default().with_name(name(topic)).with_partitions(vec![asked]);
    ListOffsetsRequest::default().with_isolation_level(isolation as i8).with_topics(vec![topic])
}

/// The error and the offset in the answer to [`bound`].
pub(in crate::kafka) fn bound_of(answer: &ListOffsetsResponse) -> (i16, i64) {
    let found = answer.topics.iter().flat_map(|topic| &topic.partitions).next();
    found.map_or((ResponseError::UnknownServerError.code(), -1), |found| (found.error_code, found.offset))
}

/// Groups items by topic, in the order in which the topics occur first.
fn by_topic<T>(items: impl Iterator<Item = (Arc<str>, T)>) -> Vec<(Arc<str>, Vec<T>)> {
    let mut topics: Vec<(Arc<str>, Vec<T>)> = Vec::new();
    let mut places = HashMap::new();
    for (topic, item) in items {
        let place = *places.entry(topic.clone()).or_insert(topics.len());
        match topics.get_mut(place) {
            Some((_, items)) => items.push(item),
            None => topics.push((topic, vec![item])),
        }
    }
    topics
}

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}
