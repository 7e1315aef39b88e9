//! The plugins inside the worker's binary. This crate's build script builds them.
//!
//! The file `standard.wasm` contains several transforms, which share their code. Each of them has
//! its own name and options; its configuration is passed with its name.

macro_rules! module {
    ($name:literal) => {
        include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".wasm"))
    };
}

static MASK: &[u8] = module!("mask");
static STANDARD: &[u8] = module!("standard");

/// A bundled plugin.
pub(crate) struct Bundled {
    pub(crate) name: &'static str,
    pub(crate) wasm: &'static [u8],
    /// Name of the transform in a file with several.
    pub(crate) variant: Option<&'static str>,
}

pub(crate) const NAMES: &[&str] = &[
    "mask.wasm",
    "filter.wasm",
    "project.wasm",
    "route.wasm",
    "flatten.wasm",
    "unwrap_envelope.wasm",
    "explode.wasm",
    "timestamp.wasm",
    "rekey.wasm",
    "dedupe.wasm",
    "aggregate.wasm",
    "lookup.wasm",
    "previous.wasm",
    "absence.wasm",
];

/// The transforms of `standard.wasm` that use the interface for state. The others cannot use it.
pub(crate) const USES_STATE: &[&str] = &["dedupe", "aggregate", "lookup", "previous", "absence"];

/// Those of them that use timers.
pub(crate) const USES_TIMERS: &[&str] = &["absence", "aggregate"];

/// Those of them whose state is a table that the caller fills.
pub(crate) const READS_TABLE: &[&str] = &["lookup"];

pub(crate) fn find(name: &str) -> Option<Bundled> {
    let name = *NAMES.iter().find(|known| **known == name)?;
    let variant = name.strip_suffix(".wasm").filter(|variant| *variant != "mask");
    Some(Bundled { name, wasm: if variant.is_some() { STANDARD } else { MASK }, variant })
}
