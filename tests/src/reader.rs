//! What is in the Parquet files of a lake, told by programs that are not ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::{Skip, repository};

/// pyarrow and DuckDB, through `tests/reader/read_parquet.py`.
#[derive(Clone)]
pub struct Reader {
    python: PathBuf,
}

/// What the readers found; `tests/reader/read_parquet.py` says what each field is.
#[derive(Debug, Deserialize)]
pub struct Found {
    /// Files that are published.
    pub files: u64,
    /// Rows in them.
    pub rows: u64,
    /// Different values of the key columns.
    pub distinct: Option<u64>,
    /// The types of each column, over all files.
    pub types: BTreeMap<String, Vec<String>>,
    /// The values of each Hive partition.
    pub partitions: BTreeMap<String, Vec<String>>,
    /// Sums of the columns asked for.
    pub sums: BTreeMap<String, i64>,
    /// Empty cells of each column.
    pub nulls: BTreeMap<String, u64>,
    /// Some values of the column asked for.
    pub values: Vec<String>,
    /// Malformed lines of the access logs given, by the script's own parser.
    pub unparsed: Option<u64>,
    /// Some of the log's lines that are not in the lake.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Some of the rows that are not in the log, or too often in the lake.
    #[serde(default)]
    pub extra: Vec<String>,
    /// How many lines are missing.
    pub missing_total: Option<u64>,
    /// How many rows are too many.
    pub extra_total: Option<u64>,
    /// Where rows of a partition do not come in its order, if that was asked.
    #[serde(default)]
    pub disordered: Vec<String>,
    /// Changes (table, what was done, key, version), if they were folded.
    #[serde(default)]
    pub changes: Vec<(String, String, u64, u64)>,
    /// What they come to: the rows of each table by key, each a text by column.
    #[serde(default)]
    pub folded: BTreeMap<String, BTreeMap<String, BTreeMap<String, Option<String>>>>,
}

impl Reader {
    /// Installs the readers where that was not done before.
    pub fn find() -> Result<Self, Skip> {
        static FOUND: OnceLock<Result<Reader, Skip>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let script = repository().join("tests/services/reader");
            let output = Command::new(script).output().map_err(|error| Skip::new(error.to_string()))?;
            if !output.status.success() {
                let reason = String::from_utf8_lossy(&output.stderr).into_owned();
                return Err(Skip::new(format!("no pyarrow and duckdb here: {reason}")));
            }
            Ok(Self { python: String::from_utf8(output.stdout).unwrap().trim().into() })
        });
        found.clone()
    }

    /// Reads all published files under `folder`; `key` are the columns that tell records apart.
    pub fn read(&self, folder: &Path, key: &[&str]) -> Found {
        self.run(folder, &["--key", &key.join(",")], &[])
    }

    /// The same, with sums of columns.
    pub fn read_with_sums(&self, folder: &Path, key: &[&str], sums: &[&str]) -> Found {
        self.run(folder, &["--key", &key.join(","), "--sum", &sums.join(",")], &[])
    }

    /// The same, with a look at the order of rows: the numbers at the end of `column` must rise within each partition.
    pub fn read_in_order(&self, folder: &Path, column: &str, sums: &[&str]) -> Found {
        self.run(folder, &["--key", column, "--sum", &sums.join(","), "--order", column], &[])
    }

    /// The same of change events, folded row by row: `key` and `version` are columns of their rows.
    pub fn fold(&self, folder: &Path, key: &str, version: &str) -> Found {
        self.run(folder, &["--fold", key, version], &[])
    }

    /// The same, with some values of a column.
    pub fn read_with_values(&self, folder: &Path, column: &str) -> Found {
        self.run(folder, &["--values", column], &[])
    }

    /// Compares all published files under `folder` with the lines of combined access logs.
    pub fn compare(&self, folder: &Path, logs: &[&Path]) -> Found {
        self.run(folder, &["--access-log"], logs)
    }

    fn run(&self, folder: &Path, arguments: &[&str], paths: &[&Path]) -> Found {
        let mut command = Command::new(&self.python);
        command.arg(repository().join("tests/reader/read_parquet.py")).arg(folder).args(arguments).args(paths);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {error}", folder.display());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)))
    }
}
