//! Writes HTML. Every text passes [`escape`]: names, errors and records may contain anything.

use std::fmt::Write as _;
use std::sync::OnceLock;

use axum::body::Bytes;
use serde_json::json;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// A part of a page under construction, with the values that change while it is shown.
#[derive(Default)]
pub(super) struct Html {
    text: String,
    /// The same without the live values: if it changes, the page must be loaded again.
    skeleton: u64,
    values: Vec<String>,
}

/// A finished part of a page.
pub(super) struct Rendered {
    /// Escaped.
    pub(super) html: String,
    /// Differs if anything but the live values differs.
    pub(super) shape: String,
    /// The live values, in the order of their elements.
    pub(super) values: Vec<String>,
    event: OnceLock<Bytes>,
}

impl Rendered {
    /// The shape and the live values as a server-sent event, which all viewers share.
    pub(super) fn event(&self) -> Bytes {
        let event = || Bytes::from(format!("data: {}\n\n", json!({ "shape": self.shape, "values": self.values })));
        self.event.get_or_init(event).clone()
    }
}

/// Text between tags, or in an attribute with quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Other control characters are not allowed in HTML.
            '\t' | '\n' | '\r' => escaped.push(character),
            control if control.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// A part of a path or query of a link.
pub(super) fn url_part(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            other => drop(write!(encoded, "%{other:02X}")),
        }
    }
    encoded
}

impl Html {
    /// Adds tags, as they are. Only literals can be added.
    pub(super) fn raw(&mut self, tags: &'static str) -> &mut Self {
        self.push(tags)
    }

    /// Adds text.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        let escaped = escape(text);
        self.push(&escaped)
    }

    /// Adds a number, such as a coordinate.
    pub(super) fn number(&mut self, number: usize) -> &mut Self {
        let text = number.to_string();
        self.push(&text)
    }

    /// Adds a part of a link.
    pub(super) fn url_part(&mut self, text: &str) -> &mut Self {
        let encoded = url_part(text);
        self.push(&encoded)
    }

    /// Adds a value that changes. The tag before it ends with `data-v>`.
    pub(super) fn live(&mut self, value: &str) -> &mut Self {
        self.text.push_str(&escape(value));
        self.values.push(value.to_owned());
        self
    }

    /// Adds another part.
    pub(super) fn part(&mut self, part: Rendered) -> &mut Self {
        self.text.push_str(&part.html);
        self.skeleton = xxh3_64(format!("{:x}{}", self.skeleton, part.shape).as_bytes());
        self.values.extend(part.values);
        self
    }

    pub(super) fn finish(self) -> Rendered {
        Rendered {
            html: self.text,
            shape: format!("{:016x}", self.skeleton),
            values: self.values,
            event: OnceLock::new(),
        }
    }

    fn push(&mut self, escaped: &str) -> &mut Self {
        self.text.push_str(escaped);
        self.skeleton = xxh3_64_with_seed(escaped.as_bytes(), self.skeleton);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_leave_their_place() {
        let hostile = "</td><script>alert('1')</script>\" onload=\"x\u{0}\u{1b}&amp;";
        let escaped = escape(hostile);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\u{0}', '\u{1b}']), "{escaped}");
        assert!(escaped.ends_with("&amp;amp;"), "{escaped}");
        assert_eq!(url_part("shop.a/b?c=<d>ä"), "shop.a%2Fb%3Fc%3D%3Cd%3E%C3%A4");
    }

    #[test]
    fn only_live_values_leave_the_shape_as_it_is() {
        let page = |name: &str, rate: &str| {
            let mut html = Html::default();
            html.raw("<b>").text(name).raw("</b><i data-v>").live(rate).raw("</i>");
            html.finish()
        };
        let (one, other) = (page("a", "1"), page("a", "<2>"));
        assert_eq!((one.shape, other.values), (other.shape, vec!["<2>".to_owned()]));
        assert_eq!(other.html, "<b>a</b><i data-v>&lt;2&gt;</i>");
        assert_ne!(page("b", "1").shape, page("a", "1").shape);
    }
}
