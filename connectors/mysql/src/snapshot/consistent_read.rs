//! Consistent reads: whole tables as of one point in time.
//!
//! The tables are locked against writers for the moment in which the reader starts a consistent
//! snapshot, so its position in the binlog is known exactly.

use std::sync::Arc;

use tokio::sync::mpsc;
use trunkline_connector::{Error, Result};

use super::condition::try_on_server;
use super::describe::{self, TableDescription};
use super::pages::{PageLimits, RowEncoder, RowPage};
use super::reader::{ReadResult, Reader, START_SNAPSHOT, condition_error, malformed_row};
use super::select::{self, KeyRange};
use super::tracker::TableRequest;
use crate::connection::binlog_state::binlog_end;
use crate::connection::query::QueryConnection;
use crate::format::table::Table;
use crate::position::BinlogPosition;
use crate::schema::table_name::TableName;

/// Rows of whole tables, as the server sends them.
pub(super) struct ConsistentRead {
    /// The requested tables.
    pub(super) names: Vec<TableName>,
    /// The existing tables.
    pub(super) tables: Vec<Arc<Table>>,
    /// The schemas of the tables were emitted.
    pub(super) is_announced: bool,
    /// Tables whose condition the server rejects, and the reasons.
    pub(super) rejected: Vec<(TableName, String)>,
    /// Tables that are skipped for this reason.
    pub(super) skipped: Vec<TableName>,
    /// The rows include exactly the changes before this position.
    pub(super) at: BinlogPosition,
    pub(super) pages: mpsc::Receiver<Result<PageMessage>>,
    /// The page that is being emitted.
    pub(super) page: Option<Box<RowPage>>,
    /// Every page was received.
    pub(super) has_ended: bool,
}

impl ConsistentRead {
    pub(super) fn is_skipped(&self, name: &TableName) -> bool {
        self.skipped.contains(name)
    }
}

/// A message of the reading task.
pub(super) enum PageMessage {
    Rows(Box<RowPage>),
    /// The server rejects the condition for the table; the reason.
    Rejected(TableName, String),
}

/// A table of the read.
struct TableRead {
    description: Arc<TableDescription>,
    condition: Option<String>,
    encoder: RowEncoder,
}

impl Reader {
    /// Starts a consistent read. A separate task sends the rows.
    pub(super) async fn start_consistent_read(
        self: &Arc<Self>,
        requests: Vec<TableRequest>,
        page: PageLimits,
        mut connection: QueryConnection,
    ) -> Result<ReadResult> {
        let names: Vec<TableName> = requests.iter().map(|request| request.table.name.clone()).collect();
        let (requests, rejected) = check_conditions(requests, &mut connection).await?;
        let (sender, pages) = mpsc::channel(2);
        let mut read = ConsistentRead {
            names,
            tables: Vec::new(),
            is_announced: false,
            rejected,
            skipped: Vec::new(),
            at: BinlogPosition::default(),
            pages,
            page: None,
            has_ended: requests.is_empty(),
        };
        if requests.is_empty() {
            return Ok(ReadResult::Consistent(read));
        }
        let mut locking = QueryConnection::open(&self.options.connection).await?;
        let locked: Vec<&TableName> = requests.iter().map(|request| &request.table.name).collect();
        self.lock(&locked, &mut locking).await?;
        connection.execute(START_SNAPSHOT).await?;
        let described = match requests.as_slice() {
            [request] => self.describe(&request.table.name, &mut connection).await?.into_iter().collect(),
            _ => describe::tables(&self.options, &mut connection, &self.charsets, None).await?,
        };
        (read.at, _) = binlog_end(&mut locking).await?;
        locking.execute("UNLOCK TABLES").await?;
        locking.close().await;
        let mut reads = Vec::new();
        for TableRequest { table, condition, .. } in requests {
            if let Some(description) = described.iter().find(|now| now.table.name == table.name) {
                let encoder = self.encoder(description, &read.at, page);
                read.tables.push(Arc::clone(&description.table));
                reads.push(TableRead { description: Arc::clone(description), condition, encoder });
            }
        }
        let reader = Arc::clone(self);
        tokio::spawn(async move {
            for table_read in reads {
                if let Err(error) = reader.send_pages(&mut connection, table_read, &sender).await {
                    // The receiver may be closed.
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            }
        });
        Ok(ReadResult::Consistent(read))
    }
}

/// Splits the requests into those whose condition the server accepts, and the others with the
/// reasons.
async fn check_conditions(
    requests: Vec<TableRequest>,
    connection: &mut QueryConnection,
) -> Result<(Vec<TableRequest>, Vec<(TableName, String)>)> {
    let (mut accepted, mut rejected) = (Vec::new(), Vec::new());
    for request in requests {
        if let Some(condition) = &request.condition
            && let Err(why) = try_on_server(connection, &request.table.name, condition).await?
        {
            rejected.push((request.table.name.clone(), why));
        } else {
            accepted.push(request);
        }
    }
    Ok((accepted, rejected))
}

impl Reader {
    /// Reads a table, and sends its rows in pages.
    async fn send_pages(
        &self,
        connection: &mut QueryConnection,
        table_read: TableRead,
        sender: &mpsc::Sender<Result<PageMessage>>,
    ) -> Result<()> {
        let TableRead { description, condition, mut encoder } = table_read;
        let table = &description.table;
        connection.set_application_session(description.has_virtual_columns).await?;
        let sql = select::rows(&description, condition.as_deref(), KeyRange::default(), None);
        let mut selected = connection.select(&sql).await;
        let result = loop {
            if let Err(error) = std::mem::replace(&mut selected, Ok(())) {
                break Err(error);
            }
            match connection.next_row().await {
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
                Ok(Some(row)) => {
                    let had_malformed = encoder.has_malformed;
                    if let Err(error) = encoder.add(table, row) {
                        return Err(malformed_row(connection, &table.name, &error));
                    }
                    if encoder.has_malformed && !had_malformed {
                        self.check_unchanged(table).await?;
                    }
                }
            }
            while let Some(page) = encoder.next_full() {
                if sender.send(Ok(PageMessage::Rows(Box::new(page)))).await.is_err() {
                    return Ok(());
                }
            }
        };
        let rejection = match result {
            Ok(()) => None,
            Err(error) => match condition.and_then(|_| condition_error(&error)) {
                None => return Err(connection.error(&format!("read {}", table.name), error)),
                rejection => rejection,
            },
        };
        let rest = encoder.finish().into_iter().map(|page| PageMessage::Rows(Box::new(page)));
        let rejection = rejection.map(|why| PageMessage::Rejected(table.name.clone(), why));
        for message in rest.chain(rejection) {
            if sender.send(Ok(message)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Checks that a table with a row that cannot be decoded has the columns of its description.
    /// Tables without transactions may change during the read.
    async fn check_unchanged(&self, table: &Table) -> Result<()> {
        let mut connection = QueryConnection::open(&self.options.connection).await?;
        let has_changed = self.has_changed(table, &mut connection).await?;
        let server = connection.server_label();
        connection.close().await;
        if !has_changed {
            return Ok(());
        }
        let message =
            format!("{server}: the columns of {} changed while it was read; the source tries again", table.name);
        Err(Error::external("mysql.snapshot", message))
    }
}
