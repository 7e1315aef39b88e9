//! Answers that many clients ask for: each is made once, and sent to all who ask within a moment.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use tokio::sync::Mutex;

use super::Served;

/// An answer is sent for this many times the time that it took to make, so that each kind of answer
/// takes a quarter of a percent of a processor at most, however many clients ask. A task or
/// pipeline that changes its state ends the time.
const SHARE: u32 = 400;

/// The limits of this time: an answer about few pipelines is made often, and tasks are sampled
/// every two seconds.
const MIN_FRESH: Duration = Duration::from_millis(100);
const MAX_FRESH: Duration = Duration::from_secs(2);

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The last answers, by what they show.
#[derive(Default)]
pub struct SharedAnswers {
    /// `/api/v1/status`, without and with the last minutes.
    pub(super) status: [SharedAnswer; 2],
    /// `/metrics`.
    pub(super) metrics: SharedAnswer,
    /// `/connectors`, by its parameters.
    pub(super) connectors: SharedAnswer,
}

/// The last answer to one kind of request.
#[derive(Default)]
pub(super) struct SharedAnswer(Mutex<Option<Made>>);

struct Made {
    /// Until when it is sent.
    until: Instant,
    /// What the request asked for.
    key: String,
    /// That of what the answer shows.
    version: (u64, u64, usize),
    body: Bytes,
}

impl SharedAnswer {
    /// The body of the last answer with this key, or of a new one. Requests at the same time wait
    /// for one answer.
    pub(super) async fn get(&self, served: &Served, key: &str, make: impl FnOnce() -> Vec<u8>) -> Bytes {
        let mut last = self.0.lock().await;
        let version = served.version();
        let is_valid = |made: &&Made| made.key == key && made.version == version && Instant::now() < made.until;
        if let Some(made) = last.as_ref().filter(is_valid) {
            return made.body.clone();
        }
        let begun = Instant::now();
        let body = Bytes::from(make());
        let until = begun + fresh(begun.elapsed());
        *last = Some(Made { until, key: key.to_owned(), version, body: body.clone() });
        body
    }

    /// The same, for an answer in JSON.
    pub(super) async fn json<T: Serialize>(&self, served: &Served, key: &str, make: impl FnOnce() -> T) -> Response {
        json_body(self.get(served, key, || to_json(&make())).await)
    }
}

/// How long an answer is sent that took this time to make.
fn fresh(took: Duration) -> Duration {
    (took * SHARE).clamp(MIN_FRESH, MAX_FRESH)
}

/// A value as JSON.
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // A value that cannot be written is a mistake in the program. An empty body is no valid JSON.
    serde_json::to_vec(value).unwrap_or_default()
}

/// An answer of JSON that was written before.
pub(super) fn json_body(body: Bytes) -> Response {
    if body.is_empty() {
        return (StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be written as JSON\n").into_response();
    }
    ([(header::CONTENT_TYPE, JSON)], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_take_longer_are_sent_longer() {
        let milliseconds = Duration::from_millis;
        assert_eq!(fresh(Duration::from_micros(20)), milliseconds(100));
        assert_eq!(fresh(milliseconds(3)), milliseconds(1_200));
        assert_eq!(fresh(milliseconds(50)), Duration::from_secs(2));
    }
}
