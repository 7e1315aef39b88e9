//! The proxy for S3 servers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use trunkline_tests::{Fault, S3Faults};

/// A server that counts complete requests, and answers each with its number and body length.
fn counting_server() -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let complete = Arc::new(AtomicU32::new(0));
    let counter = complete.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            serve(connection.unwrap(), &counter);
        }
    });
    (address, complete)
}

fn serve(mut connection: TcpStream, complete: &AtomicU32) {
    let mut received = Vec::new();
    let mut block = [0; 65_536];
    while let Ok(n @ 1..) = connection.read(&mut block) {
        received.extend_from_slice(&block[..n]);
        let Some(head) = received.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&received[..head]).to_lowercase();
        let length =
            text.split("content-length: ").nth(1).map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
        if received.len() < head + 4 + length {
            continue;
        }
        let body = format!("{} {length}", complete.fetch_add(1, Ordering::SeqCst) + 1);
        let _ = write!(connection, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        received.clear();
    }
}

/// Sends one request on a new connection; returns the complete response.
fn request(address: &str, method: &str, target: &str, body: usize) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    let mut bytes = format!("{method} {target} HTTP/1.1\r\nhost: x\r\ncontent-length: {body}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + body, b'x');
    // Some faults break the connection, which is an error here.
    let _ = connection.write_all(&bytes);
    let _ = connection.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_request_without_a_rule_passes_unchanged() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    assert!(request(faults.address(), "PUT", "/bucket/key", 300_000).ends_with("1 300000"));
    assert_eq!(complete.load(Ordering::SeqCst), 1);
    assert_eq!(faults.broken(), 0);
    assert_eq!(faults.requests()[0].target, "/bucket/key");
}

#[test]
fn the_nth_matching_request_is_refused() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    faults.nth(2, "PUT", "partNumber", Fault::Status(503));
    assert!(request(faults.address(), "PUT", "/k?partNumber=1", 5).starts_with("HTTP/1.1 200"));
    assert!(request(faults.address(), "GET", "/k?partNumber=1", 0).starts_with("HTTP/1.1 200"));
    let refused = request(faults.address(), "PUT", "/k?partNumber=2", 5);
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("<Code>SlowDown</Code>"), "{refused}");
    assert!(request(faults.address(), "PUT", "/k?partNumber=2", 5).starts_with("HTTP/1.1 200"));
    assert_eq!(complete.load(Ordering::SeqCst), 3);
    assert_eq!(faults.broken(), 1);
}

#[test]
fn a_fault_window_lasts_until_its_end() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    let window = faults.from_now("", "", Fault::Status(403));
    for _ in 0..3 {
        assert!(request(faults.address(), "GET", "/k", 0).contains("AccessDenied"));
    }
    assert_eq!(complete.load(Ordering::SeqCst), 0);
    window.end();
    assert!(request(faults.address(), "GET", "/k", 0).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_cut_request_reaches_the_server_incomplete() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    faults.nth(1, "PUT", "", Fault::Cut);
    assert_eq!(request(faults.address(), "PUT", "/k", 300_000), "");
    assert!(request(faults.address(), "PUT", "/k", 10).ends_with("1 10"));
    assert_eq!(complete.load(Ordering::SeqCst), 1);
}

#[test]
fn the_server_executes_a_request_with_a_dropped_reply() {
    let (server, complete) = counting_server();
    let faults = S3Faults::start(&server);
    faults.nth(1, "POST", "uploadId=", Fault::DropReply);
    assert_eq!(request(faults.address(), "POST", "/k?uploadId=7", 100), "");
    assert_eq!(complete.load(Ordering::SeqCst), 1);
}

#[test]
fn a_slow_request_arrives_late() {
    let (server, _) = counting_server();
    let faults = S3Faults::start(&server);
    faults.nth(1, "GET", "", Fault::Slow(Duration::from_millis(300)));
    let started = Instant::now();
    assert!(request(faults.address(), "GET", "/k", 0).starts_with("HTTP/1.1 200"));
    assert!(started.elapsed() >= Duration::from_millis(300));
}
