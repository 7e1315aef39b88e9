//! Tests the mask with the SDK's mock host.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use mask::Mask;
use serde_json::{Value, json};
use trunkline_plugin::testing::{Input, MockHost, Outcome, Output};

fn output(config: Value, input: Input) -> Output {
    let outcomes = MockHost::<Mask>::start(config).unwrap().process(&[input]).unwrap();
    outcomes[0].passed().unwrap_or_else(|| panic!("{outcomes:?}")).clone()
}

fn masked(config: Value, value: &str) -> String {
    output(config, Input::value(value)).text().unwrap().to_owned()
}

#[test]
fn fixed_replaces_strings_and_nulls_other_types() {
    let config = || json!({ "fields": ["card", "n", "list", "gone"] });
    assert_eq!(
        masked(config(), r#"{ "card" : "4111" , "n":12.5,"list":[1],"other":"4111" }"#),
        r#"{ "card" : "***" , "n":null,"list":null,"other":"4111" }"#
    );
    assert_eq!(masked(config(), r#"{"card":null,"x":1}"#), r#"{"card":null,"x":1}"#);
    assert_eq!(masked(json!({ "fields": ["c"], "with": "a\"b" }), r#"{"c":"x"}"#), r#"{"c":"a\"b"}"#);
}

#[test]
fn record_without_the_fields_passes_unchanged() {
    let mut host = MockHost::<Mask>::start(json!({ "fields": ["card"] })).unwrap();
    let input = Input::value(r#"{"a":1}"#).key("k").header("h", "v");
    let outcomes = host.process(&[input.clone(), Input::default().key("k")]).unwrap();
    assert_eq!(outcomes[0].passed().unwrap().record, input);
    assert_eq!(outcomes[1].passed().unwrap().record.value, None);
}

#[test]
fn paths_apply_to_objects_arrays_and_change_events() {
    let config = || json!({ "fields": ["customer.email"] });
    assert_eq!(
        masked(config(), r#"{"customer":{"email":"a@b","id":1},"email":"c"}"#),
        r#"{"customer":{"email":"***","id":1},"email":"c"}"#
    );
    assert_eq!(
        masked(config(), r#"{"customer":[{"email":"a"},{"email":"b"}]}"#),
        r#"{"customer":[{"email":"***"},{"email":"***"}]}"#
    );
    assert_eq!(
        masked(
            json!({ "fields": ["card"] }),
            r#"{"before":{"card":"1"},"after":{"card":"2","a":"x"},"op":"u","source":{"card":"3"}}"#
        ),
        r#"{"before":{"card":"***"},"after":{"card":"***","a":"x"},"op":"u","source":{"card":"3"}}"#
    );
    assert_eq!(
        masked(json!({ "fields": ["card"] }), r#"{"before":null,"after":{"card":"2"}}"#),
        r#"{"before":null,"after":{"card":"***"}}"#
    );
}

#[test]
fn escaped_key_is_masked() {
    assert_eq!(masked(json!({ "fields": ["card"] }), "{\"c\\u0061rd\":\"4111\"}"), "{\"c\\u0061rd\":\"***\"}");
}

#[test]
fn keep_last_counts_characters() {
    let config = || json!({ "fields": ["c"], "mode": "keep_last", "keep": 2 });
    assert_eq!(masked(config(), r#"{"c":"4111"}"#), r#"{"c":"***11"}"#);
    assert_eq!(masked(config(), r#"{"c":"ab\u00e9\"\\"}"#), r#"{"c":"***\"\\"}"#);
    assert_eq!(masked(config(), r#"{"c":"xyéü"}"#), r#"{"c":"***éü"}"#);
    for short in ["11", "1", ""] {
        assert_eq!(masked(config(), &format!(r#"{{"c":"{short}"}}"#)), r#"{"c":"***"}"#);
    }
    assert_eq!(
        masked(json!({ "fields": ["c"], "mode": "keep_last", "with": "#" }), r#"{"c":"1234567"}"#),
        r##"{"c":"#4567"}"##
    );
    assert_eq!(masked(config(), r#"{"c":41112222}"#), r#"{"c":null}"#);
}

#[test]
fn hash_is_keyed_and_preserves_equality() {
    let config = |salt: &str| json!({ "fields": ["c"], "mode": "hash", "salt": salt });
    // RFC 4231, test case 2
    assert_eq!(
        masked(config("Jefe"), r#"{"c":"what do ya want for nothing?"}"#),
        r#"{"c":"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"}"#
    );
    assert_eq!(masked(config("s"), "{\"c\":\"a\\u0062\"}"), masked(config("s"), "{\"c\":\"ab\"}"));
    assert_ne!(masked(config("s"), r#"{"c":"a"}"#), masked(config("t"), r#"{"c":"a"}"#));
    assert_eq!(masked(config("s"), r#"{"c":{"x":1}}"#), r#"{"c":null}"#);
}

#[test]
fn hashed_number_removes_the_schema_header() {
    let config = || json!({ "fields": ["c"], "mode": "hash", "salt": "s" });
    let record = |value: &str| Input::value(value).header("a", "1").header("trunkline.schema", "00000000000000ff");
    let number = output(config(), record(r#"{"c":17}"#));
    assert_eq!(number.record.headers, [("a".to_owned(), Some(b"1".to_vec()))]);
    assert_eq!(number.text().unwrap(), masked(config(), r#"{"c":"17"}"#));
    assert_eq!(output(config(), record(r#"{"c":"17"}"#)).record.headers.len(), 2);
}

#[test]
fn values_other_than_json_objects_are_rejected() {
    let mut host = MockHost::<Mask>::start(json!({ "fields": ["card"] })).unwrap();
    for value in [
        "card=4111",
        "",
        "[{\"card\":\"4111\"}]",
        "\"4111\"",
        "{\"card\":\"4111\"",
        "{\"card\":\"4111\"} {\"card\":\"1\"}",
    ] {
        match &host.process(&[Input::value(value)]).unwrap()[0] {
            Outcome::Rejected { code, .. } => assert_eq!(code, "mask.not_json"),
            other => panic!("{value}: {other:?}"),
        }
    }
}

#[test]
fn invalid_configuration_names_its_key() {
    let rejected = |config: Value| {
        let error = MockHost::<Mask>::start(config).unwrap_err();
        (error.key.unwrap_or_default(), error.message)
    };
    for (config, key, says) in [
        (json!({ "fields": [] }), "fields", "is empty"),
        (json!({}), "", "the key `fields` is missing"),
        (json!({ "fields": ["a", ""] }), "fields[1]", "empty part"),
        (json!({ "fields": ["a..b"] }), "fields[0]", "empty part"),
        (json!({ "fields": ["a", "a"] }), "fields[1]", "listed twice"),
        (json!({ "fields": [3] }), "fields[0]", "expected a string"),
        (json!({ "feilds": ["a"] }), "feilds", "did you mean `fields`?"),
        (json!({ "fields": ["a"], "mode": "hsah" }), "mode", "did you mean `hash`?"),
        (json!({ "fields": ["a"], "mode": "hash" }), "mode", "`salt`"),
        (json!({ "fields": ["a"], "mode": "hash", "salt": "" }), "salt", "is empty"),
        (json!({ "fields": ["a"], "mode": "hash", "salt": "s", "with": "x" }), "with", "no effect"),
        (json!({ "fields": ["a"], "keep": 3 }), "keep", "no effect"),
        (json!({ "fields": ["a"], "salt": "s" }), "salt", "no effect"),
        (json!({ "fields": ["a"], "mode": "keep_last", "keep": 0 }), "keep", "at least 1"),
        (
            json!({ "fields": ["a"], "mode": "keep_last", "keep": -1 }),
            "keep",
            "expected a whole number that is not negative",
        ),
    ] {
        let (found, message) = rejected(config);
        assert_eq!(found, key, "{message}");
        assert!(message.contains(says), "{message}");
    }
}
