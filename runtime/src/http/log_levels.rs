//! Log levels that are changed while the worker runs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

/// Replaces the filter of the log.
pub type Reload = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Levels by their names in Kafka Connect, and in the filter.
const LEVELS: [(&str, &str); 7] = [
    ("TRACE", "trace"),
    ("DEBUG", "debug"),
    ("INFO", "info"),
    ("WARN", "warn"),
    ("ERROR", "error"),
    ("FATAL", "error"),
    ("OFF", "off"),
];

/// The logger of everything that has no level.
const ROOT: &str = "root";

/// The levels of a process: the setting `log`, and the changes to it.
pub struct LogLevels {
    /// The setting.
    filter: String,
    changes: Mutex<BTreeMap<String, Level>>,
    reload: Reload,
}

/// The level of a logger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Level {
    /// Its name in Kafka Connect.
    pub(super) name: String,
    /// When it was changed, in milliseconds since the Unix epoch.
    pub(super) changed: Option<i64>,
}

/// Why a level was not changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LevelError {
    /// No such level.
    Unknown,
    /// The name of the logger cannot be one, or the filter was refused.
    Refused(String),
}

impl LogLevels {
    /// The levels of the setting `log`.
    pub fn new(filter: &str, reload: Reload) -> Self {
        Self { filter: filter.to_owned(), changes: Mutex::default(), reload }
    }

    /// All loggers that have a level.
    pub(super) fn all(&self) -> BTreeMap<String, Level> {
        let mut levels = BTreeMap::new();
        for directive in self.filter.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
            let (logger, level) = directive.split_once('=').unwrap_or((ROOT, directive));
            let name = level.to_uppercase();
            levels.insert(logger.to_owned(), Level { name, changed: None });
        }
        levels.entry(ROOT.to_owned()).or_insert(Level { name: "ERROR".to_owned(), changed: None });
        levels.extend(self.changes.lock().unwrap_or_else(PoisonError::into_inner).clone());
        levels
    }

    /// Changes the level of a logger: a module such as `trunkline::stage`, or `root`.
    pub(super) fn set(&self, logger: &str, level: &str) -> Result<(), LevelError> {
        let level = level.to_uppercase();
        if !LEVELS.iter().any(|(name, _)| *name == level) {
            return Err(LevelError::Unknown);
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-');
        if logger.is_empty() || !logger.bytes().all(is_name) {
            let example = "the name of a logger is a module, such as `trunkline::stage`, or `root`";
            return Err(LevelError::Refused(example.to_owned()));
        }
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = changes.clone();
        next.insert(logger.to_owned(), Level { name: level, changed: Some(Timestamp::now().as_millisecond()) });
        (self.reload)(&self.filter_with(&next)).map_err(LevelError::Refused)?;
        *changes = next;
        Ok(())
    }

    /// The setting followed by the changes: of two directives for a logger, the last one counts.
    fn filter_with(&self, changes: &BTreeMap<String, Level>) -> String {
        let directives = changes.iter().map(|(logger, level)| {
            let level = LEVELS.iter().find(|(name, _)| *name == level.name).map_or("info", |(_, level)| *level);
            if logger == ROOT { format!(",{level}") } else { format!(",{logger}={level}") }
        });
        std::iter::once(self.filter.clone()).chain(directives).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn changes_follow_the_setting() {
        let applied: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = applied.clone();
        let levels = LogLevels::new(
            "info,rdkafka=warn",
            Box::new(move |filter| {
                seen.lock().unwrap().push(filter.to_owned());
                if filter.contains("refused") { Err("no".to_owned()) } else { Ok(()) }
            }),
        );
        let names = |levels: &LogLevels| {
            levels.all().into_iter().map(|(logger, level)| format!("{logger} {}", level.name)).collect::<Vec<_>>()
        };
        assert_eq!(names(&levels), ["rdkafka WARN", "root INFO"]);
        levels.set("trunkline::stage", "debug").unwrap();
        levels.set("root", "ERROR").unwrap();
        assert_eq!(names(&levels), ["rdkafka WARN", "root ERROR", "trunkline::stage DEBUG"]);
        assert_eq!(levels.set("root", "loud"), Err(LevelError::Unknown));
        assert!(matches!(levels.set("a=b,c", "INFO"), Err(LevelError::Refused(_))));
        assert_eq!(levels.set("refused", "INFO"), Err(LevelError::Refused("no".to_owned())));
        assert_eq!(names(&levels).len(), 3);
        assert_eq!(applied.lock().unwrap()[1], "info,rdkafka=warn,error,trunkline::stage=debug");
    }

    #[test]
    fn the_filters_are_valid() {
        use tracing_subscriber::EnvFilter;
        let levels = LogLevels::new(
            "info",
            Box::new(|filter| EnvFilter::try_new(filter).map(drop).map_err(|error| error.to_string())),
        );
        for (level, _) in LEVELS {
            levels.set("root", level).unwrap();
            levels.set("trunkline::http", level).unwrap();
        }
    }
}
