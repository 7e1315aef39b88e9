//! The page of the live runs and the replays of the cluster: the columns of `trunkline runs`.

use super::html::{Html, Rendered};
use crate::http::LiveRun;
use crate::replay::listing::{ListedRun, time_left, time_text};
use crate::units::count;

/// The runs. `replays` is the reason if they cannot be read.
pub(super) fn runs(live: &[LiveRun], replays: &Result<Vec<ListedRun>, String>) -> Rendered {
    let mut html = Html::default();
    html.raw("<h1>Runs</h1><p>What the workers run now, and the replays of <code>trunkline replay</code>. ");
    html.raw("<code>trunkline runs</code> shows the same, and pauses, resumes and stops runs. ");
    html.raw("Load the page again for new numbers.</p><h2 id=\"live\">Live runs</h2>");
    live_table(&mut html, live);
    html.raw("<h2 id=\"replays\">Replays</h2>");
    match replays {
        Ok(replays) => replay_table(&mut html, replays),
        Err(error) => drop(html.raw("<p class=\"problem\">").text(error).raw("</p>")),
    }
    html.finish()
}

fn live_table(html: &mut Html, runs: &[LiveRun]) {
    if runs.is_empty() {
        html.raw("<p class=\"dim\">No worker of the cluster runs a pipeline.</p>");
        return;
    }
    html.raw("<div class=\"scroll\"><table><thead><tr><th>Run<th>State<th class=\"n\">Lag<th class=\"n\">Records/s");
    html.raw("<th class=\"n\">Left<th class=\"n\">In<th class=\"n\">Out<th class=\"n\">Dropped<th class=\"n\">Dead");
    html.raw("<th>Started<th>By<th>Destination<th>Error</tr></thead><tbody>");
    for run in runs {
        html.raw("<tr><td>").text(&run.id).raw("<td class=\"").text(&run.state).raw("\">").text(&run.state);
        let counters = run.counters.as_ref();
        let counted = counters.map(|own| [own.records_in, own.out, own.dropped, own.dead_lettered]);
        let texts = [run.lag(), run.records_per_second.map(count), run.seconds_left.map(time_left)];
        let counted = counted.map_or([const { None }; 4], |counted| counted.map(|number| Some(number.to_string())));
        for number in texts.into_iter().chain(counted) {
            html.raw("<td class=\"n\">").text(number.as_deref().unwrap_or("-"));
        }
        for text in [run.started.as_deref(), Some(&run.started_by.join(", "))] {
            html.raw("<td>").text(text.unwrap_or_default());
        }
        for text in [&run.destination, &run.error] {
            html.raw("<td class=\"wide\">").text(text.as_deref().unwrap_or_default());
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table></div>");
}

fn replay_table(html: &mut Html, runs: &[ListedRun]) {
    if runs.is_empty() {
        html.raw("<p class=\"dim\">The cluster has no replays.</p>");
        return;
    }
    html.raw("<div class=\"scroll\"><table><thead><tr><th>Run<th>Component<th>State<th class=\"n\">Done");
    html.raw("<th class=\"n\">Lag<th class=\"n\">Offsets/s<th class=\"n\">Left<th class=\"n\">In<th class=\"n\">Out");
    html.raw("<th class=\"n\">Dropped<th class=\"n\">Dead<th>Started<th>Ended<th>By<th>Destination<th>Error");
    html.raw("</tr></thead><tbody>");
    for listed in runs.iter().rev() {
        let (run, counters) = (&listed.run, listed.progress.counters);
        html.raw("<tr><td>").text(&run.id).raw("<td>").text(&run.pipeline).raw(".").text(&run.sink);
        html.raw("<td class=\"").text(listed.state).raw("\">").text(listed.state);
        let speed = listed.speed();
        let numbers = [
            Some(format!("{}%", listed.percent())),
            Some(listed.offsets_left().to_string()),
            speed.map(|(rate, _)| count(rate)),
            speed.map(|(_, left)| time_left(left)),
            Some(counters.records_in.to_string()),
            Some(counters.out.to_string()),
            Some(counters.dropped.to_string()),
            Some(counters.dead_lettered.to_string()),
        ];
        for number in numbers {
            html.raw("<td class=\"n\">").text(number.as_deref().unwrap_or("-"));
        }
        for text in [time_text(run.started), run.ended.map(time_text).unwrap_or_default(), listed.started_by()] {
            html.raw("<td>").text(&text);
        }
        for text in [run.destination.as_str(), run.error.as_deref().unwrap_or_default()] {
            html.raw("<td class=\"wide\">").text(text);
        }
        html.raw("</tr>");
    }
    html.raw("</tbody></table></div>");
}
