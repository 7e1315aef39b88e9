//! Prometheus' text format 0.0.4.

use std::fmt::Write;

use super::{Kind, Label, Output};
use crate::stage::Durations;

/// A page of metrics under construction.
#[derive(Default)]
pub(super) struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    pub(super) fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], value: f64) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (index, (label, value)) in labels.iter().enumerate() {
            let separator = if index == 0 { '{' } else { ',' };
            self.text.push(separator);
            self.text.push_str(label);
            self.text.push_str("=\"");
            let _ = write!(Escaped(&mut self.text), "{value}");
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        self.text.push(' ');
        self.number(value);
        self.text.push('\n');
    }

    /// Writes a value. Most of them are whole numbers, which are written faster as such.
    fn number(&mut self, value: f64) {
        const MAX_WHOLE: f64 = (1_u64 << 53) as f64;
        let _ = match value.fract() == 0.0 && (0.0..MAX_WHOLE).contains(&value) && value.is_sign_positive() {
            true => write!(self.text, "{}", value as u64),
            false => write!(self.text, "{value}"),
        };
    }
}

impl Output for Page {
    fn metric(&mut self, name: &'static str, kind: Kind, help: &'static str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        self.name = name;
    }

    fn sample(&mut self, labels: &[Label<'_>], value: f64) {
        self.line("", labels, value);
    }

    fn durations(&mut self, labels: &[Label<'_>], durations: &Durations) {
        let mut sum = 0;
        for (limit, count) in durations.limits.iter().zip(durations.counts) {
            sum += count;
            let limit = *limit as f64 / 1000.0;
            self.line("_bucket", &[labels, &[("le", &limit)]].concat(), sum as f64);
        }
        self.line("_bucket", &[labels, &[("le", &"+Inf")]].concat(), durations.count as f64);
        self.line("_sum", labels, durations.sum.as_secs_f64());
        self.line("_count", labels, durations.count as f64);
    }
}

/// Writes the value of a label. A page has tens of thousands of them.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(['\\', '"', '\n']) {
            self.0.push_str(&rest[..at]);
            self.0.push_str(match rest.as_bytes()[at] {
                b'\\' => "\\\\",
                b'"' => "\\\"",
                _ => "\\n",
            });
            rest = &rest[at + 1..];
        }
        self.0.push_str(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_escaped_labels() {
        let mut page = Page::default();
        page.metric("a", Kind::Gauge, "Something.");
        page.sample(&[("x", &"q\"\\\n"), ("y", &"z")], 1.5);
        page.metric("b", Kind::Counter, "Another one.");
        page.sample(&[], 3.0);
        let expected = "# HELP a Something.\n# TYPE a gauge\na{x=\"q\\\"\\\\\\n\",y=\"z\"} 1.5\n\
                        # HELP b Another one.\n# TYPE b counter\nb 3\n";
        assert_eq!(page.finish(), expected);
    }
}
