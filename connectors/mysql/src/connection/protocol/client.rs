//! [`Client`]: statements and their results on an authenticated connection.

use tokio::io::{AsyncRead, AsyncWrite};

use super::packet::Packets;
use super::result_set::{Row, RowReader, WireType};
use super::{ERROR, OK, ProtocolError, server_error};
use crate::decode::{Bytes, Malformed};

/// The first byte of the packet that ends a list of columns or rows.
const END: u8 = 0xfe;
/// The packet at the end is shorter than any row that starts with the same byte.
const MAX_END: usize = 8;

/// A connection that runs one statement at a time.
pub(crate) struct Client<S> {
    packets: Packets<S>,
    state: State,
    /// The prepared statement that the server keeps.
    statement: Option<[u8; 4]>,
    /// The types of the result's columns.
    columns: Vec<WireType>,
    row: RowReader,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The server waits for a command.
    Ready,
    /// A command was sent, and its answer is incomplete. The future that read it may have been
    /// dropped.
    Answering,
    /// Rows of the result are not read.
    Rows,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(packets: Packets<S>) -> Self {
        Self { packets, state: State::Ready, statement: None, columns: Vec::new(), row: RowReader::default() }
    }

    /// Runs one statement. Its rows, if it has any, are texts.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<(), ProtocolError> {
        const QUERY: u8 = 3;
        self.start(QUERY, sql.as_bytes()).await?;
        self.result().await
    }

    /// Prepares and executes one statement. Its rows have binary values.
    pub(crate) async fn execute(&mut self, sql: &str) -> Result<(), ProtocolError> {
        const PREPARE: u8 = 0x16;
        const EXECUTE: u8 = 0x17;
        /// No cursor; one execution.
        const ONCE: [u8; 5] = [0, 1, 0, 0, 0];
        self.start(PREPARE, sql.as_bytes()).await?;
        let answer = self.answer().await?;
        let (statement, columns, parameters) = prepared(&answer).map_err(|error| invalid(&error))?;
        for count in [parameters, columns] {
            self.definitions(usize::from(count)).await?;
        }
        self.state = State::Ready;
        self.start(EXECUTE, &[&statement[..], &ONCE].concat()).await?;
        self.statement = Some(statement);
        self.result().await
    }

    /// The next row of a [query](Client::query).
    pub(crate) async fn next_text(&mut self) -> Result<Option<Row<'_>>, ProtocolError> {
        let Self { packets, state, columns, row, .. } = self;
        let Some(packet) = next_packet(packets, state).await? else { return Ok(None) };
        row.text(packet, columns.len()).map(Some).map_err(|error| invalid(&error))
    }

    /// The next row of a [prepared statement](Client::execute).
    #[inline]
    pub(crate) async fn next_binary(&mut self) -> Result<Option<Row<'_>>, ProtocolError> {
        let Self { packets, state, columns, row, .. } = self;
        let Some(packet) = next_packet(packets, state).await? else { return Ok(None) };
        row.binary(packet, columns).map(Some).map_err(|error| invalid(&error))
    }

    /// Reads and drops the rest of the rows.
    pub(crate) async fn skip_rows(&mut self) -> Result<(), ProtocolError> {
        while next_packet(&mut self.packets, &mut self.state).await?.is_some() {}
        Ok(())
    }

    /// Ends the connection, with the message that the server expects.
    pub(crate) async fn quit(mut self) -> Result<(), ProtocolError> {
        const QUIT: u8 = 1;
        self.packets.start_command();
        self.packets.send(&[QUIT]).await
    }

    /// Sends a command, after the end of the previous one.
    async fn start(&mut self, command: u8, content: &[u8]) -> Result<(), ProtocolError> {
        const CLOSE: u8 = 0x19;
        // The answer to a row that the server could not send ends the result.
        while self.state == State::Rows {
            match self.skip_rows().await {
                Err(ProtocolError::Server(_)) => {}
                skipped => skipped?,
            }
        }
        if self.state == State::Answering {
            return Err(ProtocolError::broken("the answer to the previous statement was not read"));
        }
        self.state = State::Answering;
        if let Some(statement) = self.statement.take() {
            // The server does not answer.
            self.packets.start_command();
            self.packets.send(&[&[CLOSE][..], &statement].concat()).await?;
        }
        self.packets.start_command();
        self.packets.send(&[&[command], content].concat()).await
    }

    /// The first packet of an answer, if it is not an error.
    async fn answer(&mut self) -> Result<Vec<u8>, ProtocolError> {
        let answer = self.packets.packet().await?;
        match answer.split_first() {
            Some((&ERROR, rest)) => {
                self.state = State::Ready;
                Err(server_error(rest))
            }
            _ => Ok(answer),
        }
    }

    /// Reads the beginning of a result, up to its first row.
    async fn result(&mut self) -> Result<(), ProtocolError> {
        /// The server asks for a local file, which the client does not offer.
        const LOCAL_FILE: u8 = 0xfb;
        let answer = self.answer().await?;
        self.columns.clear();
        match answer.first() {
            Some(&OK) => {
                self.state = State::Ready;
                return Ok(());
            }
            None | Some(&LOCAL_FILE) => {
                return Err(ProtocolError::broken("the server sent an invalid answer to a statement"));
            }
            _ => {}
        }
        // At most 4096, because a table has no more.
        const MAX_COLUMNS: u64 = u16::MAX as u64;
        let columns = Bytes::new(&answer).packed().map_err(|error| invalid(&error))?;
        if columns > MAX_COLUMNS {
            return Err(ProtocolError::Broken(format!("the server announced {columns} columns")));
        }
        self.definitions(columns as usize).await?;
        self.state = State::Rows;
        Ok(())
    }

    /// Reads this number of column definitions, and the packet after them.
    async fn definitions(&mut self, count: usize) -> Result<(), ProtocolError> {
        self.columns.clear();
        for _ in 0..count {
            let definition = self.answer().await?;
            self.columns.push(WireType::of_definition(&definition).map_err(|error| invalid(&error))?);
        }
        if count > 0 && !is_end(&self.answer().await?) {
            return Err(ProtocolError::broken("the definitions of columns do not end"));
        }
        Ok(())
    }
}

/// The next row's packet; `None` after the last one.
#[inline]
async fn next_packet<'a, S: AsyncRead + Unpin>(
    packets: &'a mut Packets<S>,
    state: &mut State,
) -> Result<Option<&'a [u8]>, ProtocolError> {
    if *state != State::Rows {
        return Ok(None);
    }
    let packet = packets.whole().await?;
    match packet.first() {
        Some(&ERROR) => {
            *state = State::Ready;
            Err(server_error(&packet[1..]))
        }
        Some(&END) if is_end(packet) => {
            *state = State::Ready;
            Ok(None)
        }
        _ => Ok(Some(packet)),
    }
}

fn is_end(packet: &[u8]) -> bool {
    packet.first() == Some(&END) && packet.len() <= MAX_END
}

/// The id of a prepared statement, and the numbers of its columns and parameters.
fn prepared(answer: &[u8]) -> Result<([u8; 4], u16, u16), Malformed> {
    let mut bytes = Bytes::new(answer);
    let status = bytes.u8()?;
    if status != OK {
        return Err(Malformed(format!("{status:#x} is not the first byte of a prepared statement")));
    }
    let mut statement = [0; 4];
    statement.copy_from_slice(bytes.take(4)?);
    Ok((statement, bytes.little(2)? as u16, bytes.little(2)? as u16))
}

#[cold]
fn invalid(error: &Malformed) -> ProtocolError {
    ProtocolError::Broken(format!("an answer of the server: {error}"))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::connection::protocol::packet::tests::{block_on, framed};

    const COUNT: &[u8] = &[2];
    const INT: &[u8] = b"\x03def\x00\x00\x00\x01a\x00\x0c\x3f\x00\x0b\x00\x00\x00\x03\x00\x00\x00\x00\x00";
    const TEXT: &[u8] = b"\x03def\x00\x00\x00\x01b\x00\x0c\x2d\x00\xff\x00\x00\x00\xfd\x00\x00\x00\x00\x00";
    const LAST: &[u8] = &[END, 0, 0, 2, 0];
    const PREPARED: &[u8] = &[0, 7, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
    const ROWS: [&[u8]; 2] = [&[0, 0, 5, 0, 0, 0, 1, b'x'], &[0, 0b1000, 6, 0, 0, 0]];
    const DONE: &[u8] = &[0, 0, 0, 2, 0, 0, 0];

    /// A client, and a server that has already sent these answers.
    fn client(answers: &[&[&[u8]]]) -> (Client<DuplexStream>, DuplexStream) {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let bytes: Vec<u8> = answers.iter().flat_map(|answer| framed(answer, 1)).collect();
        block_on(far.write_all(&bytes)).unwrap();
        (Client::new(Packets::new(near)), far)
    }

    fn server(error: Result<(), ProtocolError>) -> u16 {
        error.unwrap_err().server().unwrap().number
    }

    #[test]
    fn rows_of_a_prepared_statement_are_read_and_the_statement_is_closed() {
        let error: &[&[u8]] = &[b"\xff\x7a\x04#42S02gone"];
        let result = [&[COUNT, INT, TEXT, LAST], &ROWS[..], &[LAST]].concat();
        let (mut client, mut far) = client(&[&[PREPARED, INT, TEXT, LAST], &result, &[DONE], error, &[DONE]]);
        block_on(async {
            client.execute("SELECT").await.unwrap();
            let mut rows = Vec::new();
            while let Some(row) = client.next_binary().await.unwrap() {
                rows.push((row.value(0).unwrap().unwrap()[0], row.value(1).unwrap().map(<[u8]>::to_vec)));
            }
            assert_eq!(rows, [(5, Some(b"x".to_vec())), (6, None)]);
            assert!(client.next_binary().await.unwrap().is_none());
            client.query("COMMIT").await.unwrap();
            assert!(client.next_text().await.unwrap().is_none());
            // The connection is usable after an error.
            assert_eq!(server(client.query("SELECT").await), 1146);
            client.query("COMMIT").await.unwrap();
            drop(client);
            let mut sent = Vec::new();
            far.read_to_end(&mut sent).await.unwrap();
            let expected = [
                &b"\x07\x00\x00\x00\x16SELECT"[..],
                b"\x0a\x00\x00\x00\x17\x07\x00\x00\x00\x00\x01\x00\x00\x00",
                b"\x05\x00\x00\x00\x19\x07\x00\x00\x00",
                b"\x07\x00\x00\x00\x03COMMIT\x07\x00\x00\x00\x03SELECT\x07\x00\x00\x00\x03COMMIT",
            ];
            assert_eq!(sent, expected.concat());
        });
    }

    #[test]
    fn rows_that_were_not_read_are_skipped_and_errors_among_them_end_the_result() {
        let (count, row): (&[u8], &[u8]) = (&[1], b"\x01x");
        let failed: &[&[u8]] = &[count, TEXT, LAST, row, b"\xff\x25\x05#70100interrupted"];
        let (mut client, _far) = client(&[failed, failed, &[count, TEXT, LAST, row, LAST]]);
        block_on(async {
            client.query("SELECT").await.unwrap();
            assert!(client.next_text().await.unwrap().is_some());
            assert_eq!(server(client.skip_rows().await), 1317);
            client.query("SELECT").await.unwrap();
            client.query("SELECT").await.unwrap();
            let row = client.next_text().await.unwrap().unwrap();
            assert_eq!(row.value(0).unwrap(), Some(&b"x"[..]));
        });
    }

    #[test]
    fn an_answer_that_was_not_read_blocks_the_connection() {
        let (mut client, _far) = client(&[]);
        block_on(async {
            let mut query = Box::pin(client.query("SELECT SLEEP(60)"));
            assert!(poll_fn(|context| Poll::Ready(query.as_mut().poll(context).is_pending())).await);
            drop(query);
            let error = client.query("SELECT 1").await.unwrap_err();
            assert!(matches!(&error, ProtocolError::Broken(why) if why.contains("previous")), "{error:?}");
        });
    }

    proptest! {
        #[test]
        fn invalid_answers_never_panic(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            known in proptest::collection::vec(0usize..8, 0..8), cut in 0usize..300,
        ) {
            let library = [PREPARED, COUNT, INT, TEXT, LAST, ROWS[0], ROWS[1], DONE];
            // Valid packets in any order, with random ones between them.
            let mut answer: Vec<&[u8]> = known.iter().map(|index| library[*index]).collect();
            for (index, packet) in packets.iter().enumerate() {
                answer.insert(index * 2 % (answer.len() + 1), packet);
            }
            let mut bytes = framed(&answer, 1);
            bytes.truncate(cut);
            block_on(async {
                for is_prepared in [false, true] {
                    let (near, mut far) = tokio::io::duplex(1 << 20);
                    far.write_all(&bytes).await.unwrap();
                    far.shutdown().await.unwrap();
                    let mut client = Client::new(Packets::new(near));
                    let started = if is_prepared { client.execute("s").await } else { client.query("s").await };
                    if started.is_ok() {
                        let next = async |client: &mut Client<DuplexStream>| match is_prepared {
                            true => client.next_binary().await.map(|row| row.is_some()),
                            false => client.next_text().await.map(|row| row.is_some()),
                        };
                        while let Ok(true) = next(&mut client).await {}
                    }
                }
            });
        }
    }
}
