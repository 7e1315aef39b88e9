//! The sample pipeline `pipelines/payments.toml`: workers are killed in its middle. The refused
//! payments and the daily totals are compared with a truth that the test computes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use trunkline_tests::{Case, Kafka, LogWriter, Random, Reader, need, repository};

use crate::LONG;

const DAY: i64 = 86_400_000;
const ACCOUNTS: u64 = 10;

/// The pipeline of the repository, with the files and the names of a test.
fn pipeline() -> String {
    let text = std::fs::read_to_string(repository().join("pipelines/payments.toml")).unwrap();
    let (text, _) = text.split_once("[[tests]]").unwrap();
    let replaced = [
        ("name = \"payments\"", "name = \"$NAME\""),
        ("\"payments/accounts.log\"", "\"$DIR/logs/accounts.log\""),
        ("\"payments/payments.log\"", "\"$DIR/logs/payments.log\""),
        ("file:///tmp/trunkline-payments/payments", "file://$DIR/archive"),
        ("file:///tmp/trunkline-payments/daily-totals", "file://$DIR/totals"),
        ("topic = \"payments.daily-totals\"", "topic = \"$NAME.daily-totals\""),
    ];
    replaced.into_iter().fold(text.to_owned(), |text, (written, replacement)| {
        assert!(text.contains(written), "{written}");
        text.replace(written, replacement)
    })
}

/// Payments, and what becomes of them.
struct Payments {
    random: Random,
    log: LogWriter,
    now: i64,
    count: u64,
    refused: u64,
    without_amount: u64,
    /// Payments and cents, by account and start of the day.
    totals: BTreeMap<(String, i64), (u64, i64)>,
}

impl Payments {
    fn append(&mut self, count: u64) {
        for _ in 0..count {
            // A payment is at most half an hour older than the one before it.
            self.now += self.random.below(400_000) as i64;
            let booked = self.now - self.random.below(1_800_000) as i64;
            let account = self.random.below(ACCOUNTS + 1);
            let cents = self.random.below(100_000) as i64 - 2_000;
            let currency = if self.random.below(50) == 0 { "XXX" } else { "EUR" };
            self.add(account, booked, cents, currency);
        }
    }

    fn add(&mut self, account: u64, booked: i64, cents: i64, currency: &str) {
        self.count += 1;
        let amount = match self.random.below(100) {
            0 => String::new(),
            _ => {
                let (sign, digits) = (if cents < 0 { "-" } else { "" }, cents.abs());
                format!("\"amount\":\"{sign}{}.{:02}\",", digits / 100, digits % 100)
            }
        };
        // Account 0 is closed, and the last one does not exist.
        let is_known = (1..ACCOUNTS).contains(&account);
        match (amount.is_empty(), is_known && cents > 0 && currency == "EUR") {
            (true, _) => self.without_amount += 1,
            (false, false) => self.refused += 1,
            (false, true) => {
                let total = self.totals.entry((format!("a{account}"), booked - booked % DAY)).or_default();
                *total = (total.0 + 1, total.1 + cents);
            }
        }
        let line = format!(
            "{{\"id\":{},\"account\":\"a{account}\",{amount}\"currency\":\"{currency}\",\"booked\":{booked}}}\n",
            self.count
        );
        self.log.append_raw(line.as_bytes());
    }
}

#[test]
fn payments_are_enriched_and_summed_up_exactly_once() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let mut case = Case::new("payments", kafka);
    case.set("TRUNKLINE_COMMIT_INTERVAL", "100ms");
    case.set("TRUNKLINE_TOPICS_PARTITIONS", "3");
    let text = pipeline().replace("field = \"booked\",", "field = \"booked\", from = \"unix_ms\",");
    case.pipeline("payments", &text);
    let seed = 2204;
    let mut accounts = LogWriter::new(case.path("logs/accounts.log"), seed);
    for account in 0..ACCOUNTS {
        for status in ["pending", if account == 0 { "closed" } else { "open" }] {
            let row = format!(
                "{{\"account\":\"a{account}\",\"name\":\"n{account}\",\"country\":\"DE\",\"currency\":\"EUR\",\"status\":\"{status}\"}}\n"
            );
            accounts.append_raw(row.as_bytes());
        }
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    let mut payments = Payments {
        random: Random::new(seed),
        log: LogWriter::new(case.path("logs/payments.log"), seed),
        now: now - 20 * DAY,
        count: 0,
        refused: 0,
        without_amount: 0,
        totals: BTreeMap::new(),
    };
    // A run until idle reads all rows of the table before it looks up the first payment.
    payments.append(300);
    case.until_idle("a", LONG);
    for _ in 0..2 {
        payments.append(1_500);
        let life = Duration::from_millis(400 + payments.random.below(1_200));
        let exit = case.start("a", &[]).kill9_after(life);
        assert_eq!(exit.signal, Some(libc::SIGKILL), "{}", exit.describe());
    }
    payments.append(1_500);
    let truth = payments.totals.clone();
    // Closes all days: a payment of each account, which is not part of the truth.
    payments.now += 3 * DAY;
    let (refused, without_amount) = (payments.refused, payments.without_amount);
    let closing = ACCOUNTS - 1;
    for account in 1..ACCOUNTS {
        let line = format!(
            "{{\"id\":0,\"account\":\"a{account}\",\"amount\":\"1.00\",\"currency\":\"EUR\",\"booked\":{}}}\n",
            payments.now
        );
        payments.log.append_raw(line.as_bytes());
    }

    let summary = case.until_idle("a", LONG);

    assert_eq!(summary.of(case.name(), "check").dead_lettered, without_amount);
    let archived = payments.count - without_amount + closing;
    let archive = reader.read(&case.path("archive"), &["id"]);
    assert_eq!((archive.rows, archive.distinct), (archived, Some(payments.count - without_amount + 1)));
    let found = kafka.read(&format!("{}.decide.refused", case.name()));
    assert_eq!(found.len() as u64, refused, "seed {seed}");
    assert!(found.iter().all(|record| record.json()["problems"].as_array().is_some_and(|it| !it.is_empty())));
    let mut totals = BTreeMap::new();
    for record in kafka.read(&format!("{}.daily-totals", case.name())) {
        let value: Value = record.json();
        let key = (value["account"].as_str().unwrap().to_owned(), value["window_start"].as_i64().unwrap());
        let cents = (value["total"].as_f64().unwrap() * 100.0).round() as i64;
        let repeated = totals.insert(key.clone(), (value["payments"].as_u64().unwrap(), cents));
        assert_eq!(repeated, None, "a second total of {key:?}");
    }
    assert!(truth.len() > 50, "{} totals", truth.len());
    assert_eq!(totals, truth, "seed {seed}");
    assert_eq!(reader.read(&case.path("totals"), &["account"]).rows, truth.len() as u64);
}
