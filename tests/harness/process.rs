//! Child processes.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use trunkline_tests::Process;

fn shell(script: &str, folder: &Path) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Process::spawn(command, &folder.join("0-shell"))
}

#[test]
fn exit_code_output_and_resources_of_a_process_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let script = "echo out; echo err >&2; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 3";
    let exit = shell(script, folder.path()).wait(Duration::from_secs(30));
    assert_eq!((exit.code, exit.signal), (Some(3), None));
    assert_eq!((exit.stdout.as_str(), exit.stderr.as_str()), ("out\n", "err\n"));
    assert!(exit.cpu > Duration::from_millis(10) && exit.cpu < exit.elapsed * 2, "{exit:?}");
    assert!(exit.peak_rss > 500_000 && exit.peak_rss < 100_000_000, "{exit:?}");
}

#[test]
fn signals_reach_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let exit = shell("exec sleep 60", folder.path()).kill9();
    assert_eq!((exit.code, exit.signal), (None, Some(libc::SIGKILL)));
    let mut worker = shell("exec sleep 60", folder.path());
    worker.sigterm();
    assert_eq!(worker.wait(Duration::from_secs(10)).signal, Some(libc::SIGTERM));
    // A process that ends before the delay is not killed.
    let exit = shell("exit 0", folder.path()).kill9_after(Duration::from_secs(10));
    assert_eq!((exit.code, exit.signal), (Some(0), None));
}

#[test]
#[should_panic(expected = "did not end within")]
fn a_process_that_does_not_end_fails_the_test() {
    let folder = tempfile::tempdir().unwrap();
    shell("exec sleep 60", folder.path()).wait(Duration::from_millis(100));
}
