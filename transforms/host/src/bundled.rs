//! The plugins that are part of the worker's binary; built by this crate's build script.

pub(crate) const NAMES: &[&str] = &["mask.wasm"];

pub(crate) fn wasm(name: &str) -> Option<&'static [u8]> {
    match name {
        "mask.wasm" => Some(include_bytes!(concat!(env!("OUT_DIR"), "/mask.wasm"))),
        _ => None,
    }
}
