//! A proxy between source and server: counts connections, routes each to a chosen server, and cuts
//! some.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A source without a snapshot opens two connections: for queries, then for replication.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

type Before = Box<dyn Fn() + Send + Sync>;

struct Shared {
    /// The ports for query connections and for replication connections.
    targets: [u16; 2],
    /// Runs before a replication connection.
    before: Before,
    /// The next replication connections are cut after these numbers of bytes.
    cuts: Mutex<VecDeque<u64>>,
    is_over: AtomicBool,
}

impl Proxy {
    pub(crate) fn new(queries: u16, binlog: u16, before: impl Fn() + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            targets: [queries, binlog],
            before: Box::new(before),
            cuts: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                if accepting.is_over.load(Ordering::Relaxed) {
                    return;
                }
                accepting.lead(client.unwrap(), number % 2 == 1);
            }
        });
        Self { port, shared }
    }

    pub(crate) fn cut(&self, bytes: impl IntoIterator<Item = u64>) {
        self.shared.cuts.lock().unwrap().extend(bytes);
    }

    /// The number of remaining cuts.
    pub(crate) fn cuts_left(&self) -> usize {
        self.shared.cuts.lock().unwrap().len()
    }
}

impl Shared {
    fn lead(&self, client: TcpStream, is_binlog: bool) {
        let mut most = u64::MAX;
        if is_binlog {
            (self.before)();
            most = self.cuts.lock().unwrap().pop_front().unwrap_or(u64::MAX);
        }
        // A server that is down closes connections.
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.targets[usize::from(is_binlog)])) else { return };
        for (from, to, most) in [(&client, &server, u64::MAX), (&server, &client, most)] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            std::thread::spawn(move || pass(from, to, most));
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut most: u64) {
    let mut bytes = [0; 16 << 10];
    while most > 0 {
        let room = bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        match from.read(&mut bytes[..room]) {
            Ok(count) if count > 0 && to.write_all(&bytes[..count]).is_ok() => most -= count as u64,
            _ => break,
        }
    }
    // The connection may be closed already.
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}
