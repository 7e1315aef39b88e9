//! `trunkline offsets set`: another position in the binlog, checked with the server.
//!
//! A server with GTIDs is followed by the set of processed transactions, so a file and an offset
//! are converted to the set of the transactions before them. The position has no anchor: it is
//! known to the server now. Its epoch stays, because it belongs to the same history: a warehouse
//! that gets a change again knows that the change is not newer.

use trunkline_connector::{Error, PositionChange, Result};

use crate::config::MysqlOptions;
use crate::connection::binlog_state::{check_contains, current_position, has_binlog_after, parse_gtids};
use crate::connection::dialect::ServerFlavor;
use crate::connection::query::{QueryConnection, TextRows};
use crate::connection::quote::string_literal;
use crate::connection::server_info::ServerInfo;
use crate::gtid::{GtidSet, UuidSet};
use crate::position::{BinlogPosition, STREAM, StoredPosition, StreamPosition, TablePosition, table_of};

/// Positions, for messages.
pub(crate) const FORMS: &str = "`earliest` (the oldest change in the server's binlog), `latest` (its end), a GTID set (the transactions \
                                that are processed), or FILE:OFFSET of the binlog";

/// Events that one statement lists.
const PAGE: usize = 5_000;

/// The offset of the first event of a binlog file.
const FIRST_EVENT: u64 = 4;

/// The change of the stored position that makes the source continue at `to`.
pub(crate) async fn move_to(
    options: &MysqlOptions,
    to: &str,
    stored: &[(String, Vec<u8>)],
) -> Result<Vec<PositionChange>> {
    let stored = StoredPosition::read(stored)?.stream;
    let mut queries = QueryConnection::open(&options.connection).await?;
    let server = ServerInfo::read(&mut queries).await?;
    let mut search = Search { queries: &mut queries, flavor: server.flavor };
    let found = search.position(to.trim()).await?;
    search.check(to, &found).await?;
    queries.close().await;
    let position = StreamPosition { epoch: stored.and_then(|stored| stored.epoch), ..found };
    Ok(vec![PositionChange { key: STREAM.to_owned(), value: Some(position.to_bytes()?) }])
}

/// A part of a stored position, for people.
pub(crate) fn describe(key: &str, value: &[u8]) -> Option<(String, String)> {
    if key == STREAM {
        let position = StreamPosition::from_bytes(value).ok()?;
        let BinlogPosition { file, pos } = &position.end;
        let place = (!file.is_empty()).then(|| format!("{file}:{pos}"));
        let gtids = position.processed.map(|processed| match processed.to_string() {
            empty if empty.is_empty() => "no transaction".to_owned(),
            gtids => format!("GTIDs {gtids}"),
        });
        let partial = position
            .partial
            .map(|partial| format!("{} row events and {} rows of the next transaction", partial.events, partial.rows));
        let parts: Vec<String> = [gtids, place, partial].into_iter().flatten().collect();
        return Some(("binlog".to_owned(), parts.join(", ")));
    }
    let table = table_of(key)?;
    let state = match TablePosition::from_bytes(value).ok()? {
        TablePosition::Done => "snapshot complete",
        TablePosition::Running(_) => "snapshot not complete",
    };
    Some((table.to_string(), state.to_owned()))
}

/// A look-up on a server.
struct Search<'a> {
    queries: &'a mut QueryConnection,
    flavor: ServerFlavor,
}

impl Search<'_> {
    async fn position(&mut self, to: &str) -> Result<StreamPosition> {
        match to {
            "latest" => return current_position(self.queries, self.flavor).await,
            "earliest" => {
                let file = self.files().await?.into_iter().next().map(|(file, _)| file).unwrap_or_default();
                return self.at(BinlogPosition { file, pos: FIRST_EVENT }).await;
            }
            _ => {}
        }
        // A MySQL GTID begins with a UUID, and one of MariaDB has no colon.
        let is_offset = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let place = to.rsplit_once(':').filter(|(file, pos)| is_offset(pos) && file.contains('.'));
        if let Some((file, pos)) = place {
            let pos = pos.parse().map_err(|_| self.bad(to, "the offset is too large"))?;
            return self.at(BinlogPosition { file: file.to_owned(), pos }).await;
        }
        if self.flavor == ServerFlavor::MySqlWithoutGtids {
            return Err(
                self.bad(to, "the server has no GTIDs (`gtid_mode` is not ON): write FILE:OFFSET of the binlog")
            );
        }
        let processed = parse_gtids(self.queries, self.flavor, to).ok().flatten();
        let Some(processed) = processed.filter(|_| !to.is_empty()) else {
            return Err(self.bad(to, &format!("write {FORMS}")));
        };
        Ok(StreamPosition { processed: Some(processed), ..StreamPosition::default() })
    }

    /// The files of the binlog and their sizes, the oldest first.
    async fn files(&mut self) -> Result<Vec<(String, u64)>> {
        let files = self.queries.query("SHOW BINARY LOGS").await?;
        let file = |row: &Vec<Option<String>>| match row.as_slice() {
            [Some(file), Some(size), ..] => Some((file.clone(), size.parse().ok()?)),
            _ => None,
        };
        Ok(files.iter().filter_map(file).collect())
    }

    /// The position at the start of a transaction, or at the end of a file.
    async fn at(&mut self, end: BinlogPosition) -> Result<StreamPosition> {
        let label = format!("{}:{}", end.file, end.pos);
        let files = self.files().await?;
        let Some((_, size)) = files.iter().find(|(file, _)| *file == end.file) else {
            let known = |entry: Option<&(String, u64)>| entry.map_or_else(String::new, |(file, _)| file.clone());
            let newest = BinlogPosition { file: known(files.last()), pos: 0 };
            let has_been = end.file_number() <= newest.file_number();
            let reason = format!("its binlog has the files {} to {}", known(files.first()), newest.file);
            return Err(if has_been { self.gone(&label, &reason) } else { self.bad(&label, &reason) });
        };
        if end.pos > *size {
            return Err(self.bad(&label, &format!("the file has {size} bytes")));
        }
        let found = self.scan(&end).await?;
        if let Some(begin) = found.inside {
            let next = found.next.map_or_else(|| size.to_string(), |next| next.to_string());
            let reason = format!(
                "it is inside of the transaction that begins at {0}:{begin}: choose {0}:{begin}, or the next one, {0}:{next}",
                end.file
            );
            return Err(self.bad(&label, &reason));
        }
        if !found.is_decided && found.end != end.pos {
            return Err(
                self.bad(&label, &format!("no event of the file ends there; its last one ends at {}", found.end))
            );
        }
        let processed = match self.flavor {
            ServerFlavor::MySqlWithoutGtids => None,
            ServerFlavor::MySql => Some(GtidSet::MySql(found.gtids)),
            ServerFlavor::MariaDb => {
                let sql =
                    format!("SELECT BINLOG_GTID_POS({}, {})", string_literal(&end.file), end.pos.max(FIRST_EVENT));
                let gtids = self.queries.query_one(&sql).await?.unwrap_or_default();
                parse_gtids(self.queries, self.flavor, &gtids)?
            }
        };
        Ok(StreamPosition { processed, end, ..StreamPosition::default() })
    }

    /// Reads the events of a file before an offset.
    async fn scan(&mut self, end: &BinlogPosition) -> Result<Scanned> {
        if end.file.contains(['\'', '\\']) {
            return Err(self.bad(&end.file, "the name of the file has a quote"));
        }
        let mut scanned = Scanned::default();
        let mut from = FIRST_EVENT;
        loop {
            // The statement accepts no literal with a character set.
            let sql = format!("SHOW BINLOG EVENTS IN '{}' FROM {from} LIMIT {PAGE}", end.file);
            let events: TextRows = self.queries.query(&sql).await?;
            let mut last = from;
            for row in &events {
                let Some(event) = Event::of(row) else { continue };
                last = event.end;
                if scanned.add(&event, end.pos).is_none() {
                    return Err(self.bad(&end.file, &format!("its GTID cannot be read: {}", event.info)));
                }
                if scanned.is_complete {
                    return Ok(scanned);
                }
            }
            if events.len() < PAGE || last <= from {
                return Ok(scanned);
            }
            from = last;
        }
    }

    /// Checks that the server has all of these transactions, and the binlog after them.
    async fn check(&mut self, to: &str, position: &StreamPosition) -> Result<()> {
        if let Err(error) = check_contains(self.queries, self.flavor, position).await {
            return match error.code {
                "mysql.behind_position" => Err(self.bad(to, "it has transactions that the server never had")),
                _ => Err(error),
            };
        }
        if has_binlog_after(self.queries, position).await? {
            return Ok(());
        }
        let oldest = self.files().await?.into_iter().next().map(|(file, _)| file).unwrap_or_default();
        Err(self.gone(to, &format!("the oldest file of its binlog is {oldest}")))
    }

    fn bad(&self, to: &str, reason: &str) -> Error {
        let server = self.queries.server_label();
        Error::config("offsets.bad_position", format!("{server}: `{to}` is no position: {reason}"))
    }

    fn gone(&self, to: &str, reason: &str) -> Error {
        let server = self.queries.server_label();
        let keep = self.queries.dialect().set_global("binlog_expire_logs_seconds = 604800");
        let message = format!(
            "{server} has purged the binlog after `{to}` ({reason}). Choose `earliest`, read the tables again with `trunkline \
             snapshot`, or restore the files of the binlog. To keep it longer: {keep}"
        );
        Error::data("offsets.position_gone", message)
    }
}

/// An event, as `SHOW BINLOG EVENTS` lists it.
struct Event<'a> {
    pos: u64,
    kind: &'a str,
    end: u64,
    info: &'a str,
}

impl<'a> Event<'a> {
    fn of(row: &'a [Option<String>]) -> Option<Self> {
        let text = |index: usize| row.get(index).and_then(Option::as_deref);
        Some(Self {
            pos: text(1)?.parse().ok()?,
            kind: text(2)?,
            end: text(4)?.parse().ok()?,
            info: text(5).unwrap_or_default(),
        })
    }

    /// The first event of a transaction: `Gtid`, `Gtid_tagged` or `Anonymous_Gtid`. MariaDB's
    /// `Gtid_list` is in the header of a file.
    fn begins_transaction(&self) -> bool {
        self.kind == "Anonymous_Gtid" || self.kind.starts_with("Gtid") && self.kind != "Gtid_list"
    }

    /// An event of the header of a file.
    fn is_header(&self) -> bool {
        ["Format_desc", "Previous_gtids", "Gtid_list", "Start_encryption"].contains(&self.kind)
    }

    /// An event between transactions.
    fn is_between(&self) -> bool {
        self.is_header() || ["Binlog_checkpoint", "Rotate", "Stop"].contains(&self.kind)
    }
}

/// The events of a file before an offset.
#[derive(Default)]
struct Scanned {
    /// The transactions before the offset (MySQL).
    gtids: UuidSet,
    /// The start of the last transaction before the offset.
    begun: Option<u64>,
    /// An event from the offset on was seen.
    is_decided: bool,
    /// The offset is inside of the transaction, or the header, that begins here.
    inside: Option<u64>,
    /// The start of the transaction after it.
    next: Option<u64>,
    /// The end of the last event.
    end: u64,
    is_complete: bool,
}

impl Scanned {
    /// Adds the next event. `None`: its GTIDs cannot be read.
    fn add(&mut self, event: &Event<'_>, offset: u64) -> Option<()> {
        let is_boundary = event.begins_transaction() || event.is_between();
        self.end = event.end;
        if event.pos >= offset && !self.is_decided {
            self.is_decided = true;
            if event.pos != offset || !is_boundary {
                self.inside = Some(self.begun.unwrap_or(FIRST_EVENT));
            }
        }
        if event.kind == "Previous_gtids" {
            // In the header: all transactions of the file come after it.
            self.gtids = UuidSet::parse(&event.info.replace(char::is_whitespace, ""))?;
        } else if self.is_decided {
            self.next = is_boundary.then_some(event.pos);
            self.is_complete = !event.is_header() && (self.inside.is_none() || is_boundary);
        } else if event.begins_transaction() {
            self.begun = Some(event.pos);
            if let Some(gtid) = quoted(event.info) {
                for (tsid, ranges) in UuidSet::parse(gtid)?.iter() {
                    ranges.iter().for_each(|(number, _)| self.gtids.add(tsid, *number));
                }
            }
        }
        Some(())
    }
}

/// The text in quotes of `SET @@SESSION.GTID_NEXT= 'uuid:7'`; `None` if it is no GTID.
fn quoted(info: &str) -> Option<&str> {
    let gtid = info.split('\'').nth(1)?;
    (gtid != "ANONYMOUS" && gtid.contains(':')).then_some(gtid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn scan(offset: u64) -> Scanned {
        let gtid = |number: u64| format!("SET @@SESSION.GTID_NEXT= '{UUID}:{number}'");
        let events = [
            (4, "Format_desc", 126, "Server ver: 8.4".to_owned()),
            (126, "Previous_gtids", 197, format!("{UUID}:1-4")),
            (197, "Gtid", 276, gtid(5)),
            (276, "Query", 350, "BEGIN".to_owned()),
            (350, "Xid", 400, "COMMIT /* xid=9 */".to_owned()),
            (400, "Gtid", 479, gtid(6)),
            (479, "Query", 600, "use `a`; create table b (c int)".to_owned()),
            (600, "Rotate", 640, "binlog.000002;pos=4".to_owned()),
        ];
        let mut scanned = Scanned::default();
        for (pos, kind, end, info) in &events {
            scanned.add(&Event { pos: *pos, kind, end: *end, info }, offset).unwrap();
            if scanned.is_complete {
                break;
            }
        }
        scanned
    }

    #[test]
    fn the_transactions_before_an_offset_are_processed() {
        for (offset, gtids) in [(4, "1-4"), (126, "1-4"), (197, "1-4"), (400, "1-5"), (600, "1-6"), (640, "1-6")] {
            let scanned = scan(offset);
            assert_eq!((scanned.gtids.to_string(), scanned.inside), (format!("{UUID}:{gtids}"), None), "{offset}");
        }
        assert_eq!((scan(640).is_decided, scan(640).end), (false, 640));
    }

    #[test]
    fn an_offset_inside_of_a_transaction_is_found() {
        for (offset, begin, next) in [(50, 4, 197), (276, 197, 400), (300, 197, 400), (351, 197, 400), (479, 400, 600)]
        {
            let scanned = scan(offset);
            assert_eq!((scanned.inside, scanned.next), (Some(begin), Some(next)), "{offset}");
        }
    }

    #[test]
    fn positions_are_described_for_people() {
        let position = StreamPosition {
            processed: UuidSet::parse(&format!("{UUID}:1-5")).map(GtidSet::MySql),
            end: BinlogPosition { file: "binlog.000003".to_owned(), pos: 157 },
            ..StreamPosition::default()
        };
        let text = format!("GTIDs {UUID}:1-5, binlog.000003:157");
        assert_eq!(describe(STREAM, &position.to_bytes().unwrap()), Some(("binlog".to_owned(), text)));
        let table = ("shop.orders".to_owned(), "snapshot complete".to_owned());
        assert_eq!(describe("table/shop.orders", b"\"done\""), Some(table));
        assert_eq!(describe("other", b"{}"), None);
    }
}
