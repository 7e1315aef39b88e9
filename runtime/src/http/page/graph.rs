//! A pipeline as an SVG drawing, from left to right. The server draws it, so that it is shown
//! without JavaScript.

use super::html::{Html, Rendered};
use crate::checkpoint::RunState;
use crate::http::{ClusterStatus, ComponentInfo, EdgeStatus, Flow, Node, NodeKind};
use crate::units::{count, duration};

const WIDTH: usize = 200;
const HEIGHT: usize = 46;
/// Room for the numbers of an edge.
const COLUMN: usize = WIDTH + 110;
const ROW: usize = HEIGHT + 22;
const MARGIN: usize = 10;
/// Characters of a name that fit into a box.
const NAME: usize = 22;

pub(super) fn draw(pipeline: &str, flow: &Flow, cluster: &ClusterStatus) -> Rendered {
    let columns = flow.columns();
    let mut used = vec![0_usize; columns.iter().max().map_or(0, |last| last + 1)];
    let places: Vec<(usize, usize)> = columns
        .iter()
        .map(|column| {
            let row = used[*column];
            used[*column] += 1;
            (MARGIN + column * COLUMN, MARGIN + row * ROW)
        })
        .collect();
    let width = 2 * MARGIN + (used.len().max(1) - 1) * COLUMN + WIDTH;
    let height = 2 * MARGIN + (used.iter().max().copied().unwrap_or(1).max(1) - 1) * ROW + HEIGHT;
    let mut html = Html::default();
    html.raw("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"graph of ").text(pipeline).raw("\">");
    html.raw("<svg class=\"flow\" role=\"img\" width=\"").number(width).raw("\" height=\"").number(height);
    html.raw("\"><title>pipeline ").text(pipeline).raw("</title>");
    for edge in &flow.edges {
        let status = flow.status(edge, pipeline, cluster);
        draw_edge(&mut html, places[edge.from], places[edge.to], edge.port.as_deref(), status);
    }
    for (node, place) in flow.nodes.iter().zip(&places) {
        let component = cluster.components.iter().find(|it| it.pipeline == pipeline && it.component == node.name);
        draw_node(&mut html, node, *place, component.filter(|_| node.kind != NodeKind::Topic), cluster);
    }
    html.raw("</svg></div>");
    html.finish()
}

fn draw_edge(html: &mut Html, from: (usize, usize), to: (usize, usize), port: Option<&str>, status: EdgeStatus) {
    let (start_x, start_y) = (from.0 + WIDTH, from.1 + HEIGHT / 2);
    let (end_x, end_y) = (to.0, to.1 + HEIGHT / 2);
    let middle = usize::midpoint(start_x, end_x);
    html.raw("<path d=\"M").number(start_x).raw(" ").number(start_y).raw(" C").number(middle).raw(" ").number(start_y);
    html.raw(" ").number(middle).raw(" ").number(end_y).raw(" ").number(end_x).raw(" ").number(end_y).raw("\"/>");
    // The numbers stand before the box that the edge enters, where edges are apart.
    let (x, y) = (end_x - 56, end_y);
    html.raw("<text class=\"rate\" data-v x=\"").number(x).raw("\" y=\"").number(y - 5).raw("\">");
    html.live(&status.rate.map_or_else(String::new, |rate| format!("{}/s", count(rate)))).raw("</text>");
    let lag = status.lag_records.map_or_else(String::new, |lag| format!("lag {}", count(lag as f64)));
    let age = status.lag_seconds.map_or_else(String::new, |age| format!(", {}", duration(age)));
    html.raw("<text class=\"rate\" data-v x=\"").number(x).raw("\" y=\"").number(y + 13).raw("\">");
    html.live(&format!("{lag}{age}")).raw("</text>");
    if let Some(port) = port {
        html.raw("<text class=\"dim\" x=\"").number(start_x + 4).raw("\" y=\"").number(start_y - 5).raw("\">");
        html.text(port).raw("</text>");
    }
}

fn draw_node(
    html: &mut Html,
    node: &Node,
    (x, y): (usize, usize),
    component: Option<&ComponentInfo>,
    cluster: &ClusterStatus,
) {
    let state = component.map_or("", |component| state_of(component, cluster));
    html.raw("<g><title>").text(node.kind.name()).raw(" ").text(&node.name).raw(" ").text(state).raw("</title>");
    html.raw("<rect class=\"").text(if node.kind == NodeKind::Topic { "topic" } else { state }).raw("\" rx=\"4\" x=\"");
    html.number(x).raw("\" y=\"").number(y).raw("\" width=\"").number(WIDTH).raw("\" height=\"").number(HEIGHT);
    html.raw("\"/><text x=\"").number(x + 10).raw("\" y=\"").number(y + 19).raw("\">").text(&shortened(&node.name));
    html.raw("</text><text class=\"dim\" x=\"").number(x + 10).raw("\" y=\"").number(y + 36).raw("\">");
    html.text(node.kind.name());
    if !node.connector.is_empty() {
        html.raw(" · ").text(&node.connector);
    }
    if !state.is_empty() {
        html.raw(" · ").text(state);
    }
    html.raw("</text></g>");
}

/// The worst state of a component's tasks, or what people want.
pub(super) fn state_of(component: &ComponentInfo, cluster: &ClusterStatus) -> &'static str {
    match component.wanted {
        RunState::Running => {}
        wanted => return wanted.name(),
    }
    let states: Vec<&str> = component.tasks.iter().map(|task| task.state.as_str()).collect();
    let live: Vec<String> = cluster.tasks(component).map(|task| task.state().to_owned()).collect();
    let has = |state: &str| states.contains(&state) || live.iter().any(|live| live == state);
    ["failed", "running", "waiting", "paused", "done"].into_iter().find(|state| has(state)).unwrap_or("no task")
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= NAME {
        return name.to_owned();
    }
    name.chars().take(NAME - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_flow;

    #[test]
    fn a_pipeline_is_drawn_with_its_numbers() {
        let drawn = draw("shop", &Flow::of(&test_flow::pipeline()), &test_flow::cluster());
        assert_eq!(drawn.html.matches("<rect").count(), 5);
        assert_eq!(drawn.html.matches("<path").count(), 4);
        assert_eq!(drawn.values, ["", "", "950/s", "lag 4711, 2.5 s", "940/s", "", "", ""]);
        assert!(drawn.html.contains("sink · s3 · running"), "{}", drawn.html);
    }

    #[test]
    fn long_names_are_shortened() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"é".repeat(30)).chars().count(), NAME);
    }
}
