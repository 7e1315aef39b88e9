//! The bundled plugin as the worker loads it.

use serde_json::json;
use trunkline_connector::Rejections;
use trunkline_transform_host::{Host, Limits};

use crate::support::{host, rejections, run, values};

#[test]
fn bundled_mask_masks() {
    assert!(Host::bundled_names().contains(&"mask.wasm"));
    let plugin = host().bundled("mask.wasm").unwrap().unwrap();
    assert_eq!(plugin.name(), "mask.wasm");
    let mut instance = plugin.start(&json!({ "fields": ["remote_addr"] }), &Limits::default()).unwrap();
    assert!(instance.keeps_schema());
    assert_eq!(instance.ports(), ["default"]);
    let records = [r#"{"remote_addr":"10.0.0.1","path":"/"}"#, r#"{"path":"/"}"#, "10.0.0.1 - -"];
    let (batch, rejected, _) = run(&mut instance, &records);
    assert_eq!(values(&batch), [r#"{"remote_addr":"***","path":"/"}"#, r#"{"path":"/"}"#]);
    assert_eq!(batch.get(0).header("trunkline.schema"), Some(&b"00000000000000ff"[..]));
    assert_eq!(rejections(&rejected), [(records[2].to_owned(), "mask.not_json".to_owned())]);
}

#[test]
fn hashed_number_loses_its_schema() {
    let plugin = host().bundled("mask.wasm").unwrap().unwrap();
    let config = json!({ "fields": ["id"], "mode": "hash", "salt": "s" });
    let mut instance = plugin.start(&config, &Limits::default()).unwrap();
    let mut batch = crate::support::batch_of(&[r#"{"id":17}"#, r#"{"id":"17"}"#]);
    instance.process(&mut batch, &mut Rejections::default()).unwrap();
    assert_eq!(batch.get(0).header("trunkline.schema"), None);
    assert!(batch.get(1).header("trunkline.schema").is_some());
    assert_eq!(batch.get(0).value(), batch.get(1).value());
}

#[test]
fn invalid_configuration_names_its_key() {
    let plugin = host().bundled("mask.wasm").unwrap().unwrap();
    let error = plugin.start(&json!({ "fields": ["a", ""] }), &Limits::default()).unwrap_err();
    assert_eq!(error.key.as_deref(), Some("fields[1]"));
}
