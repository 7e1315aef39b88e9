//! What feeds a pipeline: logs, or the tables of a database. All that differs between the two is behind [`Feed`].

use std::fs;
use std::path::{Path, PathBuf};

use trunkline_tests::{KafkaClient, Reader};

use crate::logs::Logs;
use crate::tables::Tables;

/// One or the other.
pub(crate) enum Feed<'a> {
    /// Log files.
    Logs(Logs),
    /// A MySQL.
    Tables(Box<Tables<'a>>),
}

impl Feed<'_> {
    /// The name of the source, and its part of the pipeline file.
    pub(crate) fn source(&self) -> (&'static str, String) {
        match self {
            Self::Logs(_) => ("web", crate::logs::SOURCE.to_owned()),
            Self::Tables(tables) => ("shop", tables.source()),
        }
    }

    /// The members that the plugin masks.
    pub(crate) fn masked(&self) -> &'static str {
        match self {
            Self::Logs(_) => "remote_addr",
            Self::Tables(_) => "secret",
        }
    }

    /// More options of the sink.
    pub(crate) fn of_sink(&self) -> &'static str {
        match self {
            Self::Logs(_) => "",
            Self::Tables(_) => "path = \"table={@table}\"\n",
        }
    }

    /// Writes so many lines to each log, or changes so many rows for each table; gives how many records that makes.
    pub(crate) fn append(&mut self, each: u64) -> u64 {
        match self {
            Self::Logs(logs) => logs.append(each),
            Self::Tables(tables) => tables.append(each),
        }
    }

    /// From now on some records are poison to the test plugin, with the options that this gives.
    pub(crate) fn poison(&mut self) -> &'static str {
        match self {
            Self::Logs(logs) => logs.poison(),
            Self::Tables(tables) => tables.poison(),
        }
    }

    /// Records that end in the dead letters.
    pub(crate) fn dead(&self) -> u64 {
        match self {
            Self::Logs(logs) => logs.dead(),
            Self::Tables(tables) => tables.dead(),
        }
    }

    /// How much has to arrive at the destination of what was written, in the measure of [`Feed::arrived`].
    pub(crate) fn expected(&self) -> u64 {
        match self {
            Self::Logs(logs) => logs.lines() - logs.dead(),
            Self::Tables(tables) => tables.expected(),
        }
    }

    /// How much of it is there, by our own look at the files: how far things are. What they are is for the independent reader to say.
    pub(crate) fn arrived(&mut self, lake: &Path) -> u64 {
        match self {
            Self::Logs(logs) => logs.arrived(lake),
            Self::Tables(tables) => tables.arrived(lake),
        }
    }

    /// Checks the topics into which the source writes; gives how many records they have.
    pub(crate) fn check_topics(&self, client: &KafkaClient, pipeline: &str) -> u64 {
        match self {
            Self::Logs(logs) => logs.check_topic(client, &format!("{pipeline}.web")),
            Self::Tables(tables) => tables.check_topics(client, pipeline),
        }
    }

    /// Checks the dead letters; gives how many there are.
    pub(crate) fn check_dead(&self, client: &KafkaClient, topic: &str) -> u64 {
        match self {
            Self::Logs(logs) => {
                let count = client.count(topic);
                assert_eq!(count, logs.dead(), "dead letters");
                count
            }
            Self::Tables(tables) => tables.check_dead(client, topic),
        }
    }

    /// Checks the destination, of which the workers say that it has so many records.
    pub(crate) fn check_lake(&self, reader: &Reader, lake: &Path, records: u64) {
        match self {
            Self::Logs(logs) => logs.check_lake(reader, lake, records),
            Self::Tables(tables) => tables.check_lake(reader, lake, records),
        }
    }
}

/// The files of a lake that are published.
pub(crate) fn published(lake: &Path) -> Vec<PathBuf> {
    let mut folders = vec![lake.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else if name.ends_with(".parquet") {
                files.push(entry.path());
            }
        }
    }
    files
}
