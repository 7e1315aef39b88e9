//! Transforms in every position: before the topic, as a separate stage, with ports.

use trunkline_tests::{Case, Kafka, LogWriter, Reader, need, test_plugin};

use crate::{LONG, SOURCE};

const TRANSFORMS: &str = r#"
apply = ["early", "typed"]

[transforms.early]
plugin = "mask.wasm"
config = { fields = ["remote_addr"] }

[transforms.typed]
plugin = "project.wasm"
config = { compute = { large = "row.bytes != null && row.bytes > 1000", status = "'HTTP ' + string(row.status)" } }

[transforms.split]
inputs = ["web"]
plugin = "$PLUGIN"
config = { drop_on = '"/item/7"', reject_on = '"/item/11"', duplicate_on = '"/item/13"', port_on = '"/item/17"' }

[sinks.lake]
connector = "s3"
inputs = ["split"]
url = "file://$DIR/lake"

[sinks.side]
connector = "s3"
inputs = ["split.side"]
url = "file://$DIR/side"
"#;

#[test]
fn every_verdict_is_counted_once_in_every_position() {
    let (kafka, reader, plugin) = (need!(Kafka::any()), need!(Reader::find()), test_plugin());
    let case = Case::new("verdicts", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 301);
    log.append(1_000);
    case.pipeline("access", &[SOURCE.trim_end(), TRANSFORMS].concat().replace("$PLUGIN", plugin.to_str().unwrap()));

    let summary = case.until_idle("a", LONG);

    let early = summary.of(case.name(), "early");
    assert_eq!((early.input, early.output), (1_000, 1_000));
    let topic = kafka.read(&format!("{}.web", case.name()));
    assert_eq!(topic.len(), 1_000);
    assert!(topic.iter().all(|record| record.json()["remote_addr"] == "***"), "the topic has clear addresses");
    // Two sinks read the ports of `split`, which is therefore a separate stage. Of 1,000 records it
    // drops, rejects and duplicates one each.
    let split = summary.of(case.name(), "split");
    assert_eq!((split.input, split.output, split.dropped), (1_000, 999, 1));
    assert_eq!((split.dead_lettered, split.extra), (1, 1));
    assert_eq!(kafka.count(&format!("{}.dead-letters", case.name())), 1);
    assert_eq!(kafka.count(&format!("{}.split", case.name())), 997);
    assert_eq!(kafka.count(&format!("{}.split.side", case.name())), 2);

    // The duplicated record goes to both sinks, the record of the port only to `side`.
    let lake = reader.read(&case.path("lake"), &["path"]);
    assert_eq!((lake.rows, lake.distinct), (997, Some(997)));
    // `typed` changes the type of one column and adds another: the others keep the parser's types.
    for (column, expected) in [("status", "string"), ("large", "bool"), ("bytes", "int64"), ("method", "string")] {
        assert_eq!(lake.types[column], [expected], "{column}");
    }
    assert!(lake.types["timestamp"].iter().all(|kind| kind.starts_with("timestamp[ms")), "{:?}", lake.types);
    assert!(topic.iter().all(|record| record.json()["status"].is_string() && record.json()["large"].is_boolean()));
    let mut side = reader.read_with_values(&case.path("side"), "path").values;
    side.sort();
    assert_eq!(side, ["/item/13", "/item/17"]);
    assert_eq!((summary.of(case.name(), "lake").input, summary.of(case.name(), "side").input), (997, 2));
}
