//! The page at `/`: pipelines as graphs, tasks, errors, dead letters, runs and records.
//!
//! The server renders all of it, so it can be read without JavaScript. A script replaces the live
//! numbers by those of server-sent events, and loads the page again if more than numbers changed.
//! Assets are in the binary and in the page: a browser requests nothing else, and the content
//! security policy forbids it.

mod graph;
mod html;
mod runs;
mod sections;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::mpsc::channel;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio_stream::wrappers::ReceiverStream;
use trunkline_connector::{Error, RecordRef, Result};
use uuid::Uuid;

use self::html::{Rendered, escape, url_part};
use self::sections::ShownRecord;
use super::Served;
use super::answer::{blocking, query, status_of};
use super::cluster::cluster_status;
use super::components::all;
use super::live_runs::live_runs;
use super::runs::replays;
use crate::dead_letters::DeadLetter;
use crate::plan::{Pipeline, TopicSelector};
use crate::tap::{TappedRecord, newest};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Time between two events.
const INTERVAL: Duration = Duration::from_secs(2);

/// A rendered page is used again for this time, so that many viewers cost as much as one.
const FRESH: Duration = Duration::from_millis(1_500);

/// A viewer loads the page again after this many events, so that no connection stays forever.
const MAX_EVENTS: usize = 1_800;

/// Viewers whose pages are live at the same time; the others see a page without live numbers.
const MAX_VIEWERS: usize = 200;

/// Records on a page, the time to read them, and the characters of each part that are shown.
const RECORDS: usize = 20;
const READ_LIMIT: Duration = Duration::from_secs(4);
const SHOWN_CHARACTERS: usize = 2_000;

/// Pages with records that are read at the same time: each needs two clients of Kafka.
const MAX_READERS: usize = 2;

/// What the viewers of a worker share.
pub struct Viewers {
    /// Viewers of a page at the same time wait until one of them has rendered it.
    rendered: Mutex<HashMap<String, (Instant, Arc<Rendered>)>>,
    /// When the first interval between two events began.
    started: Instant,
    /// One for each page with live numbers.
    open: Arc<()>,
    readers: Semaphore,
}

impl Default for Viewers {
    fn default() -> Self {
        let readers = Semaphore::const_new(MAX_READERS);
        Self { rendered: Mutex::default(), started: Instant::now(), open: Arc::default(), readers }
    }
}

impl Viewers {
    #[cfg(test)]
    pub(super) fn forget(&self) {
        self.rendered.blocking_lock().clear();
    }

    /// Waits until few others read from Kafka.
    pub(super) async fn reader(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.readers.acquire().await.ok()
    }

    /// Waits until the next event is due: at the same moments for all viewers, so that a page is
    /// rendered once for them.
    async fn tick(&self) {
        let period = u64::try_from(INTERVAL.as_nanos()).unwrap_or(u64::MAX);
        let passed = (self.started.elapsed().as_nanos() % u128::from(period)) as u64;
        tokio::time::sleep(Duration::from_nanos(period - passed)).await;
    }
}

type Shared = State<Arc<Served>>;

/// The paths of the page, except for `/`.
pub(super) fn routes() -> Router<Arc<Served>> {
    Router::new()
        .route("/ui/pipelines/{name}", get(pipeline))
        .route("/ui/events", get(events))
        .route("/ui/runs", get(runs))
        .route("/ui/tap/{name}", get(tap))
        .route("/ui/dead-letters/{name}", get(dead_letters))
}

/// Whether a request prefers a page: browsers do, clients of REST do not.
pub(super) fn is_browser(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|kind| kind.split(';').next().unwrap_or_default().trim() == "text/html")
}

/// The first page.
pub(super) async fn overview(served: Arc<Served>) -> Response {
    match render(&served, None).await {
        Some(rendered) => page("Trunkline", &rendered, Some("/ui/events"), StatusCode::OK),
        None => unknown("this page"),
    }
}

async fn pipeline(State(served): Shared, Path(name): Path<String>) -> Response {
    let events = format!("/ui/events?pipeline={}", url_part(&name));
    match render(&served, Some(&name)).await {
        Some(rendered) => page(&name, &rendered, Some(&events), StatusCode::OK),
        None => unknown(&name),
    }
}

/// The first page, or that of a pipeline if there is one of this name.
async fn render(served: &Arc<Served>, name: Option<&str>) -> Option<Arc<Rendered>> {
    let key = name.unwrap_or_default().to_owned();
    let mut rendered = served.viewers.rendered.lock().await;
    if let Some((at, page)) = rendered.get(&key)
        && at.elapsed() < FRESH
    {
        return Some(page.clone());
    }
    let pipelines = served.overview.pipelines();
    let found = name.map(|name| pipelines.iter().find(|pipeline| pipeline.name == name));
    let page = match found {
        None => {
            let has_plots = sections::has_plots(&pipelines);
            sections::overview(&pipelines, &*cluster_status(served, has_plots).await)
        }
        Some(found) => sections::pipeline(found?, &*cluster_status(served, true).await),
    };
    let page = Arc::new(page);
    rendered.retain(|_, (at, _)| at.elapsed() < FRESH);
    rendered.insert(key, (Instant::now(), page.clone()));
    Some(page)
}

/// The live numbers of a page, as server-sent events.
async fn events(State(served): Shared, RawQuery(parameters): RawQuery) -> Response {
    let name = query(parameters.as_deref(), "pipeline").map(str::to_owned);
    let open = served.viewers.open.clone();
    if Arc::strong_count(&open) > MAX_VIEWERS + 1 {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    }
    let (send, receive) = channel::<std::result::Result<Bytes, Infallible>>(1);
    tokio::spawn(async move {
        let _open = open;
        let mut last = Bytes::new();
        for _ in 0..MAX_EVENTS {
            served.viewers.tick().await;
            // The pipeline is gone: the browser asks again, and loads the page again.
            let Some(page) = render(&served, name.as_deref()).await else { return };
            let data = page.event();
            // A comment keeps the connection, and finds out that the viewer has gone.
            let event = if data == last { Bytes::from_static(b":\n\n") } else { data.clone() };
            last = data;
            if send.send(Ok(event)).await.is_err() {
                return;
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(ReceiverStream::new(receive))).into_response()
}

async fn runs(State(served): Shared) -> Response {
    // The live runs are known without Kafka.
    let listed = replays(&served).await.map_err(|error| error.to_string());
    let status = if listed.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    page("Runs", &runs::runs(&live_runs(&served).await, &listed), None, status)
}

/// The newest records that a component reads, or a source writes.
async fn tap(State(served): Shared, Path(name): Path<String>) -> Response {
    let Some(component) = all(&served).into_iter().find(|component| component.name == name) else {
        return unknown(&name);
    };
    let topics = component.topics;
    let shown = shown_topics(&topics);
    match read(&served, ("tap", &name), topics, |record| Some(shown_record(record, None))).await {
        Ok(records) => {
            page(&name, &sections::records(&format!("Records of {name}"), &shown, &records), None, StatusCode::OK)
        }
        Err(error) => failed(&error),
    }
}

async fn dead_letters(State(served): Shared, Path(name): Path<String>) -> Response {
    let pipelines = served.overview.pipelines();
    let Some(Pipeline { dead_letters, .. }) = pipelines.iter().find(|pipeline| pipeline.name == name) else {
        return unknown(&name);
    };
    let topics = vec![TopicSelector::Exact(dead_letters.clone())];
    let shown = shown_topics(&topics);
    let owner = name.clone();
    let each = move |record: RecordRef<'_>| {
        let letter = DeadLetter::of(record).filter(|letter| letter.pipeline == owner)?;
        let error = format!("{}: {} [{}]", letter.component, letter.message, letter.code);
        Some(shown_record(record, Some(error)))
    };
    match read(&served, ("dlq show", &name), topics, each).await {
        Ok(records) => {
            page(&name, &sections::records(&format!("Dead letters of {name}"), &shown, &records), None, StatusCode::OK)
        }
        Err(error) => failed(&error),
    }
}

/// Reads the newest records of topics. The audit log names the command that does the same.
async fn read(
    served: &Arc<Served>,
    (command, name): (&'static str, &str),
    topics: Vec<TopicSelector>,
    each: impl FnMut(RecordRef<'_>) -> Option<ShownRecord> + Send + 'static,
) -> Result<Vec<ShownRecord>> {
    let _permit = served.viewers.reader().await;
    let (served, arguments) = (served.clone(), json!({ "name": name }));
    blocking(move || {
        served.control.audit_reading(command, arguments)?;
        newest(&served.control.kafka()?.0, &topics, (RECORDS, READ_LIMIT), each)
    })
    .await
}

fn shown_topics(topics: &[TopicSelector]) -> String {
    let names = topics.iter().map(|topic| match topic {
        TopicSelector::Exact(name) | TopicSelector::Pattern(name) => name.as_str(),
    });
    names.collect::<Vec<_>>().join(", ")
}

fn shown_record(record: RecordRef<'_>, error: Option<String>) -> ShownRecord {
    let record = TappedRecord::of(record);
    // Those of a dead letter are its error.
    let headers = record.headers.iter().filter(|(name, _)| error.is_none() || !name.starts_with("__connect.errors."));
    let headers: Vec<String> =
        headers.map(|(name, value)| format!("{name}: {}", shortened(&value.to_string()))).collect();
    ShownRecord {
        place: format!("{}/{}/{}", record.topic, record.partition, record.offset),
        time: record.time.unwrap_or_default(),
        error,
        key: shortened(&record.key.to_string()),
        value: shortened(&record.value.to_string()),
        headers: shortened(&headers.join("\n")),
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("{} … ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

fn unknown(name: &str) -> Response {
    let mut html = html::Html::default();
    html.raw("<h1>Not found</h1><p>No worker of this cluster shows ")
        .text(name)
        .raw(". <a href=\"/\">All pipelines</a></p>");
    page("Not found", &html.finish(), None, StatusCode::NOT_FOUND)
}

fn failed(error: &Error) -> Response {
    let mut html = html::Html::default();
    html.raw("<h1>No answer</h1><p class=\"problem\">").text(&error.to_string()).raw("</p>");
    page("No answer", &html.finish(), None, status_of(error))
}

/// A page around a part, with the headers that keep it alone.
fn page(title: &str, body: &Rendered, events: Option<&str>, status: StatusCode) -> Response {
    let nonce = Uuid::new_v4().simple().to_string();
    let live = events.map_or_else(String::new, |events| {
        format!(" data-events=\"{}\" data-shape=\"{}\"", escape(events), escape(&body.shape))
    });
    let text = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"icon\" href=\"data:,\"><style nonce=\"{nonce}\">{STYLE}</style></head><body>\
         <a class=\"skip\" href=\"#main\">Skip to the content</a>\
         <header><strong>Trunkline</strong><nav aria-label=\"pages\"><a href=\"/\">Pipelines</a> \
         <a href=\"/#tasks\">Tasks</a> <a href=\"/#errors\">Errors</a> <a href=\"/#workers\">Workers</a> \
         <a href=\"/ui/runs\">Runs</a></nav></header>\
         <main id=\"main\"{live}><p id=\"message\" role=\"status\"></p>{body}</main>\
         <script nonce=\"{nonce}\">{SCRIPT}</script></body></html>",
        title = escape(title),
        body = body.html,
    );
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    (status, headers, text).into_response()
}
