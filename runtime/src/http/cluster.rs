//! The status of all workers of a cluster. A worker asks the others at the addresses that they show
//! in Kafka; a worker that does not answer is listed with the reason.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::body::Bytes;
use axum::http::header;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::components::{ComponentInfo, TaskInfo, all, workers};
use super::peer::{PATH, address_of, sign};
use super::shared_answers::to_json;
use super::{HTTPS, HttpTls, Served, TaskStatus, WorkerStatus};
use crate::checkpoint::WorkerTasks;

/// Time for another worker to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// Answers of other workers are used again for this time, so that many clients cost as much as one.
/// Workers sample their tasks this often. A change of a state ends the time.
const FRESH: Duration = Duration::from_millis(1_900);

/// The components of a cluster, and the status of each of its workers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub cluster: String,
    /// The workers: alive, or gone a short time ago.
    pub workers: Vec<ClusterWorker>,
    /// The components with their tasks on all workers.
    pub components: Vec<ComponentInfo>,
    /// Where the status of each task is.
    #[serde(skip)]
    places: OnceLock<Places>,
    #[serde(skip)]
    json: OnceLock<Bytes>,
}

/// The index of a worker and of a task in it, by the hash of their names.
type Places = HashMap<u64, (usize, usize)>;

/// A worker of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterWorker {
    /// Its id.
    pub worker: String,
    /// Its machine.
    pub node: String,
    /// The address of its HTTP server.
    pub http: Option<String>,
    /// It is the worker that answers.
    pub is_this: bool,
    /// Seconds since the last sign of life of a worker that ended without a stop.
    pub gone_seconds: Option<u64>,
    /// Its status, if it answered.
    pub status: Option<WorkerStatus>,
    /// Why there is no status.
    pub error: Option<String>,
}

/// A task of a component, with its status if its worker answered.
#[derive(Debug, Clone, Copy)]
pub struct LiveTask<'a> {
    /// The component.
    pub component: &'a ComponentInfo,
    /// The task, as its worker has shown it in Kafka.
    pub info: &'a TaskInfo,
    /// Its status now.
    pub status: Option<&'a TaskStatus>,
}

impl LiveTask<'_> {
    /// The state now.
    pub fn state(&self) -> &str {
        self.status.map_or(&self.info.state, |status| &status.state)
    }

    /// The error of a task that has failed, or of its last failure.
    pub fn error(&self) -> Option<&str> {
        self.status.map_or(self.info.error.as_deref(), |status| status.last_error.as_deref())
    }
}

impl ClusterStatus {
    /// The tasks of a component.
    pub fn tasks<'a>(&'a self, component: &'a ComponentInfo) -> impl Iterator<Item = LiveTask<'a>> {
        component.tasks.iter().map(move |info| {
            let key = key_of(&info.worker, &component.pipeline, &component.component, info.task);
            let place = self.places.get_or_init(|| self.find_places()).get(&key);
            let status = place.and_then(|(worker, task)| self.workers[*worker].status.as_ref()?.tasks.get(*task));
            LiveTask { component, info, status }
        })
    }

    fn find_places(&self) -> Places {
        let mut places = Places::new();
        for (index, worker) in self.workers.iter().enumerate() {
            let tasks = worker.status.as_ref().map(|status| status.tasks.as_slice()).unwrap_or_default();
            let keys = tasks.iter().map(|task| key_of(&worker.worker, &task.pipeline, &task.component, task.task));
            places.extend(keys.enumerate().map(|(task, key)| (key, (index, task))));
        }
        places
    }

    /// The status as JSON, written once.
    pub(super) fn json(&self) -> Bytes {
        self.json.get_or_init(|| Bytes::from(to_json(self))).clone()
    }

    /// One line for each worker that is gone or does not answer.
    pub fn problems(&self) -> Vec<String> {
        let problem = |worker: &ClusterWorker| match (worker.gone_seconds, &worker.error) {
            (Some(seconds), _) => Some(gone_line(&worker.worker, &worker.node, seconds)),
            (None, Some(error)) => Some(format!(
                "worker {} on {} does not answer, so its rates are unknown: {error}",
                worker.worker, worker.node
            )),
            (None, None) => None,
        };
        self.workers.iter().filter_map(problem).collect()
    }
}

/// Two tasks with the same key are less likely than an error of the memory.
fn key_of(worker: &str, pipeline: &str, component: &str, task: u32) -> u64 {
    let seed = xxh3_64_with_seed(worker.as_bytes(), u64::from(task));
    xxh3_64_with_seed(component.as_bytes(), xxh3_64_with_seed(pipeline.as_bytes(), seed))
}

/// The line about a worker that is gone.
pub fn gone_line(worker: &str, node: &str, seconds: u64) -> String {
    format!("worker {worker} on {node} is gone: it was killed or lost Kafka {seconds} s ago")
}

/// The connections to the other workers, and their last answers.
#[derive(Default)]
pub struct Others {
    /// With the generation of the certificate that it sends.
    client: std::sync::Mutex<Option<(u64, reqwest::Client)>>,
    /// Without and with the last minutes of each task.
    answers: [Mutex<Option<Answer>>; 2],
}

struct Answer {
    at: Instant,
    /// That of what the answer shows.
    version: (u64, u64, usize),
    status: Arc<ClusterStatus>,
}

#[cfg(test)]
impl Others {
    pub(super) fn forget(&self) {
        self.answers.iter().for_each(|answer| *answer.blocking_lock() = None);
    }
}

/// The status of all workers; not older than two seconds. On request, with the last minutes of each
/// task.
pub(super) async fn cluster_status(served: &Arc<Served>, with_history: bool) -> Arc<ClusterStatus> {
    // Requests at the same time wait for one set of answers.
    let mut last = served.others.answers[usize::from(with_history)].lock().await;
    let version = served.version();
    if let Some(answer) = &*last
        && answer.version == version
        && answer.at.elapsed() < FRESH
    {
        return answer.status.clone();
    }
    let status = Arc::new(ask_all(served, with_history).await);
    *last = Some(Answer { at: Instant::now(), version, status: status.clone() });
    status
}

async fn ask_all(served: &Arc<Served>, with_history: bool) -> ClusterStatus {
    let view = served.control.view();
    let now = Instant::now();
    let alive = workers(served, &view);
    let own_node = served.control.own_tasks(&served.overview).node;
    let mut asked = JoinSet::new();
    for (worker, row) in alive {
        let (served, own_node) = (served.clone(), own_node.clone());
        asked.spawn(async move {
            let is_this = worker == served.worker;
            let status = match is_this {
                true if with_history => Ok(WorkerStatus::with_history(&served)),
                true => Ok(WorkerStatus::of(&served)),
                false => ask(&served, &own_node, &row).await,
            };
            let (status, error) = match status {
                Ok(mut status) => {
                    if !with_history {
                        status.tasks.iter_mut().for_each(|task| task.history = None);
                    }
                    (Some(status), None)
                }
                Err(error) => (None, Some(error)),
            };
            ClusterWorker { worker, node: row.node, http: row.http, is_this, gone_seconds: None, status, error }
        });
    }
    let mut found = Vec::new();
    while let Some(answer) = asked.join_next().await {
        // A task that panicked has been logged.
        found.extend(answer.ok());
    }
    let gone = view.gone(now).filter(|(worker, ..)| *worker != served.worker);
    found.extend(gone.map(|(worker, row, silence)| ClusterWorker {
        worker: worker.to_owned(),
        node: row.node.clone(),
        http: row.http.clone(),
        is_this: false,
        gone_seconds: Some(silence.as_secs()),
        status: None,
        error: None,
    }));
    found.sort_by(|left, right| left.worker.cmp(&right.worker));
    ClusterStatus {
        cluster: served.cluster.clone(),
        workers: found,
        components: all(served),
        places: OnceLock::new(),
        json: OnceLock::new(),
    }
}

/// Asks another worker.
async fn ask(served: &Served, own_node: &str, row: &WorkerTasks) -> Result<WorkerStatus, String> {
    let address = address_of(own_node, &row.node, row.http.as_deref())?;
    let client = client(served).ok_or("no HTTP client can be created")?;
    let scheme = if row.http.as_deref().is_some_and(|shown| shown.starts_with(HTTPS)) { HTTPS } else { "http://" };
    let base = format!("{scheme}{address}");
    let mut request = client.get(format!("{base}{PATH}"));
    if let Some(token) = &served.token {
        request = request.header(header::AUTHORIZATION, sign(token, &address, SystemTime::now()));
    }
    let answer = request.send().await.map_err(|error| explain(&base, &error))?;
    if !answer.status().is_success() {
        let hint = match answer.status().as_u16() {
            401 => {
                "; let all workers have the same `http_token`, the same version, and clocks that differ by less than two minutes"
            }
            _ => "",
        };
        return Err(format!("{base} answers {}{hint}", answer.status()));
    }
    let body = answer.bytes().await.map_err(|error| explain(&base, &error))?;
    serde_json::from_slice(&body).map_err(|error| format!("{base} answers in another form: {error}"))
}

/// The client for requests to other workers. See `tls.rs` about certificates.
fn client(served: &Served) -> Option<reqwest::Client> {
    let generation = served.tls.as_ref().map_or(0, HttpTls::generation);
    let mut known = served.others.client.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, client)) = known.as_ref().filter(|(of, _)| *of == generation) {
        return Some(client.clone());
    }
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWER)
        .tls_danger_accept_invalid_certs(true);
    if let Some(identity) = served.tls.as_ref().and_then(HttpTls::client_identity) {
        builder = builder.identity(identity);
    }
    let client = builder.build().ok()?;
    *known = Some((generation, client.clone()));
    Some(client)
}

fn explain(base: &str, error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("{base} did not answer within {} s", ANSWER.as_secs());
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    format!("{base}: {cause}")
}
