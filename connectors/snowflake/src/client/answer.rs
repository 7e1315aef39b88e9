//! The service's answers.

use arrow::array::{Array, RecordBatch};
use arrow::ipc::reader::StreamReader;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::error::{ErrorKind, SqlError, SqlResult};

/// The statement is still running: its result must be polled.
const IN_PROGRESS: [&str; 2] = ["333333", "333334"];

/// What every answer consists of.
#[derive(Deserialize)]
pub(super) struct Envelope {
    success: bool,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    pub(super) data: Option<Data>,
}

/// The fields of all kinds of answers that the client uses.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Data {
    // ---- login and renewal
    pub(super) token: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) master_token: Option<String>,
    pub(super) session_id: Option<u64>,
    pub(super) session_info: Option<SessionInfo>,
    // ---- statements
    query_id: Option<String>,
    get_result_url: Option<String>,
    sql_state: Option<String>,
    rowtype: Vec<Column>,
    rowset: Option<Vec<Vec<Option<String>>>>,
    rowset_base64: Option<String>,
    total: Option<u64>,
    /// The answer to PUT.
    stage_info: Option<StageInfo>,
}

/// What a login selected.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SessionInfo {
    pub(super) role_name: Option<String>,
}

/// Where a stage of the service is, and temporary credentials for it.
#[derive(Deserialize, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StageInfo {
    /// `S3`, `AZURE`, `GCS`.
    pub(crate) location_type: String,
    /// Bucket and folder.
    pub(crate) location: String,
    #[serde(default)]
    pub(crate) region: Option<String>,
    #[serde(default)]
    pub(crate) end_point: Option<String>,
    /// Clients encrypt the files of other stages with a key of the stage.
    #[serde(default = "yes")]
    pub(crate) is_client_side_encrypted: bool,
    #[serde(default)]
    pub(crate) creds: StageCredentials,
}

impl std::fmt::Debug for StageInfo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The credentials are secret (I8).
        write!(formatter, "StageInfo({} {})", self.location_type, self.location)
    }
}

fn yes() -> bool {
    true
}

/// See [`StageInfo`].
#[derive(Deserialize, Clone, PartialEq, Eq, Default)]
#[serde(default)]
pub(crate) struct StageCredentials {
    #[serde(rename = "AWS_KEY_ID")]
    pub(crate) id: String,
    #[serde(rename = "AWS_SECRET_KEY")]
    pub(crate) secret: String,
    #[serde(rename = "AWS_TOKEN")]
    pub(crate) token: Option<String>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

/// The result of a statement: texts, as the service prints values.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<Option<String>>>,
    /// Where to upload the files of a PUT.
    pub(crate) upload: Option<StageInfo>,
}

impl Envelope {
    pub(super) fn code(&self) -> &str {
        self.code.as_deref().unwrap_or_default()
    }

    /// The address of a result that is not ready.
    pub(super) fn in_progress(&self) -> Option<&str> {
        let address = self.data.as_ref()?.get_result_url.as_deref()?;
        IN_PROGRESS.contains(&self.code()).then_some(address)
    }

    /// The data, or the error that the service answered.
    pub(super) fn into_data(self) -> SqlResult<Data> {
        let code = self.code().to_owned();
        let data = self.data.unwrap_or_default();
        if self.success {
            return Ok(data);
        }
        let message = self.message.unwrap_or_else(|| "the service gave no reason".to_owned());
        Err(SqlError::answered(&code, data.sql_state.as_deref().unwrap_or_default(), &message, data.query_id))
    }
}

impl Data {
    pub(super) fn into_answer(self) -> SqlResult<Answer> {
        let columns: Vec<String> = self.rowtype.into_iter().map(|column| column.name).collect();
        let rows = match (self.rowset, self.rowset_base64) {
            (Some(rows), _) => rows,
            (None, Some(encoded)) if !encoded.is_empty() => read_arrow(&encoded)?,
            _ => Vec::new(),
        };
        let total = self.total.unwrap_or(rows.len() as u64);
        if rows.len() as u64 != total {
            // The rest is in files at other addresses. The connector's statements have small
            // results.
            let message = format!("the result has {total} rows, and the answer holds {} of them", rows.len());
            return Err(SqlError::new(ErrorKind::StatementFailed, message));
        }
        Ok(Answer { columns, rows, upload: self.stage_info })
    }
}

impl Answer {
    /// The rows that a statement changed; 0 if it is not one that changes rows.
    pub(crate) fn changed_rows(&self) -> u64 {
        // UPDATE also counts rows that matched several rows, under another name.
        let is_count = |column: &str| column.starts_with("number of rows ") || column == "rows_loaded";
        let counts = |row: &Vec<Option<String>>| -> u64 {
            let cells = self.columns.iter().zip(row).filter(|(column, _)| is_count(column));
            cells.filter_map(|(_, cell)| cell.as_deref()?.parse::<u64>().ok()).sum()
        };
        self.rows.iter().map(counts).sum()
    }
}

/// Rows in Arrow's IPC format.
fn read_arrow(encoded: &str) -> SqlResult<Vec<Vec<Option<String>>>> {
    let malformed = |error: &dyn std::fmt::Display| {
        SqlError::new(ErrorKind::StatementFailed, format!("the result cannot be decoded: {error}"))
    };
    let bytes = STANDARD.decode(encoded).map_err(|error| malformed(&error))?;
    let reader = StreamReader::try_new(bytes.as_slice(), None).map_err(|error| malformed(&error))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| malformed(&error))?;
        add_rows(&batch, &mut rows).map_err(|error| malformed(&error))?;
    }
    Ok(rows)
}

fn add_rows(batch: &RecordBatch, rows: &mut Vec<Vec<Option<String>>>) -> Result<(), arrow::error::ArrowError> {
    let options = FormatOptions::default();
    let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        let value = |(column, formatter): (&dyn Array, &ArrayFormatter<'_>)| {
            column.is_valid(row).then(|| formatter.value(row).to_string())
        };
        rows.push(batch.columns().iter().map(AsRef::as_ref).zip(&columns).map(value).collect());
    }
    Ok(())
}
