//! Explains failed connections: the broker's address, librdkafka's reason and the setting to
//! correct.
//!
//! A call that fails because no broker is connected returns only "transport failure" or a timeout.
//! librdkafka reports the reason as an event. The clients of a cluster pass these events to one
//! [`ConnectionMonitor`], which logs each new problem once and adds it to the errors of calls.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_t;
use trunkline_connector::{Error, Retry};

/// The same problem is logged again after this time.
const REPEAT: Duration = Duration::from_secs(60);

/// Logged problems that are remembered. A problem's text has no variable parts, so there are few.
const MAX_LOGGED: usize = 100;

/// A connection that is younger is new.
const EARLY_MS: u64 = 2_000;

/// A broker that closes connections may also be starting or stopping. Then it accepts them after a
/// few seconds.
const RESTART_GRACE: Duration = Duration::from_secs(3);

/// The connection problems of a cluster's clients.
#[derive(Default)]
pub(super) struct ConnectionMonitor {
    /// Whether a broker has ever answered. If so, the settings are right and the brokers have
    /// changed.
    is_reached: AtomicBool,
    /// Whether the clients log in with tokens.
    uses_tokens: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Problem>,
    logged: HashMap<String, Instant>,
}

#[derive(Clone)]
struct Problem {
    text: String,
    cause: Cause,
    since: Instant,
    last: Instant,
}

/// Why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Only other settings or another certificate help.
    Settings,
    /// A certificate was refused; another event has the reason.
    Certificate,
    /// Probably the wrong protocol for the port, unless the broker is starting or stopping.
    Protocol,
    /// The broker may return.
    Unavailable,
}

impl ConnectionMonitor {
    /// Notes that a broker has answered.
    pub(super) fn set_reached(&self) {
        self.is_reached.store(true, Ordering::Relaxed);
        self.lock().current = None;
    }

    /// Notes a report of librdkafka. Reports that do not explain a failed connection are ignored.
    pub(super) fn note(&self, report: &str) {
        if let Some((cause, text)) = explain(report, self.uses_tokens.load(Ordering::Relaxed)) {
            self.note_problem(cause, text);
        }
    }

    /// Notes that the clients log in with tokens.
    pub(super) fn set_uses_tokens(&self) {
        self.uses_tokens.store(true, Ordering::Relaxed);
    }

    /// Notes that no token could be fetched. librdkafka does not connect without one.
    pub(super) fn note_token_failure(&self, reason: &str, is_permanent: bool) {
        let cause = if is_permanent { Cause::Settings } else { Cause::Unavailable };
        self.note_problem(cause, format!("{NO_TOKEN}: {reason}"));
    }

    /// Notes that a token was fetched.
    pub(super) fn token_fetched(&self) {
        let mut state = self.lock();
        if state.current.as_ref().is_some_and(|problem| problem.text.starts_with(NO_TOKEN)) {
            state.current = None;
        }
    }

    fn note_problem(&self, cause: Cause, text: String) {
        // Brokers that restart close connections too.
        if cause == Cause::Protocol && self.is_reached.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        let now = Instant::now();
        // The specific reason comes first, and the general one follows.
        let is_explained = cause == Cause::Certificate
            && state
                .current
                .as_ref()
                .is_some_and(|known| known.cause == Cause::Settings && known.since.elapsed() < REPEAT);
        if is_explained {
            return;
        }
        let since = match &state.current {
            Some(known) if known.cause == cause => known.since,
            _ => now,
        };
        state.current = Some(Problem { text: text.clone(), cause, since, last: now });
        if state.logged.get(&text).is_some_and(|last| last.elapsed() < REPEAT) {
            return;
        }
        if state.logged.len() >= MAX_LOGGED {
            state.logged.clear();
        }
        tracing::warn!("{text}");
        state.logged.insert(text, now);
    }

    /// Whether waiting for the brokers is useless until the settings change.
    pub(super) fn is_hopeless(&self) -> bool {
        if self.is_reached.load(Ordering::Relaxed) {
            return false;
        }
        self.lock().current.as_ref().is_some_and(|problem| match problem.cause {
            Cause::Settings | Cause::Certificate => true,
            Cause::Protocol => problem.since.elapsed() >= RESTART_GRACE,
            Cause::Unavailable => false,
        })
    }

    /// Whether the brokers refuse the settings. Otherwise a login failed because its connection
    /// ended, and the next one succeeds.
    pub(super) fn is_refused(&self) -> bool {
        let state = self.lock();
        state.current.as_ref().is_some_and(|problem| matches!(problem.cause, Cause::Settings | Cause::Certificate))
    }

    /// Adds the current problem to the error of a call that found no broker.
    pub(super) fn explain(&self, error: Error) -> Error {
        if error.code != "kafka.unreachable" {
            return error;
        }
        // librdkafka reports an unchanged problem every 30 s.
        let current = self.lock().current.clone().filter(|problem| problem.last.elapsed() < REPEAT);
        let Some(problem) = current else { return error };
        let code = if problem.cause == Cause::Unavailable { error.code } else { "kafka.connection_rejected" };
        let explained = Error::external(code, format!("{}: {}", error.message(), problem.text));
        if self.is_hopeless() { explained.retry(Retry::Never) } else { explained }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Each change leaves a valid state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the texts of failed tokens start.
const NO_TOKEN: &str = "cannot get a token for Kafka";

/// Texts of librdkafka and OpenSSL, and what to do. The first match counts.
const EXPLANATIONS: &[(&str, Cause, &str)] = &[
    // The connection ended during the login, for a reason that is not the login.
    ("handshake failed: Local: Broker transport failure", Cause::Protocol, ENDED_IN_LOGIN),
    ("SaslAuthenticateRequest failed: Local: ", Cause::Protocol, ENDED_IN_LOGIN),
    (
        "mechanism handshake failed",
        Cause::Settings,
        "set `sasl.mechanism` in the settings `kafka` to a mechanism that the broker supports",
    ),
    ("SASL authentication error", Cause::Settings, PASSWORD_REFUSED),
    ("certificate has expired", Cause::Settings, "renew the certificate on the broker"),
    ("certificate is not yet valid", Cause::Settings, "correct the clock of this machine or of the broker"),
    (
        "certificate is for another host",
        Cause::Settings,
        "use a name from the certificate in the setting `brokers` and in the broker's `advertised.listeners`, or set \
         `ssl.endpoint.identification.algorithm = \"none\"` in the settings `kafka`",
    ),
    (
        "verification callback failed",
        Cause::Settings,
        "set `ssl.ca.location` in the settings `kafka` to the certificate of the broker's certificate authority",
    ),
    (
        "certificate verify failed",
        Cause::Certificate,
        "set `ssl.ca.location` in the settings `kafka` to the certificate of the broker's certificate authority",
    ),
    (
        "Failed to verify broker certificate",
        Cause::Certificate,
        "set `ssl.ca.location` in the settings `kafka` to the certificate of the broker's certificate authority",
    ),
    ("certificate required", Cause::Settings, CLIENT_CERTIFICATE),
    ("bad certificate", Cause::Settings, CLIENT_CERTIFICATE),
    ("certificate unknown", Cause::Settings, CLIENT_CERTIFICATE),
    ("unknown ca", Cause::Settings, CLIENT_CERTIFICATE),
    ("alert handshake failure", Cause::Settings, CLIENT_CERTIFICATE),
    ("client SSL authentication might be required", Cause::Settings, CLIENT_CERTIFICATE),
    ("wrong version number", Cause::Settings, NO_TLS),
    ("packet length too long", Cause::Settings, NO_TLS),
    ("record layer failure", Cause::Settings, NO_TLS),
    ("PLAINTEXT broker listener", Cause::Protocol, NO_TLS),
    ("during SSL connection handshake", Cause::Protocol, NO_TLS),
    ("connecting to a SSL listener", Cause::Protocol, OTHER_PROTOCOL),
    ("might require SASL authentication", Cause::Protocol, OTHER_PROTOCOL),
    ("Failed to resolve", Cause::Unavailable, "check the host names in the setting `brokers`"),
    ("Connection refused", Cause::Unavailable, "check the setting `brokers`, and that the broker runs"),
    ("No route to host", Cause::Unavailable, "check the setting `brokers` and the network"),
    ("Network is unreachable", Cause::Unavailable, "check the setting `brokers` and the network"),
    ("Connection setup timed out", Cause::Unavailable, "check the setting `brokers`, the network and its firewalls"),
    ("Connection timed out", Cause::Unavailable, "check the setting `brokers`, the network and its firewalls"),
];

const CLIENT_CERTIFICATE: &str = "the broker requires a client certificate that it trusts: set \
     `ssl.certificate.location` and `ssl.key.location` in the settings `kafka`";

const ENDED_IN_LOGIN: &str = "the connection ended during the login: check the broker's log, and `security.protocol` in \
     the settings `kafka`";

const PASSWORD_REFUSED: &str = "check `sasl.username`, `sasl.password` and `sasl.mechanism` in the settings `kafka`";

const TOKEN_REFUSED: &str = "the broker refused the token: with MSK, check that the IAM policy allows \
     `kafka-cluster:Connect` on the cluster, `kafka.region` and the clock; with an OAuth server, check the issuer, \
     audience and scope that the broker expects";

const NO_TLS: &str = "this port of the broker may not use TLS: use its TLS port in the setting `brokers`, or set \
     `security.protocol` to `plaintext` or `sasl_plaintext` in the settings `kafka`";

const OTHER_PROTOCOL: &str = "this port of the broker requires TLS or SASL: set `security.protocol` in the settings \
     `kafka` to `ssl`, `sasl_ssl` or `sasl_plaintext`";

/// The cause of a failed connection, and a sentence for the log.
fn explain(report: &str, uses_tokens: bool) -> Option<(Cause, String)> {
    let known = EXPLANATIONS.iter().find(|(text, _, _)| report.contains(text)).map(|(_, cause, fix)| (*cause, *fix));
    let is_refused = uses_tokens && matches!(known, Some((Cause::Settings, PASSWORD_REFUSED)));
    let known = if is_refused { Some((Cause::Settings, TOKEN_REFUSED)) } else { known };
    let (cause, fix) = known.or_else(|| is_closed_early(report).then_some((Cause::Protocol, OTHER_PROTOCOL)))?;
    let reason = without_variable_parts(report);
    Some((cause, format!("cannot connect to Kafka: {reason}; {fix}")))
}

/// Whether a broker closed a new connection, as it does when the client speaks the wrong protocol.
/// librdkafka 2.12 has hints for these cases, but does not add them.
fn is_closed_early(report: &str) -> bool {
    let Some((_, end)) = report.rsplit_once(" (after ") else { return false };
    let Some((milliseconds, state)) = end.split_once("ms in state ") else { return false };
    let is_new = milliseconds.parse::<u64>().is_ok_and(|milliseconds| milliseconds < EARLY_MS);
    let is_first_request = state.starts_with("APIVERSION_QUERY") || state.starts_with("UP") && is_new;
    report.contains("Disconnected: ") && is_first_request
}

/// The report without the thread's name and the time that the connection took.
pub(super) fn without_variable_parts(report: &str) -> &str {
    let report = match report.strip_prefix("[thrd:").and_then(|rest| rest.split_once("]: ")) {
        Some((_, rest)) => rest,
        None => report,
    };
    report.rfind(" (after ").map_or(report, |end| &report[..end])
}

/// Verifies a broker's certificate as OpenSSL did, and gives a refusal its reason: OpenSSL's own
/// error does not have it.
///
/// # Safety
/// librdkafka calls it with valid pointers.
pub(super) unsafe extern "C" fn explain_certificate(
    _client: *mut rd_kafka_t,
    _broker_name: *const c_char,
    _broker_id: i32,
    x509_error: *mut c_int,
    _depth: c_int,
    _certificate: *const c_char,
    _certificate_size: usize,
    explanation: *mut c_char,
    explanation_size: usize,
    _opaque: *mut c_void,
) -> c_int {
    // SAFETY: the error code is valid; the text gets at most `explanation_size` bytes, a zero
    // included.
    unsafe {
        if *x509_error == 0 {
            return 1;
        }
        let text = certificate_problem(*x509_error);
        let length = text.len().min(explanation_size.saturating_sub(1));
        std::ptr::copy_nonoverlapping(text.as_ptr().cast::<c_char>(), explanation, length);
        *explanation.add(length) = 0;
        0
    }
}

/// OpenSSL's codes (`X509_V_ERR_*`).
pub(super) fn certificate_problem(code: c_int) -> String {
    match code {
        9 => "the certificate is not yet valid".to_owned(),
        10 => "the certificate has expired".to_owned(),
        18 => "the certificate is self-signed".to_owned(),
        19 => "the certificate authority is not trusted".to_owned(),
        2 | 20 | 21 => "the certificate authority is unknown".to_owned(),
        23 => "the certificate was revoked".to_owned(),
        62 | 64 => "the certificate is for another host".to_owned(),
        code => format!("the certificate is not valid (X.509 error {code})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNKNOWN_CA: &str = "ssl://127.0.0.1:9093/bootstrap: SSL handshake failed: error:0A000086:SSL \
        routines::certificate verify failed: broker certificate could not be verified, verify that ssl.ca.location is \
        correctly configured (after 5ms in state SSL_HANDSHAKE)";

    fn unreachable() -> Error {
        Error::external("kafka.unreachable", "looking up the brokers")
    }

    #[test]
    fn a_login_whose_connection_ends_is_not_refused() {
        let monitor = ConnectionMonitor::default();
        monitor.set_reached();
        monitor.note("SASL OAUTHBEARER mechanism handshake failed: Local: Broker transport failure");
        assert!(!monitor.is_refused());
        monitor.note("sasl_ssl://b:9093/1: SASL authentication error: {\"status\":\"invalid_token\"}");
        assert!(monitor.is_refused());
        monitor.set_reached();
        assert!(!monitor.is_refused());
    }

    #[test]
    fn problems_name_the_address_the_reason_and_the_setting() {
        let cases = [
            (UNKNOWN_CA, Cause::Certificate, "ssl.ca.location"),
            (
                "[thrd:sasl_ssl://b:9093/bootstrap]: sasl_ssl://b:9093/bootstrap: SASL authentication error: \
                 Authentication failed: invalid credentials (after 310ms in state AUTH_REQ)",
                Cause::Settings,
                "sasl.password",
            ),
            (
                "b:9093/bootstrap: Disconnected: requesting ApiVersion: might be caused by incorrect security.protocol \
                 configuration (connecting to a SSL listener?) or broker version is < 0.10 \
                 (after 1ms in state APIVERSION_QUERY)",
                Cause::Protocol,
                "security.protocol",
            ),
            (
                "ssl://b:9092/bootstrap: SSL handshake failed: error:0A00010B:SSL routines::wrong version number",
                Cause::Settings,
                "security.protocol",
            ),
            (
                "b:9092/bootstrap: Connect to ipv4#127.0.0.1:9092 failed: Connection refused",
                Cause::Unavailable,
                "brokers",
            ),
        ];
        for (report, expected, setting) in cases {
            let (cause, text) = explain(report, false).unwrap();
            assert_eq!(cause, expected, "{report}");
            assert!(
                text.contains("b:9093/boot") || text.contains("b:9092/boot") || text.contains("127.0.0.1:9093"),
                "{text}"
            );
            assert!(text.contains(setting) && !text.contains("(after ") && !text.contains("[thrd"), "{text}");
        }
        let closed = |end: &str| {
            explain(
                &format!("b:9092/1: Disconnected: connection closed by peer: receive 0 after POLLIN (after {end})"),
                false,
            )
        };
        for early in ["1ms in state UP, 2 identical error(s) suppressed", "291ms in state APIVERSION_QUERY"] {
            let (cause, text) = closed(early).unwrap();
            assert!(cause == Cause::Protocol && text.contains("security.protocol"), "{text}");
        }
        assert_eq!(closed("30000ms in state UP"), None);
    }

    #[test]
    fn a_wrong_setting_is_hopeless_unless_a_broker_has_answered() {
        let monitor = ConnectionMonitor::default();
        assert!(!monitor.is_hopeless());
        assert_eq!(monitor.explain(unreachable()).retry, Retry::Backoff);
        monitor.note(UNKNOWN_CA);
        assert!(monitor.is_hopeless());
        let error = monitor.explain(unreachable());
        assert_eq!((error.code, error.retry), ("kafka.connection_rejected", Retry::Never));
        assert!(
            error.to_string().contains("127.0.0.1:9093") && error.to_string().contains("ssl.ca.location"),
            "{error}"
        );
        let other = monitor.explain(Error::external("kafka.failed", "x"));
        assert_eq!(other.to_string(), "x [kafka.failed]");
        monitor.set_reached();
        assert_eq!(monitor.explain(unreachable()).to_string(), unreachable().to_string());
        monitor.note(UNKNOWN_CA);
        assert!(!monitor.is_hopeless());
        assert_eq!(monitor.explain(unreachable()).retry, Retry::Backoff);
        // Not for ever: a later failure has another reason.
        monitor.lock().current.as_mut().unwrap().last = Instant::now() - REPEAT;
        assert_eq!(monitor.explain(unreachable()).to_string(), unreachable().to_string());
    }

    #[test]
    fn closed_connections_are_hopeless_only_after_a_while() {
        let monitor = ConnectionMonitor::default();
        monitor.note("b:9093/bootstrap: Disconnected: (connecting to a SSL listener?)");
        assert!(!monitor.is_hopeless());
        monitor.lock().current.as_mut().unwrap().since = Instant::now() - RESTART_GRACE;
        monitor.note("b:9093/bootstrap: Disconnected: (connecting to a SSL listener?)");
        assert!(monitor.is_hopeless());
        monitor.note("b:9093/bootstrap: Connect to ipv4#127.0.0.1:9093 failed: Connection refused");
        assert!(!monitor.is_hopeless());
    }

    #[test]
    fn the_reason_why_a_certificate_is_refused_is_kept() {
        let monitor = ConnectionMonitor::default();
        let problem =
            format!("ssl://b:9093/bootstrap: Certificate verification callback failed: {}", certificate_problem(10));
        monitor.note(&problem);
        monitor.note(UNKNOWN_CA);
        let error = monitor.explain(unreachable()).to_string();
        assert!(error.contains("has expired") && error.contains("renew"), "{error}");
        for (code, text) in [(62, "another host"), (64, "another host"), (20, "unknown"), (99, "X.509 error 99")] {
            assert!(certificate_problem(code).contains(text));
        }
    }

    #[test]
    fn the_certificate_callback_writes_within_its_buffer() {
        let mut buffer: [c_char; 12] = [1; 12];
        let mut call = |mut code: c_int| {
            // SAFETY: the pointers are valid, and the size is one less than the buffer's.
            unsafe {
                explain_certificate(
                    std::ptr::null_mut(),
                    std::ptr::null(),
                    0,
                    &raw mut code,
                    0,
                    std::ptr::null(),
                    0,
                    buffer.as_mut_ptr(),
                    buffer.len() - 1,
                    std::ptr::null_mut(),
                )
            }
        };
        assert_eq!(call(0), 1);
        assert_eq!(call(10), 0);
        assert_eq!((buffer[10], buffer[11]), (0, 1));
    }
}
