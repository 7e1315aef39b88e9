//! Plans and committables, in the form in which the stage stores them in Kafka. Later versions must
//! read what earlier ones wrote.

use serde::{Deserialize, Serialize};

use crate::dialect::ColumnType;

/// The files that `prepare` will upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Identifies the load; the offsets row takes this value when the load is committed.
    pub(crate) load: String,
    /// As [`Dialect::destination`](crate::Dialect::destination) names it.
    pub(crate) destination: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// One more than the last offset in the files.
    pub(crate) next_offset: i64,
    /// In the order of their records.
    pub(crate) files: Vec<PlannedFile>,
}

/// A file, and where its rows go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedFile {
    /// Its key in the stage; absent if the file only empties its table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    /// Its name in the scratch folder of the task that wrote it.
    pub(crate) temp: String,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) table: String,
    pub(crate) mode: LoadMode,
    /// Columns that identify a row.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) key_columns: Vec<String>,
    /// The columns of the file, in order. Those of the sink itself, which the table lacks, are not
    /// in the target.
    pub(crate) columns: Vec<FileColumn>,
    /// Some of its rows are deletes.
    #[serde(default)]
    pub(crate) has_deletes: bool,
    /// The load sets `_loaded_at`.
    pub(crate) fills_loaded_at: bool,
    /// The table is emptied before the rows are loaded.
    #[serde(default)]
    pub(crate) truncates: bool,
    /// Rows that are newer than this order stay when the table is emptied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) truncates_until: Option<String>,
}

/// A column of a staged file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileColumn {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) column_type: ColumnType,
    /// The target table has the column, too.
    pub(crate) is_loaded: bool,
}

/// How rows get into their table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LoadMode {
    /// Every row is added.
    Append,
    /// The newest row of each key replaces the older one; deletes remove it.
    Upsert,
    /// As upsert, but a delete sets `deleted_at`.
    UpsertSoft,
    /// Every version of a row is kept, with the time in which it was valid.
    History,
}

/// Files that are in the stage and not loaded yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committable {
    #[serde(flatten)]
    pub(crate) plan: Plan,
    /// The load that the offsets row held when this one was prepared. Only one load can follow it.
    pub(crate) previous: String,
    /// The epoch of the task that prepared it.
    pub(crate) epoch: i64,
}

impl Plan {
    /// All keys in the stage: files and their manifests.
    pub(crate) fn keys(&self) -> Vec<String> {
        let keys = self.files.iter().filter_map(|file| file.key.clone());
        keys.flat_map(|key| [manifest_key(&key), key]).collect()
    }
}

/// The key of the object that [`Dialect::manifest`](crate::Dialect::manifest) asks for.
pub(crate) fn manifest_key(key: &str) -> String {
    format!("{key}.manifest")
}
