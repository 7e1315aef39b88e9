//! The settings `otlp`, and the standard variables of OpenTelemetry that set them, too.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use trunkline_connector::config::{Mismatch, Section, Value};

use super::setting_layers::{from_base, properties};

/// The value of an address that turns its signal off.
const OFF: &str = "off";

/// The only protocol.
const HTTP_PROTOBUF: &str = "http/protobuf";

/// The port of a collector for OTLP over HTTP.
const EXAMPLE: &str = "http://localhost:4318";

/// The export to OpenTelemetry.
#[derive(Clone, PartialEq, Deserialize)]
pub struct OtlpSettings {
    endpoint: Option<String>,
    traces_endpoint: Option<String>,
    metrics_endpoint: Option<String>,
    /// Headers of requests. They hold secrets (I8).
    pub headers: BTreeMap<String, String>,
    /// Time between two exports of the metrics.
    pub interval: Duration,
    /// Time for the collector to answer.
    pub timeout: Duration,
    /// Requests are compressed.
    pub gzip: bool,
    /// The share of traces that is exported, from 0 to 1.
    pub sample_ratio: f64,
    /// Attributes of the process.
    pub resource: BTreeMap<String, String>,
    /// Certificate authorities.
    pub tls_ca: Option<PathBuf>,
    /// The client's certificate.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// Why the standard variables of OpenTelemetry have no effect.
    #[serde(skip)]
    pub ignored_variables: Vec<String>,
}

/// Not derived: headers hold secrets, and addresses may (I8).
impl fmt::Debug for OtlpSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OtlpSettings")
            .field("is_on", &(self.traces_url().is_some() || self.metrics_url().is_some()))
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("interval", &self.interval)
            .field("sample_ratio", &self.sample_ratio)
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}

impl OtlpSettings {
    /// The address for traces, unless they are off.
    pub fn traces_url(&self) -> Option<String> {
        self.url(self.traces_endpoint.as_deref(), "v1/traces")
    }

    /// The address for metrics, unless they are off.
    pub fn metrics_url(&self) -> Option<String> {
        self.url(self.metrics_endpoint.as_deref(), "v1/metrics")
    }

    fn url(&self, own: Option<&str>, path: &str) -> Option<String> {
        match own {
            Some(OFF) => None,
            Some(own) => Some(own.to_owned()),
            None => self.endpoint.as_deref().map(|base| format!("{}/{path}", base.trim_end_matches('/'))),
        }
    }
}

/// The values that one layer sets.
#[derive(Debug, Default, Serialize)]
pub(super) struct OtlpLayer {
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traces_endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metrics_endpoint: Option<String>,
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gzip: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_ratio: Option<f64>,
    resource: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,
}

impl OtlpLayer {
    /// The declared defaults.
    pub(super) fn declared_defaults(section: &Section<'_>) -> Self {
        Self {
            interval: Some(section.value("interval")),
            timeout: Some(section.value("timeout")),
            gzip: Some(section.one_of("compression", &COMPRESSIONS)),
            sample_ratio: Some(section.value("sample_ratio")),
            ..Self::default()
        }
    }

    /// Reads the table `otlp` of a layer.
    pub(super) fn read(section: &Section<'_>, base: &Path) -> Self {
        let path = |key| section.optional::<PathBuf>(key).map(|path| from_base(base, path));
        protocol(section);
        Self {
            endpoint: address(section, "endpoint", false),
            traces_endpoint: address(section, "traces_endpoint", true),
            metrics_endpoint: address(section, "metrics_endpoint", true),
            headers: properties(section, "headers"),
            interval: interval(section),
            timeout: section.optional("timeout"),
            gzip: compression(section),
            sample_ratio: ratio(section),
            resource: properties(section, "resource"),
            tls_ca: path("tls_ca"),
            tls_cert: path("tls_cert"),
            tls_key: path("tls_key"),
        }
    }
}

/// The address of a collector.
fn address(section: &Section<'_>, key: &'static str, may_be_off: bool) -> Option<String> {
    let address = section.optional::<String>(key)?;
    let is_url = url::Url::parse(&address).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if is_url || may_be_off && address == OFF {
        return Some(address);
    }
    let node = section.node(key)?;
    let off = if may_be_off { ", or `off`" } else { "" };
    let expected = format!("the address of a collector, such as `{EXAMPLE}`{off}");
    section.mismatch(key, node, Mismatch::new("is not an address with `http://` or `https://`"), expected);
    None
}

/// Reports another protocol than the only one.
fn protocol(section: &Section<'_>) {
    let Some(protocol) = section.optional::<String>("protocol") else { return };
    if protocol != HTTP_PROTOBUF
        && let Some(node) = section.node("protocol")
    {
        let expected = format!("`{HTTP_PROTOBUF}`; collectors listen for it on port 4318, as in `{EXAMPLE}`");
        section.mismatch("protocol", node, Mismatch::new(format!("is `{protocol}`")), expected);
    }
}

const COMPRESSIONS: [(&str, bool); 2] = [("none", false), ("gzip", true)];

fn compression(section: &Section<'_>) -> Option<bool> {
    section.node("compression")?;
    Some(section.choice("compression", &COMPRESSIONS, false))
}

fn interval(section: &Section<'_>) -> Option<Duration> {
    let interval = section.optional::<Duration>("interval")?;
    if interval >= Duration::from_secs(1) {
        return Some(interval);
    }
    let node = section.node("interval")?;
    section.mismatch("interval", node, Mismatch::new("is too short"), "at least `1s`".to_owned());
    None
}

/// A number from 0 to 1.
fn ratio(section: &Section<'_>) -> Option<f64> {
    const KEY: &str = "sample_ratio";
    let node = section.node(KEY)?;
    let (number, found) = match &node.value {
        Value::Float(number) => (Some(*number), format!("is {number}")),
        Value::Integer(number) => (Some(*number as f64), format!("is {number}")),
        Value::String(text) => (text.resolved.parse().ok(), format!("is `{}`", text.raw)),
        other => (None, format!("is {}", other.kind())),
    };
    if let Some(number) = number.filter(|number| (0.0..=1.0).contains(number)) {
        return Some(number);
    }
    section.mismatch(KEY, node, Mismatch::new(found), "a number from 0 to 1, such as `0.1`".to_owned());
    None
}

/// A value of a variable: the keys of its setting, and the value in the form of that setting.
pub(super) type OtelValue = (Vec<String>, String);

/// The settings that the variables `OTEL_*` of the environment set. `problem` gets the variables
/// with a value that has no meaning here, and the expected one.
pub(super) fn otel_values(
    variables: &[(String, String)],
    mut problem: impl FnMut(&str, &str),
) -> Vec<(String, OtelValue)> {
    let get = |name: &str| {
        let found = variables.iter().find(|(variable, value)| variable == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    };
    if get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        let off = |key: &str| ("OTEL_SDK_DISABLED".to_owned(), (keys(&[key]), OFF.to_owned()));
        return vec![off("traces_endpoint"), off("metrics_endpoint")];
    }
    let mut found = Vec::new();
    let mut add = |variable: &str, path: &[&str], value: Cow<'_, str>| {
        found.push((variable.to_owned(), (keys(path), value.into_owned())));
    };
    for (variable, key) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "endpoint"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "traces_endpoint"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "metrics_endpoint"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "protocol"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "compression"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "tls_ca"),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "tls_cert"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "tls_key"),
    ] {
        if let Some(value) = get(variable) {
            add(variable, &[key], Cow::Borrowed(value));
        }
    }
    // These are milliseconds.
    for (variable, key) in [("OTEL_METRIC_EXPORT_INTERVAL", "interval"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "timeout")] {
        if let Some(value) = get(variable) {
            add(variable, &[key], Cow::Owned(format!("{value}ms")));
        }
    }
    for (variable, key) in [("OTEL_TRACES_EXPORTER", "traces_endpoint"), ("OTEL_METRICS_EXPORTER", "metrics_endpoint")]
    {
        match get(variable) {
            Some("none") => add(variable, &[key], Cow::Borrowed(OFF)),
            None | Some("otlp") => {}
            Some(_) => problem(variable, "`otlp` or `none`"),
        }
    }
    match get("OTEL_TRACES_SAMPLER").map(|sampler| sampler.trim_start_matches("parentbased_")) {
        Some("always_on") => add("OTEL_TRACES_SAMPLER", &["sample_ratio"], Cow::Borrowed("1")),
        Some("always_off") => add("OTEL_TRACES_SAMPLER", &["sample_ratio"], Cow::Borrowed("0")),
        Some("traceidratio") => {
            let ratio = get("OTEL_TRACES_SAMPLER_ARG").unwrap_or("1");
            add("OTEL_TRACES_SAMPLER_ARG", &["sample_ratio"], Cow::Borrowed(ratio));
        }
        None => {}
        Some(_) => problem("OTEL_TRACES_SAMPLER", "`always_on`, `always_off` or `traceidratio`"),
    }
    for (variable, key) in [("OTEL_EXPORTER_OTLP_HEADERS", "headers"), ("OTEL_RESOURCE_ATTRIBUTES", "resource")] {
        for pair in get(variable).unwrap_or_default().split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let decoded = pair
                .split_once('=')
                .and_then(|(name, value)| Some((name.trim(), percent_decode_str(value.trim()).decode_utf8().ok()?)));
            match decoded {
                Some((name, value)) if !name.is_empty() => add(variable, &[key, name], value),
                // The message must not contain the pair: it may be a secret (I8).
                _ => problem(variable, "pairs such as `name=value`, separated by commas"),
            }
        }
    }
    if let Some(name) = get("OTEL_SERVICE_NAME") {
        add("OTEL_SERVICE_NAME", &["resource", "service.name"], Cow::Borrowed(name));
    }
    found
}

fn keys(path: &[&str]) -> Vec<String> {
    std::iter::once("otlp").chain(path.iter().copied()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(variables: &[(&str, &str)]) -> (Vec<(String, String)>, Vec<String>) {
        let variables: Vec<(String, String)> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut problems = Vec::new();
        let found = otel_values(&variables, |variable, _| problems.push(variable.to_owned()));
        (found.into_iter().map(|(_, (keys, value))| (keys.join("/"), value)).collect(), problems)
    }

    #[test]
    fn standard_variables_become_settings() {
        let (found, problems) = values(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=1=2"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=prod"),
            ("OTEL_SERVICE_NAME", "feed"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
            ("OTEL_METRICS_EXPORTER", "none"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ""),
        ]);
        let expected = [
            ("otlp/endpoint", "http://c:4318"),
            ("otlp/interval", "5000ms"),
            ("otlp/metrics_endpoint", "off"),
            ("otlp/sample_ratio", "0.5"),
            ("otlp/headers/api-key", "a b"),
            ("otlp/headers/x", "1=2"),
            ("otlp/resource/deployment.environment", "prod"),
            ("otlp/resource/service.name", "feed"),
        ];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!((found, problems), (expected, Vec::new()));
    }

    #[test]
    fn a_disabled_sdk_sends_nothing_and_unknown_values_are_problems() {
        let (found, _) = values(&[("OTEL_SDK_DISABLED", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")]);
        let off = |key: &str| (key.to_owned(), OFF.to_owned());
        assert_eq!(found, [off("otlp/traces_endpoint"), off("otlp/metrics_endpoint")]);
        let (_, problems) = values(&[
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "secret"),
        ]);
        assert_eq!(problems, ["OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_EXPORTER_OTLP_HEADERS"]);
    }
}
