//! Parses a JSON object, filters, masks a member and serialises: the work that the benchmark
//! `plugin` measures in a plugin and in native code.

use serde_json::Value;

/// Appends the changed value to `out`. Returns `false` if the record is dropped, or is no such
/// object.
pub(crate) fn work(value: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(mut row) = serde_json::from_slice::<Value>(value) else { return false };
    if row["status"].as_u64().is_none_or(|status| status >= 500) {
        return false;
    }
    let Some(name) = row.pointer_mut("/user/name") else { return false };
    let masked = name.as_str().unwrap_or_default().chars().map(|_| '*').collect();
    *name = Value::String(masked);
    serde_json::to_writer(out, &row).is_ok()
}
