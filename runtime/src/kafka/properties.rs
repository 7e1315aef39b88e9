//! Checks the Kafka properties that a user sets before a client is created from them.
//!
//! librdkafka writes the refused value into its error text, and rdkafka adds it once more. Values
//! are passwords and private keys. This module therefore tries every property first and writes the
//! error itself: from the property's name, the values that the property permits, and the nearest
//! known name. No value enters an error (I8).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::slice;
use std::sync::OnceLock;

use rdkafka::bindings::{self, rd_kafka_conf_res_t};
use trunkline_connector::config::nearest;
use trunkline_connector::{Error, Result};

/// A property that librdkafka knows.
struct Property {
    name: String,
    /// The values that it permits; empty if any text is permitted.
    range: String,
}

/// Checks that librdkafka accepts each property. The error names all properties that it refuses.
pub(super) fn check(properties: &BTreeMap<String, String>) -> Result<()> {
    let problems: Vec<String> = properties.iter().filter_map(|(name, value)| refusal(name, value)).collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::config("kafka.settings", problems.join("; ")))
}

/// The reason why librdkafka refuses a property; `None` if it accepts the property.
fn refusal(name: &str, value: &str) -> Option<String> {
    let (Ok(c_name), Ok(c_value)) = (CString::new(name), CString::new(value)) else {
        return Some(format!("the Kafka property `{name}` or its value contains a zero byte"));
    };
    // Large enough for the whole message: `build_restriction` compares it with the message that it
    // expects.
    let mut text = vec![0; name.len() + value.len() + 1024];
    // SAFETY: the configuration is created here and destroyed here; the texts end with a zero and
    // are copied.
    let result = unsafe {
        let conf = bindings::rd_kafka_conf_new();
        let buffer = text.as_mut_ptr().cast::<c_char>();
        let result = bindings::rd_kafka_conf_set(conf, c_name.as_ptr(), c_value.as_ptr(), buffer, text.len());
        bindings::rd_kafka_conf_destroy(conf);
        result
    };
    match result {
        rd_kafka_conf_res_t::RD_KAFKA_CONF_OK => unreadable_file(name, value),
        rd_kafka_conf_res_t::RD_KAFKA_CONF_UNKNOWN => Some(unknown(name)),
        rd_kafka_conf_res_t::RD_KAFKA_CONF_INVALID => {
            let message = CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy();
            Some(invalid(name, value, &message))
        }
    }
}

/// Whether a property takes any text, as those do that hold secrets. An unknown property counts as
/// one that does.
pub(super) fn is_free_text(name: &str) -> bool {
    known().iter().find(|property| property.name == name).is_none_or(|property| property.range.is_empty())
}

/// Whether a property names a file or folder and its value can be one. Users also paste a key where
/// its path belongs.
pub(super) fn is_path(name: &str, value: &str) -> bool {
    names_a_file(name) && value.len() < 1024 && !value.contains('\n') && !value.contains("PRIVATE KEY")
}

/// The problem of a property that names a file or folder which cannot be read.
fn unreadable_file(name: &str, value: &str) -> Option<String> {
    if !names_a_file(name) || value == "probe" || value.is_empty() {
        return None;
    }
    if !is_path(name, value) {
        let message = "is not a path: the properties `ssl.ca.pem`, `ssl.certificate.pem` and `ssl.key.pem` take texts";
        return Some(format!("the value of the Kafka property `{name}` {message}"));
    }
    let problem = match std::fs::metadata(value) {
        Ok(found) if found.is_dir() => std::fs::read_dir(value).err(),
        Ok(_) => std::fs::File::open(value).err(),
        Err(error) => Some(error),
    };
    problem.map(|error| format!("cannot read the file of the Kafka property `{name}`: {value}: {error}"))
}

fn names_a_file(name: &str) -> bool {
    name.starts_with("ssl.") && name.ends_with(".location") || name.ends_with(".file")
}

fn unknown(name: &str) -> String {
    let names: Vec<&str> = known().iter().map(|property| property.name.as_str()).collect();
    let hint = match nearest(name, &names) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "the names are those of librdkafka".to_owned(),
    };
    format!("the Kafka property `{name}` is unknown: {hint}")
}

fn invalid(name: &str, value: &str, message: &str) -> String {
    if let Some(reason) = build_restriction(value, message) {
        return format!("the Kafka property `{name}` or its value is not supported by this build: {reason}");
    }
    match known().iter().find(|property| property.name == name) {
        Some(Property { range, .. }) if !range.is_empty() => {
            format!("the value of the Kafka property `{name}` is not valid: expected {range}")
        }
        _ => format!("the value of the Kafka property `{name}` is not valid"),
    }
}

/// The part of librdkafka's message that says why a build lacks a property. It is taken only from
/// messages whose other parts are known to the letter, so that it cannot contain the value.
fn build_restriction<'m>(value: &str, message: &'m str) -> Option<&'m str> {
    // Configuration property "NAME" not supported in this build: REASON
    if let Some(rest) = message.strip_prefix("Configuration property \"")
        && let Some((_, reason)) = rest.split_once("\" not supported in this build: ")
    {
        return Some(reason);
    }
    // Unsupported value "VALUE" for configuration property "NAME": REASON
    let rest = message.strip_prefix("Unsupported value \"")?.strip_prefix(value)?;
    let (_, reason) = rest.strip_prefix("\" for configuration property \"")?.split_once("\": ")?;
    Some(reason)
}

/// All properties of librdkafka.
fn known() -> &'static [Property] {
    static KNOWN: OnceLock<Vec<Property>> = OnceLock::new();
    KNOWN.get_or_init(|| parse(&documentation()))
}

/// The table of properties that librdkafka prints as its documentation.
fn documentation() -> String {
    let (mut text, mut length) = (ptr::null_mut::<c_char>(), 0);
    // SAFETY: the stream writes to memory that it allocates; both places outlive it. The text is
    // complete once the stream is closed, and is freed after it was copied.
    unsafe {
        let stream = libc::open_memstream(&raw mut text, &raw mut length);
        if stream.is_null() {
            return String::new();
        }
        bindings::rd_kafka_conf_properties_show(stream.cast());
        libc::fclose(stream);
        let copy = String::from_utf8_lossy(slice::from_raw_parts(text.cast::<u8>(), length)).into_owned();
        libc::free(text.cast());
        copy
    }
}

/// Reads lines of the form `NAME | C/P | RANGE | DEFAULT | IMPORTANCE | DESCRIPTION`.
fn parse(documentation: &str) -> Vec<Property> {
    let property = |line: &str| {
        let mut cells = line.split('|').map(str::trim);
        let (name, _client, range) = (cells.next()?, cells.next()?, cells.next()?);
        let is_name = !name.is_empty() && name != "Property" && !name.starts_with('-');
        is_name.then(|| Property { name: name.to_owned(), range: range.to_owned() })
    };
    documentation.lines().filter_map(property).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARKER: &str = "hunter2";

    fn error(name: &str, value: &str) -> String {
        let properties = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        check(&properties).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_property_and_never_show_its_value() {
        let cases = [
            ("sasl.passwort", "the Kafka property `sasl.passwort` is unknown: did you mean `sasl.password`?"),
            ("ssl.certficate.pem", "did you mean `ssl.certificate.pem`?"),
            ("colour", "the names are those of librdkafka"),
            ("security.protocol", "is not valid: expected plaintext, ssl, sasl_plaintext, sasl_ssl"),
            ("enable.ssl.certificate.verification", "expected true, false"),
            ("socket.timeout.ms", "expected 10 .. 300000"),
            ("debug", "`debug` is not valid: expected generic"),
            ("sasl.oauthbearer.method", "not supported by this build"),
        ];
        for (name, expected) in cases {
            // A value that is as long as a private key, and one that spans several lines.
            for value in [MARKER.to_owned(), MARKER.repeat(500), format!("-----BEGIN\n{MARKER}\": {MARKER}\n")] {
                let error = error(name, &value);
                assert!(error.contains(expected) && error.contains(name), "{error}");
                assert!(!error.contains("hunter"), "{error}");
            }
        }
        let zero = error("sasl.password", "hunter2\0");
        assert!(zero.contains("`sasl.password`") && !zero.contains("hunter"), "{zero}");
    }

    #[test]
    fn properties_that_a_build_lacks_are_reported_with_the_reason() {
        let error = error("sasl.oauthbearer.method", "oidc");
        assert!(error.contains("not supported by this build: "), "{error}");
        assert!(!error.contains("oidc"), "{error}");
    }

    #[test]
    fn files_that_cannot_be_read_are_reported_with_their_paths() {
        let message = error("ssl.ca.location", "/no/such/ca.pem");
        assert!(message.contains("`ssl.ca.location`: /no/such/ca.pem: No such file"), "{message}");
        let pasted = error("ssl.key.location", "-----BEGIN PRIVATE KEY-----\nhunter2");
        assert!(pasted.contains("`ssl.key.pem`") && !pasted.contains("hunter"), "{pasted}");
        for readable in ["probe", "/etc", "/etc/passwd"] {
            let properties = BTreeMap::from([("ssl.ca.location".to_owned(), readable.to_owned())]);
            check(&properties).unwrap();
        }
    }

    #[test]
    fn every_refused_property_is_reported_at_once() {
        let properties = [("sasl.passwort", MARKER), ("acks", "some"), ("client.id", "worker")];
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let error = check(&BTreeMap::from(properties)).unwrap_err();
        assert_eq!(error.domain, trunkline_connector::Domain::Config);
        let error = error.to_string();
        assert!(
            error.contains("`sasl.passwort`") && error.contains("`acks`") && !error.contains("client.id"),
            "{error}"
        );
        assert!(!error.contains(MARKER), "{error}");
    }

    #[test]
    fn the_documentation_lists_global_and_topic_properties() {
        let names: Vec<&str> = known().iter().map(|property| property.name.as_str()).collect();
        assert!(names.len() > 150, "{}", names.len());
        for name in ["bootstrap.servers", "sasl.password", "acks", "compression.type", "auto.offset.reset"] {
            assert!(names.contains(&name), "{name}");
        }
    }
}
