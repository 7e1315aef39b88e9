//! The session of a task, which is replaced after every error: a statement's outcome is unknown
//! after a lost connection, and a transaction's state after any error.

use std::sync::Arc;

use trunkline_connector::Result;

use crate::dialect::{Dialect, Session};
use crate::takeover::OwnSessions;

/// See the module's header.
pub(crate) struct Sessions {
    dialect: Arc<dyn Dialect>,
    session: Option<Box<dyn Session>>,
    own: OwnSessions,
    /// The loads whose rows are in staging tables of this session.
    staged: Vec<String>,
}

impl Sessions {
    pub(crate) fn new(dialect: Arc<dyn Dialect>) -> Self {
        Self { dialect, session: None, own: OwnSessions::default(), staged: Vec::new() }
    }

    /// Another session of the same task, which is opened when it is used.
    pub(crate) fn another(&self) -> Self {
        Self { dialect: Arc::clone(&self.dialect), session: None, own: self.own.clone(), staged: Vec::new() }
    }

    pub(crate) fn dialect(&self) -> &Arc<dyn Dialect> {
        &self.dialect
    }

    /// The sessions of this task.
    pub(crate) fn own(&self) -> &OwnSessions {
        &self.own
    }

    /// The rows of these loads are in staging tables of the session.
    pub(crate) fn set_staged(&mut self, loads: Vec<String>) {
        self.staged = loads;
    }

    /// The loads whose rows are in staging tables of the session. The next work may use the tables.
    pub(crate) fn take_staged(&mut self) -> Vec<String> {
        let staged = std::mem::take(&mut self.staged);
        if self.session.is_some() { staged } else { Vec::new() }
    }

    /// Runs `work` in a session, a new one if the last work failed.
    pub(crate) fn run<T>(&mut self, work: impl FnOnce(&dyn Dialect, &mut dyn Session) -> Result<T>) -> Result<T> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => {
                // The tables ended with their session.
                self.staged.clear();
                let session = self.dialect.connect()?;
                session.id().into_iter().for_each(|id| self.own.add(id));
                session
            }
        };
        let done = work(self.dialect.as_ref(), session.as_mut())?;
        self.session = Some(session);
        Ok(done)
    }
}
