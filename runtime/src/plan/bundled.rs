//! Declarations of the bundled plugins: what they do, and the options in their `config`.

use trunkline_connector::config::OptionSpec;

/// A plugin that is part of the binary.
pub struct BundledPlugin {
    /// Its name in pipeline files: `plugin = "name"`.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Options in `config`.
    pub options: &'static [OptionSpec],
    /// Options that are arrays of field names.
    pub field_options: &'static [&'static str],
    /// Examples: each is a test that runs.
    pub examples: &'static [Example],
    /// The plugin removes confidential data, so it belongs before the topic.
    pub hides_data: bool,
}

/// An example of a bundled plugin: a configuration, a record, and its output. Records are lines as
/// in [`crate::record_tests`].
pub struct Example {
    /// What it shows.
    pub title: &'static str,
    /// The transform's table `config`, as TOML.
    pub config: &'static str,
    /// The input record.
    pub input: &'static str,
    /// The expected records.
    pub outputs: &'static [&'static str],
}

/// The bundled plugin of a name.
pub(super) fn find(name: &str) -> Option<&'static BundledPlugin> {
    PLUGINS.iter().find(|plugin| plugin.name == name)
}

/// All bundled plugins.
pub const PLUGINS: &[BundledPlugin] = &[BundledPlugin {
    name: "mask.wasm",
    summary: "Masks members of JSON values: card numbers, addresses, names",
    options: MASK,
    field_options: &["fields"],
    examples: &[Example {
        title: "mask card numbers, and keep their last digits",
        config: r#"config = { fields = ["card"], mode = "keep_last" }"#,
        input: r#"{"value": {"id": 1, "card": "4111111111111111", "amount": 12.50}}"#,
        outputs: &[r#"{"value": {"id": 1, "card": "***1111", "amount": 12.50}}"#],
    }],
    hides_data: true,
}];

const MASK: &[OptionSpec] = &[
    OptionSpec::required(
        "fields",
        "array of paths",
        "Dotted paths of the members to mask. A path reaches into every object of an array, and into the rows of a \
         change event.",
        "[\"card_number\", \"customer.email\"]",
    ),
    OptionSpec::with_default(
        "mode",
        "`fixed`, `keep_last`, `hash`",
        "\"fixed\"",
        "`fixed`: the text of `with`. `keep_last`: `with`, then the last `keep` characters. `hash`: HMAC-SHA-256 under \
         `salt` as 64 hexadecimal digits, so that equal values stay equal.",
    ),
    OptionSpec::with_default("with", "string", "\"***\"", "The mask of `fixed` and `keep_last`."),
    OptionSpec::with_default(
        "keep",
        "number",
        "4",
        "The number of characters that `keep_last` keeps. A text that is not longer is masked completely.",
    ),
    OptionSpec::optional(
        "salt",
        "string",
        "none; required for `hash`",
        "The secret of `hash`. Without it, the possible values could be tried one by one.",
        "\"${secret:mask-salt}\"",
    ),
];
