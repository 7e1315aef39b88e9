//! Tests the `testing` plugin with the SDK's mock host: the actions that do not end the process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::json;
use testing::Testing;
use trunkline_plugin::host::Level;
use trunkline_plugin::testing::{Input, MockHost, Outcome};

#[test]
fn actions_are_performed_on_their_texts() {
    let config = json!({
        "drop_on": "d", "reject_on": "r", "duplicate_on": "2", "port_on": "p", "upper_on": "u", "rekey_on": "k",
        "tombstone_on": "t", "emit_none_on": "0", "log_on": "l", "error_on": "e", "flush": "last",
    });
    let mut host = MockHost::<Testing>::start(config).unwrap();
    let inputs = ["d", "r", "2", "p", "u", "k", "t", "0", "l", "x"].map(Input::value);
    let outcomes = host.process(&inputs).unwrap();
    assert_eq!(outcomes[0], Outcome::Dropped);
    assert!(matches!(&outcomes[1], Outcome::Rejected { code, .. } if code == "testing.rejected"));
    let Outcome::Emitted(two) = &outcomes[2] else { panic!("{outcomes:?}") };
    assert_eq!(
        two.iter().map(|output| (output.port.as_str(), output.text())).collect::<Vec<_>>(),
        [("default", Some("2")), ("side", Some("2"))]
    );
    assert_eq!(outcomes[3].passed().unwrap().port, "side");
    assert_eq!(outcomes[4].passed().unwrap().text(), Some("U"));
    let rekeyed = &outcomes[5].passed().unwrap().record;
    assert_eq!((rekeyed.key.as_deref(), rekeyed.timestamp, rekeyed.headers.len()), (Some(&b"k"[..]), Some(1), 1));
    assert_eq!(outcomes[6].passed().unwrap().text(), None);
    assert_eq!(outcomes[7], Outcome::Emitted(Vec::new()));
    assert_eq!(
        (host.log(), host.counter("seen"), host.histogram("length")),
        (vec![(Level::Info, "saw l".to_owned())], 1, vec![1.0])
    );
    assert_eq!(outcomes[9].passed().unwrap().record, Input::value("x"));
    assert_eq!(host.process(&[Input::value("e")]), Err("failure requested by e".to_owned()));
    assert_eq!(host.flush().unwrap()[0].text(), Some("last"));
}

#[test]
#[should_panic(expected = "panic requested by a poison b")]
fn trap_on_panics() {
    let _ = MockHost::<Testing>::start(json!({ "trap_on": "poison" })).unwrap().process(&[Input::value("a poison b")]);
}
