//! Flags that all verbs share: the settings file and the settings themselves.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;

use super::output::start_logging;
use crate::config::{FileProblems, Settings, SettingsOverrides};

/// Worker settings on the command line. They override `TRUNKLINE_*` variables, and those the
/// settings file.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Worker settings")]
pub struct SettingsArgs {
    /// Settings file [default: trunkline.toml, if it exists]
    #[arg(long, value_name = "FILE", env = "TRUNKLINE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Kafka's bootstrap servers, or `embedded` for the broker in the process
    #[arg(long, value_name = "HOST:PORT,..")]
    pub brokers: Option<String>,
    /// Folder of the worker's files [default: trunkline-data]
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Name that the workers of one cluster share [default: trunkline]
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Name of this machine [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// Byte budget of all buffers [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
}

impl SettingsArgs {
    /// Loads the settings with these flags, and starts logging, as text unless the settings choose
    /// JSON.
    pub(super) fn load(&self) -> Result<Settings, Vec<FileProblems>> {
        let settings = self.read()?;
        start_logging(&settings, false)?;
        Ok(settings)
    }

    /// As [`load`](Self::load), for a worker: its log is JSON unless a person reads it.
    pub(super) fn load_for_worker(&self) -> Result<Settings, Vec<FileProblems>> {
        let settings = self.read()?;
        start_logging(&settings, !std::io::stderr().is_terminal())?;
        Ok(settings)
    }

    /// Loads the settings with these flags.
    pub(super) fn read(&self) -> Result<Settings, Vec<FileProblems>> {
        let flags = [
            ("brokers", &self.brokers),
            ("data", &self.data),
            ("cluster", &self.cluster),
            ("node", &self.node),
            ("memory", &self.memory),
        ];
        let given: SettingsOverrides =
            flags.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
        Settings::load(self.config.as_deref(), &given)
    }
}
