//! Passes large orders to the port `large`.

use trunkline_plugin::{ConfigError, Done, Port, Record, Transform, Verdict, json};

/// The table `config` of the transform in a pipeline file.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Orders with a larger amount are large.
    over: f64,
}

struct LargeOrders {
    over: f64,
}

/// The first name in `ports`; port 0 is the default port.
const LARGE: Port = 1;

impl Transform for LargeOrders {
    type Config = Config;

    fn new(config: Config) -> Result<Self, ConfigError> {
        // config.schema.json checks the options; return an error for what it cannot express
        Ok(Self { over: config.over })
    }

    fn ports(&self) -> Vec<String> {
        vec!["large".to_owned()]
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        // a tombstone has no value
        let Some(value) = record.value() else { return Ok(verdict.pass()) };
        let amount = match json::lookup(value, &["amount"]) {
            Ok(raw) => raw.and_then(json::text).and_then(|text| text.parse::<f64>().ok()),
            Err(error) => return Ok(verdict.reject("orders.not_json", &error.to_string())),
        };
        Ok(match amount {
            Some(amount) if amount > self.over => verdict.pass_to(LARGE),
            Some(_) => verdict.pass(),
            None => verdict.reject("orders.no_amount", "`amount` is missing or not a number"),
        })
    }
}

trunkline_plugin::export!(LargeOrders);
