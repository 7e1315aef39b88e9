//! Decodes events as far as the follower needs them. Rows stay encoded.

use std::sync::LazyLock;

use mysql_common::binlog::BinlogCtx;
use mysql_common::binlog::consts::BinlogVersion;
use mysql_common::binlog::events::{FormatDescriptionEvent, GtidEvent};
use mysql_common::io::ParseBuf;
use mysql_common::proto::MyDeserialize as _;

use crate::decode::{Bytes, Malformed};
use crate::format::envelope::Op;
use crate::gtid::{DomainGtid, Gtid, Tsid};
use crate::replication::event_frame::Event;
use crate::schema::column_mode::hex_digits;

/// An event, as the follower sees it.
#[derive(Debug)]
pub(crate) enum ParsedEvent<'a> {
    /// The binlog continues in this file, at this offset.
    Rotate(String, u64),
    /// A transaction starts.
    Start(TransactionStart),
    Query(Query<'a>),
    /// A transaction is committed.
    Commit,
    TableMap,
    Rows(RowsKind),
    /// The statement that changed the rows after it.
    RowsQuery(&'a [u8]),
    /// The end of the prepared half of an XA transaction; or of the whole transaction, with ONE
    /// PHASE.
    XaPrepare {
        one_phase: bool,
    },
    /// A compressed transaction; its events follow.
    Payload,
    /// The end of the binlog, if the server reports one.
    Heartbeat(Option<u64>),
    /// The server lost events.
    Incident,
    /// The start of a binlog file, with the time of its creation.
    Format(u32),
    /// Any other event.
    Other,
}

/// The start of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransactionStart {
    /// `None` if the server has no GTIDs.
    pub(crate) gtid: Option<Gtid>,
    /// The time of the commit on the originating server, in microseconds since the Unix epoch.
    pub(crate) committed_at: u64,
    /// The time of the commit on this server.
    pub(crate) written_at: u64,
    /// The start implies BEGIN (MariaDB).
    pub(crate) implies_begin: bool,
    /// The id of the XA transaction whose prepared half starts (MariaDB).
    pub(crate) xa: Option<Vec<u8>>,
}

/// A statement.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    pub(crate) thread: u32,
    pub(crate) database: &'a str,
    pub(crate) text: &'a [u8],
    /// Encoded session variables.
    status: &'a [u8],
}

/// The decoded session variables of a statement.
#[derive(Debug, Default)]
pub(crate) struct QueryStatus<'a> {
    /// The number of the client's collation, which determines the charset of the text.
    pub(crate) collation: Option<u64>,
    /// The databases that the statement affects, if the server reports them.
    pub(crate) databases: Vec<&'a str>,
}

/// The type of a rows event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowsKind {
    pub(crate) op: Op,
    /// Version 2, with a block of extra data.
    pub(crate) extra: bool,
    /// JSON columns may be encoded as differences.
    pub(crate) partial: bool,
}

impl<'a> ParsedEvent<'a> {
    pub(crate) fn parse(event: &'a Event) -> Result<Self, Malformed> {
        let data = event.data();
        let rows = |op, extra, partial| Ok(Self::Rows(RowsKind { op, extra, partial }));
        match event.header().event_type() {
            2 => Query::read(data).map(Self::Query),
            4 => rotate(event),
            15 => Ok(Self::Format(event.header().timestamp())),
            16 => Ok(Self::Commit),
            19 => Ok(Self::TableMap),
            23 => rows(Op::Create, false, false),
            24 => rows(Op::Update, false, false),
            25 => rows(Op::Delete, false, false),
            26 => Ok(Self::Incident),
            // The first version has its position in the header, the second one in the body, with 64
            // bits.
            27 => Ok(Self::Heartbeat(Some(u64::from(event.header().log_pos())))),
            // The text follows the lowest byte of its length.
            29 => Ok(Self::RowsQuery(data.get(1..).unwrap_or_default())),
            30 => rows(Op::Create, true, false),
            31 => rows(Op::Update, true, false),
            32 => rows(Op::Delete, true, false),
            33 | 34 | 42 => start(event).map(Self::Start),
            38 => Ok(Self::XaPrepare { one_phase: data.first() == Some(&1) }),
            39 => rows(Op::Update, true, true),
            40 => Ok(Self::Payload),
            41 => heartbeat(data),
            162 => mariadb_start(event).map(Self::Start),
            164 => Err(Malformed::new("the server sent an encrypted event")),
            _ => Ok(Self::Other),
        }
    }
}

fn rotate(event: &Event) -> Result<ParsedEvent<'static>, Malformed> {
    let mut bytes = Bytes::new(event.data());
    let pos = bytes.little(8)?;
    let name = bytes.rest();
    let name = std::str::from_utf8(name).map_err(|_| Malformed::new("the name of a binlog file is not UTF-8"))?;
    Ok(ParsedEvent::Rotate(name.to_owned(), pos))
}

fn heartbeat(data: &[u8]) -> Result<ParsedEvent<'static>, Malformed> {
    const POSITION: u64 = 2;
    let mut bytes = Bytes::new(data);
    let mut pos = None;
    while !bytes.is_empty() {
        let kind = bytes.packed()?;
        if kind == 0 {
            break;
        }
        let mut body = Bytes::new(bytes.packed_bytes()?);
        if kind == POSITION {
            pos = Some(body.packed()?);
        }
    }
    Ok(ParsedEvent::Heartbeat(pos))
}

fn start(event: &Event) -> Result<TransactionStart, Malformed> {
    const ANONYMOUS: u8 = 34;
    // Both events have the same layout; an anonymous one has zeros in place of the GTID.
    if event.header().event_type() == ANONYMOUS {
        let mut bytes = Bytes::new(event.data());
        bytes.take(1 + 16 + 8 + 1 + 16)?;
        // Servers before 8.0 end the event here.
        let committed_at =
            bytes.little(7).map_or(u64::from(event.header().timestamp()) * 1_000_000, |time| time & !(1 << 55));
        return Ok(TransactionStart {
            gtid: None,
            committed_at,
            written_at: committed_at,
            implies_begin: false,
            xa: None,
        });
    }
    // The library requires a format description, which this event does not depend on.
    static FORMAT: LazyLock<FormatDescriptionEvent<'static>> =
        LazyLock::new(|| FormatDescriptionEvent::new(BinlogVersion::Version4));
    let context = BinlogCtx::new(event.data().len(), &FORMAT, event.header().event_type());
    let read = GtidEvent::deserialize(context, &mut ParseBuf(event.data()));
    let read = read.map_err(|error| Malformed(format!("a GTID event: {error}")))?;
    let tag = read.tag().map(ToString::to_string).unwrap_or_default();
    let gtid = Gtid::MySql { tsid: Tsid { server: read.sid(), tag }, number: read.gno() };
    let committed_at = match read.original_commit_timestamp() {
        0 => read.immediate_commit_timestamp(),
        time => time,
    };
    let committed_at = if committed_at == 0 { u64::from(event.header().timestamp()) * 1_000_000 } else { committed_at };
    let written_at = match read.immediate_commit_timestamp() {
        0 => committed_at,
        time => time,
    };
    Ok(TransactionStart { gtid: Some(gtid), committed_at, written_at, implies_begin: false, xa: None })
}

/// The start of a transaction of MariaDB.
fn mariadb_start(event: &Event) -> Result<TransactionStart, Malformed> {
    const STANDALONE: u8 = 1;
    const GROUP_COMMIT: u8 = 2;
    const PREPARED_XA: u8 = 64;
    const COMPLETED_XA: u8 = 128;
    let mut bytes = Bytes::new(event.data());
    let sequence = bytes.little(8)?;
    let domain = bytes.little(4)? as u32;
    let flags = bytes.u8()?;
    if flags & GROUP_COMMIT != 0 {
        bytes.take(8)?;
    }
    let xa = if flags & (PREPARED_XA | COMPLETED_XA) != 0 { Some(xa_id(&mut bytes)?) } else { None };
    let committed_at = u64::from(event.header().timestamp()) * 1_000_000;
    Ok(TransactionStart {
        gtid: Some(Gtid::MariaDb(DomainGtid { domain, server: event.header().server_id(), sequence })),
        committed_at,
        written_at: committed_at,
        implies_begin: flags & STANDALONE == 0,
        xa: xa.filter(|_| flags & PREPARED_XA != 0),
    })
}

/// The id of an XA transaction, in the notation of the statements that end it.
fn xa_id(bytes: &mut Bytes<'_>) -> Result<Vec<u8>, Malformed> {
    let format = bytes.little(4)? as u32;
    let (global, branch) = (usize::from(bytes.u8()?), usize::from(bytes.u8()?));
    let mut id = Vec::new();
    for length in [global, branch] {
        id.extend_from_slice(b"X'");
        id.extend(bytes.take(length)?.iter().flat_map(|byte| hex_digits(*byte)));
        id.extend_from_slice(b"',");
    }
    id.extend_from_slice(format.to_string().as_bytes());
    Ok(id)
}

impl<'a> Query<'a> {
    fn read(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut bytes = Bytes::new(data);
        let thread = bytes.little(4)? as u32;
        bytes.take(4)?;
        let database = usize::from(bytes.u8()?);
        bytes.take(2)?;
        let status = bytes.little(2)? as usize;
        let status = bytes.take(status)?;
        let database = bytes.take(database)?;
        bytes.take(1)?;
        let database =
            std::str::from_utf8(database).map_err(|_| Malformed::new("the name of a database is not UTF-8"))?;
        Ok(Self { thread, database, text: bytes.rest(), status })
    }

    /// Decodes the session variables.
    pub(crate) fn status(&self) -> QueryStatus<'a> {
        let mut status = QueryStatus::default();
        // The follower does not need the variables after an unreadable one.
        let _ = status.read(Bytes::new(self.status));
        status
    }
}

impl<'a> QueryStatus<'a> {
    /// A variable is a number and its value. Decoding ends at the first unknown number.
    fn read(&mut self, mut bytes: Bytes<'a>) -> Result<(), Malformed> {
        /// The server omits the names of more databases.
        const MAX_DATABASES: u8 = 254;
        while !bytes.is_empty() {
            match bytes.u8()? {
                // Session flags, AUTO_INCREMENT steps, the number of updated rows.
                0 | 3 | 10 => drop(bytes.take(4)?),
                1 | 9 | 17 => drop(bytes.take(8)?),
                4 => {
                    self.collation = Some(bytes.little(2)?);
                    bytes.take(4)?;
                }
                // Time zone and catalog.
                5 | 6 => {
                    let length = usize::from(bytes.u8()?);
                    bytes.take(length)?;
                }
                7 | 8 | 18 => drop(bytes.take(2)?),
                // The invoking user and host.
                11 => {
                    for _ in 0..2 {
                        let length = usize::from(bytes.u8()?);
                        bytes.take(length)?;
                    }
                }
                12 => {
                    let count = bytes.u8()?;
                    for _ in 0..if count == MAX_DATABASES { 0 } else { count } {
                        let rest = bytes.rest();
                        let end = rest.iter().position(|byte| *byte == 0);
                        let end = end.ok_or_else(|| Malformed::new("the name of a database lacks its end"))?;
                        bytes.take(end + 1)?;
                        self.databases.extend(std::str::from_utf8(&rest[..end]));
                    }
                }
                13 => drop(bytes.take(3)?),
                16 | 19 | 20 => drop(bytes.take(1)?),
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

/// The effect of a statement on its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    /// The transaction begins.
    Begin,
    /// The transaction is committed.
    Commit,
    /// A savepoint within the transaction.
    Within,
    XaStart(Vec<u8>),
    XaCommit(Vec<u8>),
    XaRollback(Vec<u8>),
    /// TRUNCATE; the database (if named) and the table.
    Truncate(Option<String>, String),
    /// CREATE TABLE .. SELECT; its rows follow.
    CreateWithRows,
    /// CREATE, a transaction by itself. It changes no existing row.
    Create,
    /// A schema change, a transaction by itself.
    Definition,
}

impl Statement {
    /// Whether the statement changes the schema.
    pub(crate) fn changes_schema(&self) -> bool {
        matches!(self, Self::Truncate(..) | Self::CreateWithRows | Self::Create | Self::Definition)
    }

    pub(crate) fn parse(text: &[u8]) -> Self {
        let mut words = Tokenizer::new(text);
        let first = words.next_word();
        match first.as_str() {
            "BEGIN" => Self::Begin,
            "COMMIT" => Self::Commit,
            "SAVEPOINT" => Self::Within,
            // `ROLLBACK TO` a savepoint. Without `TO`, it ends a transaction with rows of
            // nontransactional tables.
            "ROLLBACK" if words.next_word() == "TO" => Self::Within,
            "ROLLBACK" => Self::Commit,
            "XA" => {
                let verb = words.next_word();
                let id = words.rest().trim_ascii();
                match verb.as_str() {
                    "START" | "BEGIN" => Self::XaStart(id.to_vec()),
                    "END" => Self::Within,
                    "COMMIT" => Self::XaCommit(id.strip_suffix(b"ONE PHASE").unwrap_or(id).trim_ascii().to_vec()),
                    "ROLLBACK" => Self::XaRollback(id.to_vec()),
                    _ => Self::Within,
                }
            }
            "TRUNCATE" => match words.truncated_table() {
                Some((database, table)) => Self::Truncate(database, table),
                None => Self::Definition,
            },
            "CREATE" if ends_with_start_transaction(text) => Self::CreateWithRows,
            "CREATE" => Self::Create,
            _ => Self::Definition,
        }
    }
}

fn ends_with_start_transaction(text: &[u8]) -> bool {
    const END: &[u8] = b"START TRANSACTION";
    let text = text.trim_ascii_end();
    text.len() >= END.len() && text[text.len() - END.len()..].eq_ignore_ascii_case(END)
}

/// Splits the beginning of a statement into words and names, without comments. It suffices for the
/// statements that the server writes, and for the beginning of schema changes.
#[derive(Clone)]
pub(super) struct Tokenizer<'a> {
    rest: &'a [u8],
    /// The content of `/*! */` is not a comment.
    with_versions: bool,
}

impl<'a> Tokenizer<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { rest: text, with_versions: false }
    }

    /// As [`new`](Tokenizer::new), with the content of `/*!40000 ALTER .. */`.
    pub(super) fn with_versioned_comments(text: &'a [u8]) -> Self {
        Self { rest: text, with_versions: true }
    }

    /// Consumes a character if it is the next one.
    pub(super) fn skip(&mut self, mark: u8) -> bool {
        self.skip_space();
        let found = self.rest.first() == Some(&mark);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn skip_space(&mut self) {
        loop {
            self.rest = self.rest.trim_ascii_start();
            if self.with_versions && self.rest.starts_with(b"/*!") {
                let rest = &self.rest[3..];
                let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
                self.rest = &rest[end..];
            } else if self.with_versions && self.rest.starts_with(b"*/") {
                self.rest = &self.rest[2..];
            } else if self.rest.starts_with(b"/*") {
                let end = self.rest.windows(2).position(|two| two == b"*/");
                self.rest = end.map_or(&[], |end| &self.rest[end + 2..]);
            } else if self.rest.starts_with(b"--") || self.rest.starts_with(b"#") {
                let end = self.rest.iter().position(|byte| *byte == b'\n');
                self.rest = end.map_or(&[], |end| &self.rest[end + 1..]);
            } else {
                return;
            }
        }
    }

    pub(super) fn next_word(&mut self) -> String {
        self.skip_space();
        let end = self.rest.iter().position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_');
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        String::from_utf8_lossy(word).to_ascii_uppercase()
    }

    /// The next word outside of quotes and parentheses, in upper case; empty for a quoted name or
    /// string.
    pub(super) fn next_clause_word(&mut self) -> Option<String> {
        let mut depth = 0usize;
        loop {
            self.skip_space();
            let first = *self.rest.first()?;
            match first {
                b'\'' | b'"' | b'`' => {
                    self.skip_quoted(first);
                    if depth == 0 {
                        return Some(String::new());
                    }
                }
                byte if byte.is_ascii_alphanumeric() || byte == b'_' => {
                    let word = self.next_word();
                    if depth == 0 {
                        return Some(word);
                    }
                }
                byte => {
                    match byte {
                        b'(' => depth += 1,
                        b')' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    self.rest = &self.rest[1..];
                }
            }
        }
    }

    /// Skips a quoted string or name. A doubled quote is two strings, with the same end.
    fn skip_quoted(&mut self, quote: u8) {
        let mut at = 1;
        while let Some(byte) = self.rest.get(at) {
            at += 1;
            if *byte == quote {
                break;
            }
            at += usize::from(*byte == b'\\' && quote != b'`');
        }
        self.rest = self.rest.get(at..).unwrap_or_default();
    }

    fn truncated_table(&mut self) -> Option<(Option<String>, String)> {
        let before = self.rest;
        // The name `table` must be quoted.
        if self.next_word() != "TABLE" {
            self.rest = before;
        }
        let first = self.name()?;
        self.skip_space();
        if self.rest.first() != Some(&b'.') {
            return Some((None, first));
        }
        self.rest = &self.rest[1..];
        Some((Some(first), self.name()?))
    }

    pub(super) fn name(&mut self) -> Option<String> {
        self.skip_space();
        let mut name = Vec::new();
        // Double quotes with the SQL mode ANSI_QUOTES.
        if let Some(quote @ (b'`' | b'"')) = self.rest.first() {
            let mut at = 1;
            loop {
                match (self.rest.get(at)?, self.rest.get(at + 1)) {
                    (byte, Some(next)) if byte == quote && next == quote => {
                        name.push(*quote);
                        at += 2;
                    }
                    (byte, _) if byte == quote => break,
                    (byte, _) => {
                        name.push(*byte);
                        at += 1;
                    }
                }
            }
            self.rest = &self.rest[at + 1..];
        } else {
            let ends =
                |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'.' | b',' | b'(' | b';' | b'/' | b'`');
            let (word, rest) = self.rest.split_at(self.rest.iter().position(ends).unwrap_or(self.rest.len()));
            name = word.to_vec();
            self.rest = rest;
        }
        String::from_utf8(name).ok().filter(|name| !name.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statements_are_classified() {
        let truncate =
            |database: Option<&str>, table: &str| Statement::Truncate(database.map(str::to_owned), table.to_owned());
        for (text, statement) in [
            ("BEGIN", Statement::Begin),
            ("COMMIT", Statement::Commit),
            ("SAVEPOINT `a`", Statement::Within),
            ("ROLLBACK TO `a`", Statement::Within),
            ("ROLLBACK", Statement::Commit),
            ("XA START X'7831',X'',1", Statement::XaStart(b"X'7831',X'',1".to_vec())),
            ("XA COMMIT X'7831',X'',1", Statement::XaCommit(b"X'7831',X'',1".to_vec())),
            ("XA ROLLBACK X'7831',X'',1", Statement::XaRollback(b"X'7831',X'',1".to_vec())),
            ("truncate orders", truncate(None, "orders")),
            ("/* x */ TRUNCATE -- y\n TABLE `sh``op` . `or.ders`", truncate(Some("sh`op"), "or.ders")),
            ("TRUNCATE TABLE shop.orders;", truncate(Some("shop"), "orders")),
            ("CREATE TABLE `a` (\n  `id` int\n) START TRANSACTION", Statement::CreateWithRows),
            ("CREATE TABLE a (id int)", Statement::Create),
            ("ALTER TABLE a ADD b int", Statement::Definition),
        ] {
            assert_eq!(Statement::parse(text.as_bytes()), statement, "{text}");
        }
    }

    proptest! {
        #[test]
        fn invalid_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Statement::parse(&bytes);
            if let Ok(query) = Query::read(&bytes) {
                query.status();
            }
            let _ = QueryStatus::default().read(Bytes::new(&bytes));
            let _ = heartbeat(&bytes);
            let mut truncate = b"TRUNCATE ".to_vec();
            truncate.extend_from_slice(&bytes);
            let _ = Statement::parse(&truncate);
        }
    }
}
