//! `trunkline completions` and `trunkline man`: files for shells and for `man`, from the
//! declaration of the command line.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::output::{Exit, print_data, print_error};

/// `trunkline completions`.
#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// `trunkline man`.
#[derive(Args)]
pub(super) struct ManArgs {
    /// Folder of the pages, such as /usr/local/share/man/man1; it is created if it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Prints the completions of a shell.
pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "trunkline", &mut script);
    print_data(&String::from_utf8_lossy(&script))
}

/// Writes one page for each command.
pub(super) fn man(args: &ManArgs, command: Command) -> Exit {
    match write_pages(&args.dir, command) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            print_error(format_args!("error: cannot write manual pages to {}: {error}", args.dir.display()));
            Exit::Environment
        }
    }
}

fn write_pages(folder: &Path, command: Command) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
