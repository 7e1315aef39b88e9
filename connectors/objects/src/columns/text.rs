//! JSON values as text, for columns that widened to text.

use arrow::json::reader::{Tape, TapeElement};
use trunkline_connector::json::write_string;

/// Appends the JSON of the value at `index`. Not recursive: depth is the data's.
pub(crate) fn write_json(tape: &Tape<'_>, index: u32, out: &mut Vec<u8>) {
    // Open objects and lists: is it an object, and how many keys and values were written.
    let mut open: Vec<(bool, usize)> = Vec::new();
    let mut at = index;
    loop {
        let element = tape.get(at);
        at += 1;
        let is_end = matches!(element, TapeElement::EndObject(_) | TapeElement::EndList(_));
        if !is_end && let Some((is_object, written)) = open.last_mut() {
            match (*is_object, *written) {
                (_, 0) => {}
                (true, odd) if odd % 2 == 1 => out.push(b':'),
                _ => out.push(b','),
            }
            *written += 1;
        }
        match element {
            TapeElement::StartObject(_) => {
                out.push(b'{');
                open.push((true, 0));
                continue;
            }
            TapeElement::StartList(_) => {
                out.push(b'[');
                open.push((false, 0));
                continue;
            }
            TapeElement::EndObject(_) | TapeElement::EndList(_) => {
                let was_object = open.pop().is_some_and(|(is_object, _)| is_object);
                out.push(if was_object { b'}' } else { b']' });
            }
            TapeElement::String(text) => write_string(out, tape.get_string(text)),
            TapeElement::Number(text) => out.extend_from_slice(tape.get_string(text).as_bytes()),
            TapeElement::True => out.extend_from_slice(b"true"),
            TapeElement::False => out.extend_from_slice(b"false"),
            // Typed numbers come from serialized Rust values only, never from text.
            _ => out.extend_from_slice(b"null"),
        }
        if open.is_empty() {
            return;
        }
    }
}
