//! Faults for tests: lost, late and failed responses to single requests.
//!
//! A client that gets no response does not know whether the broker executed its request.
//! [`Fault::DropReply`] creates this situation for a request that the test chooses. Exists only
//! with the feature `fault-injection`.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
pub use kafka_protocol::messages::ApiKey;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::*;

use crate::request::Close;
use crate::request::response::Response;
use crate::request::{Call, decode};
use crate::sync::lock;

/// A fault of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The broker executes the request and closes the connection instead of answering.
    DropReply,
    /// The broker executes the request and delays the response.
    Delay(Duration),
    /// The broker does not execute the request and answers with this error code for all its items.
    /// Only for the APIs in [`Faults::ANSWERABLE`].
    Error(i16),
}

/// The planned faults of a broker.
#[derive(Debug, Default)]
pub struct Faults {
    planned: Mutex<HashMap<i16, Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    seen: u64,
    faults: HashMap<u64, Fault>,
}

impl Faults {
    /// The APIs that support [`Fault::Error`].
    pub const ANSWERABLE: &'static [ApiKey] = &[
        ApiKey::Produce,
        ApiKey::OffsetCommit,
        ApiKey::TxnOffsetCommit,
        ApiKey::AddPartitionsToTxn,
        ApiKey::AddOffsetsToTxn,
        ApiKey::EndTxn,
        ApiKey::InitProducerId,
        ApiKey::JoinGroup,
        ApiKey::SyncGroup,
        ApiKey::Heartbeat,
        ApiKey::Fetch,
        ApiKey::ListOffsets,
    ];

    /// Plans a fault for the `nth` request of an API from now on, counting from 1.
    ///
    /// # Panics
    /// If the fault is an error and the API is not in [`Faults::ANSWERABLE`].
    pub fn inject(&self, api: ApiKey, nth: u64, fault: Fault) {
        let is_possible = !matches!(fault, Fault::Error(_)) || Self::ANSWERABLE.contains(&api);
        assert!(is_possible, "faults cannot inject an error into {api:?}");
        let mut planned = lock(&self.planned);
        let plan = planned.entry(api as i16).or_default();
        let at = plan.seen + nth;
        plan.faults.insert(at, fault);
    }

    /// Removes all planned faults.
    pub fn clear(&self) {
        lock(&self.planned).clear();
    }

    /// The number of planned faults that have not happened.
    pub fn pending(&self) -> usize {
        lock(&self.planned).values().map(|plan| plan.faults.len()).sum()
    }

    /// Counts a request and returns its fault.
    pub(crate) fn next(&self, api: ApiKey) -> Injected {
        let mut planned = lock(&self.planned);
        let plan = planned.entry(api as i16).or_default();
        plan.seen += 1;
        let seen = plan.seen;
        Injected(plan.faults.remove(&seen))
    }
}

/// The fault of one request, if any.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Injected(Option<Fault>);

impl Injected {
    /// The response that replaces the execution.
    pub(crate) async fn before(&self, call: &Call<'_>, key: ApiKey, frame: &Bytes) -> Result<Option<Response>, Close> {
        match self.0 {
            Some(Fault::Error(code)) => refuse(call, key, frame.clone(), code).map(Some),
            _ => Ok(None),
        }
    }

    pub(crate) async fn after(&self) -> Result<(), Close> {
        match self.0 {
            Some(Fault::DropReply) => Err(Close::Injected),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn refuse(call: &Call<'_>, key: ApiKey, frame: Bytes, code: i16) -> Result<Response, Close> {
    let version = call.version;
    match key {
        ApiKey::Produce => {
            let answer = |topic: produce_request::TopicProduceData| {
                let partitions = topic.partition_data.iter().map(|partition| {
                    PartitionProduceResponse::default()
                        .with_index(partition.index)
                        .with_error_code(code)
                        .with_base_offset(-1)
                });
                TopicProduceResponse::default().with_partition_responses(partitions.collect()).with_name(topic.name)
            };
            let request = decode::<ProduceRequest>(frame, version)?;
            let topics = request.topic_data.into_iter().map(answer).collect();
            call.envelope.answer::<ProduceRequest>(&ProduceResponse::default().with_responses(topics))
        }
        ApiKey::OffsetCommit => {
            let answer = |topic: offset_commit_request::OffsetCommitRequestTopic| {
                let partitions = topic.partitions.iter().map(|partition| {
                    OffsetCommitResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(code)
                });
                OffsetCommitResponseTopic::default().with_partitions(partitions.collect()).with_name(topic.name)
            };
            let request = decode::<OffsetCommitRequest>(frame, version)?;
            let topics = request.topics.into_iter().map(answer).collect();
            call.envelope.answer::<OffsetCommitRequest>(&OffsetCommitResponse::default().with_topics(topics))
        }
        ApiKey::TxnOffsetCommit => {
            let answer = |topic: txn_offset_commit_request::TxnOffsetCommitRequestTopic| {
                let partitions = topic.partitions.iter().map(|partition| {
                    TxnOffsetCommitResponsePartition::default()
                        .with_partition_index(partition.partition_index)
                        .with_error_code(code)
                });
                TxnOffsetCommitResponseTopic::default().with_partitions(partitions.collect()).with_name(topic.name)
            };
            let request = decode::<TxnOffsetCommitRequest>(frame, version)?;
            let topics = request.topics.into_iter().map(answer).collect();
            call.envelope.answer::<TxnOffsetCommitRequest>(&TxnOffsetCommitResponse::default().with_topics(topics))
        }
        ApiKey::AddPartitionsToTxn => {
            let answer = |topic: add_partitions_to_txn_request::AddPartitionsToTxnTopic| {
                let partitions = topic.partitions.iter().map(|index| {
                    AddPartitionsToTxnPartitionResult::default()
                        .with_partition_index(*index)
                        .with_partition_error_code(code)
                });
                AddPartitionsToTxnTopicResult::default()
                    .with_results_by_partition(partitions.collect())
                    .with_name(topic.name)
            };
            let request = decode::<AddPartitionsToTxnRequest>(frame, version)?;
            let topics = request.v3_and_below_topics.into_iter().map(answer).collect();
            let response = AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics);
            call.envelope.answer::<AddPartitionsToTxnRequest>(&response)
        }
        ApiKey::AddOffsetsToTxn => {
            let response = AddOffsetsToTxnResponse::default().with_error_code(code);
            call.envelope.answer::<AddOffsetsToTxnRequest>(&response)
        }
        ApiKey::EndTxn => call.envelope.answer::<EndTxnRequest>(&EndTxnResponse::default().with_error_code(code)),
        ApiKey::InitProducerId => {
            let response = InitProducerIdResponse::default().with_error_code(code).with_producer_id(ProducerId(-1));
            call.envelope.answer::<InitProducerIdRequest>(&response.with_producer_epoch(-1))
        }
        ApiKey::JoinGroup => {
            let response = JoinGroupResponse::default().with_error_code(code).with_generation_id(-1);
            call.envelope.answer::<JoinGroupRequest>(&response)
        }
        ApiKey::SyncGroup => {
            call.envelope.answer::<SyncGroupRequest>(&SyncGroupResponse::default().with_error_code(code))
        }
        ApiKey::Fetch => {
            let answer = |topic: fetch_request::FetchTopic| {
                let partitions = topic.partitions.iter().map(|asked| {
                    PartitionData::default()
                        .with_partition_index(asked.partition)
                        .with_error_code(code)
                        .with_high_watermark(-1)
                        .with_records(Some(Bytes::new()))
                });
                FetchableTopicResponse::default()
                    .with_partitions(partitions.collect())
                    .with_topic(topic.topic)
                    .with_topic_id(topic.topic_id)
            };
            let request = decode::<FetchRequest>(frame, version)?;
            let topics = request.topics.into_iter().map(answer).collect();
            call.envelope.answer::<FetchRequest>(&FetchResponse::default().with_responses(topics))
        }
        ApiKey::ListOffsets => {
            let answer = |topic: list_offsets_request::ListOffsetsTopic| {
                let partitions = topic.partitions.iter().map(|asked| {
                    ListOffsetsPartitionResponse::default()
                        .with_partition_index(asked.partition_index)
                        .with_error_code(code)
                });
                ListOffsetsTopicResponse::default().with_partitions(partitions.collect()).with_name(topic.name)
            };
            let request = decode::<ListOffsetsRequest>(frame, version)?;
            let topics = request.topics.into_iter().map(answer).collect();
            call.envelope.answer::<ListOffsetsRequest>(&ListOffsetsResponse::default().with_topics(topics))
        }
        ApiKey::Heartbeat => {
            call.envelope.answer::<HeartbeatRequest>(&HeartbeatResponse::default().with_error_code(code))
        }
        other => Err(Close::protocol_violation(format!("faults cannot inject an error into {other:?}"))),
    }
}
