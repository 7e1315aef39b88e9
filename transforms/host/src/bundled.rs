//! The plugins inside the worker's binary. This crate's build script builds them.

pub(crate) const NAMES: &[&str] = &["mask.wasm"];

pub(crate) fn wasm(name: &str) -> Option<&'static [u8]> {
    match name {
        "mask.wasm" => Some(include_bytes!(concat!(env!("OUT_DIR"), "/mask.wasm"))),
        _ => None,
    }
}
