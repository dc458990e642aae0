//! `slotkeep log`

use std::sync::Arc;

use clap::Args;
use slotkeep_jobs::log::Past;
use slotkeep_jobs::log::pattern::Pattern;
use slotkeep_jobs::log::survey::{Entry, Survey, SurveyOptions, survey};
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_model::Slot;

use super::restore::aim::{parse_moment, span};
use crate::args::{AccessArgs, RepoArgs};
use crate::exit;
use crate::output::{Output, bytes, count, table, table_text};
use crate::progress::ByteDisplay;
use crate::session::Session;

/// How many bytes of lines are gathered before they are printed.
const LINES_BYTES: usize = 64 << 10;
/// How many rows of a table are shown; JSON has all of them.
const SHOWN_ROWS: usize = 20;

/// Show what is in the log between two moments, destructive commands first
///
/// A time stands as its latest possible moment, with how much earlier it may have been. To undo a command, restore with
/// --before-command, or with --at-offset HISTORY:BEFORE.
#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    #[command(flatten)]
    repo: RepoArgs,
    /// From this moment on, as 2026-11-25T12:00:00Z or with an offset such as +01:00
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Up to this moment
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Only the shard that serves this slot
    #[arg(long, value_name = "SLOT")]
    shard: Option<u16>,
    /// Only commands that match, such as 'DEL user:*' or 'FLUSHALL|FLUSHDB'
    #[arg(long, value_name = "PATTERN", alias = "match")]
    pattern: Option<String>,
    /// Print every command as a line of JSON, shard after shard: its first four arguments, of each the first 64 bytes, with
    /// other bytes than printable ASCII as \xNN
    #[arg(long)]
    commands: bool,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &LogArgs) -> Result<u8> {
    let context = session.context(&AccessArgs::default())?;
    let (repository, name) = session.repository(&arguments.repo).await?;
    let options = SurveyOptions {
        from: arguments.from.as_deref().map(parse_moment).transpose()?,
        to: arguments.to.as_deref().map(parse_moment).transpose()?,
        slot: arguments.shard.map(slot).transpose()?,
        pattern: arguments.pattern.as_deref().map(Pattern::parse).transpose()?,
    };
    let past = Past::load(&repository, &name).await?;
    for unread in past.unread_origins() {
        let advice = unread.error.advice().unwrap_or_default();
        let words = unread.words();
        output.warn(&format!("{words}; its log is shown as that of a shard of its own: {advice}"));
    }
    for unread in past.unread_topologies() {
        output.warn(&unread.words());
    }
    let progress = ShardProgress::new("reading the log".to_owned());
    let display = ByteDisplay::start(output, &[(Arc::clone(&progress), 0)]);
    let mut lines = Lines { output, text: String::new(), outcome: Ok(()) };
    let each = |entry: &Entry| {
        if arguments.commands {
            lines.add(entry);
        }
    };
    let found = survey(&context, &past, &options, &progress, each, arguments.commands).await;
    display.finish().await;
    let found = found?;
    if arguments.commands {
        lines.flush();
        lines.outcome?;
    } else {
        output.data(&found, render)?;
    }
    Ok(exit::OK)
}

fn slot(number: u16) -> Result<Slot> {
    Slot::new(number)
        .ok_or_else(|| Error::new(ErrorKind::Usage, format!("{number} is no slot: there are 0 to 16383")))
}

/// Lines of JSON, printed many at a time.
struct Lines<'a> {
    output: &'a Output,
    text: String,
    outcome: Result<()>,
}

impl Lines<'_> {
    fn add(&mut self, entry: &Entry) {
        if let Ok(line) = serde_json::to_string(entry) {
            self.text.push_str(&line);
            self.text.push('\n');
        }
        if self.text.len() >= LINES_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let text = std::mem::take(&mut self.text);
        if self.outcome.is_ok() && !text.is_empty() {
            self.outcome = self.output.print(&text);
        }
    }
}

fn render(survey: &Survey) -> String {
    let mut parts = Vec::new();
    if survey.destructive.is_empty() {
        parts.push("No destructive commands.".to_owned());
    } else {
        parts.push(destructive(survey));
    }
    let mut rows = table(&["command", "count>", "bytes>"]);
    for row in survey.commands.iter().take(SHOWN_ROWS) {
        rows.add_row([row.name.clone(), count(row.count), bytes(row.bytes)]);
    }
    parts.push(table_text(&rows) + &more(survey.commands.len()));
    if !survey.keys.is_empty() {
        let mut rows = table(&["key", "writes, at least>"]);
        for row in &survey.keys {
            rows.add_row([row.key.clone(), count(row.at_least)]);
        }
        parts.push(table_text(&rows));
    }
    let mut rows = table(&["slots", "commands>", "log>", "per second>", "from", "to"]);
    for shard in &survey.shards {
        let ends = shard.written.map(|span| (span.from, span.until));
        let (from, until) = ends.unwrap_or_default();
        let seconds = from.zip(until).map_or(0.0, |(from, until)| until.duration_since(from).as_secs_f64());
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people"
        )]
        let rate = if seconds > 0.0 { bytes((shard.bytes as f64 / seconds) as u64) } else { "-".to_owned() };
        let moment = |at: Option<jiff::Timestamp>| {
            at.map_or_else(|| "?".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
        };
        rows.add_row([
            shard.slots.to_string(),
            count(shard.commands),
            bytes(shard.bytes),
            rate,
            moment(from),
            moment(until),
        ]);
    }
    parts.push(table_text(&rows));
    parts.join("\n\n")
}

fn destructive(survey: &Survey) -> String {
    let mut rows = table(&["destructive command", "written", "slots", "history", "before>", "offset>"]);
    let surplus = survey.destructive.len().saturating_sub(SHOWN_ROWS);
    for entry in survey.destructive.iter().skip(surplus) {
        rows.add_row([
            entry.text.clone(),
            span(entry.written.as_ref()),
            entry.slots.to_string(),
            entry.history.to_string(),
            entry.before.to_string(),
            entry.offset.to_string(),
        ]);
    }
    let shown = u64::try_from(survey.destructive.len() - surplus).unwrap_or(u64::MAX);
    let earlier = survey.destructive_count.saturating_sub(shown);
    let note = if earlier > 0 { format!("\n… and {} earlier ones", count(earlier)) } else { String::new() };
    table_text(&rows) + &note
}

fn more(rows: usize) -> String {
    match rows.checked_sub(SHOWN_ROWS) {
        None | Some(0) => String::new(),
        Some(more) => format!("\n… and {more} more"),
    }
}
