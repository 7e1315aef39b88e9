//! JSON columns encoded as differences (`binlog_row_value_options = PARTIAL_JSON`): the after image
//! of an update holds the differences from the before image. The document is parsed, changed, and
//! printed as MySQL prints it.

use trunkline_connector::json;

use super::jsonb::{self, Node};
use super::{Bytes, Malformed};

const REPLACE: u8 = 0;
const INSERT: u8 = 1;
const REMOVE: u8 = 2;

/// A step of a path.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Appends the text of a document after its differences.
pub(crate) fn write_changed(out: &mut Vec<u8>, before: &[u8], diffs: &[u8]) -> Result<(), Malformed> {
    let mut document = jsonb::read(before)?;
    let mut bytes = Bytes::new(diffs);
    while !bytes.is_empty() {
        let operation = bytes.u8()?;
        let path = parse_path(bytes.packed_bytes()?)?;
        let value = if operation == REMOVE { None } else { Some(jsonb::read(bytes.packed_bytes()?)?) };
        apply(&mut document, operation, &path, value)?;
    }
    document.write(out);
    Ok(())
}

fn apply(document: &mut Node, operation: u8, path: &[Step], value: Option<Node>) -> Result<(), Malformed> {
    let nowhere = || Malformed::new("a JSON difference at a place that the document does not have");
    let Some((last, way)) = path.split_last() else {
        return match (operation, value) {
            (REPLACE, Some(value)) => {
                *document = value;
                Ok(())
            }
            _ => Err(nowhere()),
        };
    };
    let mut place = document;
    for step in way {
        place = match (step, place) {
            (Step::Key(key), Node::Object(members)) => {
                members.iter_mut().find(|(name, _)| name == key).map(|(_, node)| node).ok_or_else(nowhere)?
            }
            (Step::Index(index), Node::Array(items)) => items.get_mut(*index).ok_or_else(nowhere)?,
            _ => return Err(nowhere()),
        };
    }
    match (last, place) {
        (Step::Key(key), Node::Object(members)) => {
            let at = members.iter().position(|(name, _)| name == key);
            match (operation, at, value) {
                (REPLACE, Some(at), Some(value)) => members[at].1 = value,
                (INSERT, None, Some(value)) => {
                    // The server sorts members by the length of their names, then by their bytes.
                    let before = |name: &str| (name.len(), name) < (key.len(), key.as_str());
                    let at = members.iter().take_while(|(name, _)| before(name)).count();
                    members.insert(at, (key.clone(), value));
                }
                (REMOVE, Some(at), _) => drop(members.remove(at)),
                _ => return Err(nowhere()),
            }
        }
        (Step::Index(index), Node::Array(items)) => match (operation, value) {
            (REPLACE, Some(value)) => *items.get_mut(*index).ok_or_else(nowhere)? = value,
            (INSERT, Some(value)) => items.insert((*index).min(items.len()), value),
            (REMOVE, _) if *index < items.len() => drop(items.remove(*index)),
            _ => return Err(nowhere()),
        },
        _ => return Err(nowhere()),
    }
    Ok(())
}

/// `$.key."quoted key"[3]`
fn parse_path(path: &[u8]) -> Result<Vec<Step>, Malformed> {
    let wrong = || Malformed(format!("`{}` is no JSON path", String::from_utf8_lossy(path)));
    let text = std::str::from_utf8(path).map_err(|_| wrong())?;
    let mut rest = text.strip_prefix('$').ok_or_else(wrong)?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (number, after) = after.split_once(']').ok_or_else(wrong)?;
            steps.push(Step::Index(number.trim().parse().map_err(|_| wrong())?));
            rest = after;
        } else {
            let after = rest.strip_prefix('.').ok_or_else(wrong)?;
            let end = if after.starts_with('"') {
                quoted_end(after).ok_or_else(wrong)?
            } else {
                after.find(['.', '[']).unwrap_or(after.len())
            };
            let (key, after) = after.split_at(end);
            let key = if key.starts_with('"') {
                json::text(key.as_bytes()).ok_or_else(wrong)?.into_owned()
            } else {
                key.to_owned()
            };
            steps.push(Step::Key(key));
            rest = after;
        }
    }
    Ok(steps)
}

/// The end of the JSON string at the beginning of the text.
fn quoted_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_are_taken_apart() {
        let key = |key: &str| Step::Key(key.to_owned());
        assert_eq!(parse_path(b"$").unwrap(), []);
        assert_eq!(
            parse_path(br#"$.a."b.\"c[1]"[2].d"#).unwrap(),
            [key("a"), key("b.\"c[1]"), Step::Index(2), key("d")]
        );
        for wrong in ["", "a", "$a", "$[x]", "$[1", "$.\"a"] {
            assert!(parse_path(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(before in proptest::collection::vec(any::<u8>(), 0..40), diffs in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = write_changed(&mut Vec::new(), &before, &diffs);
            let _ = parse_path(&diffs);
        }
    }
}
