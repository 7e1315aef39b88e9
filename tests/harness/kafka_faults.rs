//! The proxy for Kafka brokers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use trunkline_tests::{KafkaFault, KafkaFaults};

/// A broker that counts requests, and answers each with its correlation id and the broker's
/// address.
fn answering_broker() -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let counted = Arc::new(AtomicU32::new(0));
    let counter = counted.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut connection, counter) = (connection.unwrap(), counter.clone());
            std::thread::spawn(move || {
                let mut request = [0; 12];
                while connection.read_exact(&mut request).is_ok() {
                    counter.fetch_add(1, Ordering::SeqCst);
                    let answer = [&17u32.to_be_bytes(), &request[8..], b"127.0.0.1", &u32::from(port).to_be_bytes()];
                    connection.write_all(&answer.concat()).unwrap();
                }
            });
        }
    });
    (port, counted)
}

#[test]
fn selected_replies_are_lost_or_delayed_and_the_address_is_replaced() {
    const END_TXN: i16 = 26;
    const METADATA: i16 = 3;
    let (port, counted) = answering_broker();
    let faults = KafkaFaults::start(port);
    let connect = || TcpStream::connect(faults.address()).unwrap();
    // The port after the correlation id; `None` if the connection breaks.
    let ask = |connection: &mut TcpStream, api: i16, id: i32| {
        let request = [&8u32.to_be_bytes()[..], &api.to_be_bytes(), &[0, 1], &id.to_be_bytes()];
        connection.write_all(&request.concat()).unwrap();
        let mut answer = [0; 21];
        connection.read_exact(&mut answer).ok()?;
        assert_eq!(answer[4..8], id.to_be_bytes());
        Some(u32::from_be_bytes(answer[17..].try_into().unwrap()))
    };
    let own: u32 = faults.address().rsplit(':').next().unwrap().parse().unwrap();
    let mut connection = connect();
    assert_eq!(ask(&mut connection, METADATA, 1), Some(own));
    assert_eq!(ask(&mut connection, END_TXN, 2), Some(u32::from(port)), "this reply has no broker addresses");

    faults.nth(2, "EndTxn", KafkaFault::DropReply);
    faults.nth(3, "EndTxn", KafkaFault::Delay(Duration::from_millis(200)));
    faults.nth(1, "Produce", KafkaFault::DropReply);
    assert!(ask(&mut connection, END_TXN, 3).is_some());
    assert!(ask(&mut connection, METADATA, 4).is_some());
    assert_eq!(
        (ask(&mut connection, END_TXN, 5), counted.load(Ordering::SeqCst)),
        (None, 5),
        "the broker has received the request"
    );
    let mut connection = connect();
    let started = Instant::now();
    assert!(ask(&mut connection, END_TXN, 6).is_some());
    assert!(started.elapsed() >= Duration::from_millis(200));
    assert_eq!(faults.pending(), 1);
    faults.clear();
    assert_eq!(faults.pending(), 0);
}
