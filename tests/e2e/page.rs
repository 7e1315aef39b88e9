//! The page of a worker in a real browser.

use serde_json::Value;
use trunkline_tests::{Browser, Case, Kafka, LogWriter, Reader, Tab, View, need, wait};

use crate::status::{address, send};
use crate::{LONG, access_logs, stop, wait_for_rows};

/// A text that would run as a script, if a page showed it as it is.
const HOSTILE: &str = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>";

const WIDE: View = View { width: 1280, is_dark: false, has_scripts: true };

/// Elements whose text has too little contrast with the background, by the rule for normal text of
/// WCAG 2 (4.5 to 1).
const PALE: &str = r"
(() => {
    const parse = color => color.match(/[\d.]+/g).map(Number);
    const light = color => {
        const [r, g, b] = parse(color).map(part => part / 255)
            .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        for (; element; element = element.parentElement) {
            const color = getComputedStyle(element).backgroundColor;
            if (parse(color)[3] !== 0) return color;
        }
    };
    return [...document.querySelectorAll('td, th, p, a:not(.skip), h1, h2, button, svg text')]
        .filter(element => element.textContent.trim() !== '')
        .map(element => {
            const style = getComputedStyle(element);
            const [one, other] = [light(element.closest('svg') ? style.fill : style.color), light(behind(element))];
            return [element.outerHTML.slice(0, 80), (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)];
        })
        .filter(([, contrast]) => contrast < 4.5);
})()";

/// What has the focus, and whether that can be seen.
const FOCUSED: &str = r"
(() => {
    const element = document.activeElement;
    const style = getComputedStyle(element);
    const name = element.className === 'scroll' ? 'graph' : element.textContent;
    return [element === document.body ? '' : name, style.outlineStyle !== 'none'];
})()";

/// What the keyboard reaches, in the order of the document.
const REACHABLE: &str = r"
[...document.querySelectorAll('a[href], button, [tabindex]')]
    .filter(element => element.classList.contains('skip') || element.checkVisibility())
    .map(element => element.className === 'scroll' ? 'graph' : element.textContent)";

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The page can be read at this size and in these colours.
fn assert_is_readable(tab: &mut Tab<'_>, view: View) {
    let overflow = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
    assert_eq!(overflow, 0, "the page is wider than {} pixels", view.width);
    let background = tab.evaluate("getComputedStyle(document.body).backgroundColor");
    let is_dark = background != "rgb(255, 255, 255)";
    assert_eq!(is_dark, view.is_dark, "{background}");
    assert_eq!(tab.evaluate(PALE), serde_json::json!([]), "{} pixels, dark: {}", view.width, view.is_dark);
    let headings = texts(&tab.evaluate("[...document.querySelectorAll('h2')].map(heading => heading.textContent)"));
    for heading in ["Pipelines", "Tasks", "Errors", "Workers"] {
        assert!(headings.iter().any(|found| found == heading), "{heading}: {headings:?}");
    }
    assert!(tab.evaluate("document.querySelectorAll('svg.flow rect').length").as_u64() >= Some(4));
}

/// All requests went to the worker, and nothing was reported.
fn assert_is_quiet(tab: &mut Tab<'_>, base: &str) {
    let requests = tab.requests();
    assert!(!requests.is_empty());
    for request in requests {
        assert!(request.starts_with(base) || request == "data:,", "{request}");
    }
    assert_eq!(tab.complaints(), Vec::<String>::new());
}

#[test]
fn the_page_is_readable_live_and_safe_in_a_browser() {
    let (kafka, reader) = (need!(Kafka::any()), need!(Reader::find()));
    let mut browser = need!(Browser::start());
    let case = Case::new("page", kafka);
    let mut log = LogWriter::new(case.path("logs/access.log"), 980);
    log.append(1_000);
    case.pipeline("access", &access_logs());
    let worker = case.start("a", &[]);
    let base = format!("http://{}", address(&worker));
    wait_for_rows(&reader, &case.path("lake"), 1_000);

    for (width, is_dark) in [(1280, false), (1280, true), (400, false), (400, true)] {
        let view = View { width, is_dark, ..WIDE };
        let mut tab = browser.open(&base, view);
        assert_is_readable(&mut tab, view);
        assert_is_quiet(&mut tab, &base);
    }
    let view = View { has_scripts: false, ..WIDE };
    let mut tab = browser.open(&base, view);
    assert_is_readable(&mut tab, view);
    assert_eq!(
        tab.evaluate("[...document.querySelectorAll('button')].some(button => button.checkVisibility())"),
        false
    );
    assert_is_quiet(&mut tab, &base);
    drop(tab);

    let mut tab = browser.open(&base, WIDE);
    let expected = texts(&tab.evaluate(REACHABLE));
    assert_eq!(expected[..2], ["Skip to the content", "Pipelines"]);
    for text in &expected {
        tab.press("Tab", 9);
        assert_eq!(tab.evaluate(FOCUSED), serde_json::json!([text, true]), "{expected:?}");
    }
    numbers_are_live(&mut tab, &mut log);
    assert_is_quiet(&mut tab, &base);
    records_are_shown(&mut tab, &case, &mut log, &base);
    drop(tab);
    stop(worker);
}

/// The numbers follow the pipeline without loading the page again.
fn numbers_are_live(tab: &mut Tab<'_>, log: &mut LogWriter) {
    const NUMBERS: &str = "[...document.querySelectorAll('[data-v]')].map(node => node.textContent).join(' ')";
    let before = tab.evaluate(&format!("window.isSame = true; {NUMBERS}"));
    wait::until("the numbers change", LONG, || {
        log.append(100);
        (tab.evaluate(NUMBERS) != before).then_some(())
    });
    assert_eq!(tab.evaluate("window.isSame"), true, "the page was loaded again");
}

/// A tap and the dead letters show records as text, whatever they contain.
fn records_are_shown(tab: &mut Tab<'_>, case: &Case, log: &mut LogWriter, base: &str) {
    log.append_raw(format!("{HOSTILE}\n").as_bytes());
    wait::until("the hostile line is a dead letter", LONG, || {
        let (_, page) = send(base.trim_start_matches("http://"), "GET", "/metrics", "");
        page.contains("outcome=\"dead_lettered\"} 1\n").then_some(())
    });
    tab.evaluate("document.querySelector('a[href$=\".lake\"]').focus()");
    tab.press("Enter", 13);
    tab.wait_for_load();
    assert_eq!(tab.evaluate("document.querySelectorAll('tbody tr').length"), 20);
    assert_eq!(tab.evaluate("document.querySelector('tbody pre').textContent !== undefined"), true);
    assert!(tab.evaluate("document.querySelector('main').textContent").as_str().unwrap().contains("\"path\""));
    assert_is_quiet(tab, base);

    tab.go(&format!("{base}/ui/dead-letters/{}", case.name()));
    let shown = tab.evaluate("document.querySelector('main').textContent");
    assert!(shown.as_str().unwrap().contains(HOSTILE), "{shown}");
    assert_ne!(tab.evaluate("document.title"), "hacked");
    assert_eq!(tab.evaluate("document.images.length"), 0);
    assert_is_quiet(tab, base);
    // If a text did become a part of the page, the policy would not let it run.
    tab.evaluate(
        "new Promise(done => {
            document.addEventListener('securitypolicyviolation', done, { once: true });
            document.body.insertAdjacentHTML('beforeend', '<b onclick=\"document.title=1\">x</b><img src=\"/x\" \
             onerror=\"document.title=1\">');
            document.querySelector('b').click();
        }).then(event => event.violatedDirective)",
    );
    assert_ne!(tab.evaluate("document.title"), "1");
    assert!(!tab.complaints().is_empty(), "the browser reports the violation");
    assert!(tab.requests().iter().all(|request| request.starts_with(base)));
}
