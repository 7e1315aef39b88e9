//! OffsetCommit, OffsetFetch, OffsetDelete (KIP-211, KIP-447, KIP-496).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Buf;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse, OffsetFetchRequest,
    OffsetFetchResponse, TopicName,
};

use super::{code, text};
use crate::clock::now_ms;
use crate::group::GroupSlot;
use crate::group::membership::Identity;
use crate::group::offsets::{Committed, MAX_METADATA_BYTES};
use crate::group::state::Phase;
use crate::request::Call;

/// The checks of an offset commit that do not depend on the group.
pub(super) fn check_offset(call: &Call<'_>, topic: &str, partition: i32, metadata: &str) -> Result<(), ResponseError> {
    if call.broker.topics.partition(topic, partition).is_none() {
        return Err(ResponseError::UnknownTopicOrPartition);
    }
    if metadata.len() > MAX_METADATA_BYTES {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    Ok(())
}

pub(crate) fn offset_commit(call: &Call<'_>, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let sender = Identity {
        member_id: &request.member_id,
        instance_id: request.group_instance_id.as_deref(),
        generation: request.generation_id_or_member_epoch,
    };
    let mut offsets = BTreeMap::new();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut check = |partition: &OffsetCommitRequestPartition| {
            let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
            let checked = check_offset(call, &topic.name, partition.partition_index, metadata);
            if checked.is_ok() {
                let committed = Committed {
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: metadata.to_owned(),
                    committed_ms: now_ms(),
                };
                offsets.insert((topic.name.to_string(), partition.partition_index), committed);
            }
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(&checked))
        };
        let partitions = topic.partitions.iter().map(&mut check).collect();
        topics.push(OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions));
    }
    let result = commit(call, &request.group_id, sender, offsets);
    if result.is_err() {
        for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            partition.error_code = code(&result);
        }
    }
    OffsetCommitResponse::default().with_topics(topics)
}

fn commit(
    call: &Call<'_>,
    group_id: &str,
    sender: Identity<'_>,
    offsets: BTreeMap<(String, i32), Committed>,
) -> Result<(), ResponseError> {
    let store = &call.broker.store;
    let work = |slot: &mut GroupSlot| {
        // A consumer that assigns its own partitions commits without a generation. The group must
        // have no members.
        let is_standalone = sender.generation < 0 && slot.group.phase == Phase::Empty;
        let names_no_member = sender.generation < 0 && sender.member_id.is_empty() && sender.instance_id.is_none();
        if names_no_member && !is_standalone {
            return Err(ResponseError::UnknownMemberId);
        }
        if !is_standalone {
            slot.group.check(sender)?;
            if slot.group.phase == Phase::CompletingRebalance {
                return Err(ResponseError::RebalanceInProgress);
            }
            slot.group.committed(sender.member_id, Instant::now());
        }
        slot.offsets.commit(group_id, store, offsets).map_err(|_| ResponseError::CoordinatorNotAvailable)
    };
    if sender.generation < 0 {
        return call.broker.groups.with_or_create(group_id, work);
    }
    let unknown_group =
        if call.version >= 9 { ResponseError::GroupIdNotFound } else { ResponseError::IllegalGeneration };
    call.broker.groups.with(group_id, work).unwrap_or(Err(unknown_group))
}

/// An offset in an OffsetFetch response.
struct Answer {
    index: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
    error: i16,
}

fn lookup(slot: Option<&GroupSlot>, topic: &str, index: i32, require_stable: bool) -> Answer {
    let none = Answer { index, offset: -1, leader_epoch: -1, metadata: String::new(), error: 0 };
    let Some(slot) = slot else { return none };
    if require_stable && slot.offsets.is_pending(topic, index) {
        return Answer { error: ResponseError::UnstableOffsetCommit.code(), ..none };
    }
    match slot.offsets.get(topic, index) {
        None => none,
        Some(committed) => Answer {
            offset: committed.offset,
            leader_epoch: committed.leader_epoch,
            metadata: committed.metadata.clone(),
            ..none
        },
    }
}

type Asked = Option<Vec<(TopicName, Vec<i32>)>>;

/// The offsets of one group: of the requested partitions, or of all partitions that have one.
fn fetch_group(call: &Call<'_>, group_id: &str, asked: Asked, require_stable: bool) -> Vec<(TopicName, Vec<Answer>)> {
    let answer = |slot: Option<&GroupSlot>| match asked {
        Some(topics) => {
            let answer = |(name, indexes): (TopicName, Vec<i32>)| {
                let answers = indexes.iter().map(|index| lookup(slot, &name, *index, require_stable)).collect();
                (name, answers)
            };
            topics.into_iter().map(answer).collect()
        }
        None => {
            let mut by_topic: BTreeMap<String, Vec<Answer>> = BTreeMap::new();
            for (topic, index) in slot.map(|slot| slot.offsets.partitions()).unwrap_or_default() {
                let answer = lookup(slot, &topic, index, require_stable);
                if answer.offset >= 0 || answer.error != 0 {
                    by_topic.entry(topic).or_default().push(answer);
                }
            }
            by_topic.into_iter().map(|(name, answers)| (TopicName(text(name)), answers)).collect()
        }
    };
    // `with` does not call its closure for a group that does not exist; then the second use
    // answers.
    let mut answer = Some(answer);
    let found = call.broker.groups.with(group_id, |slot| answer.take().map(|answer| answer(Some(slot))));
    found.flatten().or_else(|| answer.take().map(|answer| answer(None))).unwrap_or_default()
}

pub(crate) fn offset_fetch(call: &Call<'_>, request: OffsetFetchRequest) -> OffsetFetchResponse {
    let stable = request.require_stable;
    if call.version < 8 {
        let asked = request.topics.map(|topics| topics.into_iter().map(|t| (t.name, t.partition_indexes)).collect());
        let describe = |answer: Answer| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(answer.index)
                .with_committed_offset(answer.offset)
                .with_committed_leader_epoch(answer.leader_epoch)
                .with_metadata(Some(text(answer.metadata)))
                .with_error_code(answer.error)
        };
        let topics = fetch_group(call, &request.group_id, asked, stable).into_iter().map(|(name, answers)| {
            let partitions = answers.into_iter().map(describe).collect();
            OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions)
        });
        return OffsetFetchResponse::default().with_topics(topics.collect());
    }
    let mut groups = Vec::with_capacity(request.groups.len());
    for group in request.groups {
        let asked = group.topics.map(|topics| topics.into_iter().map(|t| (t.name, t.partition_indexes)).collect());
        let describe = |answer: Answer| {
            OffsetFetchResponsePartitions::default()
                .with_partition_index(answer.index)
                .with_committed_offset(answer.offset)
                .with_committed_leader_epoch(answer.leader_epoch)
                .with_metadata(Some(text(answer.metadata)))
                .with_error_code(answer.error)
        };
        let topics = fetch_group(call, &group.group_id, asked, stable).into_iter().map(|(name, answers)| {
            let partitions = answers.into_iter().map(describe).collect();
            OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions)
        });
        groups.push(OffsetFetchResponseGroup::default().with_group_id(group.group_id).with_topics(topics.collect()));
    }
    OffsetFetchResponse::default().with_groups(groups)
}

pub(crate) fn offset_delete(call: &Call<'_>, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let broker = call.broker;
    if request.group_id.is_empty() {
        return OffsetDeleteResponse::default().with_error_code(ResponseError::InvalidGroupId.code());
    }
    let deleted = broker.groups.with(&request.group_id, |slot| {
        let subscribed = subscribed_topics(slot)?;
        let mut topics = Vec::with_capacity(request.topics.len());
        for topic in &request.topics {
            let is_in_use = subscribed.contains(topic.name.as_str());
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for partition in &topic.partitions {
                let key = (topic.name.to_string(), partition.partition_index);
                let result = if is_in_use {
                    Err(ResponseError::GroupSubscribedToTopic)
                } else if broker.topics.partition(&key.0, key.1).is_none() {
                    Err(ResponseError::UnknownTopicOrPartition)
                } else {
                    let removed = slot.offsets.remove(&request.group_id, &broker.store, &[key]);
                    removed.map_err(|_| ResponseError::CoordinatorNotAvailable)
                };
                partitions.push(
                    OffsetDeleteResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(code(&result)),
                );
            }
            topics.push(OffsetDeleteResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions));
        }
        Ok(topics)
    });
    match deleted.unwrap_or(Err(ResponseError::GroupIdNotFound)) {
        Ok(topics) => OffsetDeleteResponse::default().with_topics(topics),
        Err(error) => OffsetDeleteResponse::default().with_error_code(error.code()),
    }
}

/// The topics that the members of a group subscribe to.
fn subscribed_topics(slot: &GroupSlot) -> Result<BTreeSet<String>, ResponseError> {
    if slot.group.members.is_empty() {
        return Ok(BTreeSet::new());
    }
    if slot.group.protocol_type.as_deref() != Some("consumer") {
        return Err(ResponseError::NonEmptyGroup);
    }
    let metadata = slot.group.members.values().flat_map(|member| &member.protocols).map(|(_, metadata)| metadata);
    // Metadata in a private format is skipped.
    Ok(metadata.filter_map(|metadata| read_subscription(metadata)).flatten().collect())
}

/// The topics in a consumer's subscription: version, count, and `count` strings. Decoded by hand:
/// the count is not trusted, so nothing is allocated for it.
fn read_subscription(mut metadata: &[u8]) -> Option<Vec<String>> {
    metadata.try_get_i16().ok()?;
    let count = metadata.try_get_i32().ok()?;
    let mut topics = Vec::new();
    for _ in 0..count {
        let length = usize::try_from(metadata.try_get_i16().ok()?).ok()?;
        let name = metadata.get(..length)?;
        topics.push(String::from_utf8_lossy(name).into_owned());
        metadata.advance(length);
    }
    Some(topics)
}
