//! Logs a new connection in: SaslHandshake and SaslAuthenticate (KIP-43, KIP-152, KIP-368).

use std::time::{Duration, Instant, SystemTime};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{SaslAuthenticateResponse, SaslHandshakeResponse};

use super::scram::{ScramClient, ScramHash};
use super::settings::Settings;
use super::unsecured_token::UnsecuredToken;
use crate::kafka::client::Cluster;
use crate::kafka::logins::Token;
use crate::kafka::wire::Lost;

/// Sends one request of a login, and waits for its answer.
pub(in crate::kafka) trait LoginExchange {
    /// SaslHandshake, version 1.
    fn handshake(&mut self, mechanism: &str) -> Result<SaslHandshakeResponse, Lost>;
    /// SaslAuthenticate, in the highest version that both sides know.
    fn authenticate(&mut self, bytes: Vec<u8>) -> Result<SaslAuthenticateResponse, Lost>;
}

/// How connections log in.
pub(in crate::kafka) enum Login {
    Plain,
    Scram(ScramHash),
    /// With the tokens of the cluster.
    OAuthBearer,
    /// With unsigned tokens. Only brokers for tests accept them.
    Unsecured(UnsecuredToken),
}

/// The share of a session after which the client logs in again, as librdkafka does.
const RENEW_AT: f64 = 0.9;

/// The shortest time between two logins of a connection.
const MIN_SESSION: Duration = Duration::from_secs(1);

impl Login {
    /// `Err` names the property that cannot be used.
    pub(in crate::kafka::wire) fn of(settings: &Settings, has_tokens: bool) -> Result<Self, String> {
        let login = match settings.get("sasl.mechanisms").as_deref() {
            Some("PLAIN") => Self::Plain,
            Some("SCRAM-SHA-1") => Self::Scram(ScramHash::Sha1),
            Some("SCRAM-SHA-256") => Self::Scram(ScramHash::Sha256),
            Some("SCRAM-SHA-512") => Self::Scram(ScramHash::Sha512),
            Some("OAUTHBEARER") if settings.is("enable.sasl.oauthbearer.unsecure.jwt") => {
                let config = settings.get("sasl.oauthbearer.config").unwrap_or_default();
                return UnsecuredToken::of(&config).map(Self::Unsecured);
            }
            Some("OAUTHBEARER") if has_tokens => return Ok(Self::OAuthBearer),
            Some("OAUTHBEARER") => {
                let kinds = "`kafka.security` to \"oauth\" or \"aws_msk_iam\"";
                return Err(format!("sasl.mechanism OAUTHBEARER needs a source of tokens: set {kinds}"));
            }
            // The value may be a password in the wrong place.
            _ => {
                let known = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER";
                return Err(format!("sasl.mechanism is not supported: set it to {known}"));
            }
        };
        if ["sasl.username", "sasl.password"].iter().any(|name| settings.get(name).is_none()) {
            return Err("sasl.username and sasl.password must be set".to_owned());
        }
        Ok(login)
    }

    /// Logs in. Waits for the first token until the deadline. `Err` is the reason, in librdkafka's
    /// words.
    ///
    /// Returns when to log in again, before the broker ends the session; `None`: never.
    pub(in crate::kafka) fn log_in(
        &self,
        cluster: &Cluster,
        exchange: &mut dyn LoginExchange,
        deadline: Instant,
    ) -> Result<Option<Instant>, String> {
        let begun = Instant::now();
        let session = self.authenticate(cluster, exchange, deadline)?.map(|lifetime| lifetime.mul_f64(RENEW_AT));
        // Brokers refuse a second login within a second. This session ends with its connection.
        Ok(session.filter(|session| *session > MIN_SESSION).map(|session| begun + session))
    }

    /// Returns how long the session lasts; `None`: as long as the connection.
    fn authenticate(
        &self,
        cluster: &Cluster,
        exchange: &mut dyn LoginExchange,
        deadline: Instant,
    ) -> Result<Option<Duration>, String> {
        let mechanism = self.mechanism();
        // Before the handshake: a broker waits only for a while until the login continues.
        let token = match self {
            Self::OAuthBearer => Some(cluster.wait_for_token(deadline).map_err(|error| error.message().to_owned())?),
            Self::Unsecured(token) => Some(token.make(SystemTime::now())),
            Self::Plain | Self::Scram(_) => None,
        };
        let answer = exchange
            .handshake(mechanism)
            .map_err(|error| format!("SASL {mechanism} mechanism handshake failed: Local: {NO_ANSWER}: {}", error.0))?;
        if let Some(problem) = ResponseError::try_from_code(answer.error_code) {
            let known: Vec<&str> = answer.mechanisms.iter().map(|name| &**name).collect();
            return Err(format!(
                "SASL {mechanism} mechanism handshake failed: {problem}: broker's supported mechanisms: {}",
                known.join(",")
            ));
        }
        let credentials = || cluster.user_and_password();
        match (self, token) {
            (Self::Scram(hash), _) => {
                let (user, password) = credentials();
                scram(*hash, &user, &password, exchange)
            }
            (_, Some(token)) => bearer(&token, exchange),
            (_, None) => {
                let (user, password) = credentials();
                let answer = send(exchange, format!("\0{user}\0{password}").into_bytes())?;
                Ok(lifetime(&answer))
            }
        }
    }

    /// The name of the mechanism.
    fn mechanism(&self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Scram(hash) => hash.mechanism(),
            Self::OAuthBearer | Self::Unsecured(_) => "OAUTHBEARER",
        }
    }
}

/// The error of librdkafka for a connection that ended.
const NO_ANSWER: &str = "Broker transport failure";

/// Sends a message of the mechanism. Fails if the broker refuses it.
fn send(exchange: &mut dyn LoginExchange, message: Vec<u8>) -> Result<SaslAuthenticateResponse, String> {
    let answer = exchange
        .authenticate(message)
        .map_err(|error| format!("SaslAuthenticateRequest failed: Local: {NO_ANSWER}: {}", error.0))?;
    let Some(problem) = ResponseError::try_from_code(answer.error_code) else { return Ok(answer) };
    let reason = answer.error_message.as_deref().filter(|text| !text.is_empty());
    Err(refused(reason.map_or_else(|| problem.to_string(), str::to_owned)))
}

fn refused(reason: impl std::fmt::Display) -> String {
    format!("SASL authentication error: {reason}")
}

fn lifetime(answer: &SaslAuthenticateResponse) -> Option<Duration> {
    u64::try_from(answer.session_lifetime_ms).ok().filter(|lifetime| *lifetime > 0).map(Duration::from_millis)
}

fn scram(
    hash: ScramHash,
    user: &str,
    password: &str,
    exchange: &mut dyn LoginExchange,
) -> Result<Option<Duration>, String> {
    let client = ScramClient::new(hash, user).map_err(refused)?;
    let first = send(exchange, client.first_message())?;
    let (last, signature) = client.answer(password, &first.auth_bytes).map_err(refused)?;
    let answer = send(exchange, last)?;
    signature.verify(&answer.auth_bytes).map_err(refused)?;
    Ok(lifetime(&answer))
}

/// The exchange of RFC 7628.
fn bearer(token: &Token, exchange: &mut dyn LoginExchange) -> Result<Option<Duration>, String> {
    let mut message = format!("n,,\x01auth=Bearer {}\x01", token.value);
    for (name, value) in &token.extensions {
        message.push_str(&format!("{name}={value}\x01"));
    }
    message.push('\x01');
    let answer = send(exchange, message.into_bytes())?;
    if answer.auth_bytes.is_empty() {
        return Ok(lifetime(&answer));
    }
    // The reason; the broker refuses the login once the client has confirmed that it knows it.
    let reason = String::from_utf8_lossy(&answer.auth_bytes).into_owned();
    send(exchange, vec![1])?;
    Err(refused(reason))
}
