//! The input of a pipeline: logs, or the tables of a database.

use std::fs;
use std::path::{Path, PathBuf};

use trunkline_tests::{KafkaClient, LogWriter, Reader};

use crate::logs::Logs;
use crate::tables::Tables;

/// The input of a pipeline.
pub(crate) enum Feed<'a> {
    /// Log files.
    Logs(Logs),
    /// Tables of MySQL or MariaDB.
    Tables(Box<Tables<'a>>),
}

impl Feed<'_> {
    /// The source's name, and its section of the pipeline file.
    pub(crate) fn source(&self) -> (&'static str, String) {
        match self {
            Self::Logs(_) => ("web", crate::logs::SOURCE.to_owned()),
            Self::Tables(tables) => ("shop", tables.source()),
        }
    }

    /// The fields that the plugin masks.
    pub(crate) fn masked(&self) -> &'static str {
        match self {
            Self::Logs(_) => "remote_addr",
            Self::Tables(_) => "secret",
        }
    }

    /// Additional options of the sink.
    pub(crate) fn sink_options(&self) -> &'static str {
        match self {
            Self::Logs(_) => "",
            Self::Tables(_) => "path = \"table={@table}\"\n",
        }
    }

    /// Appends `each` lines to each log, or changes `each` rows per table; returns the number of
    /// records.
    pub(crate) fn append(&mut self, each: u64) -> u64 {
        match self {
            Self::Logs(logs) => logs.append(each),
            Self::Tables(tables) => tables.append(each),
        }
    }

    /// From now on, some records are poison for the test plugin; returns the plugin's options.
    pub(crate) fn poison(&mut self) -> &'static str {
        match self {
            Self::Logs(logs) => logs.poison(),
            Self::Tables(tables) => tables.poison(),
        }
    }

    /// From now on, the warehouse refuses some records for this text; returns the options of the
    /// transform that adds the text. Panics on a path with tables.
    pub(crate) fn refuse(&mut self, text: &str) -> String {
        match self {
            Self::Logs(logs) => logs.refuse(text),
            Self::Tables(_) => panic!("the fault needs a path with logs"),
        }
    }

    /// The sum of the column `bytes` of all written lines; 0 for tables.
    pub(crate) fn bytes(&self) -> i64 {
        match self {
            Self::Logs(logs) => logs.all.iter().map(LogWriter::bytes).sum(),
            Self::Tables(_) => 0,
        }
    }

    /// The number of records that must be dead letters of the transform.
    pub(crate) fn poisoned(&self) -> u64 {
        match self {
            Self::Logs(logs) => logs.poisoned(),
            Self::Tables(tables) => tables.dead(),
        }
    }

    /// The number of records that must arrive at the destination, as [`Feed::arrived`] counts them.
    pub(crate) fn expected(&self) -> u64 {
        match self {
            Self::Logs(logs) => logs.lines() - logs.poisoned() - logs.refused(),
            Self::Tables(tables) => tables.expected(),
        }
    }

    /// The number of records at the destination, counted by this program: it measures progress. The
    /// independent reader checks the contents at the end.
    pub(crate) fn arrived(&mut self, lake: &Path) -> u64 {
        match self {
            Self::Logs(logs) => logs.arrived(lake),
            Self::Tables(tables) => tables.arrived(lake),
        }
    }

    /// Checks the source's topics; returns the number of their records.
    pub(crate) fn check_topics(&self, client: &KafkaClient, pipeline: &str) -> u64 {
        match self {
            Self::Logs(logs) => logs.check_topic(client, &format!("{pipeline}.web")),
            Self::Tables(tables) => tables.check_topics(client, pipeline),
        }
    }

    /// Checks the dead letters; returns the numbers of those of the transform, and of the sink.
    pub(crate) fn check_dead(&self, client: &KafkaClient, topic: &str) -> (u64, u64) {
        match self {
            Self::Logs(logs) => {
                logs.check_dead(client, topic);
                (logs.poisoned(), logs.refused())
            }
            Self::Tables(tables) => (tables.check_dead(client, topic), 0),
        }
    }

    /// Checks the destination, which must have `records` records.
    pub(crate) fn check_lake(&self, reader: &Reader, lake: &Path, records: u64) {
        match self {
            Self::Logs(logs) => logs.check_lake(reader, lake, records),
            Self::Tables(tables) => tables.check_lake(reader, lake, records),
        }
    }
}

/// The published files of a lake.
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
