//! What to restore: a backup, a moment, offsets, or the state before an accident.

use std::sync::Arc;

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use slotkeep_format::Manifest;
use slotkeep_jobs::log::Past;
use slotkeep_jobs::log::chain::Place;
use slotkeep_jobs::log::pattern::Pattern;
use slotkeep_jobs::log::point::{Aim, PassedOver, Point, ShardPoint, Span, resolve};
use slotkeep_jobs::log::search::{Accident, find};
use slotkeep_jobs::log::windows::restorable;
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::{Context, Error, ErrorKind, Result};
use slotkeep_repo::{BackupSelector, Repository};

use crate::output::{Output, bytes, table, table_text};
use crate::progress::ByteDisplay;

/// A backup is taken while servers write: a little log behind its cut is nothing to speak of.
const MORE_WORTH_SAYING: SignedDuration = SignedDuration::from_secs(1);

/// What to restore.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "What: a backup, or a moment that the log leads to")]
pub(crate) struct AimArgs {
    /// The backup: its id, the beginning of its id, or `latest`, which is what is restored if nothing is said
    #[arg(long, value_name = "ID", conflicts_with_all = ["at", "at_offset", "before_command"])]
    backup: Option<String>,
    /// The moment, by the servers' clocks, as 2026-11-25T12:00:00Z or with an offset such as +01:00; or `latest`
    #[arg(long, value_name = "TIME", conflicts_with_all = ["at_offset", "before_command"])]
    at: Option<String>,
    /// The last byte of the log to restore, for one shard or more; other shards are restored to the moment of the last of these bytes
    #[arg(long, value_name = "REPLID:OFFSET", value_delimiter = ',', conflicts_with = "before_command")]
    at_offset: Vec<String>,
    /// Just before the last command that matches, such as FLUSHALL, 'FLUSHALL|FLUSHDB' or 'DEL user:*', on every shard that has one
    /// within a minute of it
    #[arg(long, value_name = "PATTERN")]
    before_command: Option<String>,
    /// With --before-command: the first such command after this moment
    #[arg(long, value_name = "TIME", requires = "before_command")]
    after: Option<String>,
}

/// What is to be restored, and what that needs.
pub(crate) struct Wanted {
    pub(crate) point: Point,
    /// What the repository holds of the past; none if no log is needed.
    pub(crate) past: Option<Arc<Past>>,
    /// What is undone, if that is how the point was named.
    accident: Option<Accident>,
}

/// How a restore goes beyond its bases.
#[derive(Serialize)]
pub(crate) struct Recovery<'a> {
    /// The moment, by the servers' clocks.
    at: Option<Timestamp>,
    /// What is undone.
    #[serde(skip_serializing_if = "Option::is_none")]
    undone: Option<&'a Accident>,
    /// The shards.
    shards: &'a [ShardPoint],
    /// What is kept of shards behind that moment.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    passed_over: &'a [PassedOver],
}

impl AimArgs {
    /// Whether anything was said.
    pub(crate) fn is_given(&self) -> bool {
        self.backup.is_some()
            || self.at.is_some()
            || !self.at_offset.is_empty()
            || self.before_command.is_some()
    }

    /// The backup that is meant, if it is a backup.
    async fn backup(&self, repository: &Repository, cluster: &str) -> Result<Option<Manifest>> {
        if self.at.is_some() || !self.at_offset.is_empty() || self.before_command.is_some() {
            return Ok(None);
        }
        let Ok(selector) = self.backup.as_deref().unwrap_or("latest").parse::<BackupSelector>();
        repository.find(cluster, &selector).await.map(Some).map_err(Into::into)
    }

    /// Finds the way to what is wanted.
    pub(crate) async fn resolve(
        &self,
        output: &Output,
        context: &Context,
        repository: &Repository,
        cluster: &str,
    ) -> Result<Wanted> {
        if let Some(manifest) = self.backup(repository, cluster).await? {
            return Wanted::of_backup(repository, cluster, manifest).await;
        }
        let past = Arc::new(Past::load(repository, cluster).await?);
        let mut accident = None;
        let aim = match &self.before_command {
            Some(pattern) => {
                let found = self.search(output, context, &past, pattern).await?;
                let places = found.matches.iter().map(|found| found.before.clone()).collect();
                let aim = Aim::Before { places, moment_ms: found.moment_ms };
                accident = Some(found);
                aim
            }
            None => match self.at.as_deref() {
                Some("latest") => Aim::Latest,
                Some(text) => Aim::Moment(parse_moment(text)?),
                None => {
                    Aim::Places(self.at_offset.iter().map(|text| parse_place(text)).collect::<Result<_>>()?)
                }
            },
        };
        let point = resolve(&past, &aim).await?;
        warn(output, &point);
        Ok(Wanted { point, past: Some(past), accident })
    }

    /// The same, but the last moment that the log leads to, if there is a log and nothing was said. Where there is more behind that moment, it has to be
    /// said that it is meant.
    pub(crate) async fn resolve_newest(
        &self,
        output: &Output,
        context: &Context,
        repository: &Repository,
        cluster: &str,
    ) -> Result<Wanted> {
        if !self.is_given() {
            let past = Past::load(repository, cluster).await?;
            if past.has_log() {
                let point = resolve(&past, &Aim::Latest).await?;
                if let Some(passed) = point.passed_over.first() {
                    return Err(Error::new(ErrorKind::Gap, words_of(passed, point.at)).hint(
                        "`--at latest` takes that moment all the same; `--backup` names a backup, and `slotkeep list` shows them",
                    ));
                }
                warn(output, &point);
                return Ok(Wanted { point, past: Some(Arc::new(past)), accident: None });
            }
        }
        self.resolve(output, context, repository, cluster).await
    }

    async fn search(
        &self,
        output: &Output,
        context: &Context,
        past: &Past,
        pattern: &str,
    ) -> Result<Accident> {
        let pattern = Pattern::parse(pattern)?;
        let after = self.after.as_deref().map(parse_moment).transpose()?;
        let progress = ShardProgress::new("searching the log".to_owned());
        let display = ByteDisplay::start(output, &[(Arc::clone(&progress), 0)]);
        let found = find(context, past, &pattern, after, &progress).await;
        display.finish().await;
        found
    }
}

impl Wanted {
    /// The end of a backup.
    pub(crate) async fn of_backup(
        repository: &Repository,
        cluster: &str,
        manifest: Manifest,
    ) -> Result<Self> {
        if let Some(point) = Point::of_bases(&manifest) {
            return Ok(Self { point, past: None, accident: None });
        }
        let past = Past::load(repository, cluster).await?;
        let point = resolve(&past, &Aim::Backup(Box::new(manifest))).await?;
        Ok(Self { point, past: Some(Arc::new(past)), accident: None })
    }

    /// Says so if the log goes on behind a backup, which is what is restored where nothing was said. What can't be read of the log is in
    /// nobody's way here: the backup does not need it.
    pub(crate) async fn warn_of_more(&self, output: &Output, repository: &Repository, cluster: &str) {
        let past = match &self.past {
            Some(past) => Arc::clone(past),
            None => match Past::load(repository, cluster).await {
                Ok(past) => Arc::new(past),
                Err(_) => return,
            },
        };
        if !past.has_log() {
            return;
        }
        let Ok(Some(last)) = restorable(&past).await.map(|found| found.moments.last().map(|span| span.to))
        else {
            return;
        };
        let manifest = &self.point.manifest;
        let taken_at = manifest.cut.as_ref().map_or(manifest.finished_at, |cut| cut.at);
        if last.duration_since(taken_at) > MORE_WORTH_SAYING {
            output.warn(&format!(
                "this is backup {}, of {taken_at}; the log goes on to {last}: `--at latest` restores that, `--backup latest` says that the backup is meant",
                manifest.id
            ));
        }
    }

    /// What to say about the way, if it leads beyond a backup's bases.
    pub(crate) fn recovery(&self) -> Option<Recovery<'_>> {
        self.past.is_some().then(|| Recovery {
            at: self.point.at,
            undone: self.accident.as_ref(),
            shards: &self.point.shards,
            passed_over: &self.point.passed_over,
        })
    }
}

impl Recovery<'_> {
    /// What is restored, as the beginning of a sentence; `backup` is the one whose bases are used.
    pub(crate) fn what(&self, backup: &str) -> String {
        match self.at {
            Some(at) => format!("The cluster as it was at {at}"),
            None => format!("Backup {backup} with its log"),
        }
    }
}

/// Says what is not at that point and could have been.
fn warn(output: &Output, point: &Point) {
    for passed in &point.passed_over {
        output.warn(&words_of(passed, point.at));
    }
    // Keys of these may be missing.
    let slots = point.unfollowed();
    if !slots.is_empty() {
        output.warn(&format!(
            "slots {slots} were being moved to a node that served no slot yet, which no archive follows: keys that had arrived there by then \
             are missing"
        ));
    }
}

/// What is kept of a shard behind the last moment for all.
fn words_of(passed: &PassedOver, at: Option<Timestamp>) -> String {
    let slots = &passed.slots;
    let why = match (&passed.from, passed.since) {
        _ if at.is_some_and(|at| passed.goes_on_from(at)) => {
            let until = passed.until.map(|until| format!(" to {until}")).unwrap_or_default();
            let first = passed.held_back_by.as_ref();
            let first =
                first.map(|first| format!(", and that of slots {first} ends first")).unwrap_or_default();
            format!("the log goes on{until}{first}")
        }
        (Some(from), Some(since)) => {
            format!(
                "there is a gap before {since}, where the log goes on behind a base at {}:{}",
                from.history, from.offset
            )
        }
        (Some(from), None) => {
            format!(
                "there is a base at {}:{} and no log of it by which moments could be told",
                from.history, from.offset
            )
        }
        (None, _) => "there is no base of them as they were seen last".to_owned(),
    };
    let at = at.map(|at| at.to_string()).unwrap_or_default();
    format!("{at} is the last moment that all shards can be restored to together: of slots {slots}, {why}")
}

/// A moment as the user typed it.
pub(crate) fn parse_moment(text: &str) -> Result<Timestamp> {
    text.parse().map_err(|error| {
        Error::new(ErrorKind::Usage, format!("`{text}` is no moment: {error}"))
            .hint("give date, time and offset, as in 2026-11-25T12:00:00Z or 2026-11-25T13:00:00.250+01:00")
    })
}

fn parse_place(text: &str) -> Result<Place> {
    let refuse = || {
        Error::new(ErrorKind::Usage, format!("`{text}` is no place in the log"))
            .hint("give a replication id and an offset, as `slotkeep log` and `slotkeep list --history` show them: ID:12345")
    };
    let (history, offset) = text.split_once(':').ok_or_else(refuse)?;
    let history = history.parse().map_err(|_| refuse())?;
    Ok(Place { history, offset: offset.parse().map_err(|_| refuse())? })
}

/// The way to a point, as a table.
pub(crate) fn render(recovery: &Recovery<'_>) -> String {
    let mut text = String::new();
    for found in recovery.undone.iter().flat_map(|accident| &accident.matches) {
        text.push_str(&format!(
            "Before `{}`, at offset {} of slots {}, written {}\n",
            found.command,
            found.offset,
            found.slots,
            span(found.written.as_ref())
        ));
    }
    let mut rows =
        table(&["slots", "base", "offset>", "log>", "cut>", "last byte written", "may be missing>"]);
    for shard in recovery.shards {
        rows.add_row([
            shard.slots.to_string(),
            shard.backup.clone(),
            shard.base.offset.to_string(),
            bytes(shard.log_bytes),
            shard.cut.offset.to_string(),
            span(shard.written.as_ref()),
            lack(shard.may_lack_ms),
        ]);
    }
    text.push_str(&table_text(&rows));
    text
}

/// What may be missing before the moment.
fn lack(may_lack_ms: Option<u64>) -> String {
    match may_lack_ms {
        None => "-".to_owned(),
        Some(0) => "nothing".to_owned(),
        Some(ms) => format!("the last {ms} ms"),
    }
}

/// A span of time for people.
pub(crate) fn span(span: Option<&Span>) -> String {
    let moment = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
    match span.map(|span| (span.from, span.until)) {
        None | Some((None, None)) => "at a time that is not known".to_owned(),
        Some((Some(from), None)) => format!("after {}", moment(from)),
        Some((None, Some(until))) => format!("before {}", moment(until)),
        Some((Some(from), Some(until))) => {
            let width = until.duration_since(from).as_millis();
            format!("{} −{width} ms", moment(until))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_over_is_said_with_its_reason() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let slots = |text: &str| text.parse().unwrap();
        let place = |offset| Some(Place { history: "a".repeat(40).parse().unwrap(), offset });
        let passed = PassedOver {
            slots: slots("0-99"),
            from: place(7),
            to: place(90),
            since: Some(at(10)),
            until: Some(at(900)),
            held_back_by: Some(slots("100-16383")),
        };
        let words = words_of(&passed, Some(at(60)));
        assert!(
            words.ends_with("of slots 0-99, the log goes on to 1970-01-01T00:15:00Z, and that of slots 100-16383 ends first"),
            "{words}"
        );
        let behind_a_gap = PassedOver { held_back_by: None, ..passed.clone() };
        let words = words_of(&behind_a_gap, Some(at(9)));
        assert!(words.contains("there is a gap before 1970-01-01T00:00:10Z"), "{words}");
    }

    #[test]
    fn moments_need_an_offset() {
        assert!(parse_moment("2026-11-25T12:00:00Z").is_ok());
        assert!(parse_moment("2026-11-25T12:00:00+01:00").is_ok());
        assert!(parse_moment("2026-11-25T12:00:00").is_err());
        assert!(parse_moment("yesterday").is_err());
    }

    #[test]
    fn places_are_histories_with_offsets() {
        let id = "a".repeat(40);
        assert_eq!(parse_place(&format!("{id}:7")).unwrap().offset, 7);
        for text in ["7", &id, &format!("{id}:x"), "short:7"] {
            assert!(parse_place(text).is_err(), "{text}");
        }
    }
}
