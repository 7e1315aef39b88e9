//! Sessions of earlier tasks that are in the way of this one.
//!
//! A worker that hangs in the middle of a load, without losing its connection, holds the locks of
//! its transaction until the destination ends its session, hours later. The row of the offsets
//! table names that session. The next owner of the topic partition waits for a time when it claims
//! the row, and then ends the session. No other session is ended: the row names the one of its
//! epoch, and an id belongs to one session for ever ([`Session::id`]).

use std::collections::HashSet;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trunkline_connector::{Result, TopicPartition};

use crate::dialect::{Dialect, Session};
use crate::load::CONFLICT;
use crate::offsets::Offsets;
use crate::sessions::Sessions;

/// Time between two attempts of a claim that meets conflicts.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a claim is repeated after the other session has ended.
const MORE: Duration = Duration::from_secs(5);

/// The ids of the sessions that a task has opened: it never ends one of them.
#[derive(Clone, Default)]
pub(crate) struct OwnSessions(Arc<Mutex<HashSet<String>>>);

impl OwnSessions {
    pub(crate) fn add(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
    }

    fn contains(&self, id: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// A change of the row, in a session.
pub(crate) type Work<'a, T> = &'a mut dyn FnMut(&dyn Dialect, &mut dyn Session) -> Result<T>;

/// How a task takes over a topic partition.
pub(crate) struct Takeover<'a> {
    pub(crate) offsets: &'a Offsets,
    pub(crate) partition: &'a TopicPartition,
    /// How long the session of an earlier task may be in the way.
    pub(crate) patience: Duration,
}

impl Takeover<'_> {
    /// Runs `work`, which changes the row of the topic partition, whatever an earlier task holds.
    pub(crate) fn run<T>(&self, sessions: &mut Sessions, work: Work<'_, T>) -> Result<T> {
        let (dialect, own) = (Arc::clone(sessions.dialect()), sessions.own().clone());
        let (done, waits) = channel::<()>();
        std::thread::scope(|scope| {
            // For destinations whose statements wait for locks.
            let (dialect, own_sessions) = (&dialect, &own);
            let watch = move || {
                while waits.recv_timeout(self.patience) == Err(RecvTimeoutError::Timeout) {
                    self.end_predecessor(dialect, own_sessions);
                }
            };
            let watch = std::thread::Builder::new().name("warehouse-takeover".to_owned()).spawn_scoped(scope, watch);
            if let Err(error) = watch {
                tracing::warn!(%error, "a thread that watches over a claim could not be started");
            }
            let outcome = self.run_despite_conflicts(sessions, &own, work);
            drop(done);
            outcome
        })
    }

    /// For destinations whose statements fail where they meet locks.
    fn run_despite_conflicts<T>(&self, sessions: &mut Sessions, own: &OwnSessions, work: Work<'_, T>) -> Result<T> {
        let (dialect, begun) = (Arc::clone(sessions.dialect()), Instant::now());
        let mut has_ended = false;
        loop {
            match sessions.run(&mut *work) {
                Err(error) if error.code == CONFLICT && begun.elapsed() < self.patience + MORE => {
                    tracing::debug!(%error, partition = %self.partition, "a claim met a conflict and is repeated");
                    if begun.elapsed() >= self.patience && !has_ended {
                        self.end_predecessor(&dialect, own);
                        has_ended = true;
                    }
                    std::thread::park_timeout(PAUSE);
                }
                other => return other,
            }
        }
    }

    /// Ends the session that the row names, unless it is one of this task.
    fn end_predecessor(&self, dialect: &Arc<dyn Dialect>, own: &OwnSessions) {
        let partition = self.partition;
        let ended = dialect.connect().and_then(|mut session| self.try_end(dialect.as_ref(), session.as_mut(), own));
        match ended {
            Ok(Some((id, true))) => {
                tracing::warn!(%partition, session = id, "ended the session of an earlier task, which was in the way of this one");
            }
            Ok(Some((id, false))) => {
                tracing::debug!(%partition, session = id, "the session of the earlier task has ended");
            }
            Ok(None) => tracing::debug!(%partition, "no session of an earlier task is known"),
            Err(error) => tracing::warn!(
                %partition, %error,
                "a claim waits for a lock, and the session of the earlier task could not be ended; \
                 find the session that locks the offsets table, and end it as an administrator"
            ),
        }
    }

    fn try_end(
        &self,
        dialect: &dyn Dialect,
        session: &mut dyn Session,
        own: &OwnSessions,
    ) -> Result<Option<(String, bool)>> {
        let row = self.offsets.read(dialect, session, std::slice::from_ref(self.partition))?.remove(self.partition);
        let Some(id) = row.map(|row| row.session).filter(|id| !id.is_empty() && !own.contains(id)) else {
            return Ok(None);
        };
        let ended = session.end_session(&id)?;
        Ok(Some((id, ended)))
    }
}
