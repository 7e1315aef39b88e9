//! An example of a plugin that scores records with a small trained model: a logistic regression
//! that estimates how likely a payment is fraudulent. `train.py` trains it, and writes the
//! coefficients to `model.rs`: they are a part of the module.
//!
//! ```toml
//! [transforms.model]
//! inputs = ["payments"]
//! plugin = "score.wasm"
//! config = { into = "score" }
//! ```
//! A payment is a JSON object with `amount`, `country`, `home` (the country of the card) and `time`
//! (ISO 8601). The score is a number from 0 to 1 with four decimals.

mod model;

use serde::Deserialize;
use trunkline_plugin::{ConfigError, DEFAULT_PORT, Done, Record, Transform, Verdict, json};

/// The `config` table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The member for the score.
    #[serde(default = "default_into")]
    into: String,
}

fn default_into() -> String {
    "score".to_owned()
}

/// The transform.
#[derive(Debug)]
pub struct Score {
    into: String,
}

impl Transform for Score {
    type Config = Config;

    fn new(config: Config) -> Result<Self, ConfigError> {
        if config.into.is_empty() {
            return Err(ConfigError::at("into", "is empty; expected the name of a member"));
        }
        Ok(Self { into: config.into })
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let Some(value) = record.value() else { return Ok(verdict.pass()) };
        let score = match features(value) {
            Ok(features) => score(&features),
            Err(problem) => return Ok(verdict.reject("score.no_features", &problem)),
        };
        let written = verdict.try_value_with(DEFAULT_PORT, |out| self.write(value, score, out));
        Ok(match written {
            Ok(done) => done,
            Err((verdict, problem)) => verdict.reject("score.not_json", &problem),
        })
    }
}

impl Score {
    /// Appends the payment with its score.
    fn write(&self, value: &[u8], score: f64, out: &mut Vec<u8>) -> Result<(), String> {
        out.push(b'{');
        for member in json::members(value) {
            let member = member.map_err(|error| error.to_string())?;
            if !json::key_is(member.key, &self.into) {
                out.push(b'"');
                out.extend_from_slice(member.key);
                out.extend_from_slice(b"\":");
                out.extend_from_slice(member.value);
                out.push(b',');
            }
        }
        json::write_string(out, &self.into);
        out.extend_from_slice(format!(":{score:.4}}}").as_bytes());
        Ok(())
    }
}

/// The inputs of the model, as in `train.py`.
fn features(value: &[u8]) -> Result<[f64; model::WEIGHTS.len()], String> {
    let text = |name: &str| match json::lookup(value, &[name]) {
        Ok(found) => found.and_then(json::text).ok_or_else(|| format!("the payment has no member `{name}`")),
        Err(error) => Err(error.to_string()),
    };
    let amount: f64 = text("amount")?.parse().map_err(|_| "`amount` is not a number".to_owned())?;
    let time = text("time")?;
    let hour = time.split_once('T').and_then(|(_, time)| time.get(..2)?.parse::<u32>().ok());
    let hour = hour.ok_or("`time` is not in ISO 8601, such as 2026-03-01T10:00:00Z")?;
    let size = amount.max(0.0).ln_1p();
    let abroad = text("country")? != text("home")?;
    Ok([size, f64::from(u8::from(abroad)), f64::from(u8::from(hour < 6)), if abroad { size } else { 0.0 }])
}

/// The probability that the model estimates.
fn score(features: &[f64; model::WEIGHTS.len()]) -> f64 {
    let weighted = model::WEIGHTS.iter().zip(features).map(|(weight, value)| weight * value);
    1.0 / (1.0 + (-(model::INTERCEPT + weighted.sum::<f64>())).exp())
}

trunkline_plugin::export!(Score);
