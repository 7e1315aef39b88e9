//! Masks members of JSON values: card numbers, addresses, names.
//!
//! ```toml
//! [transforms.mask]
//! plugin = "mask.wasm"
//! config = { fields = ["card_number", "customer.email"] }
//! ```
//!
//! | key | default | |
//! |---|---|---|
//! | `fields` | required | dotted paths; a path reaches into every object of an array on its way |
//! | `mode` | `"fixed"` | `"fixed"`: the text of `with`. `"keep_last"`: `with`, then the last `keep` characters. `"hash"`: HMAC-SHA-256 under `salt`, 64 hexadecimal digits: equal values stay equal, so they can still be joined and counted |
//! | `with` | `"***"` | the mask of `fixed` and `keep_last` |
//! | `keep` | 4 | how many characters `keep_last` keeps; a text that is not longer is masked whole |
//! | `salt` | | the secret of `hash`, required there: without it, whoever knows the format can try all card numbers |
//!
//! Strings become masked strings. Other values become null, so that no schema is broken by a string where a number was; only `hash`
//! turns numbers and booleans into strings (it is used for keys), and such a record loses its schema. Null stays null, and a field
//! that is missing is left alone. In a change event (`before`, `after`) the paths count from the row, and from the top as well.
//! Everything else in the text stays as it is, to the byte. Keys and headers of records are not masked.
//!
//! A value that is no JSON object is rejected (`mask.not_json`): what cannot be read cannot be masked, and must not pass in the clear.

mod config;
mod mode;

use trunkline_plugin::json::Paths;
use trunkline_plugin::{ConfigError, DEFAULT, Done, Record, Transform, Verdict};

pub use config::Config;
use mode::Mode;

/// Name of the header that says which schema a value fits.
const SCHEMA_HEADER: &str = "trunkline.schema";
/// Members of a change event that hold a row.
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

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let Some(value) = record.value() else { return Ok(verdict.pass()) };
        let mut type_changed = false;
        let masked = verdict.try_value_with(DEFAULT, |out| {
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
            Err((verdict, Some(malformed))) => {
                verdict.reject("mask.not_json", &format!("the value is no JSON object that can be masked: {malformed}"))
            }
        })
    }
}

impl Mask {
    /// A number became a string: the record's schema no longer describes it.
    fn replace_without_schema(&self, record: Record<'_>, value: &[u8], verdict: Verdict<'_>) -> Done {
        let mut masked = Vec::with_capacity(value.len() + 64);
        let found = self.paths.splice(value, &mut masked, |_, raw, out| _ = self.mode.mask(raw, out));
        debug_assert!(found.is_ok(), "the same text was read a moment ago");
        verdict.replace(|parts| {
            parts.value_owned(masked).headers(record.headers().filter(|(name, _)| *name != SCHEMA_HEADER));
        })
    }
}

trunkline_plugin::export!(Mask);
