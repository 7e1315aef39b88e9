//! The rows by which people control a cluster, and in which its workers show their tasks
//! (`worker/control`). They lie in one partition, with the rows of the workers. No row is read
//! before it is written: two commands at the same time do not undo each other.

use std::collections::BTreeMap;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use trunkline_connector::{Error, Result};

use super::{CHECKPOINTS, partition_of};
use crate::kafka::{Cluster, RowWriter, TableFollower};

/// Time for the brokers to accept a row.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// What people want a pipeline or component to do. Without a row it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// It runs, although its pipeline is paused.
    Running,
    /// Its tasks do not run; its position stays.
    Paused,
    /// The same, requested by Kafka Connect's `stop`.
    Stopped,
}

impl RunState {
    /// The name, as it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The wanted state of a pipeline or component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRow {
    /// The state.
    pub state: RunState,
    /// When it was requested, in milliseconds since the Unix epoch.
    pub since: i64,
}

/// A request to restart tasks of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRow {
    /// Differs in each request.
    pub id: String,
    /// Only tasks that have failed.
    pub failed_only: bool,
    /// Only this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskRef>,
}

/// A task of one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRef {
    /// The worker's id.
    pub worker: String,
    /// Number of the task of the component in that worker.
    pub number: u32,
}

/// The tasks of one worker.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerTasks {
    /// The worker's machine.
    pub node: String,
    /// The address of its HTTP server.
    pub http: Option<String>,
    /// Who started the worker, as the audit log names people; empty if it has an earlier version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// When it was started, in milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<i64>,
    /// Its tasks.
    pub tasks: Vec<TaskRow>,
}

/// The state of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    /// The pipeline.
    pub pipeline: String,
    /// The component.
    pub component: String,
    /// `source`, `transform` or `sink`.
    pub kind: String,
    /// Number of the task of the component in this worker.
    pub task: u32,
    /// `waiting`, `running`, `paused`, `done` or `failed`.
    pub state: String,
    /// The error of a failed task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A connector that was created by REST.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectorRow {
    /// Its flat configuration, as it was given: secrets are references.
    pub config: BTreeMap<String, String>,
}

/// A sign of life of a worker or job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AliveRow {
    /// Its machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The components, as `{pipeline}.{component}`, that worked for most of the last second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub busy: Vec<String>,
}

/// A row that was read or is to be written; `None` stands for a removed row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlRow {
    /// The wanted state of `{pipeline}` or `{pipeline}.{component}`.
    State(String, Option<StateRow>),
    /// The last restart of `{pipeline}.{component}`.
    Restart(String, Option<RestartRow>),
    /// A connector `{pipeline}.{component}` that was created by REST.
    Connector(String, Option<ConnectorRow>),
    /// The tasks of a worker.
    Tasks(String, Option<WorkerTasks>),
    /// A worker has renewed its row, or removed it.
    Beat(String, bool),
    /// A worker has shown that it runs, or that it stops. Unlike the row of its plans, this one is
    /// small: it is written every second. A job writes it only while it is busy.
    Alive(String, Option<AliveRow>),
}

impl ControlRow {
    /// What the row is about. Of the rows with one subject, the last one counts.
    pub fn subject(&self) -> (Discriminant<Self>, &str) {
        let (Self::State(name, _)
        | Self::Restart(name, _)
        | Self::Connector(name, _)
        | Self::Tasks(name, _)
        | Self::Beat(name, _)
        | Self::Alive(name, _)) = self;
        (discriminant(self), name)
    }
}

/// The rows of one cluster.
pub struct ControlRows {
    cluster: Cluster,
    topic: String,
    partition: i32,
    name: String,
    writer: RowWriter,
}

impl ControlRows {
    /// The rows of the cluster `name`.
    pub fn new(cluster: &Cluster, name: &str) -> Result<Self> {
        Ok(Self {
            topic: cluster.own_topic(CHECKPOINTS),
            partition: partition_of(name),
            name: name.to_owned(),
            writer: RowWriter::new(cluster, &format!("{name}.control")),
            cluster: cluster.clone(),
        })
    }

    /// Reads all rows, and then their changes.
    pub fn follow(&self) -> TableFollower {
        TableFollower::new(&self.cluster, &self.topic, self.partition)
    }

    /// Writes a row. Returns its offset.
    pub fn write(&self, row: &ControlRow) -> Result<i64> {
        self.write_within(row, WRITE_LIMIT)
    }

    /// Writes a row within this time. Returns its offset.
    pub fn write_within(&self, row: &ControlRow, limit: Duration) -> Result<i64> {
        let (key, value) = encode(&self.name, row)?;
        self.writer.write(&self.topic, self.partition, key.as_bytes(), value.as_deref(), limit)
    }

    /// The row of a key and value, if it is one of these rows.
    pub fn parse(&self, key: &[u8], value: Option<&[u8]>) -> Option<ControlRow> {
        decode(&self.name, key, value)
    }
}

fn encode(cluster: &str, row: &ControlRow) -> Result<(String, Option<Vec<u8>>)> {
    fn json(row: Option<&impl Serialize>) -> Result<Option<Vec<u8>>> {
        let json = row.map(serde_json::to_vec).transpose();
        json.map_err(|error| Error::internal("checkpoint.control", error.to_string()))
    }
    Ok(match row {
        ControlRow::State(target, row) => (format!("control/{cluster}/{target}/state"), json(row.as_ref())?),
        ControlRow::Restart(target, row) => (format!("control/{cluster}/{target}/restart"), json(row.as_ref())?),
        ControlRow::Connector(name, row) => (format!("connectors/{cluster}/{name}"), json(row.as_ref())?),
        ControlRow::Tasks(worker, row) => (format!("tasks/{cluster}/{worker}"), json(row.as_ref())?),
        ControlRow::Alive(worker, row) => (format!("alive/{cluster}/{worker}"), json(row.as_ref())?),
        ControlRow::Beat(worker, _) => {
            let message = format!("the row of worker `{worker}` is written by its agreement only");
            return Err(Error::internal("checkpoint.control", message));
        }
    })
}

fn decode(cluster: &str, key: &[u8], value: Option<&[u8]>) -> Option<ControlRow> {
    /// A row that a newer version wrote in another form has no effect.
    fn read<T: for<'de> Deserialize<'de>>(key: &str, value: Option<&[u8]>) -> Option<Option<T>> {
        let Some(value) = value else { return Some(None) };
        match serde_json::from_slice(value) {
            Ok(row) => Some(Some(row)),
            Err(error) => {
                tracing::warn!(key, %error, "a row of the cluster's control cannot be read and has no effect");
                None
            }
        }
    }
    let key = std::str::from_utf8(key).ok()?;
    let (kind, rest) = key.split_once('/')?;
    let name = rest.strip_prefix(cluster)?.strip_prefix('/')?;
    match kind {
        "alive" => Some(ControlRow::Alive(name.to_owned(), read(key, value)?)),
        "workers" => Some(ControlRow::Beat(name.to_owned(), value.is_some())),
        "connectors" => Some(ControlRow::Connector(name.to_owned(), read(key, value)?)),
        "tasks" => Some(ControlRow::Tasks(name.to_owned(), read(key, value)?)),
        "control" => match name.rsplit_once('/')? {
            (target, "state") => Some(ControlRow::State(target.to_owned(), read(key, value)?)),
            (target, "restart") => Some(ControlRow::Restart(target.to_owned(), read(key, value)?)),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let state = StateRow { state: RunState::Paused, since: 5 };
        let task = TaskRef { worker: "w".to_owned(), number: 1 };
        let restart = RestartRow { id: "a".to_owned(), failed_only: true, task: Some(task) };
        let row = TaskRow {
            pipeline: "shop".to_owned(),
            component: "lake".to_owned(),
            kind: "sink".to_owned(),
            task: 0,
            state: "failed".to_owned(),
            error: Some("no bucket".to_owned()),
        };
        let tasks = WorkerTasks {
            node: "n".to_owned(),
            http: Some("127.0.0.1:8083".to_owned()),
            user: "ada".to_owned(),
            started: Some(7),
            tasks: vec![row],
        };
        let alive = AliveRow { node: "n".to_owned(), busy: vec!["shop.lake".to_owned()] };
        let config = ("connector.class".to_owned(), "s3".to_owned());
        let rows = [
            ControlRow::State("shop".to_owned(), Some(state)),
            ControlRow::State("shop.lake".to_owned(), None),
            ControlRow::Restart("shop.lake".to_owned(), Some(restart)),
            ControlRow::Connector("shop.lake".to_owned(), Some(ConnectorRow { config: BTreeMap::from([config]) })),
            ControlRow::Connector("shop.lake".to_owned(), None),
            ControlRow::Tasks("w".to_owned(), Some(tasks)),
            ControlRow::Tasks("w".to_owned(), None),
            ControlRow::Alive("w".to_owned(), Some(alive)),
            ControlRow::Alive("w".to_owned(), Some(AliveRow::default())),
            ControlRow::Alive("w".to_owned(), None),
        ];
        for row in rows {
            let (key, value) = encode("c", &row).unwrap();
            assert_eq!(decode("c", key.as_bytes(), value.as_deref()), Some(row));
            assert_eq!(decode("other", key.as_bytes(), value.as_deref()), None);
        }
        let quiet = ControlRow::Alive("w".to_owned(), Some(AliveRow::default()));
        assert_eq!(decode("c", b"alive/c/w", Some(b"{}")), Some(quiet), "of an earlier version");
        assert_eq!(decode("c", b"workers/c/w", Some(b"{}")), Some(ControlRow::Beat("w".to_owned(), true)));
        for (key, value) in [("c.shop.lake/counters", "{}"), ("control/c/shop/state", "?"), ("control/c/shop/x", "{}")]
        {
            assert_eq!(decode("c", key.as_bytes(), Some(value.as_bytes())), None, "{key}");
        }
    }

    #[test]
    fn the_stored_form_of_a_pause_is_stable() {
        let row = ControlRow::State("shop".to_owned(), Some(StateRow { state: RunState::Paused, since: 5 }));
        let (key, value) = encode("c", &row).unwrap();
        assert_eq!(key, "control/c/shop/state");
        assert_eq!(value.unwrap(), br#"{"state":"paused","since":5}"#);
    }
}
