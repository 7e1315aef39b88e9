//! Topics and their partitions.
//!
//! A topic is an entry of the internal log and a directory `topics/NAME` with a directory for each
//! partition. The entry decides: it is written before the directories are used and removed before
//! they are. The next start removes a directory without an entry.

pub(crate) mod config;
pub(crate) mod partition;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::config::{TopicConfig, TopicDefaults};
use self::partition::Partition;
use crate::error::ApiError;
use crate::private_files;
use crate::store::{Change, Key, Store};
use crate::sync::{lock, read, write};

const MAX_NAME_LENGTH: usize = 249;

/// The topics in which Apache Kafka stores groups and transactions. They are listed for tools and
/// stay empty: this state is in the internal log.
pub(crate) const GROUP_TOPIC: &str = "__consumer_offsets";
pub(crate) const TRANSACTION_TOPIC: &str = "__transaction_state";
/// Belongs to the controllers of a cluster.
pub(crate) const METADATA_TOPIC: &str = "__cluster_metadata";

/// Whether clients may not write to a topic.
pub(crate) fn is_internal(name: &str) -> bool {
    matches!(name, GROUP_TOPIC | TRANSACTION_TOPIC)
}

/// A topic in the internal log.
#[derive(Debug, Serialize, Deserialize)]
struct TopicRecord {
    id: String,
    partitions: i32,
    configs: BTreeMap<String, String>,
}

/// A topic.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) id: Uuid,
    config: RwLock<Arc<TopicConfig>>,
    partitions: RwLock<Vec<Arc<Partition>>>,
}

impl Topic {
    pub(crate) fn config(&self) -> Arc<TopicConfig> {
        Arc::clone(&read(&self.config))
    }

    pub(crate) fn partitions(&self) -> Vec<Arc<Partition>> {
        read(&self.partitions).clone()
    }

    pub(crate) fn partition(&self, index: i32) -> Option<Arc<Partition>> {
        let index = usize::try_from(index).ok()?;
        read(&self.partitions).get(index).cloned()
    }

    pub(crate) fn partition_count(&self) -> i32 {
        read(&self.partitions).len() as i32
    }
}

#[derive(Debug, Default)]
struct Registry {
    by_name: BTreeMap<String, Arc<Topic>>,
    by_id: HashMap<Uuid, Arc<Topic>>,
}

/// All topics.
#[derive(Debug)]
pub(crate) struct Topics {
    directory: PathBuf,
    trash: PathBuf,
    settings: TopicSettings,
    partition_count: AtomicUsize,
    registry: RwLock<Registry>,
    /// Held while a topic is created, changed or deleted.
    changing: Mutex<()>,
}

/// The broker's options for topics.
#[derive(Debug)]
pub(crate) struct TopicSettings {
    pub(crate) sync_each_append: bool,
    /// Limit on the partitions of all topics.
    pub(crate) max_partitions: usize,
    pub(crate) defaults: TopicDefaults,
}

/// A topic to create.
#[derive(Debug)]
pub(crate) struct NewTopic {
    pub(crate) name: String,
    pub(crate) partitions: i32,
    pub(crate) configs: BTreeMap<String, String>,
}

impl Topics {
    /// Opens all topics of the internal log.
    pub(crate) fn open(data_dir: &Path, store: &Store, settings: TopicSettings) -> io::Result<Self> {
        let topics = Self {
            directory: data_dir.join("topics"),
            trash: data_dir.join("trash"),
            settings,
            partition_count: AtomicUsize::new(0),
            registry: RwLock::default(),
            changing: Mutex::new(()),
        };
        private_files::create_directory(&topics.directory)?;
        if topics.trash.exists() {
            std::fs::remove_dir_all(&topics.trash)?;
        }
        let records: Vec<(String, TopicRecord)> = store.scan(|key| match key {
            Key::Topic(name) => Some(name.clone()),
            _ => None,
        })?;
        for (name, record) in records {
            let config = TopicConfig::stored(record.configs, &topics.settings.defaults);
            let id = Uuid::parse_str(&record.id).map_err(io::Error::other)?;
            if !topics.directory.join(&name).exists() {
                tracing::warn!(topic = name, "the directory of a topic is missing; its records are lost");
            }
            topics.insert(&name, id, Arc::new(config), record.partitions)?;
        }
        for entry in std::fs::read_dir(&topics.directory)? {
            let entry = entry?;
            let is_known = entry.file_name().to_str().is_some_and(|name| topics.get(name).is_some());
            if is_known {
                continue;
            }
            if store.is_incomplete() {
                keep_directory(data_dir, &entry)?;
            } else {
                tracing::warn!(path = %entry.path().display(), "removing the directory of a deleted topic");
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(topics)
    }

    fn insert(&self, name: &str, id: Uuid, config: Arc<TopicConfig>, partitions: i32) -> io::Result<Arc<Topic>> {
        let topic = Arc::new(Topic {
            name: name.to_owned(),
            id,
            partitions: RwLock::new(self.open_partitions(name, 0..partitions)?),
            config: RwLock::new(config),
        });
        let mut registry = write(&self.registry);
        registry.by_id.insert(id, Arc::clone(&topic));
        registry.by_name.insert(name.to_owned(), Arc::clone(&topic));
        Ok(topic)
    }

    fn open_partitions(&self, name: &str, indexes: std::ops::Range<i32>) -> io::Result<Vec<Arc<Partition>>> {
        let open = |index: i32| {
            let directory = self.directory.join(name).join(index.to_string());
            Partition::open(name, index, &directory, self.settings.sync_each_append).map(Arc::new)
        };
        let partitions = indexes.map(open).collect::<io::Result<Vec<_>>>()?;
        self.partition_count.fetch_add(partitions.len(), Ordering::Relaxed);
        Ok(partitions)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Topic>> {
        read(&self.registry).by_name.get(name).cloned()
    }

    pub(crate) fn by_id(&self, id: Uuid) -> Option<Arc<Topic>> {
        read(&self.registry).by_id.get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        read(&self.registry).by_name.values().cloned().collect()
    }

    pub(crate) fn partition(&self, name: &str, index: i32) -> Option<Arc<Partition>> {
        self.get(name)?.partition(index)
    }

    /// Checks whether a topic can be created.
    pub(crate) fn check_new(&self, new: &NewTopic) -> Result<TopicConfig, ApiError> {
        check_name(&new.name)?;
        if new.name == METADATA_TOPIC {
            let message = format!("Creation of internal topic {METADATA_TOPIC} is prohibited.");
            return Err(ApiError::new(ResponseError::InvalidRequest, message));
        }
        if self.get(&new.name).is_some() {
            return Err(ApiError::new(
                ResponseError::TopicAlreadyExists,
                format!("Topic '{}' already exists.", new.name),
            ));
        }
        if let Some(other) = self.colliding(&new.name) {
            let message = format!("Topic '{}' collides with existing topic: {other}", new.name);
            return Err(ApiError::new(ResponseError::InvalidTopicException, message));
        }
        if new.partitions < 1 {
            return Err(ApiError::new(ResponseError::InvalidPartitions, "Number of partitions must be larger than 0."));
        }
        self.check_room(new.partitions)?;
        TopicConfig::new(new.configs.clone(), &self.settings.defaults)
            .map_err(|message| ApiError::new(ResponseError::InvalidConfig, message))
    }

    /// Another topic whose name differs only in periods and underscores. Kafka refuses it, because
    /// the names of metrics do not distinguish them.
    fn colliding(&self, name: &str) -> Option<String> {
        if !name.contains(['.', '_']) {
            return None;
        }
        let unified = |name: &str| name.replace('.', "_");
        let own = unified(name);
        read(&self.registry).by_name.keys().find(|other| other.len() == name.len() && unified(other) == own).cloned()
    }

    fn check_room(&self, added: i32) -> Result<(), ApiError> {
        let count = self.partition_count.load(Ordering::Relaxed) + added.max(0) as usize;
        if count > self.settings.max_partitions {
            let message =
                format!("{count} partitions in total exceed the broker's limit of {}", self.settings.max_partitions);
            return Err(ApiError::new(ResponseError::PolicyViolation, message));
        }
        Ok(())
    }

    pub(crate) fn create(&self, store: &Store, new: &NewTopic) -> Result<Arc<Topic>, ApiError> {
        let _changing = lock(&self.changing);
        let config = self.check_new(new)?;
        // A failed deletion may have left the directory.
        let leftover = self.directory.join(&new.name);
        if leftover.exists() {
            std::fs::remove_dir_all(&leftover).map_err(|error| ApiError::storage(&error))?;
        }
        let id = Uuid::new_v4();
        let record = TopicRecord { id: id.to_string(), partitions: new.partitions, configs: config.overrides.clone() };
        let put = Change::put(Key::Topic(new.name.clone()), &record).and_then(|change| store.apply(vec![change]));
        put.map_err(|error| ApiError::storage(&error))?;
        self.insert(&new.name, id, Arc::new(config), new.partitions).map_err(|error| ApiError::storage(&error))
    }

    /// Creates an internal topic when its coordinator is used first, as Apache Kafka does.
    pub(crate) fn create_internal(&self, store: &Store, name: &str) {
        if self.get(name).is_some() {
            return;
        }
        let configs = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
        let new = NewTopic { name: name.to_owned(), partitions: 1, configs };
        match self.create(store, &new) {
            Err(error) if error.code != ResponseError::TopicAlreadyExists => {
                tracing::warn!(topic = name, error = error.message, "cannot create an internal topic");
            }
            _ => {}
        }
    }

    pub(crate) fn delete(&self, store: &Store, topic: &Topic) -> Result<(), ApiError> {
        let _changing = lock(&self.changing);
        if self.by_id(topic.id).is_none() {
            return Err(ApiError::new(ResponseError::UnknownTopicOrPartition, "This server does not host this topic."));
        }
        store.apply(vec![Change::remove(Key::Topic(topic.name.clone()))]).map_err(|error| ApiError::storage(&error))?;
        let mut registry = write(&self.registry);
        registry.by_id.remove(&topic.id);
        registry.by_name.remove(&topic.name);
        drop(registry);
        let partitions = topic.partitions();
        self.partition_count.fetch_sub(partitions.len(), Ordering::Relaxed);
        for partition in partitions {
            partition.close();
        }
        // Renamed first: the name is free at once, and a crash leaves only trash.
        let trash = self.trash.join(topic.id.to_string());
        let removed = private_files::create_directory(&self.trash)
            .and_then(|()| std::fs::rename(self.directory.join(&topic.name), &trash))
            .and_then(|()| std::fs::remove_dir_all(&trash));
        if let Err(error) = removed {
            tracing::warn!(topic = topic.name, %error, "cannot remove the files of a deleted topic");
        }
        Ok(())
    }

    /// Adds partitions up to `count`.
    pub(crate) fn add_partitions(
        &self,
        store: &Store,
        topic: &Topic,
        count: i32,
        validate_only: bool,
    ) -> Result<(), ApiError> {
        let _changing = lock(&self.changing);
        let current = topic.partition_count();
        if count <= current {
            let message = format!("The topic currently has {current} partition(s); {count} would not be an increase.");
            return Err(ApiError::new(ResponseError::InvalidPartitions, message));
        }
        self.check_room(count - current)?;
        if validate_only {
            return Ok(());
        }
        self.save(store, topic, count, &topic.config())?;
        let added = self.open_partitions(&topic.name, current..count).map_err(|error| ApiError::storage(&error))?;
        write(&topic.partitions).extend(added);
        Ok(())
    }

    /// Replaces the configuration of a topic.
    pub(crate) fn configure(&self, store: &Store, topic: &Topic, config: TopicConfig) -> Result<(), ApiError> {
        let _changing = lock(&self.changing);
        self.save(store, topic, topic.partition_count(), &config)?;
        *write(&topic.config) = Arc::new(config);
        Ok(())
    }

    fn save(&self, store: &Store, topic: &Topic, partitions: i32, config: &TopicConfig) -> Result<(), ApiError> {
        let record = TopicRecord { id: topic.id.to_string(), partitions, configs: config.overrides.clone() };
        let put = Change::put(Key::Topic(topic.name.clone()), &record).and_then(|change| store.apply(vec![change]));
        put.map_err(|error| ApiError::storage(&error))
    }
}

/// Moves a directory without a topic out of the way. The internal log may have lost the topic, so
/// the records must not be deleted.
fn keep_directory(data_dir: &Path, entry: &std::fs::DirEntry) -> io::Result<()> {
    let lost = data_dir.join("lost");
    private_files::create_directory(&lost)?;
    let mut kept = lost.join(entry.file_name());
    if kept.exists() {
        kept = lost.join(Uuid::new_v4().to_string());
    }
    std::fs::rename(entry.path(), &kept)?;
    tracing::error!(
        path = %entry.path().display(),
        kept = %kept.display(),
        "state.log was cut and names no such topic; its records were moved, restore state.log from a backup"
    );
    Ok(())
}

/// A topic's name is also a directory's name, so the rule also keeps paths safe.
pub(crate) fn check_name(name: &str) -> Result<(), ApiError> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let problem = if name.is_empty() {
        "the empty string is not allowed"
    } else if name == "." || name == ".." {
        "'.' or '..' is not allowed"
    } else if name.len() > MAX_NAME_LENGTH {
        "it is longer than 249 characters"
    } else if !name.bytes().all(is_legal) {
        "it contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
    } else {
        return Ok(());
    };
    Err(ApiError::new(ResponseError::InvalidTopicException, format!("Topic name is invalid: {problem}")))
}
