//! What `validate --check` asks the destination and the stage: login and rights, and whether the
//! warehouse reads what this side writes.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use trunkline_connector::{Error, PreflightIssue, RecordSample, Result, SinkContext};

use crate::config::Options;
use crate::dialect::{Column, ColumnType, Dialect, Right, Session, StagingColumn};
use crate::intent::manifest_key;
use crate::sink::WarehouseSink;
use crate::stage::{Stage, StagedFile};

const COLUMN: &str = "trunkline_check";

/// The codes of errors that a grant resolves.
pub(crate) const GRANTABLE: [&str; 3] =
    ["redshift.permission_denied", "snowflake.access_denied", "snowflake.no_warehouse"];

/// Checks that records such as the newest ones fit the tables that exist. Changes nothing.
pub fn check_records(
    dialect: Arc<dyn Dialect>,
    stage: Result<Box<dyn Stage>>,
    options: &Options,
    context: SinkContext,
    records: &mut RecordSample<'_>,
) -> Vec<PreflightIssue> {
    // Without a stage or a session, the other check has reported why.
    let Ok(stage) = stage else { return Vec::new() };
    let checked = records().and_then(|records| {
        WarehouseSink::new(dialect, stage, options.clone(), context, Arc::default()).misfits(&records)
    });
    checked.unwrap_or_else(|error| {
        tracing::debug!(%error, "the tables could not be compared with the records");
        Vec::new()
    })
}

/// Checks that the destination can be loaded; leaves nothing behind. `name` is the sink's. `stage`
/// is an error if it cannot be opened.
pub fn check(dialect: &dyn Dialect, stage: Result<Box<dyn Stage>>, name: &str) -> Vec<PreflightIssue> {
    let mut issues = Vec::new();
    let refused = |error| issues.push(issue(&error, dialect.grant(Right::CreateTables)));
    let session = dialect.connect().map_err(refused).ok();
    let stage = stage.map_err(|error| issues.push(issue(&error, None))).ok();
    let unique = uuid::Uuid::new_v4().simple().to_string();
    let mut session = match session {
        Some(mut session) => match create_and_drop(dialect, session.as_mut(), &unique) {
            Ok(()) => Some(session),
            Err((right, error)) => {
                issues.push(issue(&error, dialect.grant(right)));
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
        issues.extend(checked.and(removed).err().map(|error| issue(&error, dialect.grant(Right::ReadStage))));
    }
    issues
}

/// Advice follows the reason in messages. `grant` is the statement for a missing right.
pub(crate) fn issue(error: &Error, grant: Option<String>) -> PreflightIssue {
    let (message, fix) = match error.message().rsplit_once("; ") {
        Some((message, fix)) => (message.to_owned(), Some(fix.to_owned())),
        None => (error.message().to_owned(), None),
    };
    let grant = grant.filter(|_| GRANTABLE.contains(&error.code)).map(|grant| format!("run `{grant}`"));
    let fix = match (fix, grant) {
        (Some(fix), Some(grant)) => Some(format!("{fix}: {grant}")),
        (fix, grant) => fix.or(grant),
    };
    PreflightIssue { code: error.code, message, fix }
}

/// The error names the right that the statement needs.
fn create_and_drop<'r>(
    dialect: &dyn Dialect,
    session: &mut dyn Session,
    unique: &str,
) -> Result<(), (Right<'r>, Error)> {
    let table = dialect.folded(&format!("trunkline_check_{unique}"));
    let column = Column {
        name: dialect.folded(COLUMN),
        column_type: ColumnType::Integer(64),
        nullable: true,
        has_default: false,
    };
    let creating = |error: Error| {
        let context = "creating a table, which the sink does for its offsets and for new tables";
        (Right::CreateTables, error.context(context))
    };
    for sql in dialect.create_table(&table, &[column], &[]) {
        session.execute(&sql).map_err(creating)?;
    }
    let quoted = dialect.quoted(&table);
    // Unlike DDL, a query needs a warehouse.
    let counted = session.query(&format!("SELECT COUNT(*) FROM {quoted}"));
    let dropped = session.execute(&format!("DROP TABLE {quoted}"));
    counted.map_err(|error| (Right::UseWarehouse, error.context("running a query")))?;
    dropped.map(drop).map_err(creating)
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
