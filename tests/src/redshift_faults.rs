//! A proxy for Redshift that breaks selected statements.
//!
//! Statements are messages `Q` of the simple query protocol, without TLS.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedshiftFault {
    /// The connection breaks before the server gets the statement.
    Unsent,
    /// The server executes the statement, but the client gets no reply: the connection breaks.
    ReplyLost,
    /// The server executes the statement, and nothing else passes: the client hangs in an open
    /// connection until the server closes it.
    Stalled,
    /// Redshift's error 1023, this number of times. The server does not get the statement.
    Conflict(u32),
    /// The user lacks the privilege, this number of times. The server does not get the statement.
    Denied(u32),
    /// The server gets the statement after this time.
    Slow(Duration),
    /// An error whose text is the whole statement. The server does not get it.
    Repeated,
}

/// The proxy.
pub struct RedshiftFaults {
    port: u16,
    next: Next,
    repeated: Arc<Mutex<Vec<String>>>,
}

/// The beginning of the statements that a fault is for, and the fault.
type Next = Arc<Mutex<Option<(String, RedshiftFault)>>>;

impl RedshiftFaults {
    /// Starts a proxy for the server at this port of 127.0.0.1.
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let next = Next::default();
        let repeated: Arc<Mutex<Vec<String>>> = Arc::default();
        let (shared, seen) = (next.clone(), repeated.clone());
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", server)).unwrap());
                let (shared, seen) = (shared.clone(), seen.clone());
                std::thread::spawn(move || relay(client, server, &shared, &seen));
            }
        });
        Self { port, next, repeated }
    }

    /// The proxy's port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Breaks the next statement that begins with this text. A fault that has not happened yet is
    /// forgotten.
    pub fn break_at(&self, statement: &str, fault: RedshiftFault) {
        *self.next.lock().unwrap() = Some((statement.to_owned(), fault));
    }

    /// The statements that were repeated in an error.
    pub fn repeated(&self) -> Vec<String> {
        self.repeated.lock().unwrap().clone()
    }

    /// Whether the fault has happened, each time.
    pub fn is_done(&self) -> bool {
        self.next.lock().unwrap().is_none()
    }
}

/// Relays both directions.
fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    next: &Mutex<Option<(String, RedshiftFault)>>,
    repeated: &Mutex<Vec<String>>,
) {
    let (silent, stalled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (mut back, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let (quiet, stops) = (silent.clone(), stalled.clone());
    let replies = std::thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok(read @ 1..) = back.read(&mut buffer) {
            if stops.load(Ordering::SeqCst) {
                continue;
            }
            // With a lost reply: the statement was executed.
            if quiet.load(Ordering::SeqCst) || to_client.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        drop(to_client.shutdown(Shutdown::Both));
        drop(back.shutdown(Shutdown::Both));
    });
    // The first message has no type.
    let mut has_type = false;
    while let Some(message) = read_message(&mut client, has_type) {
        has_type = true;
        let fault = fault_of(&mut next.lock().unwrap(), &message);
        match fault {
            Some(RedshiftFault::Unsent) => break,
            Some(RedshiftFault::Conflict(_)) => {
                answer(&mut client, "XX000", "1023 Serializable isolation violation on table - 100");
                continue;
            }
            Some(RedshiftFault::Denied(_)) => {
                answer(&mut client, "42501", "permission denied for relation orders");
                continue;
            }
            Some(RedshiftFault::Repeated) => {
                let statement = std::str::from_utf8(&message[5..message.len() - 1]).unwrap();
                repeated.lock().unwrap().push(statement.to_owned());
                answer(&mut client, "XX000", statement);
                continue;
            }
            Some(RedshiftFault::Stalled) => stalled.store(true, Ordering::SeqCst),
            Some(RedshiftFault::ReplyLost) => silent.store(true, Ordering::SeqCst),
            Some(RedshiftFault::Slow(time)) => drop(crate::wait::within(time, || None::<()>)),
            None => {}
        }
        if server.write_all(&message).is_err() {
            break;
        }
    }
    if !silent.load(Ordering::SeqCst) {
        drop(server.shutdown(Shutdown::Both));
    }
    drop(replies.join());
}

/// Answers a statement with an error. The transaction has failed, and the server is ready. A client
/// that is gone gets nothing.
fn answer(client: &mut TcpStream, sqlstate: &str, message: &str) {
    let fields = format!("SERROR\0C{sqlstate}\0M{message}\0D{message}\0\0");
    let mut answer = vec![b'E'];
    answer.extend((fields.len() as u32 + 4).to_be_bytes());
    answer.extend(fields.as_bytes());
    answer.extend(*b"Z\0\0\0\x05E");
    drop(client.write_all(&answer));
}

/// The fault of this message. A fault is over after its last time.
fn fault_of(next: &mut Option<(String, RedshiftFault)>, message: &[u8]) -> Option<RedshiftFault> {
    let (statement, planned) = next.as_mut()?;
    let is_statement = message.first() == Some(&b'Q') && message[5..].starts_with(statement.as_bytes());
    if !is_statement {
        return None;
    }
    let fault = *planned;
    match planned {
        RedshiftFault::Conflict(times) | RedshiftFault::Denied(times) if *times > 1 => *times -= 1,
        _ => *next = None,
    }
    Some(fault)
}

fn read_message(client: &mut TcpStream, has_type: bool) -> Option<Vec<u8>> {
    let mut message = vec![0; if has_type { 5 } else { 4 }];
    client.read_exact(&mut message).ok()?;
    let length = u32::from_be_bytes(message[message.len() - 4..].try_into().ok()?) as usize;
    let head = message.len();
    message.resize(head + length - 4, 0);
    client.read_exact(&mut message[head..]).ok()?;
    Some(message)
}
