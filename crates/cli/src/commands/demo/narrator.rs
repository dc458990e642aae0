//! Tells the story: steps with their times, and commands with what they say.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use serde::Serialize;
use serde_json::Value;
use slotkeep_jobs::{Context, Error, ErrorKind, Result};

use crate::args::Arguments;
use crate::output::{Output, bold};
use crate::session::Session;

/// The name that the shown commands use for the demo's folder, as a shell would.
const FOLDER: &str = "$D";
const MARGIN: &str = "         ";

/// Tells what happens, and keeps it for `--json`.
pub(super) struct Narrator<'a> {
    session: &'a Session,
    output: &'a Output,
    context: &'a Context,
    began: Duration,
    folder: PathBuf,
    steps: Vec<Step>,
}

/// One step of the demo.
#[derive(Serialize)]
pub(super) struct Step {
    title: String,
    /// Since the start of the demo.
    began_at_seconds: f64,
    seconds: f64,
    said: Vec<String>,
    commands: Vec<Ran>,
}

/// A `slotkeep` command that was run.
#[derive(Clone, Serialize)]
pub(super) struct Ran {
    command: String,
    exit_code: u8,
    /// What it prints with `--json`.
    #[serde(rename = "result")]
    pub(super) value: Value,
}

impl<'a> Narrator<'a> {
    pub(super) fn new(session: &'a Session, output: &'a Output, context: &'a Context) -> Self {
        let began = context.clock.elapsed();
        Self { session, output, context, began, folder: PathBuf::from(FOLDER), steps: vec![] }
    }

    /// Seconds since the start of the demo.
    pub(super) fn seconds(&self) -> f64 {
        self.context.clock.elapsed().saturating_sub(self.began).as_secs_f64()
    }

    /// Says something before the first step.
    pub(super) fn line(&self, text: &str) -> Result<()> {
        if self.output.narrates() { self.output.print(text) } else { Ok(()) }
    }

    /// Begins a step.
    pub(super) fn step(&mut self, title: &str) -> Result<()> {
        let now = self.seconds();
        self.end_step();
        self.steps.push(Step {
            title: title.to_owned(),
            began_at_seconds: now,
            seconds: 0.0,
            said: vec![],
            commands: vec![],
        });
        self.line(&format!("\n[{now:>4.1} s] {}", bold(&format!("{}. {title}", self.steps.len()))))
    }

    /// Says what happened in the step.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        if let Some(step) = self.steps.last_mut() {
            step.said.push(text.replace('\n', " "));
        }
        self.indented(text)
    }

    /// Shows a command of the server's own client, or of the shell, that would do what was done.
    pub(super) fn typed(&mut self, command: &str) -> Result<()> {
        if let Some(step) = self.steps.last_mut() {
            step.said.push(format!("$ {command}"));
        }
        self.indented(&bold(&format!("$ {command}")))
    }

    /// Names the folder that commands call `$D`.
    pub(super) fn call_folder(&mut self, folder: &Path) -> Result<()> {
        folder.clone_into(&mut self.folder);
        self.typed(&format!("D={}", folder.display()))
    }

    /// Runs a command of Slotkeep's, shows it and what it says; fails if it ends with another exit code than the expected one.
    pub(super) async fn slotkeep(&mut self, words: &[&str], expected: u8) -> Result<Ran> {
        let command = format!("slotkeep {}", words.join(" "));
        self.indented(&bold(&format!("$ {command}")))?;
        let folder = self.folder.display().to_string();
        let words: Vec<String> = words.iter().map(|word| word.replace(FOLDER, &folder)).collect();
        let held = Output::holding();
        let arguments = parse(&words)?;
        // A command inside a command: the future's size must be known, hence the box.
        let outcome = Box::pin(crate::dispatch(arguments.command, self.session, &held)).await;
        let held = held.into_held();
        self.indented(&held.text.replace(&folder, FOLDER))?;
        let exit_code = outcome?;
        let ran = Ran { command, exit_code, value: held.value.unwrap_or_default() };
        if let Some(step) = self.steps.last_mut() {
            step.commands.push(ran.clone());
        }
        if exit_code != expected {
            return Err(Error::new(
                ErrorKind::Failed,
                format!("`{}` ended with exit code {exit_code}, not {expected}", ran.command),
            )
            .hint("this is a bug of Slotkeep: please report it with the whole output of this run"));
        }
        Ok(ran)
    }

    /// Ends the last step and gives all of them.
    pub(super) fn finish(mut self) -> Vec<Step> {
        self.end_step();
        self.steps
    }

    fn end_step(&mut self) {
        let now = self.seconds();
        if let Some(step) = self.steps.last_mut() {
            step.seconds = now - step.began_at_seconds;
        }
    }

    fn indented(&self, text: &str) -> Result<()> {
        let lines: Vec<String> = text
            .lines()
            .map(|line| if line.is_empty() { String::new() } else { format!("{MARGIN}{line}") })
            .collect();
        if lines.is_empty() { Ok(()) } else { self.line(&lines.join("\n")) }
    }
}

/// Parses a command line as if it had been typed where no environment variable gives an option.
fn parse(words: &[String]) -> Result<Arguments> {
    let words = std::iter::once("slotkeep").chain(words.iter().map(String::as_str));
    without_environment(Arguments::command())
        .try_get_matches_from(words)
        .and_then(|matches| Arguments::from_arg_matches(&matches))
        .map_err(|error| Error::new(ErrorKind::Failed, format!("the demo misspelt a command: {error}")))
}

fn without_environment(command: clap::Command) -> clap::Command {
    command.mut_args(|argument| argument.env(None::<&'static str>)).mut_subcommands(without_environment)
}
