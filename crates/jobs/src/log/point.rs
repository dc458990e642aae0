//! From what the user means to one place for each shard, and what leads there.
//!
//! Invariants: a point has exactly the shards that the cluster had at its moment; each cut is the end of a command outside
//! transactions; every byte between base and cut is there. For a moment, nothing that was written after it is restored.

mod cluster;
mod doubt;
mod idle;
mod latest;
mod moment;
mod offsets;
pub mod shards;
mod unseen;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_format::{Manifest, ShardState};
use slotkeep_model::{Product, ServerVersion, SlotSet};

use super::chain::{Path, Piece, Place, Unreachable, as_text};
use super::files::line_at;
use super::past::Past;
use super::read::bytes_of;
use super::times::{Times, Written};
use crate::{Error, ErrorKind, Result};
pub(super) use cluster::View;
use doubt::check_settled;
pub(super) use doubt::{settled_within, unsettled_by};
use idle::is_idle;
pub use latest::PassedOver;
use latest::at_latest;
use moment::{Cut, End, Planned, cut_by, order_moves};
use unseen::check_unmoved;

/// Slots that changed hands may have done so this long before it was seen, in ms, where it is not recorded until when they had not.
const SEEN_LATE_MS: i64 = 15_000;
/// How far this machine's clock, by which topologies are dated, may be ahead of the servers', in ms.
const CLOCKS_APART_MS: i64 = 2_000;

/// What a cluster is to be brought back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The end of a backup.
    Backup(Box<Manifest>),
    /// A moment by the servers' clocks.
    Moment(Timestamp),
    /// The last moment that can be reached; where all log is that of append-only files, the end of the newest backup.
    Latest,
    /// These places; shards that none belongs to, the moment when the last of these bytes was written.
    Places(Vec<Place>),
    /// Just before these places are passed, which begin something that is to be undone; the other shards, that moment.
    Before {
        /// The last places before it.
        places: Vec<Place>,
        /// When it began, in ms since 1970.
        moment_ms: i64,
    },
}

/// One place for each shard.
#[derive(Debug, Serialize)]
pub struct Point {
    /// The cluster as it was at that point. Its backup is the newest one that a base is from; if all bases are in none yet, it has the newest id that
    /// one was taken under.
    #[serde(skip)]
    pub manifest: Manifest,
    /// The moment, by the servers' clocks, if there is one.
    pub at: Option<Timestamp>,
    /// The shards, in the order of the manifest's.
    pub shards: Vec<ShardPoint>,
    /// What is kept of shards behind that moment, where it is the last one that all can be brought back to together.
    pub passed_over: Vec<PassedOver>,
}

/// Where one shard is to be brought back to.
#[derive(Clone, Debug, Serialize)]
pub struct ShardPoint {
    /// Its slots.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// Slots that were being moved to it.
    #[serde(serialize_with = "as_text", skip_serializing_if = "SlotSet::is_empty")]
    pub importing: SlotSet,
    /// Slots that were being moved away from it.
    #[serde(serialize_with = "as_text", skip_serializing_if = "SlotSet::is_empty")]
    pub migrating: SlotSet,
    /// Those of them of which keys may be missing: they were being moved to a node that nobody followed, as it served no slot yet.
    #[serde(serialize_with = "as_text", skip_serializing_if = "SlotSet::is_empty")]
    pub unfollowed: SlotSet,
    /// The backup that its base is from; of a base that is in no backup yet, the id that it was taken under.
    pub backup: String,
    /// What the base holds.
    pub base: Place,
    /// The bytes of the log to apply to the base, in order.
    pub log: Vec<Piece>,
    /// How many bytes of the log that is.
    pub log_bytes: u64,
    /// The last byte that is applied.
    pub cut: Place,
    /// When the last byte was written, as far as the server's clock was asked.
    pub written: Option<Span>,
    /// Writes of this long before the moment may be missing, in ms: the time for which it is not known what was written. 0 if nothing
    /// is missing; absent where no moment is aimed at, or if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub may_lack_ms: Option<u64>,
    /// The newest server that wrote any of it.
    #[serde(skip)]
    pub server: Option<ServerVersion>,
}

/// A span of time, by a server's clock; an end that is not known is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// Not before this.
    pub from: Option<Timestamp>,
    /// Not after this.
    pub until: Option<Timestamp>,
}

impl Span {
    pub(super) fn of(written: Written) -> Option<Self> {
        let moment = |ms: Option<i64>| ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let span = Self { from: moment(written.from_ms), until: moment(written.until_ms) };
        (span.from.is_some() || span.until.is_some()).then_some(span)
    }
}

impl Point {
    /// The end of a backup that has no log behind its bases; `None` if it has.
    pub fn of_bases(manifest: &Manifest) -> Option<Self> {
        let shards = manifest.shards.iter().map(|record| {
            let base = Place { history: record.history.clone(), offset: record.offset };
            let cut = record.cut();
            let cut = Place { history: cut.history, offset: cut.offset };
            (base == cut).then(|| ShardPoint {
                slots: record.slots.clone(),
                importing: SlotSet::default(),
                migrating: SlotSet::default(),
                unfollowed: SlotSet::default(),
                backup: manifest.id.clone(),
                base,
                log: vec![],
                log_bytes: 0,
                cut,
                written: None,
                may_lack_ms: None,
                server: record.server.version(),
            })
        });
        let shards = shards.collect::<Option<_>>()?;
        Some(Self { manifest: manifest.clone(), at: None, shards, passed_over: vec![] })
    }

    /// Whether the log is one of servers that pass on for how long keys shall live, not until when.
    pub fn has_relative_times(&self) -> bool {
        let old = |server: ServerVersion| server.product == Product::Redis && server.major < 7;
        self.shards.iter().any(|shard| shard.log_bytes > 0 && shard.server.is_some_and(old))
    }

    /// How many bytes of the log are to be applied.
    pub fn log_bytes(&self) -> u64 {
        self.shards.iter().fold(0, |sum, shard| sum.saturating_add(shard.log_bytes))
    }

    /// Slots of which keys may be missing, for nobody followed the node that they were on their way to.
    pub fn unfollowed(&self) -> SlotSet {
        self.shards.iter().flat_map(|shard| shard.unfollowed.ranges()).copied().collect()
    }

    /// Whether any log is to be applied.
    pub fn has_log(&self) -> bool {
        self.shards.iter().any(|shard| shard.log_bytes > 0)
    }
}

/// Finds the way to what the user means.
pub async fn resolve(past: &Past, aim: &Aim) -> Result<Point> {
    match aim {
        Aim::Backup(manifest) => of_backup(past, manifest).await,
        Aim::Moment(at) => {
            past.expect_log()?;
            at_moment(past, at.as_millisecond(), &[], End::Known).await
        }
        Aim::Latest => {
            if let Some(why) = &past.newest_spoiled {
                return Err(Error::new(ErrorKind::Untrusted, why.clone()).hint(
                    "name a moment (--at TIME) or a backup (--backup ID); `slotkeep verify` says what is wrong, `slotkeep repair` mends what can be",
                ));
            }
            past.expect_log()?;
            match past.newest_of_files() {
                // The moment of the first shard's end would cost the others what they have behind it.
                Some(manifest) => of_backup(past, manifest).await,
                None => at_latest(past).await,
            }
        }
        Aim::Places(places) => {
            // Bases are places, too: of a cluster that was idle there may be no byte of log.
            if !places.iter().all(|place| offsets::base_at(past, place).is_some()) {
                past.expect_log()?;
            }
            let moment_ms = offsets::moment_of(past, places).await?;
            at_moment(past, moment_ms, places, End::MayBeEarlier).await
        }
        Aim::Before { places, moment_ms } => at_moment(past, *moment_ms, places, End::MayBeEarlier).await,
    }
}

/// The end of a backup: each shard's base, and the log up to its cut.
async fn of_backup(past: &Past, manifest: &Manifest) -> Result<Point> {
    let mut shards = Vec::new();
    for record in &manifest.shards {
        let cut = record.cut();
        let cut = Place { history: cut.history, offset: cut.offset };
        let path = past.chain.path(&cut.history);
        let base = Place { history: record.history.clone(), offset: record.offset };
        if !path.holds(&base) {
            past.expect_way_to(&path).map_err(|error| {
                let slots = &record.slots;
                error.context(format!(
                    "what leads from the base of slots {slots} to the end of backup {} can't be told",
                    manifest.id
                ))
            })?;
            let what = format!(
                "the cut of slots {} (history {}) does not follow their base (history {})",
                record.slots, cut.history, base.history
            );
            return Err(Error::new(ErrorKind::Gap, what).hint("restore another backup (`slotkeep list`)"));
        }
        let log = path.pieces(record.offset, cut.offset);
        if let Some(gap) = past.chain.first_gap(&log) {
            let what = format!(
                "backup {} lacks the log of slots {}: the bytes {} of history {}",
                manifest.id,
                record.slots,
                bytes_of(&gap.range),
                gap.history
            );
            return Err(Error::new(ErrorKind::Gap, what).hint("restore another backup (`slotkeep list`)"));
        }
        let written = Times::on(past, &path).written(cut.offset).await?;
        let log = if is_idle(past, &log).await? { vec![] } else { log };
        shards.push(ShardPoint {
            slots: record.slots.clone(),
            importing: SlotSet::default(),
            migrating: SlotSet::default(),
            unfollowed: SlotSet::default(),
            backup: manifest.id.clone(),
            base,
            server: newest_server(past, &log).await?.max(record.server.version()),
            log_bytes: log.iter().map(Piece::bytes).sum(),
            log,
            cut,
            written: Span::of(written),
            may_lack_ms: None,
        });
    }
    let at = manifest.cut.as_ref().map(|cut| cut.at);
    Ok(Point { manifest: manifest.clone(), at, shards, passed_over: vec![] })
}

/// The cluster at a moment; shards that one of `places` belongs to, at that place.
async fn at_moment(past: &Past, moment_ms: i64, places: &[Place], end: End) -> Result<Point> {
    let at = Timestamp::from_millisecond(moment_ms)
        .map_err(|error| Error::new(ErrorKind::Usage, format!("there is no such moment: {error}")))?;
    let view = View::at(past, at)?;
    check_settled(&past.topologies, &past.unread_looks, moment_ms)?;
    let mut used = BTreeSet::new();
    let mut planned = Vec::new();
    for state in &view.shards {
        let history = line_at(past, View::history_of(past, state)?, moment_ms).await?;
        let own = places.iter().enumerate().find(|(_, place)| belongs(past, place, &history));
        used.extend(own.map(|(number, _)| number));
        let (path, cut) = match own {
            Some((_, place)) => {
                let path = path_through(past, place, &history);
                offsets::check_cut(past, &path, place.offset).await?;
                (path, Cut { offset: place.offset, may_lack_ms: None, from_ms: None })
            }
            None => {
                past.expect_main_line(&history, &state.slots)?;
                let path = past.chain.path(&past.chain.main_tip(&history));
                let cut = cut_by(past, &path, (moment_ms, end), &state.slots).await?;
                (path, cut)
            }
        };
        planned.push(Planned { state, path, cut, fixed: own.is_some() });
    }
    order_moves(past, &mut planned, (moment_ms, end)).await?;
    check_unmoved(past, moment_ms, &planned).await?;
    let mut shards = Vec::new();
    for shard in &planned {
        let (point, number) = shard_point(past, &shard.state.slots, &shard.path, &shard.cut).await?;
        let ShardState { importing, migrating, unfollowed, .. } = shard.state.clone();
        shards.push((ShardPoint { importing, migrating, unfollowed, ..point }, number));
    }
    if let Some((_, place)) = places.iter().enumerate().find(|(number, _)| !used.contains(number)) {
        past.expect_origins().map_err(|error| {
            error.context(format!("which shard history {} belongs to at {at} can't be told", place.history))
        })?;
        let what = format!("history {} belongs to no shard of the cluster as it was at {at}", place.history);
        return Err(Error::new(ErrorKind::Usage, what)
            .hint("`slotkeep list --history` shows the histories; name each shard at most once"));
    }
    let manifest = view.manifest(past, at, &shards)?;
    let shards = shards.into_iter().map(|(point, _)| point).collect();
    Ok(Point { manifest, at: Some(at), shards, passed_over: vec![] })
}

/// Whether a place belongs to the shard that follows that history: on its main line or on a tail of it.
fn belongs(past: &Past, place: &Place, history: &slotkeep_model::ReplId) -> bool {
    let main = past.chain.path(&past.chain.main_tip(history));
    let own = past.chain.path(&place.history);
    let shared =
        |path: &Path, id: &slotkeep_model::ReplId| path.stretches().iter().any(|part| part.history == *id);
    shared(&main, &place.history) || shared(&own, history)
}

/// The main line if the place is on it, else the path to that place's own history.
fn path_through(past: &Past, place: &Place, history: &slotkeep_model::ReplId) -> Path {
    let main = past.chain.path(&past.chain.main_tip(history));
    if main.holds(place) { main } else { past.chain.path(&place.history) }
}

/// The way to a place at which a shard was found, and the number of the base that it begins from. Fails with [`ErrorKind::Gap`] if the log
/// does not lead there.
pub(crate) async fn way_to(past: &Past, slots: &SlotSet, place: &Place) -> Result<(ShardPoint, usize)> {
    let cut = Cut { offset: place.offset, may_lack_ms: None, from_ms: None };
    shard_point(past, slots, &past.chain.path(&place.history), &cut).await
}

async fn shard_point(past: &Past, slots: &SlotSet, path: &Path, cut: &Cut) -> Result<(ShardPoint, usize)> {
    let (base, log) = past
        .chain
        .route(path, cut.offset)
        .map_err(|missing| no_route(past, (slots, path, cut.offset), &missing))?;
    let number = base.number;
    let (manifest, record) = past
        .base(number)
        .ok_or_else(|| Error::new(ErrorKind::Failed, "a base of the log belongs to no backup"))?;
    let place = path.place(cut.offset).unwrap_or_else(|| base.place.clone());
    let log = if is_idle(past, &log).await? { vec![] } else { log };
    let written = Times::on(past, path).written(cut.offset).await?;
    let point = ShardPoint {
        slots: slots.clone(),
        importing: SlotSet::default(),
        migrating: SlotSet::default(),
        unfollowed: SlotSet::default(),
        backup: manifest.id.clone(),
        base: base.place.clone(),
        server: newest_server(past, &log).await?.max(record.server.version()),
        log_bytes: log.iter().map(Piece::bytes).sum(),
        log,
        cut: place,
        written: Span::of(written),
        may_lack_ms: cut.may_lack_ms,
    };
    Ok((point, number))
}

fn no_route(past: &Past, (slots, path, offset): (&SlotSet, &Path, u64), missing: &Unreachable) -> Error {
    // Behind a base of its own nothing needs the record.
    if missing.gap.is_none()
        && let Err(error) = past.expect_way_to(path)
    {
        return error.context(format!("what leads slots {slots} to offset {offset} can't be told"));
    }
    let place = |place: &Option<Place>| {
        place
            .as_ref()
            .map_or_else(|| "none".to_owned(), |place| format!("{}:{}", place.history, place.offset))
    };
    let why = match &missing.gap {
        Some(gap) => format!("the log of history {} lacks the bytes {}", gap.history, bytes_of(&gap.range)),
        None => format!("there is no base before it{}", past.why_not()),
    };
    Error::new(ErrorKind::Gap, format!("slots {slots} can't be restored to offset {offset}: {why}")).hint(
        format!(
            "the nearest places that can be reached: before it {}, after it {}",
            place(&missing.before),
            place(&missing.after)
        ),
    )
}

/// The newest server that wrote any of the log, by the records of its first and last segments of each history.
async fn newest_server(past: &Past, log: &[Piece]) -> Result<Option<ServerVersion>> {
    let mut newest = None;
    for piece in log {
        let segments = past.segments_for(piece);
        for (entry, _) in segments.first().into_iter().chain(segments.last()) {
            newest = newest.max(past.record(entry).await?.server.version());
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests;
