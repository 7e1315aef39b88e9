//! Rotation as file names show it: `access.log`, `access.log.1` and `access.log-20260101.gz` are
//! one log over time.
//!
//! Names only narrow a choice that contents decide. The files of one rotation group are read oldest
//! first and share an ordering key, and a copy is searched among files whose names are related to
//! that of its original.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The path without the suffixes that rotation adds: numbers, dates, `.old`, `.bak`, `.gz`.
pub(crate) fn rotation_group(path: &str) -> &str {
    let mut left = path;
    while let Some(shorter) = without_suffix(left) {
        left = shorter;
    }
    left
}

/// The paths without one, two, .. of the suffixes that rotation adds: for `/v/a.log.1.gz` they are
/// `/v/a.log.1` and `/v/a.log`. A file can be a copy of the file at one of them, but not of one
/// with another number or date.
pub(crate) fn original_paths(path: &str) -> Vec<&str> {
    let mut originals = Vec::new();
    let mut left = path;
    while let Some(shorter) = without_suffix(left) {
        left = shorter;
        originals.push(left);
    }
    originals
}

/// The name of a file before its compression.
pub(crate) fn uncompressed_name(path: &Path) -> Option<String> {
    let name = file_name(path);
    COMPRESSED.iter().find_map(|suffix| name.strip_suffix(suffix)).map(str::to_owned)
}

/// Suffixes of compressed files.
const COMPRESSED: [&str; 3] = [".gz", ".zst", ".xz"];
/// Other suffixes that rotation and copying add.
const ROTATED: [&str; 3] = [".old", ".bak", ".tmp"];

/// The path without its last suffix of rotation.
fn without_suffix(path: &str) -> Option<&str> {
    let name_at = path.rfind('/').map_or(0, |slash| slash + 1);
    let name = &path[name_at..];
    let suffixes = COMPRESSED.iter().chain(&ROTATED);
    let left = suffixes.into_iter().find_map(|suffix| name.strip_suffix(suffix)).or_else(|| without_number(name))?;
    (!left.is_empty()).then(|| &path[..name_at + left.len()])
}

/// A path as text. Bytes that are not UTF-8 are written `\xHH`.
pub(crate) fn path_text(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02X}"));
        }
    }
    text
}

/// Whether two paths are equal. Equal bytes are the usual case, and cheaper to compare than
/// components.
pub(crate) fn is_same_path(path: &Path, other: &Path) -> bool {
    path.as_os_str() == other.as_os_str() || path == other
}

/// The path that [`path_text`] wrote.
pub(crate) fn text_path(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\x") {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let escaped = rest.get(at + 2..at + 4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        // Only bytes that are not ASCII are escaped.
        match escaped.filter(|byte| !byte.is_ascii()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[at + 4..];
            }
            None => {
                bytes.extend_from_slice(b"\\x");
                rest = &rest[at + 2..];
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    PathBuf::from(OsString::from_vec(bytes))
}

/// `name` without `.1`, `-20260101`, `.2026-01-01`, `-2026-01-01_12`.
fn without_number(name: &str) -> Option<&str> {
    let left = name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '-' | '_' | '.'));
    let suffix = &name[left.len()..];
    let separated = suffix.starts_with(['.', '-', '_']) && suffix.ends_with(|c: char| c.is_ascii_digit());
    separated.then_some(left)
}

/// The beginning that the names of a file's copies share: `app` for `app.log`, `app.log.1` and
/// `/old/app.log.2.gz`.
pub(crate) fn stem(path: &Path) -> String {
    let name = file_name(path);
    let base = rotation_group(&name);
    base.rsplit_once('.').map_or(base, |(stem, _)| stem).to_owned()
}

/// All beginnings of a name that may be the [`stem`] of its original.
pub(crate) fn possible_stems(path: &Path) -> Vec<String> {
    let name = file_name(path);
    let ends = name.char_indices().filter(|(_, c)| matches!(c, '.' | '-' | '_')).map(|(at, _)| at);
    ends.chain([name.len()]).map(|end| name[..end].to_owned()).collect()
}

fn file_name(path: &Path) -> Cow<'_, str> {
    path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default()
}

/// Sorts the names of one rotation group from the oldest to the current one, for files with equal
/// times: dates ascending, `.9` before `.1`, the plain name last.
pub(crate) fn rotation_age(path: &str) -> (u8, u32, String) {
    let suffix = &path[rotation_group(path).len()..];
    let compressed = COMPRESSED.iter().find_map(|compressed| suffix.strip_suffix(compressed));
    let suffix = compressed.unwrap_or(suffix).trim_start_matches(['.', '-', '_']);
    match suffix.parse::<u32>() {
        _ if suffix.is_empty() => (2, 0, String::new()),
        Ok(count) if suffix.len() <= 5 => (1, u32::MAX - count, String::new()),
        _ => (0, 0, suffix.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_of_rotation_are_removed() {
        for name in ["access.log", "access.log.1", "access.log.2.gz", "access.log-20260101", "access.log-20260101.gz"] {
            assert_eq!(rotation_group(&format!("/v/{name}")), "/v/access.log");
        }
        assert_eq!(rotation_group("/v.1/mail"), "/v.1/mail");
        assert_eq!(rotation_group("/v/app1.log"), "/v/app1.log");
        assert_eq!(rotation_group("/v/1"), "/v/1");
        assert_eq!(rotation_group("/v/.gz"), "/v/.gz");
    }

    #[test]
    fn a_copy_is_related_to_its_original() {
        let may_come_from = |copy, original| possible_stems(Path::new(copy)).contains(&stem(Path::new(original)));
        assert!(may_come_from("/old/app.log.1.gz", "/v/app.log"));
        assert!(may_come_from("/v/app.log.2.gz", "/v/app.log.1"));
        assert!(may_come_from("/v/app-2026-01-01.log", "/v/app.log"));
        assert!(may_come_from("/v/app.1.log", "/v/app.log"));
        assert!(!may_come_from("/v/a.log", "/v/b.log"));
        assert!(!may_come_from("/v/app2.log", "/v/app.log"));
    }

    #[test]
    fn older_names_sort_first() {
        let mut names = vec!["/a.log", "/a.log.1", "/a.log.10", "/a.log.2.gz", "/a.log-20260102", "/a.log-20260101"];
        names.sort_by_key(|name| rotation_age(name));
        assert_eq!(names, ["/a.log-20260101", "/a.log-20260102", "/a.log.10", "/a.log.2.gz", "/a.log.1", "/a.log"]);
    }

    #[test]
    fn originals_have_no_other_number_or_date() {
        assert_eq!(original_paths("/v/a.log.1.gz"), ["/v/a.log.1", "/v/a.log"]);
        assert_eq!(original_paths("/v/a.log-20261125"), ["/v/a.log"]);
        assert!(original_paths("/v/a.log").is_empty());
        assert_eq!(uncompressed_name(Path::new("/old/a.log.1.zst")).as_deref(), Some("a.log.1"));
    }

    #[test]
    fn paths_survive_a_round_trip_through_text() {
        for bytes in [&b"/v/a.log"[..], b"/v/caf\xe9.log", b"/v/\\x41 \\xzz \\x", b"/v/\xff\xfe"] {
            let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
            assert_eq!(text_path(&path_text(&path)), path, "{}", path_text(&path));
        }
        assert_eq!(path_text(&PathBuf::from(OsString::from_vec(b"caf\xe9".to_vec()))), "caf\\xE9");
    }
}
