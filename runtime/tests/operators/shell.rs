//! Completions and manual pages name every command.

use crate::trunkline;

/// The commands that `trunkline --help` lists.
fn commands() -> Vec<String> {
    let (code, help, _) = trunkline(std::path::Path::new("."), &["--help"]);
    assert_eq!(code, Some(0));
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let name = |line: &str| {
        let rest = line.strip_prefix("  ")?;
        (!rest.starts_with(' ')).then(|| rest.split_whitespace().next().unwrap().to_owned())
    };
    let names: Vec<String> = list.lines().filter_map(name).collect();
    assert!(names.len() > 15 && names.iter().any(|name| name == "validate"), "{names:?}");
    names
}

#[test]
fn completions_of_each_shell_name_every_command() {
    let commands = commands();
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = trunkline(std::path::Path::new("."), &["completions", shell]);
        assert_eq!(code, Some(0));
        for command in &commands {
            assert!(script.contains(command.as_str()), "{shell}: {command}");
        }
    }
}

#[test]
fn bash_reads_its_completions() {
    let (_, script, _) = trunkline(std::path::Path::new("."), &["completions", "bash"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trunkline");
    std::fs::write(&file, script).unwrap();
    let test = format!(
        "source {} && COMP_WORDS=(trunkline val) COMP_CWORD=1 && _trunkline trunkline val trunkline && echo \"${{COMPREPLY[@]}}\"",
        file.display()
    );
    match std::process::Command::new("bash").args(["--norc", "-c", &test]).output() {
        Ok(output) => assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "validate", "{:?}", output.stderr),
        Err(error) => println!("SKIP bash_reads_its_completions: no bash: {error}"),
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, stderr) = trunkline(folder.path(), &["man", "pages/man1"]);
    assert_eq!(code, Some(0), "{stderr}");
    let main = std::fs::read_to_string(folder.path().join("pages/man1/trunkline.1")).unwrap();
    for command in commands() {
        // Hyphens are escaped in roff.
        assert!(main.replace('\\', "").contains(&format!("trunkline-{command}(1)")), "{command}");
        let page = std::fs::read_to_string(folder.path().join(format!("pages/man1/trunkline-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    let nested = std::fs::read_to_string(folder.path().join("pages/man1/trunkline-dlq-redrive.1")).unwrap();
    assert!(nested.replace('\\', "").contains("--dry-run"), "{nested}");
}
