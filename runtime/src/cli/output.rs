//! Writes to stdout and stderr, and the exit codes of the process.
//!
//! A reader of stdout that has gone (`| head`) is not a failure: the command ends as it would have.
//! Every other failure to write data (a full disk) is an error, because the data is lost. Nothing
//! can be reported when stderr fails, so such failures are ignored.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write as _};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use trunkline_connector::{Domain, Error};

use crate::config::{FileProblems, LogFormat, RenderStyle, Settings, json, problem_at, render, summary};

/// The result of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Exit {
    /// 0: success.
    Ok,
    /// 1: a failure while running.
    Runtime,
    /// 2: a pipeline file, a setting or the command line is invalid.
    Config,
    /// 3: a requirement is missing: the brokers, the data folder, room for output.
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

    /// Ends the process without waiting for its threads, and without the exit handlers of
    /// libraries that these threads use.
    pub(super) fn end_process(self) -> ! {
        // A failure to write was reported by the command that wrote.
        let _ = std::io::stdout().flush();
        // SAFETY: the call ends the process and touches no memory of it. Nothing is buffered:
        // stderr is not, and stdout is flushed.
        unsafe { libc::_exit(self.code()) }
    }
}

impl From<&Error> for Exit {
    fn from(error: &Error) -> Self {
        match error.domain {
            Domain::Config => Self::Config,
            Domain::External => Self::Environment,
            Domain::Data | Domain::Fenced | Domain::Internal => Self::Runtime,
        }
    }
}

/// Writes data to stdout, and reports a failure on stderr.
pub fn print_data(text: &str) -> Exit {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Exit::Ok,
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Exit::Ok,
        Err(error) => {
            print_error(format_args!("error: cannot write to stdout: {error}; the output is incomplete"));
            Exit::Environment
        }
    }
}

/// Rows of cells in columns. The columns in `numbers` are aligned to the right.
pub(super) fn columns<const N: usize>(rows: &[[String; N]], numbers: &[usize]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if numbers.contains(&column) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Writes a line to stderr.
pub(super) fn print_error(line: Arguments<'_>) {
    // A full disk or a closed terminal must not end the process, as `eprintln!` would.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Reports an error on stderr; the exit code follows from its domain.
pub(super) fn report_error(error: &Error) -> Exit {
    print_error(format_args!("error: {error}"));
    Exit::from(error)
}

/// Writes problems and their number to stderr.
pub fn print_problems(problems: &[FileProblems]) {
    let text = format!("{}{}", render(problems, RenderStyle::of_stderr()), summary(problems));
    print_error(format_args!("{text}"));
}

/// Writes problems to stderr, or as JSON to stdout.
pub(super) fn report_problems(problems: &[FileProblems], as_json: bool) -> Exit {
    let printed = if as_json {
        print_data(&format!("{}\n", json(problems)))
    } else {
        print_problems(problems);
        Exit::Ok
    };
    if problems.is_empty() { printed } else { Exit::Config }
}

/// Starts logging to stderr with the filter of the settings. `json` is the form for `auto`.
pub(super) fn start_logging(settings: &Settings, json: bool) -> Result<(), Vec<FileProblems>> {
    let json = match settings.log_format {
        LogFormat::Auto => json,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    log_to_stderr(&settings.log, json).map_err(|error| {
        let help = "for example `info`, `debug` or `warn,trunkline=debug`".to_owned();
        vec![problem_at(
            None,
            "config.wrong_value",
            format!("the setting `log` is not a valid filter: {error}"),
            Some(help),
        )]
    })
}

/// Replaces the filter of the log. Fails if the filter is not valid, or nothing is logged.
pub(super) fn change_log_filter(filter: &str) -> Result<(), String> {
    let change = CHANGE_FILTER.get().ok_or("this process does not log")?;
    change(EnvFilter::try_new(filter).map_err(|error| error.to_string())?)
}

type ChangeFilter = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

static CHANGE_FILTER: OnceLock<ChangeFilter> = OnceLock::new();

/// Starts logging to stderr with a filter, as text or as one JSON object for each line.
pub(super) fn log_to_stderr(filter: &str, json: bool) -> Result<(), ParseError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(RenderStyle::of_stderr().colour)
        // It reports failures of stderr to stderr, by a macro that panics.
        .log_internal_errors(false);
    // Only a second call could fail; the first subscriber stays.
    let change: Option<ChangeFilter> = if json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        let is_first = tracing::subscriber::set_global_default(builder.finish()).is_ok();
        is_first.then(|| Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())) as _)
    } else {
        let builder = builder.with_filter_reloading();
        let handle = builder.reload_handle();
        let is_first = tracing::subscriber::set_global_default(builder.finish()).is_ok();
        is_first.then(|| Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())) as _)
    };
    if let Some(change) = change {
        let _ = CHANGE_FILTER.set(change);
    }
    Ok(())
}
