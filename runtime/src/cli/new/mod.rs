//! `trunkline new`: writes a commented pipeline file for a source and a sink.

mod file;

use std::fs::OpenOptions;
use std::io::{BufRead, ErrorKind, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use trunkline_connector::config::nearest;

use self::file::pipeline_file;
use super::output::{Exit, print_data, print_error};
use crate::plan::json_schema::pipeline_schema;
use crate::plan::{NAME_RULE, Registry, name_error};

/// The schema next to the pipeline file, for editors.
const SCHEMA: &str = "trunkline.schema.json";

/// `trunkline new`.
#[derive(Args)]
pub(super) struct NewArgs {
    /// Name of the pipeline; its file is NAME.toml
    name: Option<String>,
    /// Connector of the source, such as mysql
    #[arg(long, value_name = "CONNECTOR")]
    from: Option<String>,
    /// Connector of the sink, such as s3
    #[arg(long, value_name = "CONNECTOR")]
    to: Option<String>,
    /// Folder of the file, which is created if it is missing
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
}

/// The choices of a person.
struct Choices {
    name: String,
    from: String,
    to: String,
}

/// Runs the verb.
pub(super) fn new(args: &NewArgs) -> Exit {
    let registry = Registry::new();
    let (stdin, stderr) = (std::io::stdin(), std::io::stderr());
    let chosen = if stdin.is_terminal() && stderr.is_terminal() {
        ask(args, &registry, &mut stdin.lock(), &mut stderr.lock())
    } else {
        given(args, &registry)
    };
    match chosen.and_then(|choices| write(&args.dir, args.force, &choices, &registry)) {
        Ok((path, next_steps)) => {
            print_error(format_args!("{next_steps}"));
            print_data(&format!("{path}\n"))
        }
        Err(message) => {
            print_error(format_args!("error: {message}"));
            Exit::Config
        }
    }
}

/// The choices of the command line alone.
fn given(args: &NewArgs, registry: &Registry) -> Result<Choices, String> {
    let example = "for example `trunkline new shop --from mysql --to s3`";
    let missing = |what: &str, known: &[&str]| {
        let known = if known.is_empty() { String::new() } else { format!(" (known: {})", known.join(", ")) };
        format!("{what} is missing{known}; {example}")
    };
    let (sources, sinks) = (registry.source_names(), registry.sink_names());
    let name = args.name.as_deref().ok_or_else(|| missing("the name of the pipeline", &[]))?;
    let from = args.from.as_deref().ok_or_else(|| missing("`--from`", &sources))?;
    let to = args.to.as_deref().ok_or_else(|| missing("`--to`", &sinks))?;
    Ok(Choices {
        name: checked_name(name)?,
        from: known_connector(from, "source", &sources)?,
        to: known_connector(to, "sink", &sinks)?,
    })
}

/// Asks for the choices that the command line does not name. A wrong answer is asked again.
fn ask(
    args: &NewArgs,
    registry: &Registry,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<Choices, String> {
    let sources: Vec<_> = registry.sources().map(|it| (it.name(), it.summary())).collect();
    let sinks: Vec<_> = registry.sinks().map(|it| (it.name(), it.summary())).collect();
    let name = match &args.name {
        Some(name) => checked_name(name)?,
        None => question(input, output, "Name of the pipeline: ", checked_name)?,
    };
    let mut connector = |given: &Option<String>, kind: &str, known: &[(&'static str, &'static str)]| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        if let Some(given) = given {
            return known_connector(given, kind, &names);
        }
        let mut text = format!("\nConnectors for the {kind}:\n");
        for (index, (name, summary)) in known.iter().enumerate() {
            text.push_str(&format!("  {}  {name:<15} {summary}\n", index + 1));
        }
        text.push_str(&format!("Name or number of the {kind}: "));
        question(input, output, &text, |answer| {
            let by_number = answer.parse::<usize>().ok().and_then(|number| names.get(number.checked_sub(1)?));
            by_number.map_or_else(|| known_connector(answer, kind, &names), |name| Ok((*name).to_owned()))
        })
    };
    let from = connector(&args.from, "source", &sources)?;
    let to = connector(&args.to, "sink", &sinks)?;
    Ok(Choices { name, from, to })
}

/// The first valid answer to a question.
fn question(
    input: &mut impl BufRead,
    output: &mut impl Write,
    text: &str,
    check: impl Fn(&str) -> Result<String, String>,
) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("the terminal cannot be used: {error}");
    write!(output, "{text}").map_err(failed)?;
    loop {
        output.flush().map_err(failed)?;
        let mut line = String::new();
        if input.read_line(&mut line).map_err(failed)? == 0 {
            return Err("stopped before all questions were answered; no file was written".to_owned());
        }
        match check(line.trim()) {
            Ok(answer) => return Ok(answer),
            Err(message) => write!(output, "{message}\n> ").map_err(failed)?,
        }
    }
}

fn checked_name(name: &str) -> Result<String, String> {
    match name_error(name) {
        None => Ok(name.to_owned()),
        Some(error) => Err(format!("the name `{name}` {error}; expected {NAME_RULE}")),
    }
}

fn known_connector(name: &str, kind: &str, known: &[&str]) -> Result<String, String> {
    if known.contains(&name) {
        return Ok(name.to_owned());
    }
    let hint = match nearest(name, known) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("known: {}", known.join(", ")),
    };
    Err(format!("there is no {kind} connector `{name}`; {hint}"))
}

/// Writes the file, and the schema next to it. Returns the path and the next steps.
fn write(folder: &Path, force: bool, choices: &Choices, registry: &Registry) -> Result<(String, String), String> {
    let Choices { name, from, to } = choices;
    let (Some(source), Some(sink)) = (registry.source(from), registry.sink(to)) else {
        return Err(format!("there is no source `{from}` or no sink `{to}`"));
    };
    let text = pipeline_file(name, source, sink, SCHEMA);
    // `join` with `.` would show `./shop.toml`.
    let folder = if folder == Path::new(".") { Path::new("") } else { folder };
    let path = folder.join(format!("{name}.toml"));
    let failed = |path: &Path, error: &std::io::Error| format!("cannot write {}: {error}", path.display());
    if !folder.as_os_str().is_empty() {
        std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    }
    let mut options = OpenOptions::new();
    options.write(true);
    // `create_new` leaves no moment in which another process could create the file.
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let mut file = options.open(&path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            format!("{} exists; choose another name, or replace it with --force", path.display())
        }
        _ => failed(&path, &error),
    })?;
    file.write_all(text.as_bytes()).map_err(|error| failed(&path, &error))?;
    let schema = folder.join(SCHEMA);
    // Generated by `trunkline json-schema`: an older version of it would mark new options as wrong.
    std::fs::write(&schema, format!("{:#}\n", pipeline_schema(registry))).map_err(|error| failed(&schema, &error))?;
    let variables = file::variables(&text);
    let set = match variables.as_slice() {
        [] => String::new(),
        names => format!("  export {}\n", names.iter().map(|it| format!("{it}=..")).collect::<Vec<_>>().join(" ")),
    };
    let path = path.display().to_string();
    let next_steps = format!("edit the file, then:\n{set}  trunkline validate {path} --check\n  trunkline run {path}");
    Ok((path, next_steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(args: &NewArgs, answers: &str) -> (Result<Choices, String>, String) {
        let mut output = Vec::new();
        let chosen = ask(args, &Registry::new(), &mut answers.as_bytes(), &mut output);
        (chosen, String::from_utf8(output).unwrap())
    }

    fn args(name: Option<&str>, from: Option<&str>, to: Option<&str>) -> NewArgs {
        let text = |value: Option<&str>| value.map(str::to_owned);
        NewArgs { name: text(name), from: text(from), to: text(to), dir: ".".into(), force: false }
    }

    #[test]
    fn only_missing_choices_are_asked_and_wrong_answers_again() {
        let (chosen, output) = answers(&args(None, None, Some("s3")), "a.b\nshop\nmysqll\n99\nmysql\n");
        let chosen = chosen.unwrap();
        assert_eq!((chosen.name.as_str(), chosen.from.as_str(), chosen.to.as_str()), ("shop", "mysql", "s3"));
        assert!(output.contains("the name `a.b` has the character `.`"), "{output}");
        assert!(output.contains("did you mean `mysql`?") && output.contains("source connector `99`"), "{output}");
        assert!(!output.contains("of the sink"), "{output}");

        let (chosen, _) = answers(&args(Some("shop"), None, None), "1\n1\n");
        let (sources, sinks) = (Registry::new().source_names(), Registry::new().sink_names());
        let chosen = chosen.unwrap();
        assert_eq!((chosen.from.as_str(), chosen.to.as_str()), (sources[0], sinks[0]));
        // The terminal was closed.
        assert!(answers(&args(None, None, None), "shop\n").0.is_err());
    }
}
