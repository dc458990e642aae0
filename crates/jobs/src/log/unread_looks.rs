//! Records of how the cluster looked that can't be read, and which moments can't be told because of them.
//!
//! Invariants: a record that can't be read is never taken for one that was not written. From the last look before it to the first one behind
//! it nobody knows which shard served what, and no moment there is restored to; every other moment is as sure as with it.

use jiff::Timestamp;

use super::origins::unread;
use super::past::Past;
use super::point::unsettled_by;
use crate::{Error, Result};

/// What to do about a record that is damaged.
const IF_DAMAGED: &str = "moments before and behind it can be restored, and every backup; an agent that runs writes down soon how the cluster looks now";

/// A record that can't be read.
pub struct UnreadTopology {
    /// The record.
    pub object: String,
    /// Why it can't be read.
    pub reason: String,
    /// The moments that can't be told lie behind this one; absent where nothing before tells.
    pub from: Option<Timestamp>,
    /// And before this one; absent where nothing behind tells.
    pub to: Option<Timestamp>,
    /// The failure, with what to do next.
    pub error: Error,
}

impl UnreadTopology {
    /// What is wrong, and what it costs, in words.
    pub fn words(&self) -> String {
        let when = match (self.from, self.to) {
            (Some(from), Some(to)) => format!("between {from} and {to}"),
            (Some(from), None) => format!("after {from}"),
            (None, Some(to)) => format!("before {to}"),
            (None, None) => "at any moment".to_owned(),
        };
        format!("{}: how the cluster looked {when} can't be told", self.error)
    }
}

impl Past {
    /// The records that can't be read.
    pub fn unread_topologies(&self) -> impl Iterator<Item = UnreadTopology> {
        self.unread_looks.iter().map(|look| {
            let (from, to) = unsettled_by(look, &self.topologies);
            let reason = look.error.problem.to_string();
            UnreadTopology {
                object: look.object.clone(),
                reason,
                from,
                to,
                error: unread(&look.error, IF_DAMAGED),
            }
        })
    }

    /// Fails if how the cluster looked last can't be read.
    pub fn expect_newest_look(&self) -> Result<()> {
        let newest = self.topologies.last().map_or(Timestamp::MIN, |seen| seen.seen_at);
        let newer = self.unread_looks.iter().find(|look| look.until >= newest);
        newer.map_or(Ok(()), |look| Err(unread(&look.error, IF_DAMAGED)))
    }
}
