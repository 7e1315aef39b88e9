//! What a replay that supersedes files has prepared, and which files it replaces: rows of
//! `_trunkline.intents` that exist from the first prepared output until the run has ended.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trunkline_connector::{Error, OutputFile, Result, TopicPartition};

use super::{INTENTS, partition_of};
use crate::kafka::{Cluster, ProducerRecord, TransactionalProducer, table};

/// Files of one row. A row must not exceed the size of a record.
const FILES_OF_ROW: usize = 200;

/// The rows of one run.
pub struct SupersedingRows {
    topic: String,
    sink: String,
}

/// A file that is replaced, as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredFile {
    name: String,
    id: String,
    sink: String,
    topic: String,
    partition: i32,
    first: i64,
    last: i64,
    records: u64,
}

impl SupersedingRows {
    /// The rows of the sink `{cluster}.{pipeline}.{sink}`, where the cluster is that of the run.
    pub fn of(cluster: &Cluster, sink: &str) -> Self {
        Self { topic: cluster.own_topic(INTENTS), sink: sink.to_owned() }
    }

    /// Writes a committable in the producer's open transaction: with the offsets that it covers,
    /// the first of which is `first`.
    pub fn stage(
        &self,
        producer: &mut TransactionalProducer,
        partition: &TopicPartition,
        first: i64,
        committable: &Value,
    ) -> Result<()> {
        let key = format!("{}{}/{}/{first:020}", self.staged_prefix(), partition.topic, partition.partition);
        self.write(producer, key.as_bytes(), Some(&encode(committable)?))
    }

    /// The committables of all topic partitions, in the order of their offsets.
    pub fn staged(&self, cluster: &Cluster) -> Result<Vec<(TopicPartition, Value)>> {
        let prefix = self.staged_prefix();
        let rows = self.read(cluster, &prefix)?;
        rows.iter().map(|(key, value)| Ok((partition_in(key, prefix.len())?, decode(key, value)?))).collect()
    }

    /// Writes the files that are replaced in the producer's open transaction.
    pub fn replace(&self, producer: &mut TransactionalProducer, files: &[OutputFile]) -> Result<()> {
        for (number, files) in files.chunks(FILES_OF_ROW).enumerate() {
            let stored: Vec<StoredFile> = files.iter().map(StoredFile::of).collect();
            let key = format!("{}{number:08}", self.replaced_prefix());
            self.write(producer, key.as_bytes(), Some(&encode(&stored)?))?;
        }
        Ok(())
    }

    /// The files that are replaced.
    pub fn replaced(&self, cluster: &Cluster) -> Result<Vec<OutputFile>> {
        let mut files = Vec::new();
        for (key, value) in self.read(cluster, &self.replaced_prefix())? {
            files.extend(decode::<Vec<StoredFile>>(&key, &value)?.into_iter().map(StoredFile::file));
        }
        Ok(files)
    }

    /// The keys of all rows.
    pub fn keys(&self, cluster: &Cluster) -> Result<Vec<Vec<u8>>> {
        let mut keys = Vec::new();
        for prefix in [self.staged_prefix(), self.replaced_prefix()] {
            keys.extend(self.read(cluster, &prefix)?.into_keys());
        }
        Ok(keys)
    }

    /// Removes rows in the producer's open transaction.
    pub fn remove(&self, producer: &mut TransactionalProducer, keys: &[Vec<u8>]) -> Result<()> {
        keys.iter().try_for_each(|key| self.write(producer, key, None))
    }

    // The keys of intents have a `/` after the name of the sink.
    fn staged_prefix(&self) -> String {
        format!("{}.!staged/", self.sink)
    }

    fn replaced_prefix(&self) -> String {
        format!("{}.!replaced/", self.sink)
    }

    fn read(&self, cluster: &Cluster, prefix: &str) -> Result<table::Rows> {
        table::read(cluster, &self.topic, Some(partition_of(&self.sink)), prefix.as_bytes())
    }

    fn write(&self, producer: &mut TransactionalProducer, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        Ok(producer.send(&ProducerRecord {
            topic: &self.topic,
            partition: partition_of(&self.sink),
            timestamp: None,
            key: Some(key),
            value,
            headers: &[],
            more_headers: &[],
        })?)
    }
}

impl StoredFile {
    fn of(file: &OutputFile) -> Self {
        Self {
            name: file.name.clone(),
            id: file.id.clone(),
            sink: file.sink.clone(),
            topic: file.partition.topic.to_string(),
            partition: file.partition.partition,
            first: file.first,
            last: file.last,
            records: file.records,
        }
    }

    fn file(self) -> OutputFile {
        OutputFile {
            name: self.name,
            id: self.id,
            sink: self.sink,
            partition: TopicPartition::new(self.topic, self.partition),
            first: self.first,
            last: self.last,
            records: self.records,
        }
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::internal("intent.encode", error.to_string()))
}

fn decode<T: serde::de::DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| unreadable(key, &format!("cannot be read ({error})")))
}

/// The partition in the key of a staged row: `{topic}/{partition}/{first}` after the prefix.
fn partition_in(key: &[u8], prefix: usize) -> Result<TopicPartition> {
    let text = String::from_utf8_lossy(key.get(prefix..).unwrap_or_default()).into_owned();
    let mut parts = text.rsplitn(3, '/').skip(1);
    let number = parts.next().and_then(|number| number.parse().ok());
    match (parts.next(), number) {
        (Some(topic), Some(partition)) => Ok(TopicPartition::new(topic, partition)),
        _ => Err(unreadable(key, "names no partition")),
    }
}

fn unreadable(key: &[u8], problem: &str) -> Error {
    let key = String::from_utf8_lossy(key);
    let message = format!("the row `{key}` of topic `{INTENTS}` {problem}: was it written by a newer version?");
    Error::data("intent.unreadable", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_files_and_keys_are_read_as_they_were_written() {
        let file = OutputFile {
            name: "/lake/a.parquet".to_owned(),
            id: "i".to_owned(),
            sink: "p.lake".to_owned(),
            partition: TopicPartition::new("t", 3),
            first: 7,
            last: 9,
            records: 2,
        };
        let stored = encode(&[StoredFile::of(&file)]).unwrap();
        let read: Vec<StoredFile> = decode(b"k", &stored).unwrap();
        assert_eq!(read.into_iter().map(StoredFile::file).collect::<Vec<_>>(), [file]);
        let key = b"c.!replay.r.p.lake.!staged/a.b/3/00000000000000000007";
        assert_eq!(partition_in(key, "c.!replay.r.p.lake.!staged/".len()).unwrap(), TopicPartition::new("a.b", 3));
        assert_eq!(partition_in(b"x/1", 0).unwrap_err().code, "intent.unreadable");
    }
}
