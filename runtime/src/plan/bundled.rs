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
}

/// All bundled plugins.
pub const PLUGINS: &[BundledPlugin] = &[BundledPlugin {
    name: "mask.wasm",
    summary: "Masks members of JSON values: card numbers, addresses, names",
    options: MASK,
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
