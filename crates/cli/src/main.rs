//! `slotkeep`: backs up Redis Cluster and Valkey Cluster, and brings them back, proven.
//!
//! This crate alone prints, exits and reads the command line; what it does is in `slotkeep-jobs`.

mod args;
mod commands;
mod dataset_args;
mod exit;
mod keys;
mod output;
mod progress;
mod repos;
mod session;
mod settings_file;
mod source_args;

use std::process::ExitCode;

use clap::Parser;

use args::{Arguments, Command};
use output::Output;
use session::Session;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(&arguments.output);
    output.start_log();
    let outcome = match session::runtime() {
        Ok(runtime) => runtime.block_on(run(arguments, &output)),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output.error(&error);
            ExitCode::from(exit::code(error.kind()))
        }
    }
}

async fn run(arguments: Arguments, output: &Output) -> slotkeep_jobs::Result<u8> {
    let session = Session::new(&arguments)?;
    session.stop_on_signals();
    // On the heap: it is as large as the largest command's.
    Box::pin(dispatch(arguments.command, &session, output)).await
}

/// Runs one command.
async fn dispatch(command: Command, session: &Session, output: &Output) -> slotkeep_jobs::Result<u8> {
    match command {
        Command::Init(command) => commands::init::run(session, output, &command).await,
        Command::Backup(command) => commands::backup::run(session, output, &command).await,
        Command::Archive(command) => commands::archive::run(session, output, &command).await,
        Command::Restore(command) => commands::restore::run(session, output, &command).await,
        Command::Check(command) => commands::check::run(session, output, &command).await,
        Command::Diff(command) => commands::diff::run(session, output, &command).await,
        Command::Verify(command) => commands::verify::run(session, output, &command).await,
        Command::Fence(command) => commands::fence::run(session, output, &command).await,
        Command::Prune(command) => commands::prune::run(session, output, &command).await,
        Command::Compact(command) => commands::compact::run(session, output, &command).await,
        Command::Copy(command) => commands::copy::run(session, output, &command).await,
        Command::Repair(command) => commands::repair::run(session, output, &command).await,
        Command::Recover(command) => commands::recover::run(session, output, &command).await,
        Command::Log(command) => commands::log::run(session, output, &command).await,
        Command::Merge(command) => commands::merge::run(session, output, &command).await,
        Command::List(command) => commands::list::run(session, output, &command).await,
        Command::Show(command) => commands::show::run(session, output, &command).await,
        Command::Inspect(command) => commands::inspect::run(session, output, &command).await,
        Command::Get(command) => commands::get::run(session, output, &command).await,
        Command::Export(command) => commands::export::run(session, output, &command).await,
        Command::Key(command) => commands::key::run(session, output, &command).await,
        Command::Demo(command) => commands::demo::run(session, output, &command).await,
        Command::Completions(command) => commands::generate::completions(output, &command),
        Command::Man(command) => commands::generate::man(output, &command),
    }
}
