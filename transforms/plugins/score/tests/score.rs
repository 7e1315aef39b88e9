//! Tests the plugin with the SDK's mock host.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use score::Score;
use serde_json::{Value, json};
use trunkline_plugin::testing::{Input, MockHost, Outcome};

fn payment(amount: &str, country: &str, time: &str) -> String {
    format!("{{\"amount\":\"{amount}\",\"country\":\"{country}\",\"home\":\"DE\",\"time\":\"{time}\",\"score\":1}}")
}

#[test]
fn payments_get_the_probability_of_the_model() {
    let mut host = MockHost::<Score>::start(json!({})).unwrap();
    let mut score = |value: String| {
        let outcomes = host.process(&[Input::value(value)]).unwrap();
        let value: Value = serde_json::from_str(outcomes[0].passed().unwrap().text().unwrap()).unwrap();
        (value["score"].as_f64().unwrap(), value["amount"].clone())
    };
    // -8.5425 + 0.7176 ln 25.9, computed by hand.
    let (usual, amount) = score(payment("24.90", "DE", "2026-03-01T10:00:00Z"));
    assert_eq!((usual, amount), (0.0020, json!("24.90")));
    // -8.5425 + (0.7176 + 0.227) ln 5001 + 1.564 + 0.9188.
    let (unusual, _) = score(payment("5000", "BR", "2026-03-01T03:00:00Z"));
    assert_eq!(unusual, 0.8793);
    assert!(score(payment("5000", "BR", "2026-03-01T13:00:00Z")).0 < unusual);
}

#[test]
fn payments_without_the_inputs_of_the_model_are_rejected() {
    let mut host = MockHost::<Score>::start(json!({ "into": "risk" })).unwrap();
    let values = ["{}", "[1]", "{\"amount\":1}", &payment("x", "DE", "T10"), &payment("1", "DE", "noon")];
    for value in values {
        let outcomes = host.process(&[Input::value(value)]).unwrap();
        assert!(matches!(&outcomes[0], Outcome::Rejected { code, .. } if code == "score.no_features"), "{value}");
    }
    assert_eq!(MockHost::<Score>::start(json!({ "into": "" })).unwrap_err().key.as_deref(), Some("into"));
}
