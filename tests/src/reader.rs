//! Independent readers of Parquet files: pyarrow and DuckDB.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::{Skip, repository};

/// Runs `tests/reader/read_parquet.py`.
#[derive(Clone)]
pub struct Reader {
    python: PathBuf,
}

/// The contents of a lake. `tests/reader/read_parquet.py` describes each field.
#[derive(Debug, Deserialize)]
pub struct LakeContents {
    /// Published files.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Distinct values of the key columns.
    pub distinct: Option<u64>,
    /// The types of each column, over all files.
    pub types: BTreeMap<String, Vec<String>>,
    /// The values of each Hive partition key.
    pub partitions: BTreeMap<String, Vec<String>>,
    /// Sums of the requested columns.
    pub sums: BTreeMap<String, i64>,
    /// Nulls of each column.
    pub nulls: BTreeMap<String, u64>,
    /// Some values of the requested column.
    pub values: Vec<String>,
    /// Malformed lines of the access logs, by the script's own parser.
    pub unparsed: Option<u64>,
    /// Some lines of the logs that are missing in the lake.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Some rows of the lake that are not in the logs, or duplicates.
    #[serde(default)]
    pub extra: Vec<String>,
    /// The number of missing lines.
    pub missing_total: Option<u64>,
    /// The number of extra rows.
    pub extra_total: Option<u64>,
    /// Some places where the rows of a partition are out of order, if requested.
    #[serde(default)]
    pub out_of_order: Vec<String>,
    /// Changes (table, operation, key, version), if requested.
    #[serde(default)]
    pub changes: Vec<(String, String, u64, u64)>,
    /// The tables that result from the changes: rows by key, each with its columns as text.
    #[serde(default)]
    pub folded: BTreeMap<String, BTreeMap<String, BTreeMap<String, Option<String>>>>,
}

impl Reader {
    /// Finds the readers, and installs them the first time.
    pub fn find() -> Result<Self, Skip> {
        static FOUND: OnceLock<Result<Reader, Skip>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let script = repository().join("tests/services/reader");
            let output = Command::new(script).output().map_err(|error| Skip::new(error.to_string()))?;
            if !output.status.success() {
                let reason = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(Skip::new(format!("pyarrow and duckdb are not available here: {reason}")));
            }
            Ok(Self { python: String::from_utf8(output.stdout).unwrap().trim().into() })
        });
        found.clone()
    }

    /// Reads all published files under `folder`. The columns of `key` identify a record.
    pub fn read(&self, folder: &Path, key: &[&str]) -> LakeContents {
        self.run(folder, &["--key", &key.join(",")], &[])
    }

    /// Reads all files, and sums columns.
    pub fn read_with_sums(&self, folder: &Path, key: &[&str], sums: &[&str]) -> LakeContents {
        self.run(folder, &["--key", &key.join(","), "--sum", &sums.join(",")], &[])
    }

    /// Reads all files, and checks that the numbers at the end of `column` ascend in each
    /// partition.
    pub fn read_in_order(&self, folder: &Path, column: &str, sums: &[&str]) -> LakeContents {
        self.run(folder, &["--key", column, "--sum", &sums.join(","), "--order", column], &[])
    }

    /// Reads change events, and applies them row by row. `key` and `version` are columns of the
    /// rows.
    pub fn fold(&self, folder: &Path, key: &str, version: &str) -> LakeContents {
        self.run(folder, &["--fold", key, version], &[])
    }

    /// Reads all files, with some values of a column.
    pub fn read_with_values(&self, folder: &Path, column: &str) -> LakeContents {
        self.run(folder, &["--values", column], &[])
    }

    /// Compares all published files under `folder` with the lines of combined access logs.
    pub fn compare(&self, folder: &Path, logs: &[&Path]) -> LakeContents {
        self.run(folder, &["--access-log"], logs)
    }

    fn run(&self, folder: &Path, arguments: &[&str], paths: &[&Path]) -> LakeContents {
        let mut command = Command::new(&self.python);
        command.arg(repository().join("tests/reader/read_parquet.py")).arg(folder).args(arguments).args(paths);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {error}", folder.display());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)))
    }
}
