//! The credentials of all clients of a cluster: a user name and password that change while the
//! clients run, or tokens (OAUTHBEARER). One thread fetches tokens and gives each new one to all
//! clients, long before the old one expires.
//!
//! librdkafka would ask for a token in the queue of each client. A client whose stage waits for
//! something else does not read its queue, and its connections would end with the token. The thread
//! does not depend on the stages.

mod client_credentials;
mod msk_iam;

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::bindings::{
    rd_kafka_oauthbearer_set_token, rd_kafka_resp_err_t, rd_kafka_sasl_set_credentials, rd_kafka_t,
};
use trunkline_connector::{Error, Result, Retry};

pub(super) use client_credentials::ClientCredentials;
pub(super) use msk_iam::MskIam;

use super::connection::ConnectionMonitor;
use super::secrets::Secrets;
use crate::backoff::Backoff;

/// A token is replaced when this share of its lifetime is over.
const REFRESH_AT: f64 = 0.7;

/// A token is fetched within this time.
const FETCH_LIMIT: Duration = Duration::from_secs(15);

/// Pauses after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const MAX_RETRY: Duration = Duration::from_secs(10);

/// The code of the error of a token that cannot be had.
pub(super) const TOKEN: &str = "kafka.token";

/// Where tokens come from.
pub(super) enum TokenSource {
    /// Signed with the credentials of the AWS chain.
    MskIam(MskIam),
    /// Issued by an OAuth server.
    ClientCredentials(ClientCredentials),
}

/// A token. It is a secret: never format it.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) value: String,
    /// The name under which librdkafka logs the client.
    pub(super) principal: String,
    pub(super) expires: SystemTime,
    /// Sent to the broker together with the token (RFC 7628).
    pub(super) extensions: Vec<(String, String)>,
}

/// The credentials of a cluster's clients. The thread that fetches tokens starts with the first
/// client and ends with the cluster.
pub(super) struct Logins {
    shared: Arc<Shared>,
    start: Mutex<Option<Start>>,
}

/// What the thread needs.
struct Start {
    connection: Arc<ConnectionMonitor>,
    secrets: Secrets,
}

struct Shared {
    state: Mutex<State>,
    /// The state was changed from outside of the thread.
    notified: Condvar,
}

#[derive(Default)]
struct State {
    source: Option<Arc<TokenSource>>,
    /// The source was replaced: fetch a token from the new one.
    is_changed: bool,
    token: Option<Token>,
    /// How often no token could be fetched.
    failures: u64,
    /// The last reason, and whether it lasts until the settings change.
    last_failure: Option<(String, bool)>,
    /// A user name and password that were changed while clients run.
    credentials: Option<(CString, CString)>,
    clients: Vec<Client>,
    next_id: u64,
    is_stopped: bool,
}

struct Client {
    id: u64,
    native: *mut rd_kafka_t,
}

// SAFETY: a client is used only under the lock, and its lease removes it before the client is
// destroyed. librdkafka's function may be called from any thread.
unsafe impl Send for Client {}

/// A client gets its credentials until this is dropped. Drop it before the client.
pub(super) struct LoginLease {
    shared: Arc<Shared>,
    id: u64,
}

impl Logins {
    pub(super) fn new(source: Option<TokenSource>, connection: Arc<ConnectionMonitor>, secrets: Secrets) -> Self {
        if source.is_some() {
            connection.set_uses_tokens();
        }
        let start = source.as_ref().map(|_| Start { connection, secrets });
        let state = State { source: source.map(Arc::new), ..State::default() };
        let shared = Shared { state: Mutex::new(state), notified: Condvar::default() };
        Self { shared: Arc::new(shared), start: Mutex::new(start) }
    }

    /// Whether tokens can be fetched.
    pub(super) fn has_source(&self) -> bool {
        self.shared.lock().source.is_some()
    }

    /// Replaces the source of tokens.
    pub(super) fn change_source(&self, source: TokenSource) {
        let mut state = self.shared.lock();
        state.source = Some(Arc::new(source));
        state.is_changed = true;
        state.last_failure = None;
        self.shared.notified.notify_all();
    }

    /// Gives all clients another user name and password. They use them for their next connections,
    /// and those that wait for one connect at once.
    pub(super) fn set_credentials(&self, user: &str, password: &str) {
        let (Ok(user), Ok(password)) = (CString::new(user), CString::new(password)) else { return };
        let mut state = self.shared.lock();
        state.clients.iter().for_each(|client| client.set_credentials(&user, &password));
        state.credentials = Some((user, password));
    }

    fn start_thread(&self) {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(start) = start else { return };
        let shared = self.shared.clone();
        let run = move || run(&shared, &start);
        if let Err(error) = std::thread::Builder::new().name("kafka-tokens".to_owned()).spawn(run) {
            tracing::error!(%error, "cannot start the thread that fetches tokens: no client can log in to Kafka");
        }
    }

    /// The current token. Without one, waits for the end of the next attempt to fetch one, at most
    /// until the deadline.
    pub(super) fn wait_for_token(&self, deadline: Instant) -> Result<Token> {
        self.start_thread();
        let mut state = self.shared.lock();
        let failures = state.failures;
        loop {
            if let Some(token) = state.token.as_ref().filter(|token| token.expires > SystemTime::now()) {
                return Ok(token.clone());
            }
            // The reason is in the cluster's monitor, too.
            if let Some((reason, lasts)) = &state.last_failure
                && (*lasts || state.failures > failures)
            {
                return Err(Error::external("kafka.unreachable", reason.clone()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::external("kafka.unreachable", "no token was fetched in time"));
            }
            state = self.shared.notified.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gives the client the current token, and all later credentials.
    ///
    /// # Safety
    /// The client must outlive the lease.
    pub(super) unsafe fn attach(&self, native: *mut rd_kafka_t) -> LoginLease {
        self.start_thread();
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        let client = Client { id, native };
        if let Some(token) = state.token.as_ref().filter(|token| token.expires > SystemTime::now()) {
            client.set_token(token);
        }
        // The client may have been configured before the change.
        if let Some((user, password)) = &state.credentials {
            client.set_credentials(user, password);
        }
        state.clients.push(client);
        LoginLease { shared: self.shared.clone(), id }
    }
}

impl Drop for Logins {
    fn drop(&mut self) {
        self.shared.lock().is_stopped = true;
        self.shared.notified.notify_all();
    }
}

impl Drop for LoginLease {
    fn drop(&mut self) {
        self.shared.lock().clients.retain(|client| client.id != self.id);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves a valid state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another token is needed; returns `false` if none is needed any more.
    fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.lock();
        while !state.is_stopped {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || std::mem::take(&mut state.is_changed) {
                return true;
            }
            state = self.notified.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    fn set_token(&self, token: Token) {
        let mut state = self.lock();
        state.clients.iter().for_each(|client| client.set_token(&token));
        state.token = Some(token);
        state.last_failure = None;
        self.notified.notify_all();
    }

    fn set_failure(&self, reason: String, lasts: bool) {
        let mut state = self.lock();
        state.failures += 1;
        state.last_failure = Some((reason, lasts));
        self.notified.notify_all();
    }
}

impl Client {
    fn set_credentials(&self, user: &CStr, password: &CStr) {
        // SAFETY: the client is alive (see `Logins::attach`); the texts are copied. The result is
        // null, because both texts are given.
        unsafe { rd_kafka_sasl_set_credentials(self.native, user.as_ptr(), password.as_ptr()) };
    }

    fn set_token(&self, token: &Token) {
        let refused = match self.try_set_token(token) {
            Ok(()) => return,
            Err(refused) => refused,
        };
        tracing::warn!("a Kafka client refuses its token: {refused}; the next token is tried");
    }

    fn try_set_token(&self, token: &Token) -> Result<(), String> {
        let text = |text: &str| CString::new(text).map_err(|_| "it contains a zero byte".to_owned());
        let (value, principal) = (text(&token.value)?, text(&token.principal)?);
        let pairs = token.extensions.iter().flat_map(|(name, value)| [name, value]);
        let extensions = pairs.map(|part| text(part)).collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<*const c_char> = extensions.iter().map(|part| part.as_ptr()).collect();
        let first = if pointers.is_empty() { ptr::null_mut() } else { pointers.as_mut_ptr() };
        let lifetime = token.expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let lifetime = i64::try_from(lifetime).unwrap_or(i64::MAX);
        let mut problem: [c_char; 512] = [0; 512];
        // SAFETY: the client is alive (see `attach`); all texts outlive the call and are copied.
        let code = unsafe {
            rd_kafka_oauthbearer_set_token(
                self.native,
                value.as_ptr(),
                lifetime,
                principal.as_ptr(),
                first,
                pointers.len(),
                problem.as_mut_ptr(),
                problem.len(),
            )
        };
        if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        // The client's own text may contain the token.
        Err(rdkafka::error::RDKafkaErrorCode::from(code).to_string())
    }
}

/// Fetches tokens until the cluster is dropped.
fn run(shared: &Shared, Start { connection, secrets }: &Start) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot fetch tokens: no client can log in to Kafka");
            return;
        }
    };
    let fetch = async |source: &TokenSource| match tokio::time::timeout(FETCH_LIMIT, source.fetch()).await {
        Ok(outcome) => outcome,
        Err(_) => Err(failed(format!("no answer within {} s", FETCH_LIMIT.as_secs()))),
    };
    let mut backoff = Backoff::new(FIRST_RETRY, MAX_RETRY);
    loop {
        let source = shared.lock().source.clone();
        let Some(source) = source else { return };
        let pause = match runtime.block_on(fetch(&source)) {
            Ok(token) => {
                let lifetime = token.expires.duration_since(SystemTime::now()).unwrap_or_default();
                tracing::debug!(seconds = lifetime.as_secs(), "fetched a token for Kafka");
                connection.token_fetched();
                shared.set_token(token);
                backoff.reset();
                lifetime.mul_f64(REFRESH_AT).max(FIRST_RETRY)
            }
            Err(error) => {
                let reason = secrets.hide(error.message()).into_owned();
                let lasts = error.retry == Retry::Never;
                connection.note_token_failure(&reason, lasts);
                shared.set_failure(reason, lasts);
                backoff.advance()
            }
        };
        if !shared.wait(pause) {
            return;
        }
    }
}

impl TokenSource {
    async fn fetch(&self) -> Result<Token> {
        match self {
            Self::MskIam(source) => source.fetch().await,
            Self::ClientCredentials(source) => source.fetch().await,
        }
    }
}

/// A failure that may end by itself.
fn failed(message: impl Into<String>) -> Error {
    Error::external(TOKEN, message)
}

/// A failure that lasts until the settings change.
fn refused(message: impl Into<String>) -> Error {
    failed(message).retry(Retry::Never)
}
