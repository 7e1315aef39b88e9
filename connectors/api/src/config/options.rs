//! [`OptionSpec`]: the one declaration of an option.
//!
//! A connector declares its options in one list. [`Section`](super::Section) takes the defaults
//! from it, `trunkline connectors describe` prints it, and the table in the connector's README is
//! [tested against it](crate::conformance::check_options_table).

use std::fmt::Write;

/// An option of a component, as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its name; an option inside a table has a dotted name: `rotate.bytes`.
    pub key: &'static str,
    /// Its type in words: `string`, `size`, `duration`, or the choices (`zstd`, `snappy`).
    pub value_type: &'static str,
    /// What applies when the option is absent.
    pub default: OptionDefault,
    /// What it does, with its limits. One or two sentences, Markdown.
    pub doc: &'static str,
    /// A value as TOML.
    pub example: &'static str,
}

/// What applies when an option is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionDefault {
    /// The option must be given.
    Required,
    /// This value, as TOML: `"128MiB"`, `64`, `false`. [`Section::value`](super::Section::value)
    /// reads it.
    Value(&'static str),
    /// No single value; in words, for the reference: `the bucket's setting`.
    Words(&'static str),
}

impl OptionSpec {
    /// An option that must be given.
    pub const fn required(
        key: &'static str,
        value_type: &'static str,
        doc: &'static str,
        example: &'static str,
    ) -> Self {
        Self { key, value_type, default: OptionDefault::Required, doc, example }
    }

    /// An option with a default value, which is its example too.
    pub const fn with_default(
        key: &'static str,
        value_type: &'static str,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self { key, value_type, default: OptionDefault::Value(default), doc, example: default }
    }

    /// An option that may be absent; `absent` says in words what applies then.
    pub const fn optional(
        key: &'static str,
        value_type: &'static str,
        absent: &'static str,
        doc: &'static str,
        example: &'static str,
    ) -> Self {
        Self { key, value_type, default: OptionDefault::Words(absent), doc, example }
    }

    /// The default as the reference shows it.
    pub fn default_text(&self) -> String {
        match self.default {
            OptionDefault::Required => "required".to_owned(),
            OptionDefault::Value("\"\"") => "empty".to_owned(),
            OptionDefault::Value(value) => format!("`{}`", value.trim_matches('"')),
            OptionDefault::Words(words) => words.to_owned(),
        }
    }
}

/// The reference table of some options, as Markdown.
pub fn options_table(options: &[OptionSpec]) -> String {
    let mut table = String::from("| option | type | default | meaning |\n|---|---|---|---|\n");
    for option in options {
        // A String takes all that is written.
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            option.key,
            option.value_type.replace('|', "\\|"),
            option.default_text(),
            option.doc.replace('|', "\\|")
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_key_type_default_and_meaning() {
        let options = [
            OptionSpec::required("url", "string", "Where to write.", "\"s3://lake\""),
            OptionSpec::with_default("rotate.bytes", "size", "\"128MiB\"", "Size of a file."),
            OptionSpec::optional("region", "string", "environment", "Region of the bucket.", "\"eu-central-1\""),
        ];
        assert_eq!(
            options_table(&options),
            "| option | type | default | meaning |\n|---|---|---|---|\n\
             | `url` | string | required | Where to write. |\n\
             | `rotate.bytes` | size | `128MiB` | Size of a file. |\n\
             | `region` | string | environment | Region of the bucket. |\n"
        );
    }
}
