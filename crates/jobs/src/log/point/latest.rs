//! The last moment that all shards can be brought back to, and what is kept behind it.

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_format::{ShardState, TimeSample};
use slotkeep_model::SlotSet;

use super::moment::{End, SEALED_LATE_MS};
use super::{Past, Path, Point, Times, View, at_moment};
use crate::log::chain::{Place, Window, as_text};
use crate::log::windows::restorable;
use crate::{Error, ErrorKind, Result};

/// What is kept of a shard behind the last moment that all can be brought back to together, and is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PassedOver {
    /// The shard's slots, as they were seen last.
    #[serde(serialize_with = "as_text")]
    pub slots: SlotSet,
    /// The base that it begins with; absent if nothing is kept of the shard as it was seen last.
    pub from: Option<Place>,
    /// The last place that the log behind that base leads to.
    pub to: Option<Place>,
    /// The first moment that can be reached there; absent if none can: there is a base and as good as no log behind it. Not behind the last moment of
    /// all where the log of this shard goes on there without a gap.
    pub since: Option<Timestamp>,
    /// The last moment that can be reached there.
    pub until: Option<Timestamp>,
    /// Where the log goes on without a gap: the slots of the shard whose log ends first, if that is what keeps all from being brought back farther.
    #[serde(serialize_with = "as_optional_text", skip_serializing_if = "Option::is_none")]
    pub held_back_by: Option<SlotSet>,
}

impl PassedOver {
    /// Whether it goes on from that moment without a gap.
    pub fn goes_on_from(&self, moment: Timestamp) -> bool {
        self.since.is_some_and(|since| since <= moment)
    }
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn as_optional_text<S: serde::Serializer>(slots: &Option<SlotSet>, serializer: S) -> Result<S::Ok, S::Error> {
    match slots {
        Some(slots) => as_text(slots, serializer),
        None => serializer.serialize_none(),
    }
}

/// The last moment that `list` offers.
pub(super) async fn at_latest(past: &Past) -> Result<Point> {
    expect_newest(past)?;
    let Some(last) = restorable(past).await?.moments.pop() else {
        // Nothing is: what is in the way of the last moment is what is to be said.
        return at_moment(past, last_of_all(past).await?, &[], End::Known).await;
    };
    let point = at_moment(past, last.to.as_millisecond(), &[], End::Known).await?;
    Ok(Point { passed_over: passed_over(past, last.to.as_millisecond()).await?, ..point })
}

/// Fails if a record that can't be read keeps from being told what there is of a shard as it was seen last: an earlier moment is not the last one then.
fn expect_newest(past: &Past) -> Result<()> {
    for state in View::newest(past)?.shards {
        let Ok(history) = View::history_of(past, &state) else { continue };
        past.expect_main_line(&history, &state.slots)?;
        let path = past.chain.path(&past.chain.main_tip(&history));
        if past.chain.windows(&path).is_empty() {
            past.expect_way_to(&path).map_err(|error| {
                error.context(format!("the last moment of slots {} can't be told", state.slots))
            })?;
        }
    }
    Ok(())
}

/// The last moment that each shard of the newest look can be brought back to by itself, the earliest of these; in ms since 1970.
async fn last_of_all(past: &Past) -> Result<i64> {
    let view = View::newest(past)?;
    let mut latest: Option<i64> = None;
    for state in &view.shards {
        let path = path_of(past, state)?;
        let times = Times::on(past, &path);
        let mut last = None;
        for window in past.chain.windows(&path).iter().rev() {
            last = times.last_within(window.to).await?.filter(|sample| window.holds(sample.offset));
            if last.is_some() {
                break;
            }
        }
        let last = last.ok_or_else(|| {
            Error::new(ErrorKind::Gap, format!("there is no log behind a base for slots {}", state.slots))
                .hint("restore a backup (--backup, `slotkeep list`)")
        })?;
        latest = Some(latest.map_or(last.until_ms, |latest| latest.min(last.until_ms)));
    }
    latest.ok_or_else(|| Error::new(ErrorKind::NotFound, "the cluster has no shard"))
}

fn path_of(past: &Past, state: &ShardState) -> Result<Path> {
    let history = View::history_of(past, state)?;
    Ok(past.chain.path(&past.chain.main_tip(&history)))
}

/// What is kept of the shards of the newest look behind a moment, but for what a shard's log may go on behind that of another because that was sealed
/// earlier.
async fn passed_over(past: &Past, moment_ms: i64) -> Result<Vec<PassedOver>> {
    let moment = |ms: i64| Timestamp::from_millisecond(ms).ok();
    let mut passed = Vec::new();
    // The log that leads through the moment and ends first, and where it ends.
    let mut first_end: Option<(i64, SlotSet)> = None;
    for state in View::newest(past)?.shards {
        let slots = state.slots.clone();
        let none = PassedOver { slots, from: None, to: None, since: None, until: None, held_back_by: None };
        let Ok(path) = path_of(past, &state) else {
            passed.push(none);
            continue;
        };
        let windows = past.chain.windows(&path);
        if windows.is_empty() {
            passed.push(none);
            continue;
        }
        let times = Times::on(past, &path);
        // Bases in front of the moment that have no log behind them are in nobody's way.
        for window in windows.iter().rev() {
            let (first, last) = ends_of(&times, window).await?;
            let leads_through = first.is_some_and(|first| first.until_ms <= moment_ms);
            let end_ms = last.map_or(moment_ms, |last| last.until_ms);
            if leads_through && first_end.as_ref().is_none_or(|(end, _)| end_ms < *end) {
                first_end = Some((end_ms, state.slots.clone()));
            }
            if !leads_through || end_ms.saturating_sub(moment_ms) > SEALED_LATE_MS {
                let place = |offset| past.chain.place_or_base(&path, offset);
                passed.push(PassedOver {
                    from: place(window.from),
                    to: place(window.to),
                    since: first.and_then(|first| moment(first.until_ms)),
                    until: last.and_then(|last| moment(last.until_ms)),
                    ..none.clone()
                });
            }
            if leads_through {
                break;
            }
        }
    }
    let at = moment(moment_ms);
    let first_end = first_end.filter(|(end, _)| *end <= moment_ms).map(|(_, slots)| slots);
    for passed in passed.iter_mut().filter(|passed| at.is_some_and(|at| passed.goes_on_from(at))) {
        passed.held_back_by.clone_from(&first_end);
    }
    Ok(passed)
}

/// The first and the last sample in a window.
async fn ends_of(times: &Times<'_>, window: &Window) -> Result<(Option<TimeSample>, Option<TimeSample>)> {
    let inside = |sample: &TimeSample| window.holds(sample.offset);
    let first = times.first_with(window.from).await?.filter(inside);
    Ok((first, times.last_within(window.to).await?.filter(inside)))
}
