//! The login of a connection: SaslHandshake and SaslAuthenticate (KIP-43, KIP-152).

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    ApiKey, SaslAuthenticateRequest, SaslAuthenticateResponse, SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::StrBytes;

use crate::request::response::Response;
use crate::request::{Call, Close, decode};
use crate::security::{ScramExchange, ScramHash, Users};

/// Delays the answer to a false password, as `connection.failed.authentication.delay.ms` does.
const FAILURE_DELAY: Duration = Duration::from_millis(100);

const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// How far the login of a connection is.
pub(super) enum Login {
    /// The client may send every request.
    Done,
    /// The client has selected no mechanism.
    Begun,
    Plain,
    Scram(ScramHash),
    ScramExchange(Box<ScramExchange>),
    /// The login failed: the client must open another connection.
    Failed,
}

impl Login {
    /// A connection to a broker with these users.
    pub(super) fn new(users: Option<&Users>) -> Self {
        if users.is_some() { Self::Begun } else { Self::Done }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Answers the requests of a login, and refuses others before it. `None`: the request is for
    /// the API.
    pub(super) async fn answer(
        &mut self,
        call: &Call<'_>,
        key: ApiKey,
        frame: &Bytes,
    ) -> Result<Option<Response>, Close> {
        match key {
            ApiKey::SaslHandshake => {
                let response = self.handshake(&decode(frame.clone(), call.version)?);
                call.envelope.answer::<SaslHandshakeRequest>(&response).map(Some)
            }
            ApiKey::SaslAuthenticate => {
                let request: SaslAuthenticateRequest = decode(frame.clone(), call.version)?;
                let response = match self.authenticate(call, &request.auth_bytes) {
                    Ok(bytes) => SaslAuthenticateResponse::default().with_auth_bytes(bytes.into()),
                    Err((error, message)) => {
                        tracing::warn!(peer = %call.peer.remote, "a login was refused: {message}");
                        tokio::time::sleep(FAILURE_DELAY).await;
                        *self = Self::Failed;
                        SaslAuthenticateResponse::default()
                            .with_error_code(error.code())
                            .with_error_message(Some(StrBytes::from_static_str(message)))
                    }
                };
                call.envelope.answer::<SaslAuthenticateRequest>(&response).map(Some)
            }
            ApiKey::ApiVersions => Ok(None),
            _ if self.is_done() => Ok(None),
            _ => Err(Close::protocol_violation(
                "the client did not log in: it must use SASL with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
            )),
        }
    }

    fn handshake(&mut self, request: &SaslHandshakeRequest) -> SaslHandshakeResponse {
        let response = SaslHandshakeResponse::default();
        if !matches!(self, Self::Begun) {
            return response.with_error_code(ResponseError::IllegalSaslState.code());
        }
        let response = response.with_mechanisms(MECHANISMS.map(StrBytes::from_static_str).to_vec());
        *self = match &*request.mechanism {
            "PLAIN" => Self::Plain,
            "SCRAM-SHA-256" => Self::Scram(ScramHash::Sha256),
            "SCRAM-SHA-512" => Self::Scram(ScramHash::Sha512),
            _ => return response.with_error_code(ResponseError::UnsupportedSaslMechanism.code()),
        };
        response
    }

    /// The answer to a message of the mechanism.
    fn authenticate(&mut self, call: &Call<'_>, message: &Bytes) -> Result<String, (ResponseError, &'static str)> {
        const REFUSED: (ResponseError, &str) =
            (ResponseError::SaslAuthenticationFailed, "Authentication failed: invalid user name or password");
        let Some(users) = &call.broker.options.users else {
            return Err((ResponseError::IllegalSaslState, "this broker has no users: connect without SASL"));
        };
        match self {
            Self::Plain => {
                // The name to act as, the name, and the password.
                let text = std::str::from_utf8(message).map_err(|_| REFUSED)?;
                let mut parts = text.split('\0');
                let (Some(acting_as), Some(name), Some(password), None) =
                    (parts.next(), parts.next(), parts.next(), parts.next())
                else {
                    return Err(REFUSED);
                };
                let is_other = !acting_as.is_empty() && acting_as != name;
                // Deriving the key takes milliseconds.
                if is_other || !tokio::task::block_in_place(|| users.is_password(name, password)) {
                    return Err(REFUSED);
                }
                *self = Self::Done;
                Ok(String::new())
            }
            Self::Scram(hash) => {
                let (exchange, answer) = ScramExchange::start(*hash, users, message).ok_or(REFUSED)?;
                *self = Self::ScramExchange(Box::new(exchange));
                Ok(answer)
            }
            Self::ScramExchange(exchange) => {
                let answer = exchange.finish(users, message).ok_or(REFUSED)?;
                *self = Self::Done;
                Ok(answer)
            }
            Self::Done | Self::Begun | Self::Failed => {
                Err((ResponseError::IllegalSaslState, "SaslAuthenticate must follow SaslHandshake"))
            }
        }
    }
}
