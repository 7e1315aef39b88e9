//! The requests of a transactional producer to its coordinator (KIP-98, KIP-360, KIP-447).
//!
//! The order is: InitProducerId fences the earlier producer with the same id and ends its
//! transaction. AddPartitionsToTxn precedes the first record of each partition. AddOffsetsToTxn and
//! TxnOffsetCommit add the positions of a group. EndTxn commits or aborts; the brokers write the
//! markers of a transaction after its answer, and until then the next one is refused as concurrent.

use std::collections::BTreeMap;
use std::time::Instant;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, EndTxnRequest, GroupId,
    InitProducerIdRequest, ProducerId, TopicName, TransactionalId, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use kafka_protocol::protocol::StrBytes;
use trunkline_connector::{Result, TopicPartition};

use super::delivery::failed;
use super::record_batch::Identity;
use crate::kafka::wire::brokers::{Brokers, Coordinator, Target};
use crate::kafka::wire::errors::code;

/// A member of a consumer group, whose generation fences its commits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMetadata {
    /// The group.
    pub group: String,
    /// The group's generation in which the member has its partitions.
    pub generation: i32,
    /// The id that the coordinator gave the member.
    pub member: String,
    /// The id of a static member.
    pub instance: Option<String>,
}

/// The identity of a transactional producer, and its requests.
pub(in crate::kafka) struct Transaction {
    id: String,
    timeout_ms: i32,
    identity: Identity,
    /// Whether the coordinator knows of the open transaction.
    pub(in crate::kafka::wire) has_begun: bool,
}

impl Transaction {
    /// Fences the earlier producer with this id, and ends its transaction.
    pub(in crate::kafka::wire) fn init(
        brokers: &mut Brokers,
        id: &str,
        timeout_ms: i32,
        deadline: Instant,
    ) -> Result<Self> {
        let mut this = Self { id: id.to_owned(), timeout_ms, identity: Identity::NONE, has_begun: false };
        this.request_identity(brokers, &format!("initialising the transactional id `{id}`"), deadline)?;
        Ok(this)
    }

    /// Takes a new epoch, which only the current producer may do. Sequence numbers start again.
    pub(in crate::kafka::wire) fn raise_epoch(&mut self, brokers: &mut Brokers, deadline: Instant) -> Result<()> {
        self.request_identity(brokers, &format!("raising the epoch of the transactional id `{}`", self.id), deadline)
    }

    fn request_identity(&mut self, brokers: &mut Brokers, doing: &str, deadline: Instant) -> Result<()> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(self.transactional_id()))
            .with_transaction_timeout_ms(self.timeout_ms)
            .with_producer_id(ProducerId(self.identity.id))
            .with_producer_epoch(self.identity.epoch);
        let coordinator = Target::Coordinator(Coordinator::Transaction, &self.id);
        let answer = brokers
            .ask(coordinator, 3..=4, &request, deadline, |answer| answer.error_code)
            .map_err(|error| error.explain(doing, brokers.cluster()))?;
        check(doing, answer.error_code)?;
        self.identity = Identity { id: answer.producer_id.0, epoch: answer.producer_epoch };
        Ok(())
    }

    pub(in crate::kafka::wire) fn identity(&self) -> Identity {
        self.identity
    }

    fn transactional_id(&self) -> TransactionalId {
        TransactionalId(StrBytes::from_string(self.id.clone()))
    }

    /// Adds partitions to the transaction.
    pub(in crate::kafka::wire) fn add_partitions(
        &mut self,
        brokers: &mut Brokers,
        partitions: &BTreeMap<String, Vec<i32>>,
        deadline: Instant,
    ) -> Result<()> {
        let topics = partitions.iter().map(|(name, numbers)| {
            AddPartitionsToTxnTopic::default().with_name(topic_name(name)).with_partitions(numbers.clone())
        });
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.transactional_id())
            .with_v3_and_below_producer_id(ProducerId(self.identity.id))
            .with_v3_and_below_producer_epoch(self.identity.epoch)
            .with_v3_and_below_topics(topics.collect());
        let doing = "adding partitions to a transaction";
        // Also if the answer is lost.
        self.has_begun = true;
        let coordinator = Target::Coordinator(Coordinator::Transaction, &self.id);
        let answer = brokers
            .ask(coordinator, 1..=3, &request, deadline, |answer| first_refusal(answer).map_or(0, |(_, error)| error))
            .map_err(|error| error.explain(doing, brokers.cluster()))?;
        if let Some((topic, error)) = first_refusal(&answer) {
            return Err(failed(error, format!("sending to topic `{topic}`: {}", code(error))));
        }
        Ok(())
    }

    /// Adds the positions of a group to the transaction: partitions, and the offsets of the next
    /// records to read.
    pub(in crate::kafka::wire) fn add_offsets(
        &mut self,
        brokers: &mut Brokers,
        next_offsets: &[(&TopicPartition, i64)],
        group: &GroupMetadata,
        deadline: Instant,
    ) -> Result<()> {
        let doing = format!("committing consumer offsets of group `{}` in a transaction", group.group);
        self.has_begun = true;
        let group_id = GroupId(StrBytes::from_string(group.group.clone()));
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_producer_id(ProducerId(self.identity.id))
            .with_producer_epoch(self.identity.epoch)
            .with_group_id(group_id.clone());
        let coordinator = Target::Coordinator(Coordinator::Transaction, &self.id);
        let answer = brokers
            .ask(coordinator, 1..=3, &request, deadline, |answer| answer.error_code)
            .map_err(|error| error.explain(&doing, brokers.cluster()))?;
        check(&doing, answer.error_code)?;
        let mut topics = BTreeMap::<&str, Vec<TxnOffsetCommitRequestPartition>>::new();
        for (partition, next) in next_offsets {
            let position = TxnOffsetCommitRequestPartition::default()
                .with_partition_index(partition.partition)
                .with_committed_offset(*next)
                .with_committed_metadata(Some(StrBytes::default()));
            topics.entry(partition.topic.as_ref()).or_default().push(position);
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            TxnOffsetCommitRequestTopic::default().with_name(topic_name(name)).with_partitions(partitions)
        });
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_group_id(group_id)
            .with_producer_id(ProducerId(self.identity.id))
            .with_producer_epoch(self.identity.epoch)
            .with_generation_id(group.generation)
            .with_member_id(StrBytes::from_string(group.member.clone()))
            .with_group_instance_id(group.instance.clone().map(StrBytes::from_string))
            .with_topics(topics.collect());
        let answer = brokers
            .ask(Target::Coordinator(Coordinator::Group, &group.group), 3..=3, &request, deadline, first_error)
            .map_err(|error| error.explain(&doing, brokers.cluster()))?;
        check(&doing, first_error(&answer))
    }

    /// Commits or aborts the transaction.
    pub(in crate::kafka::wire) fn end(
        &mut self,
        brokers: &mut Brokers,
        is_commit: bool,
        deadline: Instant,
    ) -> Result<()> {
        if !self.has_begun {
            return Ok(());
        }
        let doing = if is_commit { "committing a transaction" } else { "aborting a transaction" };
        let request = EndTxnRequest::default()
            .with_transactional_id(self.transactional_id())
            .with_producer_id(ProducerId(self.identity.id))
            .with_producer_epoch(self.identity.epoch)
            .with_committed(is_commit);
        let coordinator = Target::Coordinator(Coordinator::Transaction, &self.id);
        let answer = brokers
            .ask(coordinator, 1..=3, &request, deadline, |answer| answer.error_code)
            .map_err(|error| error.explain(doing, brokers.cluster()))?;
        check(doing, answer.error_code)?;
        self.has_begun = false;
        Ok(())
    }
}

fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

fn check(doing: &str, error: i16) -> Result<()> {
    if error == 0 { Ok(()) } else { Err(failed(error, format!("{doing}: {}", code(error)))) }
}

/// The first topic that was refused. Those that were refused because of another one come last.
fn first_refusal(answer: &AddPartitionsToTxnResponse) -> Option<(String, i16)> {
    let not_attempted = ResponseError::OperationNotAttempted.code();
    let refused = answer.results_by_topic_v3_and_below.iter().flat_map(|topic| {
        let errors = topic.results_by_partition.iter().map(|partition| partition.partition_error_code);
        errors.map(|error| (topic.name.0.to_string(), error))
    });
    let mut refused: Vec<(String, i16)> = refused.filter(|(_, error)| *error != 0).collect();
    refused.sort_by_key(|(_, error)| *error == not_attempted);
    refused.into_iter().next()
}

fn first_error(answer: &TxnOffsetCommitResponse) -> i16 {
    let errors = answer.topics.iter().flat_map(|topic| topic.partitions.iter().map(|partition| partition.error_code));
    errors.into_iter().find(|error| *error != 0).unwrap_or(0)
}
