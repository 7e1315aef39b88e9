//! What a server may do wrong: every record is written once, and only faulty records are rejected.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test reports a failure by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::fake::{Fake, Fault};
use common::{Setup, deliver_within, delivery, numbered, pending, rejections};
use trunkline_connector::{MemoryBudget, Retry, TopicPartition};

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
    assert_eq!(deliver_within(sink.as_ref(), &mut numbered(0..10), 3), 3);
    assert_eq!((fake.requests(), fake.numbers()), (vec![10, 2, 1], (0..10).collect()));
}

#[test]
fn refused_documents_are_left_to_the_caller() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&options(&[&fake]));
    fake.fault(Fault::Items(429, "rejected_execution_exception", (0..6).collect()));
    let mut delivery = numbered(0..10);
    let error = sink.deliver(&mut delivery).unwrap_err();
    assert_eq!(
        (error.code, error.retry, pending(&delivery)),
        ("elasticsearch.busy", Retry::Backoff, (0..6).collect()),
        "{error}"
    );
    assert!(error.message().contains("6 of 10 documents"), "{error}");
    assert_eq!(deliver_within(sink.as_ref(), &mut delivery, 1), 1);
    assert_eq!((fake.requests(), fake.numbers()), (vec![10, 6], (0..10).collect()));
}

#[test]
fn a_busy_request_does_not_hold_up_the_others_of_its_delivery() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let sink = setup.open(&format!("{}request_bytes = \"64KiB\"\n", options(&[&fake])));
    fake.fault(Fault::Items(429, "rejected_execution_exception", vec![0]));
    let mut delivery = numbered(0..4000);
    assert_eq!(sink.deliver(&mut delivery).unwrap_err().code, "elasticsearch.busy");
    assert_eq!(pending(&delivery), [0]);
    sink.deliver(&mut delivery).unwrap();
    let requests = fake.requests();
    assert!(requests.len() > 2 && requests.last() == Some(&1), "{requests:?}");
    assert_eq!(requests.iter().sum::<usize>(), 4001);
    assert_eq!(fake.numbers(), (0..4000).collect::<Vec<_>>());
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
fn without_versions_a_later_write_never_overtakes_an_earlier_one() {
    let change = |pos: i64, n: i64| {
        format!(r#"{{"before":null,"after":{{"n":{n}}},"source":{{"file":"b.000001","pos":{pos}}},"op":"u"}}"#)
    };
    for version in ["none", "source"] {
        let (setup, fake) = (Setup::new(), Fake::start());
        let sink = setup.open(&format!("{}id = \"key\"\nversion = \"{version}\"\n", options(&[&fake])));
        assert_eq!(sink.in_flight().per_partition, 1);
        // The first two changes are of one binlog event; the server has no room for the first.
        let values = [change(4, 1), change(4, 2), change(4, 3)];
        let mut delivery = delivery(&[
            (1, Some("k"), Some(values[0].as_str())),
            (2, Some("k"), Some(&values[1])),
            (3, Some("other"), Some(&values[2])),
        ]);
        fake.fault(Fault::Items(429, "rejected_execution_exception", vec![1]));
        let error = sink.deliver(&mut delivery).unwrap_err();
        assert!(error.message().contains("2 of 3 documents"), "{error}");
        assert_eq!(pending(&delivery), [1, 2]);
        sink.deliver(&mut delivery).unwrap();
        assert_eq!((fake.requests(), fake.numbers()), (vec![3, 2], vec![2, 3]));
    }
}

#[test]
fn re_read_changes_never_replace_newer_ones() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let options = format!("{}id = \"key\"\nversion = \"source\"\n", options(&[&fake]));
    let sink = setup.open(&options);
    let event = |op: &str, pos: i64, n: i64| {
        format!(r#"{{"before":null,"after":{{"n":{n}}},"source":{{"file":"b.000001","pos":{pos}}},"op":"{op}"}}"#)
    };
    let deliver = |records: &[(&str, String)]| {
        let records: Vec<_> =
            (0..).zip(records).map(|(offset, (key, value))| (offset, Some(*key), Some(value.as_str()))).collect();
        sink.deliver(&mut delivery(&records)).unwrap();
    };
    // The stream first, then a snapshot that was read before its last change.
    deliver(&[("a", event("u", 300, 3)), ("b", event("u", 100, 10))]);
    deliver(&[("a", event("r", 200, 2)), ("b", event("r", 200, 20))]);
    assert_eq!(fake.numbers(), [3, 20]);
    // A topic that was created again has lower offsets and the same positions.
    deliver(&[("a", event("u", 150, 1)), ("a", event("u", 300, 3)), ("b", event("u", 250, 25))]);
    assert_eq!(fake.numbers(), [3, 25]);
    // After a failover the binlog of the new server has lower positions. The epoch is above them.
    let after = setup.open(&format!("{options}version_epoch = 1\n"));
    let value = event("u", 4, 4);
    after.deliver(&mut delivery(&[(9, Some("a"), Some(&value))])).unwrap();
    deliver(&[("a", event("u", 900, 9))]);
    assert_eq!(fake.numbers(), [4, 25]);
}

#[test]
fn changes_after_a_failover_wait_for_a_higher_epoch() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let options = format!("{}id = \"key\"\nversion = \"source\"\n", options(&[&fake]));
    let sink = setup.open(&options);
    let event = |server: u32, file: u32, pos: i64, n: i64| {
        format!(
            r#"{{"before":null,"after":{{"n":{n}}},"source":{{"server_id":{server},"file":"b.{file:06}","pos":{pos}}},"op":"u"}}"#
        )
    };
    // The third change is of the new server, whose binlog has fewer files.
    let values = [event(1, 9, 100, 1), event(1, 9, 200, 2), event(2, 3, 50, 3), event(2, 3, 60, 4)];
    let records: Vec<_> =
        (10..).zip(&values).map(|(offset, value)| (offset, Some("k"), Some(value.as_str()))).collect();
    let mut delivery = delivery(&records);
    for _ in 0..2 {
        let error = sink.deliver(&mut delivery).unwrap_err();
        assert_eq!(
            (error.code, error.retry, pending(&delivery)),
            ("elasticsearch.failover", Retry::Backoff, vec![12, 13])
        );
        assert!(error.message().contains("Set `version_epoch = 1`"), "{error}");
        assert_eq!(fake.numbers(), [2]);
    }
    // Another task continues from what the first one stored with its offsets.
    let partition = TopicPartition::new("web", 3);
    let state = sink.state(&partition);
    assert!(state.is_some());
    let next = setup.open(&options);
    next.restore(&partition, state.as_ref());
    assert_eq!(next.deliver(&mut delivery).unwrap_err().code, "elasticsearch.failover");
    let raised = setup.open(&format!("{options}version_epoch = 1\n"));
    raised.restore(&partition, state.as_ref());
    raised.deliver(&mut delivery).unwrap();
    assert_eq!((pending(&delivery), fake.numbers()), (Vec::new(), vec![4]));
}

#[test]
fn bodies_in_flight_count_in_the_memory_budget() {
    let (setup, fake, budget) = (Setup::new(), Fake::start(), MemoryBudget::new(1 << 30));
    let sink = setup.open_within(&options(&[&fake]), budget.clone()).unwrap();
    let mut delivery = numbered(0..10_000);
    assert_eq!(budget.used(), 0);
    std::thread::scope(|scope| {
        fake.paused(|| {
            scope.spawn(|| sink.deliver(&mut delivery).unwrap());
            let limit = Instant::now() + Duration::from_secs(30);
            // An action line alone has more than 40 bytes.
            while budget.used() < 10_000 * 40 {
                assert!(Instant::now() < limit, "only {} bytes are reserved", budget.used());
                std::thread::yield_now();
            }
        });
    });
    assert_eq!((budget.used(), fake.numbers().len()), (0, 10_000));
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
fn late_answers_are_repeated_on_another_node() {
    let (setup, fake) = (Setup::new(), Fake::start());
    let other = fake.another_node();
    let options = format!("{}timeout = \"1s\"\nid = \"key\"\n", options(&[&fake, &other]));
    let sink = setup.open(&options);
    fake.fault(Fault::Late);
    let mut old = delivery(&[(1, Some("k"), Some("{\"n\":1}"))]);
    sink.deliver(&mut old).unwrap();
    assert_eq!((pending(&old), fake.requests(), fake.numbers()), (Vec::new(), vec![1, 1], vec![1]));
    // All nodes are late.
    fake.always(Some(Fault::Late));
    let mut new = delivery(&[(2, Some("k"), Some("{\"n\":2}"))]);
    let error = sink.deliver(&mut new).unwrap_err();
    assert_eq!((error.code, pending(&new)), ("elasticsearch.timeout", vec![2]), "{error}");
    fake.always(None);
    deliver_within(sink.as_ref(), &mut new, 3);
    assert_eq!(fake.numbers(), [2]);
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
            scope.spawn(move || deliver_within(sink.as_ref(), &mut numbered(first..first + 100), 200));
        }
    });
    assert_eq!(fake.numbers(), (0..400).collect::<Vec<_>>());
}
