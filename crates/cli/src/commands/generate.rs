//! `slotkeep completions` and `slotkeep man`: made from the same table of options as the parser.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use slotkeep_jobs::{Error, ErrorKind, Result};

use crate::args::Arguments;
use crate::exit;
use crate::output::Output;

/// Print the completion script of a shell
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write the manual pages
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Folder to write them into
    folder: PathBuf,
}

pub(crate) fn completions(output: &Output, arguments: &CompletionsArgs) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "slotkeep", &mut script);
    output.print(&String::from_utf8_lossy(&script))?;
    Ok(exit::OK)
}

pub(crate) fn man(output: &Output, arguments: &ManArgs) -> Result<u8> {
    let folder = &arguments.folder;
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Failed, format!("can't write manual pages to {}: {error}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    clap_mangen::generate_to(Arguments::command(), folder).map_err(failed)?;
    output.note(&format!(
        "Wrote the manual pages to {}; `man {}/slotkeep.1` shows the first.",
        folder.display(),
        folder.display()
    ));
    Ok(exit::OK)
}
