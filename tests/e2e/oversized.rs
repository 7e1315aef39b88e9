//! Records that their topic does not accept because of their size are data errors of these records.

use trunkline_tests::{BrokerKind, Case, Kafka, Mysql, Random, Record, need};

use crate::LONG;
use crate::shop::{Shop, case};

// Each broker checks the size of a batch in its own way.
on_each_broker!(an_oversized_line_is_a_data_error_of_this_line);

/// Kafka's default of `max.message.bytes`.
const KAFKA_DEFAULT: &str = "1048588";

/// Text of these characters that the codec cannot compress much.
fn noise(seed: u64, bytes: usize, characters: &[u8]) -> String {
    let mut random = Random::new(seed);
    let character = || char::from(characters[random.below(characters.len() as u64) as usize]);
    std::iter::repeat_with(character).take(bytes).collect()
}

const HEX: &[u8] = b"0123456789abcdef";
const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-";

/// Creates topics of the case with Kafka's default limit, as an administrator does.
fn create_small_topics(kafka: &Kafka, case: &Case, names: &[&str]) {
    for name in names {
        kafka.create_topic_with(&format!("{}.{name}", case.name()), 1, &[("max.message.bytes", KAFKA_DEFAULT)]);
    }
}

/// The only dead letter of the case, which is cut to the limit of its topic.
fn dead_letter(kafka: &Kafka, case: &Case) -> Record {
    let mut letters = kafka.read(&format!("{}.dead-letters", case.name()));
    assert_eq!(letters.len(), 1);
    let letter = letters.remove(0);
    let size = letter.value.as_ref().map_or(0, Vec::len);
    assert!(size > 1_000_000 && size < 1_048_588, "as much as fits: {size} bytes");
    let original: usize = letter.header("trunkline.truncated").parse().unwrap();
    assert!(original > size, "{original} bytes");
    letter
}

fn messages(kafka: &Kafka, topic: &str) -> Vec<String> {
    kafka.read(topic).iter().map(|record| record.json()["message"].as_str().unwrap().to_owned()).collect()
}

fn an_oversized_line_is_a_data_error_of_this_line(kind: BrokerKind) {
    let kafka = need!(Kafka::shared(kind));
    let long = noise(700, 2_200_000, LETTERS);
    let log = format!("first\nsecond\n{long}\nlast\n");
    let source = |on_error: &str| {
        format!(
            "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nmax_line_bytes = \"8MiB\"\non_error = \"{on_error}\"\n"
        )
    };
    let new_case = |test: &str| {
        let case = Case::new(test, kafka);
        std::fs::write(case.path("logs/a.log"), &log).unwrap();
        create_small_topics(kafka, &case, &["web", "dead-letters"]);
        case
    };

    let case = new_case("long-line");
    let topic = format!("{}.web", case.name());
    case.pipeline("web", &source("dead_letter"));
    let summary = case.until_idle("a", LONG);
    let web = summary.of(case.name(), "web");
    assert_eq!((web.input, web.output, web.dead_lettered), (4, 3, 1));
    assert_eq!(messages(kafka, &topic), ["first", "second", "last"]);
    let letter = dead_letter(kafka, &case);
    let expected = format!("{{\"message\":\"{long}");
    assert!(expected.as_bytes().starts_with(letter.value.as_deref().unwrap()), "the beginning of the line");
    assert_eq!(letter.header("trunkline.path"), case.path("logs/a.log").to_str().unwrap());
    assert_eq!(letter.header("trunkline.offset"), "13");
    assert_eq!(letter.header("__connect.errors.exception.class.name"), "kafka.record_too_large");
    let reason = letter.header("__connect.errors.exception.message");
    for part in [&topic, KAFKA_DEFAULT, "--add-config max.message.bytes=4194304"] {
        assert!(reason.contains(part), "{reason}");
    }

    // The lines before the one that stops the source are committed, and only once.
    let case = new_case("long-line-stop");
    let topic = format!("{}.web", case.name());
    case.pipeline("web", &source("stop"));
    for _ in 0..2 {
        let exit = case.start("a", &["--until-idle"]).wait(LONG);
        assert_eq!(exit.code, Some(1), "{}", exit.describe());
        assert!(
            exit.stderr.contains("the line at byte 13 of") && exit.stderr.contains(KAFKA_DEFAULT),
            "{}",
            exit.describe()
        );
        assert_eq!(messages(kafka, &topic), ["first", "second"]);
    }
    case.pipeline("web", &source("skip"));
    let summary = case.until_idle("a", LONG);
    let web = summary.of(case.name(), "web");
    assert_eq!((web.input, web.output, web.dropped, web.dead_lettered), (4, 3, 1, 0));
    assert_eq!(messages(kafka, &topic), ["first", "second", "last"]);
}

#[test]
fn an_oversized_row_is_a_data_error_of_this_row() {
    let kafka = need!(Kafka::any());
    let shop = Shop::create(need!(Mysql::shared()), 10);
    let case = case("long-row", kafka);
    let blob = noise(701, 2_000_000, HEX);
    shop.run("CREATE TABLE files (id INT PRIMARY KEY, content LONGBLOB)");
    shop.run(&format!("INSERT INTO files VALUES (1, 'a'), (2, x'{blob}'), (3, 'c')"));
    create_small_topics(kafka, &case, &[&format!("{}.files", shop.database), "dead-letters"]);
    case.pipeline("shop", &shop.source_of(&["files"], ""));
    let summary = case.until_idle("a", LONG);
    let source = summary.of(case.name(), "shop");
    assert_eq!((source.input, source.output, source.dead_lettered), (3, 2, 1));
    let letter = dead_letter(kafka, &case);
    assert_eq!(letter.key.as_deref(), Some(br#"{"id":2}"#.as_slice()));
    assert_eq!(
        (letter.header("trunkline.database"), letter.header("trunkline.table")),
        (shop.database.clone(), "files".into())
    );
    // The same in the stream.
    shop.run(&format!(
        "UPDATE files SET content = x'{blob}' WHERE id = 3; UPDATE files SET content = 'b' WHERE id = 2"
    ));
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "shop").dead_lettered, 3, "the update to and from the large value");
    let last = kafka.read(&shop.topic(&case, "files"));
    assert_eq!(last.len(), 2, "{last:?}");
}

/// A record just below the limit, which the sink rejects: its dead letter has more headers than the
/// record had.
#[test]
fn the_dead_letter_of_a_record_at_the_limit_fits() {
    let kafka = need!(Kafka::any());
    let case = Case::new("letter-fits", kafka);
    create_small_topics(kafka, &case, &["web", "dead-letters"]);
    let line = format!("{{\"v\":\"{}\\ud83d\"}}", noise(702, 1_048_300 - 14, LETTERS));
    std::fs::write(case.path("logs/a.log"), format!("{{\"v\":\"a\"}}\n{line}\n{{\"v\":\"b\"}}\n")).unwrap();
    case.pipeline(
        "web",
        "name = \"$NAME\"\n[sources.web]\nconnector = \"logfile\"\npaths = [\"$DIR/logs/*.log\"]\nparser = \"json\"\n[sinks.lake]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file://$DIR/lake\"\n",
    );
    let summary = case.until_idle("a", LONG);
    assert_eq!(summary.of(case.name(), "web").output, 3);
    let lake = summary.of(case.name(), "lake");
    assert_eq!((lake.input, lake.output, lake.dead_lettered), (3, 2, 1));
    let letter = dead_letter(kafka, &case);
    assert!(line.as_bytes().starts_with(letter.value.as_deref().unwrap()));
    assert_eq!(letter.header("__connect.errors.offset"), "1");
    assert_eq!(letter.header("trunkline.offset"), "10");
}
