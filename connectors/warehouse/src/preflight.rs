//! What `validate --check` asks the destination and the stage: login and rights, and whether the
//! warehouse reads what this side writes.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use trunkline_connector::{Error, PreflightIssue, Result};

use crate::dialect::{Column, ColumnType, Dialect, Session, StagingColumn};
use crate::intent::manifest_key;
use crate::stage::{Stage, StagedFile};

const COLUMN: &str = "trunkline_check";

/// Checks that the destination can be loaded; leaves nothing behind. `name` is the sink's. `stage`
/// is an error if it cannot be opened.
pub fn check(dialect: &dyn Dialect, stage: Result<Box<dyn Stage>>, name: &str) -> Vec<PreflightIssue> {
    let mut issues = Vec::new();
    let session = dialect.connect().map_err(|error| issues.push(issue(&error))).ok();
    let stage = stage.map_err(|error| issues.push(issue(&error))).ok();
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let mut session = match session {
        Some(mut session) => match create_and_drop(dialect, session.as_mut(), &unique) {
            Ok(()) => Some(session),
            Err(error) => {
                let context = "creating a table, which the sink does for its offsets and for new tables";
                issues.push(issue(&error.context(context)));
                // The failed session is not used again.
                dialect.connect().ok()
            }
        },
        None => None,
    };
    if let Some(stage) = stage {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let folder: String = name.chars().map(plain).collect();
        let key = format!("{folder}/check-{unique}.parquet");
        let checked = write_and_read(dialect, session.as_deref_mut(), stage.as_ref(), &key, &unique);
        let removed = stage.remove(&[key.clone(), manifest_key(&key)]);
        // A file that could not be written need not be removed.
        issues.extend(checked.and(removed).err().map(|error| issue(&error)));
    }
    issues
}

/// Advice follows the reason in messages.
fn issue(error: &Error) -> PreflightIssue {
    let (message, fix) = match error.message().rsplit_once("; ") {
        Some((message, fix)) => (message.to_owned(), Some(fix.to_owned())),
        None => (error.message().to_owned(), None),
    };
    PreflightIssue { code: error.code, message, fix }
}

fn create_and_drop(dialect: &dyn Dialect, session: &mut dyn Session, unique: &str) -> Result<()> {
    let table = dialect.folded(&format!("trunkline_check_{unique}"));
    let column = Column {
        name: dialect.folded(COLUMN),
        column_type: ColumnType::Integer(64),
        nullable: true,
        has_default: false,
    };
    for sql in dialect.create_table(&table, &[column], &[]) {
        session.execute(&sql)?;
    }
    session.execute(&format!("DROP TABLE {}", dialect.quoted(&table))).map(drop)
}

/// Writes a file of one row into the stage, and loads it into a staging table.
fn write_and_read(
    dialect: &dyn Dialect,
    session: Option<&mut (dyn Session + 'static)>,
    stage: &dyn Stage,
    key: &str,
    unique: &str,
) -> Result<()> {
    let columns = [StagingColumn { name: dialect.folded(COLUMN), column_type: ColumnType::Integer(64) }];
    let bytes = one_row(&columns[0].name)?;
    stage.put_bytes(key, &bytes)?;
    let file = StagedFile { key: key.to_owned(), url: stage.url(key), bytes: bytes.len() as u64, rows: 1 };
    let manifest = manifest_key(key);
    if let Some(content) = dialect.manifest(std::slice::from_ref(&file)) {
        stage.put_bytes(&manifest, content.as_bytes())?;
    }
    let Some(session) = session else { return Ok(()) };
    let staging = dialect.folded(&format!("trunkline_staging_check_{unique}"));
    for sql in dialect.create_staging(&staging, &columns) {
        session.execute(&sql)?;
    }
    let copied = session.execute(&dialect.copy(&staging, &columns, &[file], &stage.url(&manifest)));
    copied.map_err(|error| error.context("the warehouse cannot read the stage"))?;
    session.execute(&format!("DROP TABLE IF EXISTS {}", dialect.quoted(&staging))).map(drop)
}

fn one_row(column: &str) -> Result<Vec<u8>> {
    let failed =
        |error: &dyn std::fmt::Display| Error::internal("warehouse.batch", format!("no file for the check: {error}"));
    let array: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let batch = RecordBatch::try_from_iter([(column, array)]).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).map_err(|error| failed(&error))?;
    writer.write(&batch).map_err(|error| failed(&error))?;
    writer.close().map_err(|error| failed(&error))?;
    Ok(bytes)
}
