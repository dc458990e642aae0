//! The last moment that all shards can be brought back to, and what is kept behind it.

use jiff::Timestamp;
use serde::Serialize;
use slotkeep_format::{ShardState, TimeSample};
use slotkeep_model::SlotSet;

use super::moment::End;
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
    /// The first moment that can be reached there; absent if none can: there is a base and as good as no log behind it.
    pub since: Option<Timestamp>,
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

/// What is kept of the shards of the newest look that begins behind a moment.
async fn passed_over(past: &Past, moment_ms: i64) -> Result<Vec<PassedOver>> {
    let mut passed = Vec::new();
    for state in View::newest(past)?.shards {
        let none = PassedOver { slots: state.slots.clone(), from: None, to: None, since: None };
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
            let first = first_in(&times, window).await?;
            if first.is_some_and(|first| first.until_ms <= moment_ms) {
                break;
            }
            let since = first.and_then(|first| Timestamp::from_millisecond(first.until_ms).ok());
            let place = |offset| past.chain.place_or_base(&path, offset);
            passed.push(PassedOver { from: place(window.from), to: place(window.to), since, ..none.clone() });
        }
    }
    Ok(passed)
}

async fn first_in(times: &Times<'_>, window: &Window) -> Result<Option<TimeSample>> {
    Ok(times.first_with(window.from).await?.filter(|first| window.holds(first.offset)))
}
