//! Warnings: files that can run, but probably not as intended.

use trunkline::config::{RenderStyle, render};

use crate::support::Folder;

const AFTER_TOPIC: &str = r#"
name = "access"
[sources.web]
connector = "logfile"
paths = ["a.log"]
parser = "combined"
[transforms.mask]
inputs = ["web"]
plugin = "mask.wasm"
config = { fields = ["remote_addr"] }
[sinks.lake]
connector = "s3"
inputs = ["mask"]
url = "file:///lake"
"#;

#[test]
fn a_mask_after_the_topic_is_a_warning() {
    let loaded = Folder::new().write("access.toml", AFTER_TOPIC).load(&["access.toml"]);
    assert_eq!((loaded.pipelines.len(), loaded.problems.len()), (1, 0));
    insta::assert_snapshot!("mask_after_topic", render(&loaded.warnings, RenderStyle::PLAIN));
}

#[test]
fn a_mask_before_the_topic_or_of_a_foreign_topic_is_no_warning() {
    let before = AFTER_TOPIC
        .replace("parser =", "apply = [\"mask\"]\nparser =")
        .replace("inputs = [\"web\"]\n", "")
        .replace("inputs = [\"mask\"]", "inputs = [\"web\"]");
    let foreign = AFTER_TOPIC.replace("inputs = [\"web\"]", "inputs = [\"topic:orders\"]");
    for text in [before, foreign] {
        let loaded = Folder::new().write("access.toml", &text).load(&["access.toml"]);
        assert_eq!((loaded.pipelines.len(), loaded.problems.len(), loaded.warnings.len()), (1, 0, 0), "{text}");
    }
}

/// With a known schema, the names in a file are checked against it; where the data decides, nothing
/// can be said.
#[test]
fn fields_are_unknown_after_transforms_that_change_the_schema() {
    let changed = AFTER_TOPIC
        .replace("plugin = \"mask.wasm\"\nconfig = { fields = [\"remote_addr\"] }", "plugin = \"testing.wasm\"");
    let path = "url = \"file:///lake\"\npath = \"{anything}\"";
    let loaded =
        Folder::new().write("access.toml", &changed.replace("url = \"file:///lake\"", path)).load(&["access.toml"]);
    assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
    for parser in ["json", "combined"] {
        let text = AFTER_TOPIC.replace("combined", parser).replace("remote_addr", "anything");
        let loaded = Folder::new().write("access.toml", &text).load(&["access.toml"]);
        assert_eq!(loaded.problems.is_empty(), parser == "json", "{parser}");
    }
}
