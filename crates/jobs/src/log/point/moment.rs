//! Where each shard's log is to end for a moment.

use jiff::Timestamp;
use slotkeep_format::{ShardState, TimeSample};
use slotkeep_model::SlotSet;

use super::{Past, Path, Times};
use crate::log::chain::Window;
use crate::log::times::Around;
use crate::{Error, ErrorKind, Result};

/// So long before the moment a log may end that need not lead up to it, in ms. An archive seals what a quiet shard says once a minute
/// ([`SealPolicy`](crate::archive::SealPolicy)), so its log may end a minute before that of a busy one; as much again for a store that was slow to take it.
pub(super) const SEALED_LATE_MS: i64 = 120_000;

/// Whether a shard's log must go on up to the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It must: the user asked for that moment.
    Known,
    /// It may end shortly before, as where the log of one shard was sealed just behind what is to be undone.
    MayBeEarlier,
}

impl End {
    /// Whether a log with nothing behind that moment does not lead up to the one that is wanted.
    const fn is_too_early(self, last_ms: i64, moment_ms: i64) -> bool {
        let slack_ms = match self {
            Self::Known => 0,
            Self::MayBeEarlier => SEALED_LATE_MS,
        };
        last_ms < moment_ms.saturating_sub(slack_ms)
    }
}

/// Where a shard's log is to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) offset: u64,
    pub(super) may_lack_ms: Option<u64>,
    /// Everything behind it was written at or after this, in ms since 1970; not known of a place that the user named.
    pub(super) from_ms: Option<i64>,
}

/// The last place of which it is certain that nothing up to it was written after the moment.
pub(super) async fn cut_by(
    past: &Past,
    path: &Path,
    (moment_ms, end): (i64, End),
    slots: &SlotSet,
) -> Result<Cut> {
    let times = Times::on(past, path);
    let Around { before, after } = times.around(moment_ms).await?;
    let windows = past.chain.windows(path);
    let window = before.and_then(|before| windows.iter().find(|window| window.holds(before.offset)));
    let Some((before, window)) = before.zip(window) else {
        return match ends_at(&windows, &times, moment_ms).await? {
            Some(end) => Ok(Cut::at(end, moment_ms, false)),
            None => Err(not_reached((past, path), &windows, &times, moment_ms, slots).await),
        };
    };
    // What was certainly later, and that nothing is missing up to it.
    let next = after.filter(|after| window.holds(after.offset));
    // A log that stops may stop earlier; one that goes on behind a gap lacks writes of which it is known that there were some.
    let may_be_earlier = after.is_none() && !end.is_too_early(before.until_ms, moment_ms);
    if next.is_none() && before.until_ms < moment_ms && !may_be_earlier {
        return Err(not_reached((past, path), &windows, &times, moment_ms, slots).await);
    }
    Ok(Cut::at(before, moment_ms, next.is_some_and(|next| next.offset == before.offset)))
}

/// The last sample of a window that ends exactly at the moment: what goes on behind the gap may have been written in the same millisecond.
async fn ends_at(windows: &[Window], times: &Times<'_>, moment_ms: i64) -> Result<Option<TimeSample>> {
    for window in windows {
        let last = times.last_within(window.to).await?.filter(|last| window.holds(last.offset));
        if let Some(last) = last.filter(|last| last.until_ms == moment_ms) {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

impl Cut {
    /// At that sample, which was taken by the moment; `idle` if nothing was written until after it.
    fn at(sample: TimeSample, moment_ms: i64, idle: bool) -> Self {
        let lack = moment_ms.saturating_sub(sample.from_ms);
        let may_lack_ms = if idle { 0 } else { u64::try_from(lack).unwrap_or(0) };
        Self { offset: sample.offset, may_lack_ms: Some(may_lack_ms), from_ms: Some(sample.from_ms) }
    }
}

/// A shard whose cut is chosen.
pub(super) struct Planned<'a> {
    pub(super) state: &'a ShardState,
    pub(super) path: Path,
    pub(super) cut: Cut,
    /// Whether the user named the cut.
    pub(super) fixed: bool,
}

/// Cuts shards that slots are leaving before those that they go to. A key on its way is written there before it is deleted here, so
/// it is then in one place or in both, and never in none.
pub(super) async fn order_moves(
    past: &Past,
    planned: &mut [Planned<'_>],
    (moment_ms, end): (i64, End),
) -> Result<()> {
    // A shard that gives slots away may be given others: its own new cut counts for those.
    for _ in 0..planned.len() {
        let mut settled = true;
        for number in 0..planned.len() {
            let Some(shard) = planned.get(number) else { continue };
            let receives =
                |other: &&Planned<'_>| !other.state.importing.intersection(&shard.state.migrating).is_empty();
            let limit = planned.iter().filter(receives).filter_map(|other| other.cut.from_ms).min();
            let Some(limit) = limit.filter(|_| !shard.fixed && !shard.state.migrating.is_empty()) else {
                continue;
            };
            let times = Times::on(past, &shard.path);
            let early = cut_by(past, &shard.path, (limit, end), &shard.state.slots).await?;
            if early.offset >= shard.cut.offset {
                continue;
            }
            settled = false;
            let next = times.first_with(early.offset.saturating_add(1)).await?;
            let all_later = next.is_some_and(|next| next.from_ms > moment_ms);
            let lack = early.from_ms.and_then(|from| u64::try_from(moment_ms.saturating_sub(from)).ok());
            if let Some(shard) = planned.get_mut(number) {
                shard.cut = Cut { may_lack_ms: if all_later { Some(0) } else { lack }, ..early };
            }
        }
        if settled {
            break;
        }
    }
    Ok(())
}

/// Why a moment can't be reached, and which ones can.
async fn not_reached(
    (past, path): (&Past, &Path),
    windows: &[Window],
    times: &Times<'_>,
    moment_ms: i64,
    slots: &SlotSet,
) -> Error {
    let (mut before, mut after) = (None, None);
    for window in windows {
        let span = async {
            Ok::<_, Error>((times.first_with(window.from).await?, times.last_within(window.to).await?))
        };
        let (first, last) = match span.await {
            Ok(span) => span,
            Err(error) => return error,
        };
        // A window without a sample of its own can't be reached by time.
        let inside = |sample: &TimeSample| window.holds(sample.offset);
        let (Some(first), Some(last)) = (first.filter(inside), last.filter(inside)) else { continue };
        if last.until_ms <= moment_ms {
            before = Some(last.until_ms);
        } else if after.is_none() && first.until_ms > moment_ms {
            after = Some(first.until_ms);
        }
    }
    let text = |ms: i64| Timestamp::from_millisecond(ms).map(|at| at.to_string()).unwrap_or_default();
    let moment = text(moment_ms);
    if before.is_none()
        && let Err(error) = past.expect_way_to(path)
    {
        return error.context(format!("what leads slots {slots} to {moment} can't be told"));
    }
    let (what, hint) = match (before, after) {
        (Some(before), Some(after)) => (
            format!(
                "slots {slots} can't be restored to {moment}: their log has a gap from {} to {}",
                text(before),
                text(after)
            ),
            format!("the nearest moments for them are {} and {}", text(before), text(after)),
        ),
        (Some(before), None) => (
            format!("slots {slots} can't be restored to {moment}: their log ends at {}", text(before)),
            format!(
                "the last moment for them is {}; `--at latest` is the last one for all shards",
                text(before)
            ),
        ),
        (None, Some(after)) => (
            format!("slots {slots} can't be restored to {moment}: their log begins at {}", text(after)),
            format!("the first moment for them is {}", text(after)),
        ),
        (None, None) => (
            format!("slots {slots} can't be restored to {moment}: there is no base with a log behind it"),
            "`slotkeep list` shows which backups and which moments can be restored".to_owned(),
        ),
    };
    Error::new(ErrorKind::Gap, what).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_need_not_lead_up_to_the_moment_ends_shortly_before_it() {
        let hour_ms = 3_600_000;
        assert!(!End::Known.is_too_early(hour_ms, hour_ms) && End::Known.is_too_early(hour_ms - 1, hour_ms));
        assert!(!End::MayBeEarlier.is_too_early(hour_ms - SEALED_LATE_MS, hour_ms));
        assert!(End::MayBeEarlier.is_too_early(hour_ms - SEALED_LATE_MS - 1, hour_ms));
        assert!(!End::MayBeEarlier.is_too_early(hour_ms + 1, hour_ms));
    }
}
