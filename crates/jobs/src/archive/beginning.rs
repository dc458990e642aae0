//! What a line begins with: what the repository holds, and what an earlier run left in the spool.
//!
//! Invariants: nothing is complete before the repository holds it; the stream is asked for behind what the spool holds.

use std::sync::Arc;

use slotkeep_model::Shard;

use super::decide::Position;
use super::held::Lead;
use super::leftovers::Leftover;
use super::line::{LineState, Shared};
use super::status::NoticeKind;

/// What a line begins with.
pub(crate) struct Beginning {
    /// Where the repository's log leads.
    pub(crate) lead: Lead,
    /// Files of an earlier run that hold what comes next, in order.
    pub(crate) waiting: Vec<Leftover>,
}

impl From<Lead> for Beginning {
    fn from(lead: Lead) -> Self {
        Self { lead, waiting: Vec::new() }
    }
}

impl Beginning {
    /// How a line stands that begins so, and up to where its stream is held. That it is broken is announced.
    pub(super) fn stand(&self, job: &Shared, shard: &Shard) -> (LineState, Option<Position>) {
        let mut state = LineState::default();
        let (held, base) = match &self.lead {
            Lead::Here(held) => held,
            Lead::Nowhere => return (state, None),
            Lead::Broken(why) => {
                let words = format!(
                    "{why}; the log can't be continued behind it: a gap, and a new base begins; `slotkeep repair` says what can be made whole again"
                );
                job.board.pin(NoticeKind::Gap, Some(&shard.slots), words);
                state.gaps = 1;
                return (state, None);
            }
        };
        for file in &self.waiting {
            if let Some(parent) = &file.parent {
                state.lineage.add(&file.history, parent);
            }
        }
        let reached = self.waiting.last().map_or_else(|| held.clone(), Leftover::reached);
        state.complete = Some((held.history.clone(), held.offset));
        state.durable = reached.offset;
        state.received = reached.offset;
        state.history = Some(reached.history.clone());
        state.base = Some(Arc::clone(base));
        (state, Some(reached))
    }
}
