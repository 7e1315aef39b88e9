//! `trunkline top`: the tasks of all workers of the cluster, live.

mod rows;
mod screen;
mod terminal;

use std::io::IsTerminal as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use clap::Args;
use trunkline_connector::{Error, Result};

use self::rows::{Sort, text};
use self::screen::{Outcome, Request, Screen};
use self::terminal::Terminal;
use super::SettingsArgs;
use super::output::{Exit, print_data, report_error, report_problems};
use super::worker_api::WorkerApi;
use crate::config::Settings;
use crate::http::ClusterStatus;

/// Time between two looks at the keyboard and the news.
const KEYBOARD: Duration = Duration::from_millis(100);

/// `trunkline top`.
#[derive(Args)]
pub(super) struct TopArgs {
    /// Print one frame as text and end; so does a stdout that is not a terminal
    #[arg(long)]
    once: bool,
    /// Print one frame as JSON on stdout and end
    #[arg(long, conflicts_with = "once")]
    json: bool,
    /// Order of the tasks; by default that of the pipelines
    #[arg(long, value_name = "COLUMN")]
    sort: Option<Sort>,
    /// Seconds between two frames
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    interval: u64,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb.
pub(super) fn top(args: &TopArgs) -> Exit {
    let settings = match args.settings.load() {
        Ok(settings) => settings,
        Err(problems) => return report_problems(&problems, args.json),
    };
    let is_live = !args.once && !args.json && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let outcome = if is_live { live(args, &settings) } else { once(args, &settings) };
    outcome.unwrap_or_else(|error| report_error(&error))
}

fn once(args: &TopArgs, settings: &Settings) -> Result<Exit> {
    let (cluster, json): (ClusterStatus, String) = WorkerApi::connect(settings)?.get("cluster?history=true")?;
    let sort = args.sort;
    Ok(print_data(&if args.json { format!("{json}\n") } else { text(&cluster, sort) }))
}

/// What the thread that talks to the worker has to show.
enum News {
    Status(Box<ClusterStatus>),
    Message(String),
}

fn live(args: &TopArgs, settings: &Settings) -> Result<Exit> {
    // Fails before the screen changes.
    let api = WorkerApi::connect(settings)?;
    let (first, _): (ClusterStatus, String) = api.get("cluster?history=true")?;
    let (news, arrived) = sync_channel(1);
    let (requests, asked) = sync_channel(8);
    let interval = Duration::from_secs(args.interval);
    std::thread::Builder::new()
        .name("top".to_owned())
        .spawn(move || ask_worker(&api, &asked, &news, interval))
        .map_err(|error| Error::external("environment.runtime", format!("cannot start a thread: {error}")))?;
    let mut screen = Screen::new(args.sort);
    screen.update(first);
    let mut terminal = Terminal::open().map_err(|error| failed(&error))?;
    let outcome = show(&mut terminal, &mut screen, &arrived, &requests);
    drop(terminal);
    outcome.map_err(|error| failed(&error)).map(|()| Exit::Ok)
}

fn failed(error: &std::io::Error) -> Error {
    Error::external("io.failed", format!("the terminal cannot be used: {error}; print one frame with --once"))
}

/// Asks for the status again and again, and sends requests, until the screen is closed.
fn ask_worker(api: &WorkerApi, asked: &Receiver<Request>, news: &SyncSender<News>, interval: Duration) {
    let mut wait = interval;
    loop {
        let message = match asked.recv_timeout(wait) {
            Ok(Request { action, component }) => {
                let sent = api.post(&format!("components/{component}/{action}"));
                let sent = sent.map_or_else(|error| error.to_string(), |()| format!("{action}d {component}"));
                // The workers follow within two seconds; the wanted state shows at once.
                wait = KEYBOARD;
                News::Message(sent)
            }
            Err(RecvTimeoutError::Timeout) => {
                wait = interval;
                match api.get::<ClusterStatus>("cluster?history=true") {
                    Ok((status, _)) => News::Status(Box::new(status)),
                    Err(error) => News::Message(error.to_string()),
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        if news.send(message).is_err() {
            return;
        }
    }
}

fn show(
    terminal: &mut Terminal,
    screen: &mut Screen,
    arrived: &Receiver<News>,
    requests: &SyncSender<Request>,
) -> std::io::Result<()> {
    loop {
        terminal.show(&screen.draw(terminal.size()))?;
        for key in terminal.keys(KEYBOARD)? {
            match screen.press(key) {
                Outcome::Nothing => {}
                Outcome::Quit => return Ok(()),
                Outcome::Send(request) => {
                    if requests.try_send(request).is_err() {
                        screen.say("the worker has not answered the last requests yet: try again".to_owned());
                    }
                }
            }
        }
        for news in arrived.try_iter() {
            match news {
                News::Status(status) => screen.update(*status),
                News::Message(message) => screen.say(message),
            }
        }
    }
}
