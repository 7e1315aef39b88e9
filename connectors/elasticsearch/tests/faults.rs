//! What a server may do wrong: every record is written once, and only faulty records are rejected.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use std::time::Duration;

use common::fake::{Fake, Fault};
use common::{Setup, deliver_within, delivery, numbered, pending, rejections};
use trunkline_connector::Retry;

fn options(fakes: &[&Fake]) -> String {
    let urls: Vec<String> = fakes.iter().map(|fake| format!("\"http://{}\"", fake.address)).collect();
    format!("url = [{}]\nindex = \"a\"\n", urls.join(", "))
}

#[test]
fn only_refused_documents_are_sent_again() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&options(&[&fake]));
    fake.fault(Fault::Items(429, "rejected_execution_exception", vec![3, 7]));
    fake.fault(Fault::Items(503, "unavailable_shards_exception", vec![7]));
    let mut delivery = numbered(0..10);
    let error = sink.deliver(&mut delivery).unwrap_err();
    assert_eq!(
        (error.code, error.retry, pending(&delivery)),
        ("elasticsearch.busy", Retry::Backoff, vec![3, 7]),
        "{error}"
    );
    assert!(error.message().contains("2 of 10 documents"), "{error}");
    assert_eq!(deliver_within(sink.as_ref(), &mut delivery, 2), 2);
    assert_eq!((fake.requests(), fake.numbers()), (vec![10, 2, 1], (0..10).collect()));
}

#[test]
fn faulty_documents_are_rejected_and_the_others_written() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&options(&[&fake]));
    fake.fault(Fault::Items(400, "mapper_parsing_exception", vec![2]));
    fake.fault(Fault::Items(500, "script_exception", vec![11]));
    let mut first = numbered(0..10);
    sink.deliver(&mut first).unwrap();
    assert_eq!(rejections(&first), [(2, "elasticsearch.rejected".to_owned())]);
    let mut second = numbered(10..12);
    sink.deliver(&mut second).unwrap();
    assert_eq!(rejections(&second), [(11, "elasticsearch.rejected".to_owned())]);
    assert_eq!(fake.numbers(), [0, 1, 3, 4, 5, 6, 7, 8, 9, 10]);
}

#[test]
fn the_wait_that_a_server_asks_for_is_obeyed() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&options(&[&fake]));
    for (fault, code, retry) in [
        (Fault::Whole(429, Some(7)), "elasticsearch.busy", Retry::After(Duration::from_secs(7))),
        (Fault::Whole(503, Some(3600)), "elasticsearch.unavailable", Retry::After(Duration::from_secs(60))),
        (Fault::Whole(500, None), "elasticsearch.unavailable", Retry::Backoff),
        (Fault::Whole(401, None), "elasticsearch.unauthorized", Retry::Backoff),
        (Fault::Whole(403, None), "elasticsearch.forbidden", Retry::Backoff),
    ] {
        fake.fault(fault);
        let mut delivery = numbered(0..2);
        let error = sink.deliver(&mut delivery).unwrap_err();
        assert_eq!((error.code, error.retry, pending(&delivery)), (code, retry, vec![0, 1]), "{error}");
    }
    assert!(fake.numbers().is_empty());
}

#[test]
fn lost_and_cut_replies_are_repeated_without_effect() {
    for compression in ["gzip", "none"] {
        let (setup, fake) = (Setup::new(), Fake::start());
        let sink = setup.open(&format!("{}compression = \"{compression}\"\n", options(&[&fake])));
        for (fault, code) in
            [(Fault::DropReply, "elasticsearch.connection_lost"), (Fault::CutReply, "elasticsearch.connection_lost")]
        {
            fake.always(Some(fault));
            let mut delivery = numbered(0..5);
            let error = sink.deliver(&mut delivery).unwrap_err();
            assert_eq!((error.code, pending(&delivery)), (code, (0..5).collect()), "{error}");
            fake.always(None);
            assert_eq!(deliver_within(sink.as_ref(), &mut delivery, 1), 1);
            assert_eq!(fake.numbers(), (0..5).collect::<Vec<_>>());
        }
        let is_packed = fake.headers().contains(&"content-encoding: gzip".to_owned());
        assert_eq!(is_packed, compression == "gzip");
    }
}

#[test]
fn a_lost_reply_never_brings_an_old_version_back() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&format!("{}id = \"key\"\n", options(&[&fake])));
    let mut old = delivery(&[(1, Some("k"), Some("{\"n\":1}"))]);
    fake.always(Some(Fault::DropReply));
    sink.deliver(&mut old).unwrap_err();
    fake.always(None);
    sink.deliver(&mut delivery(&[(2, Some("k"), Some("{\"n\":2}"))])).unwrap();
    sink.deliver(&mut old).unwrap();
    assert_eq!(fake.numbers(), [2]);
}

#[test]
fn requests_that_are_too_large_are_split() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&options(&[&fake]));
    fake.limit_bytes(300);
    let long = format!("{{\"n\":3,\"text\":\"{}\"}}", "x".repeat(400));
    let values: Vec<String> = (0..8).map(|n| if n == 3 { long.clone() } else { format!("{{\"n\":{n}}}") }).collect();
    let records: Vec<_> = (0..).zip(&values).map(|(offset, value)| (offset, None, Some(value.as_str()))).collect();
    let mut delivery = delivery(&records);
    sink.deliver(&mut delivery).unwrap();
    assert_eq!(rejections(&delivery), [(3, "elasticsearch.too_large".to_owned())]);
    assert_eq!(fake.numbers(), [0, 1, 2, 4, 5, 6, 7]);
}

#[test]
fn a_record_that_spoils_its_request_is_found() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&options(&[&fake]));
    fake.refuse_requests_with(13);
    let mut delivery = numbered(0..50);
    sink.deliver(&mut delivery).unwrap();
    assert_eq!(rejections(&delivery), [(13, "elasticsearch.refused".to_owned())]);
    assert_eq!(fake.numbers(), (0..50).filter(|n| *n != 13).collect::<Vec<_>>());
    assert!(fake.requests().len() <= 14, "{:?}", fake.requests());
}

#[test]
fn deliveries_are_divided_into_requests() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&format!("{}request_bytes = \"64KiB\"\n", options(&[&fake])));
    sink.deliver(&mut numbered(0..5_000)).unwrap();
    assert_eq!(fake.numbers(), (0..5_000).collect::<Vec<_>>());
    let requests = fake.requests();
    assert!(requests.len() >= 3 && requests.iter().sum::<usize>() == 5_000, "{requests:?}");
}

#[test]
fn other_nodes_take_over_from_a_dead_one() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let (alive, dead) = (fake.another_node(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let dead_address = dead.local_addr().unwrap();
    drop(dead);
    let urls = format!(
        "url = [\"http://{dead_address}\", \"http://{}\", \"http://{}\"]\nindex = \"a\"\n",
        fake.address, alive.address
    );
    let sink = setup.open(&urls);
    for first in 0..6 {
        sink.deliver(&mut numbered(first..first + 1)).unwrap();
    }
    // A node that cannot serve: another one does.
    fake.fault(Fault::Whole(503, None));
    sink.deliver(&mut numbered(6..7)).unwrap();
    assert_eq!(fake.numbers(), (0..7).collect::<Vec<_>>());

    let none = setup.try_open(&format!("url = \"http://{dead_address}\"\nindex = \"a\"\n")).err().unwrap();
    assert_eq!((none.code, none.retry), ("elasticsearch.unreachable", Retry::Backoff), "{none}");
}

#[test]
fn credentials_are_sent() {
    let (setup, fake) = (Setup::new(), Fake::start());
    for (line, expected) in [
        ("username = \"u\"\npassword = \"p\"", "authorization: basic dtpw"),
        ("api_key = \"abc\"", "authorization: apikey abc"),
    ] {
        drop(setup.open(&format!("{}{line}", options(&[&fake]))));
        assert!(fake.headers().contains(&expected.to_owned()), "{:?}", fake.headers());
    }
}

#[test]
fn concurrent_deliveries_to_a_busy_server_are_all_written() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&format!("{}in_flight = 4\n", options(&[&fake])));
    for n in 0..40 {
        // Every second request finds a full queue, in whole or in part.
        fake.fault(if n % 4 == 0 { Fault::Whole(429, None) } else { Fault::None });
        fake.fault(Fault::Items(429, "rejected_execution_exception", (0..400).filter(|m| m % 3 == 0).collect()));
    }
    std::thread::scope(|scope| {
        for first in (0..400).step_by(100) {
            let sink = &sink;
            scope.spawn(move || deliver_within(sink.as_ref(), &mut numbered(first..first + 100), 40));
        }
    });
    assert_eq!(fake.numbers(), (0..400).collect::<Vec<_>>());
}

/// A file with a new certificate for 127.0.0.1 and its key. Without openssl it prints the reason
/// and returns `None`.
fn certificate() -> Option<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let output = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=search", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", path])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let key = std::fs::read(file.path()).unwrap();
            std::fs::write(file.path(), [key, output.stdout].concat()).unwrap();
            Some(file)
        }
        other => {
            eprintln!("SKIP certificates: openssl cannot make one: {other:?}");
            None
        }
    }
}

#[test]
fn authorities_of_tls_ca_are_trusted_and_others_are_not() {
    let Some(certificate) = certificate() else { return };
    let (setup, fake) = (Setup::new(), Fake::start_tls(&std::fs::read(certificate.path()).unwrap()));
    let options = format!("url = \"https://{}\"\nindex = \"a\"\n", fake.address);
    let trusted = setup.open(&format!("{options}tls_ca = {:?}\n", certificate.path()));
    trusted.deliver(&mut numbered(0..3)).unwrap();
    assert_eq!(fake.numbers(), [0, 1, 2]);
    let error = setup.try_open(&options).err().unwrap();
    assert_eq!(error.code, "elasticsearch.unreachable", "{error}");
    assert!(error.message().contains("certificate"), "{error}");
    let missing = setup.try_open(&format!("{options}tls_ca = \"/nonexistent.pem\"\n")).err().unwrap();
    assert_eq!(missing.code, "io.not_found", "{missing}");
}
