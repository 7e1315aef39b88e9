//! Masks fields of JSON values, such as card numbers, addresses and names.
//!
//! ```toml
//! [transforms.mask]
//! plugin = "mask.wasm"
//! config = { fields = ["card_number", "customer.email"] }
//! ```
//!
//! | key | default | meaning |
//! |---|---|---|
//! | `fields` | required | dotted paths; a path continues into every object of an array |
//! | `mode` | `"fixed"` | `"fixed"`, `"keep_last"` or `"hash"`, see below |
//! | `with` | `"***"` | the mask of `fixed` and `keep_last` |
//! | `keep` | 4 | characters that `keep_last` keeps; shorter texts are masked completely |
//! | `salt` | | secret key of `hash`, required: without it, all card numbers can be hashed |
//!
//! | mode | replaces a string by |
//! |---|---|
//! | `fixed` | `with` |
//! | `keep_last` | `with` and the last `keep` characters |
//! | `hash` | its HMAC-SHA-256 with the key `salt`, in hexadecimal; equal values stay equal |
//!
//! - Values of other types become null, so that they still fit their schema. Only `hash` replaces
//!   numbers and booleans by strings, because keys need it; such a record loses its schema.
//! - Null values and missing fields stay unchanged.
//! - In a change event (`before`, `after`), paths start at the row and also at the event.
//! - All other bytes of the value stay unchanged. Record keys and headers are not masked.
//! - A value that is not a JSON object is rejected (`mask.not_json`). It cannot be masked and must
//!   not pass unmasked.

mod config;
mod mode;

use trunkline_plugin::json::Paths;
use trunkline_plugin::{ConfigError, DEFAULT_PORT, Done, Inputs, Record, Transform, Verdict};

pub use config::Config;
use mode::Mode;

/// The header that contains the schema id of the value.
const SCHEMA_HEADER: &str = "trunkline.schema";
/// Members of a change event that contain a row.
const ROW_IMAGES: [&str; 2] = ["before", "after"];

/// The transform.
#[derive(Debug)]
pub struct Mask {
    paths: Paths,
    mode: Mode,
}

impl Transform for Mask {
    type Config = Config;

    fn new(config: Config) -> Result<Self, ConfigError> {
        let mode = config.check()?;
        let mut paths = Paths::default();
        for field in &config.fields {
            paths.add(field.split('.'));
            for image in ROW_IMAGES {
                paths.add(std::iter::once(image).chain(field.split('.')));
            }
        }
        Ok(Self { paths, mode })
    }

    fn keeps_schema(&self) -> bool {
        true
    }

    fn inputs(&self) -> Inputs {
        Inputs::VALUE.and(Inputs::HEADERS)
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let Some(value) = record.value() else { return Ok(verdict.pass()) };
        let mut type_changed = false;
        let masked = verdict.try_value_with(DEFAULT_PORT, |out| {
            let found = self.paths.splice(value, out, |_, raw, out| type_changed |= self.mode.mask(raw, out));
            match found {
                Ok(0) => Err(None),
                Ok(_) if type_changed => Err(None),
                Ok(_) => Ok(()),
                Err(malformed) => Err(Some(malformed)),
            }
        });
        Ok(match masked {
            Ok(done) => done,
            Err((verdict, None)) if type_changed => self.replace_without_schema(record, value, verdict),
            Err((verdict, None)) => verdict.pass(),
            Err((verdict, Some(malformed))) => verdict
                .reject("mask.not_json", &format!("the value is not a JSON object and cannot be masked: {malformed}")),
        })
    }
}

impl Mask {
    /// Replaces the value and removes the schema header, because a number became a string.
    fn replace_without_schema(&self, record: Record<'_>, value: &[u8], verdict: Verdict<'_>) -> Done {
        let mut masked = Vec::with_capacity(value.len() + 64);
        let found = self.paths.splice(value, &mut masked, |_, raw, out| _ = self.mode.mask(raw, out));
        debug_assert!(found.is_ok(), "the first splice of the same text succeeded");
        verdict.replace(|parts| {
            parts.value_owned(masked).headers(record.headers().filter(|(name, _)| *name != SCHEMA_HEADER));
        })
    }
}

trunkline_plugin::export!(Mask);
