//! JSON texts whose number tokens stay as written: compact and indented forms.

/// The text without whitespace between its tokens. The text must be valid JSON.
pub(super) fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    each_token_byte(json, |character, is_string| {
        if is_string || !character.is_ascii_whitespace() {
            out.push(character);
        }
    });
    out
}

/// The text with one member or item per line. The text must be valid JSON.
pub(super) fn pretty(json: &str) -> String {
    let compact = compact(json);
    let mut out = String::with_capacity(compact.len() * 2);
    let mut depth = 0usize;
    let mut previous = ' ';
    each_token_byte(&compact, |character, is_string| {
        if is_string {
            if matches!(previous, '{' | '[') && character == '"' {
                break_line(&mut out, depth);
            }
            out.push(character);
            previous = 's';
            return;
        }
        let closes_empty = matches!((previous, character), ('{', '}') | ('[', ']'));
        if matches!(previous, '{' | '[') && !closes_empty {
            break_line(&mut out, depth);
        }
        match character {
            '{' | '[' => {
                depth += 1;
                out.push(character);
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                if !closes_empty {
                    break_line(&mut out, depth);
                }
                out.push(character);
            }
            ',' => {
                out.push(',');
                break_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => out.push(character),
        }
        previous = character;
    });
    out
}

fn break_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Calls `visit` with each character, and whether it belongs to a string (with its quotes).
fn each_token_byte(json: &str, mut visit: impl FnMut(char, bool)) {
    let (mut in_string, mut escaped) = (false, false);
    for character in json.chars() {
        if !in_string {
            in_string = character == '"';
            visit(character, in_string);
            continue;
        }
        visit(character, true);
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_string = false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings_stay_as_written() {
        let json = r#" { "a b" : 1.50 , "c":[ 12345678901234567890.10, {} , [] , "x, {\"y\" }" ] } "#;
        assert_eq!(compact(json), r#"{"a b":1.50,"c":[12345678901234567890.10,{},[],"x, {\"y\" }"]}"#);
        let lines = "{\n  \"a b\": 1.50,\n  \"c\": [\n    12345678901234567890.10,\n    {},\n    [],\n    \"x, {\\\"y\\\" }\"\n  ]\n}";
        assert_eq!(pretty(json), lines);
    }
}
