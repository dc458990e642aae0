//! The only place that prints. Data goes to standard output; progress, notes, warnings and errors to standard error.

use std::io::{BufWriter, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use slotkeep_jobs::{Error, ErrorKind, Result};
use tracing_subscriber::EnvFilter;

use crate::args::OutputArgs;
use crate::exit;

/// How this run shows things.
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    verbose: u8,
    terminal: bool,
    held: Option<Mutex<Held>>,
}

/// What a command said while its words were held back.
#[derive(Default)]
pub(crate) struct Held {
    /// For people: what would have been printed, notes and warnings included.
    pub(crate) text: String,
    /// For programs: what `--json` would have printed.
    pub(crate) value: Option<serde_json::Value>,
}

impl Output {
    pub(crate) fn new(arguments: &OutputArgs) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            json: arguments.json,
            quiet: arguments.quiet,
            verbose: arguments.verbose,
            terminal,
            held: None,
        }
    }

    /// Prints nothing and keeps what is said, for a command that runs inside another one.
    pub(crate) fn holding() -> Self {
        Self { json: false, quiet: false, verbose: 0, terminal: false, held: Some(Mutex::default()) }
    }

    /// What was said so far, if it was held back.
    pub(crate) fn into_held(self) -> Held {
        self.held.map(|held| held.into_inner().unwrap_or_else(PoisonError::into_inner)).unwrap_or_default()
    }

    fn hold(&self) -> Option<MutexGuard<'_, Held>> {
        self.held.as_ref().map(|held| held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether programs are to read what is printed.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a story is to be told while it happens.
    pub(crate) const fn narrates(&self) -> bool {
        !self.quiet && !self.json
    }

    /// Whether progress is to be shown.
    pub(crate) const fn shows_progress(&self) -> bool {
        self.terminal && !self.quiet && !self.json
    }

    /// Sends log lines to standard error. `SLOTKEEP_LOG` sets the filter.
    pub(crate) fn start_log(&self) {
        let level = match self.verbose {
            0 if self.quiet => "error",
            0 => "warn",
            1 => "info",
            2 => "debug",
            _ => "trace",
        };
        let filter = EnvFilter::try_from_env("SLOTKEEP_LOG")
            .unwrap_or_else(|_| EnvFilter::new(format!("slotkeep={level}")));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(self.terminal)
            .without_time()
            .with_target(false)
            .init();
    }

    /// Prints a value: as JSON, or as `render` puts it for people.
    pub(crate) fn data<T: Serialize>(&self, value: &T, render: impl FnOnce(&T) -> String) -> Result<()> {
        if let Some(mut held) = self.hold() {
            held.value = serde_json::to_value(value).ok();
        }
        let text = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|error| Error::new(ErrorKind::Failed, format!("can't print JSON: {error}")))?
        } else {
            render(value)
        };
        self.print(&text)
    }

    /// Prints one of many values: as a line of JSON to standard output, or as a note for people.
    pub(crate) fn line<T: Serialize>(&self, value: &T, render: impl FnOnce(&T) -> String) -> Result<()> {
        if !self.json {
            self.note(&render(value));
            return Ok(());
        }
        let text = serde_json::to_string(value)
            .map_err(|error| Error::new(ErrorKind::Failed, format!("can't print JSON: {error}")))?;
        self.print(&text)
    }

    /// Prints text to standard output as it is, with a line feed at its end.
    pub(crate) fn print(&self, text: &str) -> Result<()> {
        if let Some(mut held) = self.hold() {
            held.say(text);
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        let written = out
            .write_all(text.as_bytes())
            .and_then(|()| if text.ends_with('\n') { Ok(()) } else { writeln!(out) });
        match written.and_then(|()| out.flush()) {
            // Whoever read our output has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => {
                written.map_err(|error| Error::new(ErrorKind::Failed, format!("can't print: {error}")))
            }
        }
    }

    /// Says something to the user that is not data.
    pub(crate) fn note(&self, text: &str) {
        if let Some(mut held) = self.hold() {
            held.say(text);
        } else if !self.quiet && !self.json {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Warns of something that needs attention, also when quiet.
    pub(crate) fn warn(&self, text: &str) {
        match self.hold() {
            Some(mut held) => held.say(&format!("warning: {text}")),
            None => {
                let _ = writeln!(std::io::stderr(), "warning: {text}");
            }
        }
    }

    /// Reports why the run failed and what to do next.
    pub(crate) fn error(&self, error: &Error) {
        let mut err = std::io::stderr();
        if self.json {
            let value = serde_json::json!({ "error": {
                "kind": exit::name(error.kind()),
                "message": error.to_string(),
                "hint": error.advice(),
                "exit_code": exit::code(error.kind()),
            }});
            let _ = writeln!(err, "{value}");
            return;
        }
        let _ = writeln!(err, "error: {error}");
        if let Some(hint) = error.advice() {
            let _ = writeln!(err, "hint: {hint}");
        }
    }
}

/// Standard output, for data that comes bit by bit. Whoever reads it may go away when they have seen enough: that is no failure.
pub(crate) struct Stream {
    out: BufWriter<std::io::Stdout>,
    closed: Closed,
}

/// Whether the reader of standard output went away.
#[derive(Clone, Default)]
pub(crate) struct Closed(Arc<AtomicBool>);

impl Stream {
    pub(crate) fn new() -> (Self, Closed) {
        let closed = Closed::default();
        (Self { out: BufWriter::with_capacity(64 << 10, std::io::stdout()), closed: closed.clone() }, closed)
    }

    fn note<T>(&self, outcome: std::io::Result<T>) -> std::io::Result<T> {
        if outcome.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            self.closed.0.store(true, Ordering::Relaxed);
        }
        outcome
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let outcome = self.out.write(bytes);
        self.note(outcome)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let outcome = self.out.flush();
        self.note(outcome)
    }
}

impl Closed {
    /// What came of the writing; nothing if it ended because the reader went away.
    pub(crate) fn unless_closed<T>(&self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Err(_) if self.0.load(Ordering::Relaxed) => Ok(None),
            outcome => outcome.map(Some),
        }
    }
}

/// Whether standard output is a terminal, which progress beside it would disturb.
pub(crate) fn prints_to_terminal() -> bool {
    std::io::stdout().is_terminal()
}

impl Held {
    fn say(&mut self, text: &str) {
        self.text.push_str(text.trim_end_matches('\n'));
        self.text.push('\n');
    }
}

/// Text that stands out, where standard output is a terminal that was not asked to be plain.
pub(crate) fn bold(text: &str) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain || !std::io::stdout().is_terminal() {
        return text.to_owned();
    }
    format!("\x1b[1m{text}\x1b[0m")
}

/// A table with these headings; columns whose heading ends in `>` hold numbers.
pub(crate) fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings.iter().map(|heading| heading.trim_end_matches('>')));
    for (heading, column) in headings.iter().zip(table.column_iter_mut()) {
        column.set_padding((0, 2));
        if heading.ends_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A table's text, without the spaces at the ends of its lines.
pub(crate) fn table_text(table: &Table) -> String {
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A number of bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A count for people.
pub(crate) fn count(count: u64) -> String {
    indicatif::HumanCount(count).to_string()
}

/// A duration for people.
pub(crate) fn seconds(duration: std::time::Duration) -> String {
    if duration.as_secs() < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        indicatif::HumanDuration(duration).to_string()
    }
}
