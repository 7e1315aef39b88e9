//! The parts of the pages.

use std::collections::HashMap;

use super::graph::{draw, state_of};
use super::html::{Html, Rendered};
use crate::http::{ClusterStatus, ComponentInfo, Flow, History, LiveTask};
use crate::plan::Pipeline;
use crate::units::{bytes, count, duration, milliseconds};

/// Pipelines whose graphs and plots are on the first page; with more, each has its own page only.
const GRAPHS: usize = 8;

/// The size of a plot.
const PLOT: (f64, f64) = (120.0, 24.0);

/// Whether the first page has graphs and plots.
pub(super) fn has_plots(pipelines: &[Pipeline]) -> bool {
    pipelines.len() <= GRAPHS
}

/// The first page.
pub(super) fn overview(pipelines: &[Pipeline], cluster: &ClusterStatus) -> Rendered {
    let mut html = Html::default();
    html.raw("<h1>Cluster ").text(&cluster.cluster).raw("</h1>");
    problems(&mut html, cluster);
    html.raw("<h2 id=\"pipelines\">Pipelines</h2>");
    pipeline_table(&mut html, pipelines, cluster);
    let has_plots = has_plots(pipelines);
    if has_plots {
        for pipeline in pipelines {
            html.raw("<h2>").text(&pipeline.name).raw("</h2>");
            html.part(draw(&pipeline.name, &Flow::of(pipeline), cluster));
        }
    }
    html.raw("<h2 id=\"tasks\">Tasks</h2>");
    task_table(&mut html, &cluster.components.iter().collect::<Vec<_>>(), cluster, has_plots);
    errors(&mut html, &cluster.components.iter().collect::<Vec<_>>(), cluster);
    worker_table(&mut html, cluster);
    html.finish()
}

/// The page of a pipeline.
pub(super) fn pipeline(pipeline: &Pipeline, cluster: &ClusterStatus) -> Rendered {
    let mut html = Html::default();
    html.raw("<h1>Pipeline ").text(&pipeline.name).raw("</h1><p class=\"dim\">");
    html.text(&pipeline.file.display().to_string()).raw("</p>");
    problems(&mut html, cluster);
    html.part(draw(&pipeline.name, &Flow::of(pipeline), cluster));
    let components: Vec<&ComponentInfo> =
        cluster.components.iter().filter(|component| component.pipeline == pipeline.name).collect();
    html.raw("<h2 id=\"tasks\">Tasks</h2>");
    task_table(&mut html, &components, cluster, true);
    errors(&mut html, &components, cluster);
    dead_letters(&mut html, pipeline, &components, cluster);
    html.finish()
}

fn problems(html: &mut Html, cluster: &ClusterStatus) {
    for line in cluster.problems() {
        html.raw("<p class=\"problem\">").text(&line).raw("</p>");
    }
}

fn pipeline_table(html: &mut Html, pipelines: &[Pipeline], cluster: &ClusterStatus) {
    if pipelines.is_empty() {
        html.raw("<p>This worker has loaded no pipelines.</p>");
        return;
    }
    html.raw("<div class=\"scroll\"><table><thead><tr><th>Pipeline<th>State<th class=\"n\">In/s<th class=\"n\">Out/s");
    html.raw("<th class=\"n\">Lag<th class=\"n\">Dead letters</tr></thead><tbody>");
    let mut by_pipeline: HashMap<&str, Vec<&ComponentInfo>> = HashMap::new();
    for component in &cluster.components {
        by_pipeline.entry(&component.pipeline).or_default().push(component);
    }
    for pipeline in pipelines {
        let components = by_pipeline.remove(pipeline.name.as_str()).unwrap_or_default();
        let states: Vec<&str> = components.iter().map(|component| state_of(component, cluster)).collect();
        let state = ["failed", "paused", "stopped", "no task", "waiting", "running"];
        let state = state.into_iter().find(|state| states.contains(state)).unwrap_or("done");
        let of_kind = |kind: &str| {
            let found = components.iter().filter(|component| component.kind == kind);
            let tasks: Vec<LiveTask<'_>> = found.flat_map(|component| cluster.tasks(component)).collect();
            let rates =
                tasks.iter().filter_map(|task| task.status?.components.get(&task.component.component)?.per_second);
            rates.map(|rates| rates.out).sum::<f64>()
        };
        let tasks: Vec<LiveTask<'_>> = components.iter().flat_map(|component| cluster.tasks(component)).collect();
        let lag: u64 = tasks.iter().filter_map(|task| task.status?.lag_records).sum();
        html.raw("<tr><td><a href=\"/ui/pipelines/").url_part(&pipeline.name).raw("\">").text(&pipeline.name);
        html.raw("</a><td class=\"").text(state).raw("\">").text(state);
        html.raw("<td class=\"n\" data-v>").live(&count(of_kind("source"))).raw("<td class=\"n\" data-v>");
        html.live(&count(of_kind("sink"))).raw("<td class=\"n\" data-v>").live(&count(lag as f64));
        html.raw("<td class=\"n\"><a href=\"/ui/dead-letters/").url_part(&pipeline.name).raw("\" data-v>");
        html.live(&dead_lettered(&tasks).to_string()).raw("</a></tr>");
    }
    html.raw("</tbody></table></div>");
}

fn dead_lettered(tasks: &[LiveTask<'_>]) -> u64 {
    let components = tasks.iter().filter_map(|task| task.status).flat_map(|status| status.components.values());
    components.map(|component| component.dead_lettered).sum()
}

fn task_table(html: &mut Html, components: &[&ComponentInfo], cluster: &ClusterStatus, has_plots: bool) {
    html.raw("<div class=\"scroll\"><table><thead><tr><th>Component<th>Kind<th>State<th>Node<th class=\"n\">In/s");
    html.raw("<th class=\"n\">Out/s<th>In, 3 min<th class=\"n\">Lag<th>Lag, 3 min<th class=\"n\">Age");
    html.raw("<th class=\"n\">Commit<th class=\"n\">Last<th class=\"n\">Memory<th class=\"n\">Failures<th>");
    html.raw("</tr></thead><tbody>");
    for component in components {
        let tasks: Vec<LiveTask<'_>> = cluster.tasks(component).collect();
        for task in &tasks {
            task_row(html, task, tasks.len() > 1, has_plots);
        }
        if tasks.is_empty() {
            let state = state_of(component, cluster);
            html.raw("<tr><td>")
                .text(&component.name)
                .raw("<td>")
                .text(&component.kind)
                .raw("<td class=\"")
                .text(state);
            html.raw("\">").text(state).raw("<td>-<td class=\"n\">-<td class=\"n\">-<td><td class=\"n\">-<td>");
            html.raw("<td class=\"n\">-<td class=\"n\">-<td class=\"n\">-<td class=\"n\">-<td class=\"n\">-<td class=\"actions\">");
            actions(html, component);
            html.raw("</tr>");
        }
    }
    html.raw("</tbody></table></div>");
}

fn task_row(html: &mut Html, task: &LiveTask<'_>, is_one_of_several: bool, has_plots: bool) {
    let (component, status) = (task.component, task.status);
    let unknown = || "-".to_owned();
    let rates = status.and_then(|status| status.components.get(&component.component)?.per_second);
    let lag = status
        .and_then(|status| status.lag_records.map(|lag| count(lag as f64)).or_else(|| status.lag_bytes.map(bytes)));
    let history = status.and_then(|status| status.history.as_ref()).filter(|_| has_plots);
    html.raw("<tr><td>").text(&component.name);
    if is_one_of_several {
        html.raw("/").number(usize::try_from(task.info.id).unwrap_or_default());
    }
    html.raw("<td>").text(&component.kind).raw("<td class=\"").text(task.state()).raw("\">").text(task.state());
    html.raw("<td>").text(&task.info.node);
    let numbers = [rates.map(|rates| count(rates.records_in)), rates.map(|rates| count(rates.out))];
    for number in numbers {
        html.raw("<td class=\"n\" data-v>").live(&number.unwrap_or_else(unknown));
    }
    html.raw("<td>");
    plot(html, "records per second", &rate_points(history));
    html.raw("<td class=\"n\" data-v>").live(&lag.unwrap_or_else(unknown)).raw("<td>");
    plot(html, "lag", &lag_points(history));
    let age = status.and_then(|status| status.lag_seconds).map(duration);
    html.raw("<td class=\"n\" data-v>").live(&age.unwrap_or_else(unknown)).raw("<td class=\"n\"><span data-v>");
    let commit = status.and_then(|status| status.commit_seconds).map(milliseconds);
    html.live(&commit.unwrap_or_else(unknown)).raw("</span>");
    plot(html, "duration of commits", &commit_points(history));
    let numbers = [
        status.and_then(|status| status.since_commit_seconds).map(duration),
        status.map(|status| bytes(status.memory_bytes)),
        status.map(|status| status.failures.to_string()),
    ];
    for number in numbers {
        html.raw("<td class=\"n\" data-v>").live(&number.unwrap_or_else(unknown));
    }
    html.raw("<td class=\"actions\">");
    actions(html, component);
    html.raw("</tr>");
}

fn actions(html: &mut Html, component: &ComponentInfo) {
    html.raw("<a href=\"/ui/tap/").url_part(&component.name).raw("\">records</a> <span class=\"js\">");
    for action in ["pause", "resume", "restart"] {
        html.raw("<button type=\"button\" data-action=\"").text(action).raw("\" data-name=\"").text(&component.name);
        html.raw("\">").text(action).raw("</button>");
    }
    html.raw("</span>");
}

fn rate_points(history: Option<&History>) -> Vec<f64> {
    history.map(|history| history.rate.iter().copied().collect()).unwrap_or_default()
}

fn lag_points(history: Option<&History>) -> Vec<f64> {
    let points = history.map(|history| history.lag.iter().map(|lag| lag.unwrap_or(0) as f64).collect());
    points.unwrap_or_default()
}

fn commit_points(history: Option<&History>) -> Vec<f64> {
    let points = history.map(|history| history.commit_ms.iter().map(|commit| commit.unwrap_or(0.0)).collect());
    points.unwrap_or_default()
}

/// A line of the last minutes; the newest value is at the right.
fn plot(html: &mut Html, name: &'static str, points: &[f64]) {
    html.raw("<svg class=\"spark\" viewBox=\"0 0 120 24\" role=\"img\" aria-label=\"").text(name);
    html.raw("\"><path data-v d=\"").live(&line(points)).raw("\"/></svg>");
}

fn line(points: &[f64]) -> String {
    let most = points.iter().copied().fold(0.0, f64::max);
    if points.len() < 2 {
        return String::new();
    }
    let step = PLOT.0 / (points.len() - 1) as f64;
    let place = |(index, value): (usize, &f64)| {
        let share = if most > 0.0 { value / most } else { 0.0 };
        format!(
            "{}{:.1} {:.1}",
            if index == 0 { 'M' } else { 'L' },
            index as f64 * step,
            (PLOT.1 - 1.5) - share * (PLOT.1 - 3.0)
        )
    };
    points.iter().enumerate().map(place).collect()
}

fn errors(html: &mut Html, components: &[&ComponentInfo], cluster: &ClusterStatus) {
    let tasks = components.iter().flat_map(|component| cluster.tasks(component));
    let errors: Vec<LiveTask<'_>> = tasks.filter(|task| task.error().is_some()).collect();
    html.raw("<h2 id=\"errors\">Errors</h2>");
    if errors.is_empty() {
        html.raw("<p class=\"dim\">No task has an error since its last commit.</p>");
        return;
    }
    html.raw("<div class=\"scroll\"><table><thead><tr><th>Component<th>Node<th>State<th>Error</tr></thead><tbody>");
    for task in errors {
        html.raw("<tr><td>").text(&task.component.name).raw("<td>").text(&task.info.node).raw("<td class=\"");
        html.text(task.state()).raw("\">").text(task.state()).raw("<td class=\"wide\">");
        html.text(task.error().unwrap_or_default()).raw("</tr>");
    }
    html.raw("</tbody></table></div>");
}

fn dead_letters(html: &mut Html, pipeline: &Pipeline, components: &[&ComponentInfo], cluster: &ClusterStatus) {
    html.raw("<h2 id=\"dead-letters\">Dead letters</h2><p>Topic ").text(&pipeline.dead_letters);
    html.raw(": <a href=\"/ui/dead-letters/").url_part(&pipeline.name).raw("\">the newest ones</a></p>");
    html.raw(
        "<div class=\"scroll\"><table><thead><tr><th>Component<th class=\"n\">Since its worker started</tr></thead>",
    );
    html.raw("<tbody>");
    for component in components {
        let tasks: Vec<LiveTask<'_>> = cluster.tasks(component).collect();
        html.raw("<tr><td>").text(&component.name).raw("<td class=\"n\" data-v>");
        html.live(&dead_lettered(&tasks).to_string()).raw("</tr>");
    }
    html.raw("</tbody></table></div>");
}

fn worker_table(html: &mut Html, cluster: &ClusterStatus) {
    html.raw("<h2 id=\"workers\">Workers</h2><div class=\"scroll\"><table><thead><tr><th>Worker<th>Node<th>HTTP");
    html.raw("<th>Version<th class=\"n\">Up<th class=\"n\">Tasks<th class=\"n\">Processors<th class=\"n\">Memory");
    html.raw("<th class=\"n\">Buffers</tr></thead><tbody>");
    let unknown = || "-".to_owned();
    for worker in &cluster.workers {
        let status = worker.status.as_ref();
        html.raw("<tr><td>").text(&worker.worker).raw(if worker.is_this { " (this one)" } else { "" }).raw("<td>");
        html.text(&worker.node).raw("<td>").text(worker.http.as_deref().unwrap_or("off")).raw("<td>");
        html.text(status.map_or("-", |status| status.version.as_str()));
        let numbers = [
            status.map(|status| duration(status.uptime_seconds as f64)),
            status.map(|status| status.tasks.len().to_string()),
            status.and_then(|status| status.processors).map(|busy| format!("{busy:.2}")),
            status.and_then(|status| status.memory_bytes).map(bytes),
            status
                .and_then(|status| status.budget_used_bytes.zip(status.budget_bytes))
                .map(|(used, limit)| format!("{} of {}", bytes(used), bytes(limit))),
        ];
        for number in numbers {
            html.raw("<td class=\"n\" data-v>").live(&number.unwrap_or_else(unknown));
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table></div>");
}

/// A record, or a dead letter with its error, as texts.
pub(super) struct ShownRecord {
    pub(super) place: String,
    pub(super) time: String,
    /// Of a dead letter: the component, the code and the message.
    pub(super) error: Option<String>,
    pub(super) key: String,
    pub(super) value: String,
    pub(super) headers: String,
}

/// The newest records of topics.
pub(super) fn records(title: &str, topics: &str, records: &[ShownRecord]) -> Rendered {
    let mut html = Html::default();
    html.raw("<h1>").text(title).raw("</h1><p>Topics: ").text(topics).raw(". The newest records, newest first. ");
    html.raw("Load the page again for new ones.</p>");
    if records.is_empty() {
        html.raw("<p class=\"dim\">The topics have no records.</p>");
        return html.finish();
    }
    let has_errors = records.iter().any(|record| record.error.is_some());
    html.raw("<div class=\"scroll\"><table><thead><tr><th>Offset<th>Time");
    html.raw(if has_errors { "<th>Error" } else { "" }).raw("<th>Key<th>Value<th>Headers</tr></thead><tbody>");
    for record in records {
        html.raw("<tr><td>").text(&record.place).raw("<td>").text(&record.time);
        if has_errors {
            html.raw("<td class=\"wide problem\">").text(record.error.as_deref().unwrap_or_default());
        }
        for part in [&record.key, &record.value, &record.headers] {
            html.raw("<td class=\"wide\"><pre>").text(part).raw("</pre>");
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table></div>");
    html.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_are_scaled_to_their_largest_value() {
        assert_eq!(line(&[]), "");
        assert_eq!(line(&[1.0]), "");
        assert_eq!(line(&[0.0, 5.0, 10.0]), "M0.0 22.5L60.0 12.0L120.0 1.5");
        assert_eq!(line(&[0.0, 0.0]), "M0.0 22.5L120.0 22.5");
    }

    #[test]
    fn records_cannot_contain_tags() {
        let hostile = "<img src=x onerror=alert(1)>";
        let record = ShownRecord {
            place: hostile.to_owned(),
            time: hostile.to_owned(),
            error: Some(hostile.to_owned()),
            key: hostile.to_owned(),
            value: hostile.to_owned(),
            headers: hostile.to_owned(),
        };
        let shown = records(hostile, hostile, &[record]);
        assert!(!shown.html.contains("<img"), "{}", shown.html);
        assert_eq!(shown.html.matches("&lt;img src=x onerror=alert(1)&gt;").count(), 8);
    }
}
