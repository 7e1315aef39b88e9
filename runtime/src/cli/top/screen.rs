//! The screen of `trunkline top`: what keys do, and what is drawn.

use super::rows::{HEADINGS, NUMBERS, Row, Sort, lag, rows, summary};
use super::terminal::{Key, Line, Look};
use crate::http::{ClusterStatus, TaskStatus};
use crate::units::{bytes, count, duration, milliseconds};

/// What the keys do.
const KEYS: &str = "↑↓ select  ←→ sort  r reverse  Enter details  p pause  u resume  q quit";
const KEYS_OF_DETAILS: &str = "Esc back  p pause  u resume  q quit";

/// The state of the screen.
#[derive(Default)]
pub(super) struct Screen {
    cluster: Option<ClusterStatus>,
    rows: Vec<Row>,
    sort: Option<Sort>,
    is_reversed: bool,
    /// The name of the selected row: rows change their places.
    selected: Option<String>,
    shows_details: bool,
    /// A request that waits for a confirmation.
    asked: Option<Request>,
    /// The outcome of the last request, or why there is no answer.
    message: Option<String>,
}

/// A request to pause or resume a component on all workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// `pause` or `resume`.
    pub(super) action: &'static str,
    pub(super) component: String,
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Nothing,
    Quit,
    Send(Request),
}

impl Screen {
    pub(super) fn new(sort: Option<Sort>) -> Self {
        Self { sort, ..Self::default() }
    }

    /// Shows a new status.
    pub(super) fn update(&mut self, cluster: ClusterStatus) {
        self.rows = rows(&cluster);
        self.cluster = Some(cluster);
        self.order();
    }

    /// Shows a line until the next key.
    pub(super) fn say(&mut self, message: String) {
        self.message = Some(message);
    }

    fn order(&mut self) {
        if let (None, Some(cluster)) = (self.sort, &self.cluster) {
            self.rows = rows(cluster);
        }
        if let Some(sort) = self.sort {
            sort.sort(&mut self.rows, self.is_reversed);
        }
    }

    /// The place of the selected row, or of the first one.
    fn place(&self) -> Option<usize> {
        let place = self.rows.iter().position(|row| Some(&row.name) == self.selected.as_ref());
        place.or(if self.rows.is_empty() { None } else { Some(0) })
    }

    fn current(&self) -> Option<&Row> {
        self.rows.get(self.place()?)
    }

    pub(super) fn press(&mut self, key: Key) -> Outcome {
        if key == Key::Interrupt {
            return Outcome::Quit;
        }
        if let Some(request) = self.asked.take() {
            return if key == Key::Char('y') { Outcome::Send(request) } else { Outcome::Nothing };
        }
        self.message = None;
        match key {
            Key::Char('q') => return Outcome::Quit,
            Key::Escape if self.shows_details => self.shows_details = false,
            Key::Escape => return Outcome::Quit,
            Key::Enter => self.shows_details = !self.rows.is_empty(),
            Key::Up | Key::Char('k') => self.select(-1),
            Key::Down | Key::Char('j') => self.select(1),
            Key::PageUp => self.select(-10),
            Key::PageDown => self.select(10),
            Key::Left => self.sort_by(false),
            Key::Right | Key::Char('s') => self.sort_by(true),
            Key::Char('r') => {
                self.is_reversed = !self.is_reversed;
                self.order();
            }
            Key::Char('p') => self.ask("pause"),
            Key::Char('u') => self.ask("resume"),
            _ => {}
        }
        Outcome::Nothing
    }

    fn select(&mut self, by: isize) {
        let Some(place) = self.place() else { return };
        let place = place.saturating_add_signed(by).min(self.rows.len() - 1);
        self.selected = Some(self.rows[place].name.clone());
    }

    fn sort_by(&mut self, forward: bool) {
        self.sort = Some(self.sort.unwrap_or(Sort::Failures).step(forward));
        self.order();
    }

    fn ask(&mut self, action: &'static str) {
        self.asked = self.current().map(|row| Request { action, component: row.component.clone() });
    }

    /// A frame of this size.
    pub(super) fn draw(&self, (width, height): (usize, usize)) -> Vec<Line> {
        let problems = self.cluster.as_ref().map(ClusterStatus::problems).unwrap_or_default();
        let problems: Vec<Line> = problems.iter().take(3).map(|line| Line::of(Look::Bad, line)).collect();
        let title = match &self.cluster {
            Some(cluster) => summary(cluster, &self.rows),
            None => "waiting for the worker ..".to_owned(),
        };
        let mut lines = vec![Line::of(Look::Bold, title)];
        let room = height.saturating_sub(2 + problems.len());
        match self.current().filter(|_| self.shows_details) {
            Some(row) => lines.extend(details(row, width).into_iter().take(room)),
            None => lines.extend(self.table(room)),
        }
        let bottom = height.saturating_sub(1 + problems.len()).max(lines.len());
        lines.resize(bottom, Line::default());
        lines.extend(problems);
        lines.push(self.last_line());
        lines
    }

    fn last_line(&self) -> Line {
        if let Some(Request { action, component }) = &self.asked {
            let question = format!("{action} {component} on all workers? y: yes, any other key: no");
            return Line::of(Look::Warning, question);
        }
        match &self.message {
            Some(message) => Line::of(Look::Warning, message),
            None => Line::of(Look::Dim, if self.shows_details { KEYS_OF_DETAILS } else { KEYS }),
        }
    }

    /// The headings, and the rows around the selected one.
    fn table(&self, room: usize) -> Vec<Line> {
        let cells: Vec<[String; 13]> = self.rows.iter().map(Row::cells).collect();
        let width = |column: usize| {
            let widths = cells.iter().map(|cells| cells[column].chars().count());
            // The heading of the sorted column has a mark.
            widths.max().unwrap_or(0).max(HEADINGS[column].len() + 1)
        };
        let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
        let aligned = |column: usize, text: &str| {
            let width = widths[column];
            if NUMBERS.contains(&column) { format!("{text:>width$}  ") } else { format!("{text:<width$}  ") }
        };
        let sorted = self.sort.map(Sort::heading);
        let mark = if self.is_reversed { '\u{25b4}' } else { '\u{25be}' };
        let headings = HEADINGS.iter().enumerate().fold(Line::default(), |line, (column, heading)| {
            let is_sorted = sorted == Some(*heading);
            let text = if is_sorted { format!("{heading}{mark}") } else { (*heading).to_owned() };
            line.add(if is_sorted { Look::Warning } else { Look::Bold }, aligned(column, &text))
        });
        let selected = self.place().unwrap_or(0);
        let shown = room.saturating_sub(1).max(1);
        let first = (selected + 1).saturating_sub(shown);
        let rows = self.rows.iter().zip(&cells).enumerate().skip(first).take(shown).map(|(place, (row, cells))| {
            let line = cells.iter().enumerate().fold(Line::default(), |line, (column, text)| {
                line.add(if column == 2 { look(&row.state) } else { Look::Plain }, aligned(column, text))
            });
            line.selected(place == selected)
        });
        std::iter::once(headings).chain(rows).collect()
    }
}

fn look(state: &str) -> Look {
    match state {
        "running" => Look::Good,
        "failed" => Look::Bad,
        "paused" | "waiting" => Look::Warning,
        _ => Look::Plain,
    }
}

/// Everything that is known of a task.
fn details(row: &Row, width: usize) -> Vec<Line> {
    let mut lines = vec![Line::of(Look::Bold, format!("{} on {}", row.name, row.node)), Line::default()];
    if let Some(history) = row.status.as_ref().and_then(|status| status.history.as_ref()) {
        let rates: Vec<f64> = history.rate.iter().copied().collect();
        lines.extend(plot("records per second", &rates, width));
        let lags: Vec<f64> = history.lag.iter().map(|lag| lag.unwrap_or(0) as f64).collect();
        lines.extend(plot("lag", &lags, width));
        let commits: Vec<f64> = history.commit_ms.iter().map(|commit| commit.unwrap_or(0.0)).collect();
        lines.extend(plot("milliseconds per commit", &commits, width));
    }
    let mut add = |name: &str, value: String| {
        lines.push(Line::of(Look::Bold, format!("{name:<22}")).add(Look::Plain, value));
    };
    add("state", format!("{}, wanted: {}", row.state, row.wanted));
    add("worker", format!("{} on {}", row.worker, row.node));
    match &row.status {
        Some(status) => details_of(status, &mut add),
        None => add("rates", "unknown: the worker does not answer".to_owned()),
    }
    if let Some(error) = &row.error {
        // Long errors take several lines.
        let characters: Vec<char> = error.chars().collect();
        lines.push(Line::of(Look::Bold, "last error"));
        let parts = characters.chunks(width.max(1));
        lines.extend(parts.map(|part| Line::of(Look::Bad, part.iter().collect::<String>())));
    }
    lines
}

/// A title, and a line of bars: the newest values, as many as there is room for.
fn plot(title: &str, values: &[f64], width: usize) -> [Line; 2] {
    const BARS: [char; 8] = [' ', '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2588}'];
    let values = &values[values.len().saturating_sub(width)..];
    let (last, most) = (values.last().copied().unwrap_or(0.0), values.iter().copied().fold(0.0, f64::max));
    let bar = |value: &f64| {
        let share = if most > 0.0 { value / most } else { 0.0 };
        BARS[((share * 7.0).round() as usize).min(7)]
    };
    let title = format!("{title}: {}, at most {}", count(last), count(most));
    [Line::of(Look::Plain, title), Line::of(Look::Good, values.iter().map(bar).collect::<String>())]
}

fn details_of(status: &TaskStatus, add: &mut impl FnMut(&str, String)) {
    let unknown = || "-".to_owned();
    add("lag", lag(status).unwrap_or_else(unknown));
    add("age of the lag", status.lag_seconds.map_or_else(unknown, duration));
    if let Some(left) = status.retention_left_seconds {
        add("retention left", duration(left));
    }
    add("last commit", status.since_commit_seconds.map_or_else(unknown, |since| format!("{} ago", duration(since))));
    add("commits take", status.commit_seconds.map_or_else(unknown, milliseconds));
    add("memory", bytes(status.memory_bytes));
    if let Some(state) = status.state_bytes {
        add("state", bytes(state));
    }
    if let Some(disk) = status.state_disk_bytes {
        add("state on disk", bytes(disk));
    }
    add("failures", status.failures.to_string());
    for (name, counters) in &status.components {
        let rates = counters.per_second.unwrap_or_default();
        let text = format!(
            "{} in ({}/s), {} out ({}/s), {} dropped, {} dead-lettered",
            counters.records_in,
            count(rates.records_in),
            counters.out,
            count(rates.out),
            counters.dropped,
            counters.dead_lettered
        );
        add(name, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::rows::tests::cluster;

    fn draw(screen: &Screen, width: usize, height: usize) -> Vec<String> {
        let lines = screen.draw((width, height));
        lines.iter().map(|line| line.text().trim_end().to_owned()).collect()
    }

    fn screen() -> Screen {
        let mut screen = Screen::new(None);
        screen.update(cluster());
        screen
    }

    #[test]
    fn the_table_shows_all_tasks_and_problems() {
        let lines = draw(&screen(), 120, 10);
        assert_eq!(lines.len(), 10);
        assert!(lines[0].starts_with("cluster c: 2 workers, 3 tasks, 1 failed; sources 12.3k/s"), "{lines:?}");
        assert!(lines[1].starts_with("TASK         KIND    STATE"), "{lines:?}");
        assert!(lines[2].starts_with("shop.web     source  running     12.3k"), "{lines:?}");
        assert!(lines[5].starts_with("shop.copy    sink    - (paused)"), "{lines:?}");
        assert!(lines[8].starts_with("worker w3 on n3 is gone"), "{lines:?}");
        assert!(lines[9].starts_with("\u{2191}\u{2193} select"), "{lines:?}");
        // A small terminal shows the selected row.
        let mut screen = screen();
        screen.press(Key::PageDown);
        let small = draw(&screen, 40, 6);
        assert!(small.iter().any(|line| line.starts_with("shop.copy")), "{small:?}");
        assert!(!small.iter().any(|line| line.starts_with("shop.web")), "{small:?}");
        assert_eq!(draw(&Screen::new(None), 40, 4)[0], "waiting for the worker ..");
    }

    #[test]
    fn rows_are_sorted_selected_and_opened() {
        let mut screen = screen();
        screen.press(Key::Right);
        assert_eq!((screen.sort, screen.rows[0].name.as_str()), (Some(Sort::Name), "shop.copy"));
        assert!(draw(&screen, 120, 10)[1].starts_with("TASK\u{25be}"));
        screen.press(Key::Down);
        assert_eq!(screen.current().unwrap().name, "shop.lake/0");
        // The selection follows its row.
        screen.press(Key::Char('r'));
        assert_eq!(screen.current().unwrap().name, "shop.lake/0");
        screen.update(cluster());
        assert_eq!(screen.current().unwrap().name, "shop.lake/0");
        screen.press(Key::Enter);
        let shown = draw(&screen, 100, 30).join("\n");
        for part in ["shop.lake/0 on n1", "records per second: 9, at most 9", "lag: 3, at most 3", "commits take"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(shown.contains(" \u{2584}\u{2588}\n") && shown.contains("120040 in (950/s)"), "{shown}");
        screen.press(Key::Escape);
        assert!(!draw(&screen, 100, 30).join("\n").contains("commits take"));
        assert_eq!(screen.press(Key::Escape), Outcome::Quit);
        assert_eq!(Screen::new(None).press(Key::Enter), Outcome::Nothing);
    }

    #[test]
    fn a_request_is_sent_after_a_confirmation() {
        let mut screen = screen();
        let last = |screen: &Screen| draw(screen, 100, 10).pop().unwrap();
        assert_eq!(screen.press(Key::Char('p')), Outcome::Nothing);
        assert!(last(&screen).starts_with("pause shop.web on all workers? y: yes"));
        assert_eq!(screen.press(Key::Enter), Outcome::Nothing);
        assert_eq!(screen.press(Key::Char('y')), Outcome::Nothing, "it was not confirmed");
        screen.press(Key::Char('u'));
        let request = Request { action: "resume", component: "shop.web".to_owned() };
        assert_eq!(screen.press(Key::Char('y')), Outcome::Send(request));
        screen.say("resumed".to_owned());
        assert_eq!(last(&screen), "resumed");
        screen.press(Key::Char('p'));
        assert_eq!(screen.press(Key::Interrupt), Outcome::Quit);
    }
}
