//! Where output goes, and what the process returns.

use std::io::Write as _;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{FileProblems, Look, Settings, json, problem_at, render, summary};

/// What the process returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: all is well.
    Ok,
    /// 1: something failed while running.
    Runtime,
    /// 2: a pipeline file, a setting or the command line is wrong.
    Config,
    /// 3: what is needed is not there: the brokers, the data folder.
    Environment,
}

impl Exit {
    /// The number that the process returns.
    pub(super) fn code(self) -> i32 {
        match self {
            Self::Ok => 0,
            Self::Runtime => 1,
            Self::Config => 2,
            Self::Environment => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code() as u8)
    }
}

/// Writes data to stdout. A reader that has gone (`| head`) is no failure.
pub fn print_data(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Writes problems and how many they are to stderr.
pub fn print_problems(problems: &[FileProblems]) {
    let text = format!("{}{}\n", render(problems, Look::of_stderr()), summary(problems));
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
}

/// Writes problems to stderr, or as JSON to stdout; the exit code that goes with them.
pub(super) fn report_problems(problems: &[FileProblems], as_json: bool) -> Exit {
    if as_json {
        print_data(&format!("{}\n", json(problems)));
    } else {
        print_problems(problems);
    }
    if problems.is_empty() { Exit::Ok } else { Exit::Config }
}

/// Starts logging to stderr, as the settings say.
pub(super) fn start_logging(settings: &Settings) -> Result<(), Vec<FileProblems>> {
    log_to_stderr(&settings.log).map_err(|error| {
        let help = "for example `info`, `debug` or `warn,trunkline=debug`".to_owned();
        vec![problem_at(None, "config.wrong_value", format!("the setting `log` is no filter: {error}"), Some(help))]
    })
}

/// Starts logging to stderr with a filter.
pub(super) fn log_to_stderr(filter: &str) -> Result<(), ParseError> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(Look::of_stderr().colour)
        .finish();
    // Only a second call could fail, and the first one's subscriber is as good.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}
