//! What a fetcher does with the answers of brokers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{FetchResponse, ListOffsetsResponse};
use trunkline_connector::{Error, Result, Retry, TopicPartition};

use super::batch::Defect;
use super::fetcher::Fetcher;
use super::partition::{Position, Wanted};
use super::records::{Aborted, BadBatch, FetchedRecords};
use super::requests::Isolation;
use crate::kafka::client::classify_code;
use crate::kafka::wire::errors::{code, is_transient};

impl Fetcher {
    /// Takes the records of an answer, of which `token` counts the parts. Returns whether there are
    /// any.
    pub(in crate::kafka::wire) fn note_records(
        &mut self,
        node: i32,
        answer: &FetchResponse,
        wanted: &BTreeMap<TopicPartition, Wanted>,
        token: &Arc<()>,
    ) -> Result<bool> {
        if answer.error_code != 0 {
            return Err(self.refused(None, answer.error_code));
        }
        let mut has_records = false;
        self.answers += 1;
        for of_topic in &answer.responses {
            let topic: Arc<str> = Arc::from(of_topic.topic.0.as_str());
            for data in &of_topic.partitions {
                let name = TopicPartition { topic: topic.clone(), partition: data.partition_index };
                let Some(asked) = wanted.get(&name) else { continue };
                has_records |= self.note_partition(node, name, *asked, data, token)?;
            }
        }
        Ok(has_records)
    }

    fn note_partition(
        &mut self,
        node: i32,
        name: TopicPartition,
        asked: Wanted,
        data: &PartitionData,
        token: &Arc<()>,
    ) -> Result<bool> {
        let answers = self.answers;
        // Revoked, moved or paused since the request.
        let Some(partition) = self.partitions.get_mut(&name).filter(|partition| partition.wanted() == asked) else {
            return Ok(false);
        };
        if data.error_code != 0 {
            return self.note_error(&name, data.error_code).map(|()| false);
        }
        if data.preferred_read_replica.0 >= 0 && data.preferred_read_replica.0 != node {
            partition.set_replica(Some(data.preferred_read_replica.0));
            // The broker returns no records then.
            return Ok(false);
        }
        let aborted = data.aborted_transactions.iter().flatten();
        let aborted =
            aborted.map(|aborted| Aborted { producer_id: aborted.producer_id.0, first_offset: aborted.first_offset });
        let records = data.records.clone().unwrap_or_default();
        let fetched = FetchedRecords::new(asked.offset, records, aborted.collect(), token.clone());
        let end = match self.options.isolation {
            Isolation::Committed if data.last_stable_offset >= 0 => data.last_stable_offset,
            _ => data.high_watermark,
        };
        partition.accept(fetched, data.high_watermark, end);
        if partition.fetched.is_empty() {
            return Ok(false);
        }
        partition.last_answer = answers;
        if partition.fetched.len() == 1 {
            self.ready.push_back(name);
        }
        Ok(true)
    }

    /// Takes first offsets from an answer.
    pub(in crate::kafka::wire) fn note_first_offsets(
        &mut self,
        answer: &ListOffsetsResponse,
        wanted: &BTreeMap<TopicPartition, Wanted>,
    ) -> Result<()> {
        for of_topic in &answer.topics {
            let topic: Arc<str> = Arc::from(of_topic.name.0.as_str());
            for found in &of_topic.partitions {
                let name = TopicPartition { topic: topic.clone(), partition: found.partition_index };
                let serial = self.next_serial();
                let Some(partition) = self.partitions.get_mut(&name) else { continue };
                if Some(&partition.wanted()) != wanted.get(&name) {
                    continue;
                }
                if found.error_code == 0 && found.offset >= 0 {
                    partition.move_to(Position::At(found.offset), serial);
                } else {
                    self.note_error(&name, found.error_code)?;
                }
            }
        }
        Ok(())
    }

    fn note_error(&mut self, name: &TopicPartition, error: i16) -> Result<()> {
        let serial = self.next_serial();
        let Some(partition) = self.partitions.get_mut(name) else { return Ok(()) };
        if error == ResponseError::OffsetOutOfRange.code() {
            if partition.replica(Instant::now()).is_some() {
                // The replica may be behind.
                partition.set_replica(None);
                return Ok(());
            }
            if self.options.is_strict {
                return Err(self.deleted(name));
            }
            let position = partition.position;
            tracing::warn!(
                topic = %name.topic,
                partition = name.partition,
                group = self.options.group.as_deref(),
                ?position,
                "the next offset no longer exists: the consumer continues with the first record"
            );
            partition.move_to(Position::First, serial);
            return Ok(());
        }
        if error != 0 && !is_transient(error) {
            return Err(self.refused(Some(name), error));
        }
        tracing::debug!(topic = %name.topic, partition = name.partition, error = %code(error), "the consumer asks again");
        partition.set_replica(None);
        partition.retry_later();
        self.plan_lookup();
        Ok(())
    }

    /// The error of a broker that refuses to answer.
    fn refused(&self, name: Option<&TopicPartition>, error: i16) -> Error {
        let doing = self.options.doing(name.map(|name| &*name.topic));
        let message = format!("{doing}: {}", code(error));
        classify_code(Some(code(error)), message)
    }

    /// The error of a strict reader whose next record is gone.
    pub(in crate::kafka::wire) fn deleted(&self, name: &TopicPartition) -> Error {
        let message = format!(
            "consuming topic `{}`: the next offset of group `{}` no longer exists, because retention deleted it or the topic \
             was created again",
            name.topic,
            self.options.group.as_deref().unwrap_or_default()
        );
        Error::data("replay.deleted", message)
    }

    /// The error of a batch that cannot be read.
    pub(in crate::kafka::wire) fn unreadable(&self, name: &TopicPartition, bad: &BadBatch) -> Error {
        let TopicPartition { topic, partition } = name;
        let message = format!(
            "{}: the record batch at offset {} of partition {partition} cannot be read: {}",
            self.options.doing(Some(topic)),
            bad.offset,
            bad.defect
        );
        let error = Error::external("kafka.unreadable", message);
        // Damage on the way is gone with the next attempt.
        if matches!(bad.defect, Defect::OldFormat(_)) { error.retry(Retry::Never) } else { error }
    }
}
