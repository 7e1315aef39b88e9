//! Questions about a consumer group that any client may ask: its committed offsets and its members.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::offset_fetch_response::OffsetFetchResponse;
use kafka_protocol::messages::{DescribeGroupsRequest, GroupId, OffsetFetchRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use trunkline_connector::{Result, TopicPartition};

use super::brokers::{Brokers, Coordinator, Target};
use super::errors::code;
use crate::kafka::client::classify_code;

/// The version of OffsetFetch that waits for open transactions and asks for one group.
const OFFSET_FETCH: std::ops::RangeInclusive<i16> = 7..=7;

/// A member of a stable group, as its coordinator knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka) struct GroupMember {
    pub(in crate::kafka) id: String,
    /// See [`partitions_of`](super::group::partitions_of).
    pub(in crate::kafka) assignment: Bytes,
}

/// The committed offsets of a group, in the order of `partitions`; -1 where there is none. Waits
/// until no transaction that covers them is open (KIP-447), at most until `deadline`.
pub(in crate::kafka) fn committed(
    brokers: &mut Brokers,
    group: &str,
    partitions: &[TopicPartition],
    deadline: Instant,
) -> Result<Vec<i64>> {
    let mut topics = HashMap::<&str, Vec<i32>>::new();
    for partition in partitions {
        topics.entry(&partition.topic).or_default().push(partition.partition);
    }
    let asked = topics.into_iter().map(|(topic, partitions)| {
        let name = TopicName(StrBytes::from_string(topic.to_owned()));
        OffsetFetchRequestTopic::default().with_name(name).with_partition_indexes(partitions)
    });
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
        .with_topics(Some(asked.collect()))
        .with_require_stable(true);
    let doing = format!("reading committed offsets in group `{group}`");
    let answer = brokers
        .ask(Target::Coordinator(Coordinator::Group, group), OFFSET_FETCH, &request, deadline, first_error)
        .map_err(|error| error.explain(&doing, brokers.cluster()))?;
    let error = first_error(&answer);
    if error != 0 {
        return Err(classify_code(Some(code(error)), format!("{doing}: {}", code(error))));
    }
    let mut offsets = HashMap::new();
    for topic in &answer.topics {
        for partition in &topic.partitions {
            offsets.insert((topic.name.0.as_str(), partition.partition_index), partition.committed_offset);
        }
    }
    let offset_of = |partition: &TopicPartition| {
        offsets.get(&(partition.topic.as_ref(), partition.partition)).copied().unwrap_or(-1).max(-1)
    };
    Ok(partitions.iter().map(offset_of).collect())
}

fn first_error(answer: &OffsetFetchResponse) -> i16 {
    let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code);
    std::iter::once(answer.error_code).chain(partitions).find(|error| *error != 0).unwrap_or(0)
}

/// The members of a group; `None` while it is not stable.
pub(in crate::kafka) fn members(
    brokers: &mut Brokers,
    group: &str,
    deadline: Instant,
) -> Result<Option<Vec<GroupMember>>> {
    let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(StrBytes::from_string(group.to_owned()))]);
    let doing = format!("describing the group `{group}`");
    let error_of = |answer: &kafka_protocol::messages::DescribeGroupsResponse| {
        answer.groups.first().map_or(0, |group| group.error_code)
    };
    let answer = brokers
        .ask(Target::Coordinator(Coordinator::Group, group), 0..=5, &request, deadline, error_of)
        .map_err(|error| error.explain(&doing, brokers.cluster()))?;
    let error = error_of(&answer);
    if error != 0 {
        return Err(classify_code(Some(code(error)), format!("{doing}: {}", code(error))));
    }
    let stable = answer.groups.into_iter().find(|group| group.group_state.as_str() == "Stable");
    let member = |member: kafka_protocol::messages::describe_groups_response::DescribedGroupMember| GroupMember {
        id: member.member_id.to_string(),
        assignment: member.member_assignment,
    };
    Ok(stable.map(|group| group.members.into_iter().map(member).collect()))
}
