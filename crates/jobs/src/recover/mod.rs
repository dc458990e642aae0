//! The worst day: a damaged cluster, looked at from every node that can still be reached and from the repository, and for each shard the
//! way that loses least.
//!
//! [`survey()`] asks and changes nothing; [`judge()`] is pure: from what was found to a [`Plan`]; [`apply::Recovery`] puts both together and does
//! what the plan says.
//!
//! Invariants: a node that answers and calls slots its own keeps them; slots that two reachable nodes call their own are left alone until a
//! person has chosen; every step looks again whether what it is based on still holds, and nothing is done after the first that does not;
//! what is done is seen as done by the next run; a node that neither the cluster's nodes nor the repository know is used if
//! it is empty, emptied if a run left it so that was broken off and the user has named it, and else never touched.

mod archive;
mod claims;
mod facts;
mod judge;
mod left;
mod losses;
mod moves;
mod place;
mod plan;
mod spares;
mod steps;
mod survey;

pub mod apply;

pub use apply::{Done, EndDisplay, FilledNode, Filling, Making, Memory, Outcome, Recovery, Stopped, Watch};
pub use archive::{Estimate, Held};
pub use facts::{Answer, EmptyNode, LeftNode, Recorded, SeenNode, SpareState, Survey, Word};
pub use judge::{ApplyTail, Wishes, judge};
pub use plan::{
    Condition, Emptied, How, Loss, NodeRow, Plan, Prefer, Remedy, ReplicaRow, ShardPlan, Step, StepKind,
    Verdict,
};
pub use survey::survey;

#[cfg(test)]
mod tests;
