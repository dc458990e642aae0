//! Doing what a plan says, a step at a time.
//!
//! Invariant: before each step everything is looked at again, and the step is done only if the same judgement still asks for it; what has
//! come about by itself meanwhile is passed over. After the first step that is not as expected nothing more is done.

mod empty;
mod fence;
mod fill;
mod join;
mod moves;
mod promote;
mod replicas;
mod restore;
mod tail;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use slotkeep_model::{NodeAddr, NodeId, SlotSet};
use slotkeep_repo::Repository;

use super::archive::held;
use super::facts::{Recorded, SpareState, Survey};
use super::judge::{ApplyTail, Wishes, judge};
use super::plan::{Plan, Remedy, ShardPlan, Step, StepKind};
use super::survey::survey;
use crate::engine::EngineOptions;
use crate::log::Past;
use crate::log::point::shards::{former_nodes, newest_shards};
use crate::progress::ShardProgress;
use crate::restore::files::{StartedNode, TlsFiles, UsersPolicy};
use crate::{Context, Error, ErrorKind, Result};

/// The cluster, the repository, and what the user wants.
pub struct Recovery {
    /// Clock, randomness, and the way to the nodes.
    pub context: Context,
    /// Where to begin to look.
    pub seeds: Vec<NodeAddr>,
    /// Addresses for new nodes.
    pub spares: Vec<NodeAddr>,
    /// What the repository holds; none without one.
    pub past: Option<Arc<Past>>,
    /// What the user wants.
    pub wishes: Wishes,
    /// How new nodes are made; none if there are to be none.
    pub making: Option<Making>,
    /// How empty nodes that run are filled; none without a repository.
    pub filling: Option<Filling>,
    /// What it keeps in mind: at first nothing.
    pub memory: Memory,
}

/// What a recovery keeps in mind from step to step, and the cluster does not tell.
#[derive(Debug, Default)]
pub struct Memory {
    admitted: Mutex<BTreeSet<NodeId>>,
    applied: Mutex<BTreeSet<NodeId>>,
}

impl Memory {
    /// Counts nodes as the cluster's.
    fn admit(&self, ids: impl IntoIterator<Item = NodeId>) {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    fn admitted(&self) -> BTreeSet<NodeId> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing more is to be applied to that primary.
    fn applied(&self, id: NodeId) {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    fn is_applied(&self, id: &NodeId) -> bool {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }
}

/// How empty nodes that run are filled.
pub struct Filling {
    /// Where the data is.
    pub repository: Repository,
    /// Where datasets are kept while logs are applied to them.
    pub spool: PathBuf,
    /// What applies the logs.
    pub engine: EngineOptions,
}

/// How new nodes are made.
pub struct Making {
    /// Where the data is.
    pub repository: Repository,
    /// The folder for the nodes' folders; it must not exist, or be empty.
    pub folder: PathBuf,
    /// The server that they run; the best one on the `PATH` if not given.
    pub server: Option<PathBuf>,
    /// Users and passwords.
    pub users: UsersPolicy,
    /// Files by which they speak TLS, if the cluster does.
    pub tls: Option<TlsFiles>,
}

/// Ends the display of something that is over.
pub type EndDisplay = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Who watches a recovery.
pub trait Watch: Send + Sync {
    /// Something is being done or awaited.
    fn note(&self, text: &str);
    /// Data is written: rows with how many bytes each is going to have. What is given back ends the display.
    fn begin(&self, rows: &[(Arc<ShardProgress>, u64)]) -> EndDisplay;
}

/// What a recovery came to.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The steps that were done or passed over, in order.
    pub done: Vec<Done>,
    /// The step at which it stopped, and why; absent if all were done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// What the user should know of the new nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The new nodes that run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub started: Vec<StartedNode>,
    /// The nodes that ran and were filled.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filled: Vec<FilledNode>,
    /// How the cluster is now.
    pub after: Plan,
}

/// An empty node that got a shard.
#[derive(Clone, Debug, Serialize)]
pub struct FilledNode {
    /// Its address.
    pub addr: String,
    /// How many keys it was given.
    pub keys: u64,
}

/// A step that was done.
#[derive(Clone, Debug, Serialize)]
pub struct Done {
    /// The step.
    pub what: String,
    /// What came of it.
    pub result: String,
    /// How long it took, in ms.
    pub ms: u64,
}

/// A step that was not done.
#[derive(Clone, Debug, Serialize)]
pub struct Stopped {
    /// The step.
    pub what: String,
    /// Why.
    pub why: String,
    /// What is the case now, and what to do.
    pub now: String,
}

/// What steps leave behind for those after them.
#[derive(Default)]
struct Made {
    warnings: Vec<String>,
    started: Vec<StartedNode>,
    filled: Vec<FilledNode>,
}

impl Recovery {
    /// Looks at everything and judges it. Nothing is changed.
    pub async fn plan(&self) -> Result<Plan> {
        Ok(self.look().await?.1)
    }

    async fn look(&self) -> Result<(Survey, Plan)> {
        let past = self.past.as_deref();
        let recorded = past.map(|past| Recorded { shards: newest_shards(past), nodes: former_nodes(past) });
        let recorded = recorded.unwrap_or_default();
        self.look_at(self.seeds.clone(), recorded, &self.spares).await
    }

    async fn look_at(
        &self,
        seeds: Vec<NodeAddr>,
        recorded: Recorded,
        spares: &[NodeAddr],
    ) -> Result<(Survey, Plan)> {
        let survey = survey(&self.context, &seeds, recorded, spares, &self.memory.admitted()).await?;
        let promoted = |id: &NodeId| self.wishes.apply_tail != ApplyTail::No && !self.memory.is_applied(id);
        let held = held(&self.context, self.past.as_ref(), &survey, promoted).await?;
        let plan = judge(&survey, &held, &self.wishes);
        Ok((survey, plan))
    }

    /// Does what a plan says. A step that fails, or is not as expected any more, ends it: the outcome says so.
    pub async fn apply(&self, plan: &Plan, watch: &dyn Watch) -> Result<Outcome> {
        let mut made = Made::default();
        let (mut done, mut stopped) = (Vec::new(), None);
        for step in &plan.steps {
            watch.note(&format!("{}…", sentence(&step.what)));
            let began = self.context.clock.elapsed();
            match Box::pin(self.perform(plan, step, watch, &mut made)).await {
                Ok(result) => {
                    let took = self.context.clock.elapsed().saturating_sub(began);
                    let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                    done.push(Done { what: step.what.clone(), result, ms });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    let now =
                        format!("interrupted while this was done: {}; {}", step.what, state_after(&done));
                    return Err(Error::new(ErrorKind::Interrupted, now)
                        .hint("run this again: what is done is seen as done"));
                }
                Err(error) => {
                    let advice = error.advice().unwrap_or("run this again: what is done is seen as done");
                    stopped = Some(Stopped {
                        what: step.what.clone(),
                        why: error.to_string(),
                        now: format!("{}; {advice}", state_after(&done)),
                    });
                    break;
                }
            }
        }
        let anew = plan.steps.iter().any(|step| step.kind == StepKind::RestoreAll) && stopped.is_none();
        let (_, after) = if anew {
            // A cluster of its own, of which neither the old addresses nor the repository know.
            let nodes = made.started.iter().filter_map(|node| node.addr.parse().ok()).collect();
            self.look_at(nodes, Recorded::default(), &[]).await?
        } else {
            self.look().await?
        };
        let Made { warnings, started, filled } = made;
        Ok(Outcome { done, stopped, warnings, started, filled, after })
    }

    async fn perform(&self, plan: &Plan, step: &Step, watch: &dyn Watch, made: &mut Made) -> Result<String> {
        let (survey, now) = self.look().await?;
        match &step.kind {
            StepKind::Promote { node, slots, .. } => {
                let shard = find(&now, slots)?;
                match &shard.remedy {
                    Remedy::Promote { node: same, how, .. } if same == node => {
                        promote::promote(self, &survey, (node, slots), *how, watch).await
                    }
                    _ => passed_over(shard),
                }
            }
            StepKind::Fence { nodes } => {
                if !now.steps.iter().any(|other| other.kind == step.kind) {
                    return Err(surprise("the nodes that claim these slots are others now".to_owned()));
                }
                fence::fence(self, &survey, nodes).await
            }
            StepKind::Restore { shards } => {
                let mut waiting = Vec::new();
                for slots in shards {
                    let (then, shard) = (find(plan, slots)?, find(&now, slots)?);
                    if then.remedy == shard.remedy {
                        waiting.push(shard);
                    } else {
                        passed_over(shard)?;
                    }
                }
                restore::restore(self, &survey, &waiting, watch, made).await
            }
            StepKind::Empty { nodes } => empty::empty_left(self, (&survey, &now), nodes, watch).await,
            StepKind::Fill { shards } => {
                let mut waiting = Vec::new();
                for slots in shards {
                    let (then, shard) = (find(plan, slots)?, find(&now, slots)?);
                    if shard.is_well() || shard.condition != then.condition {
                        passed_over(shard)?;
                    } else {
                        waiting.push(then);
                    }
                }
                fill::fill(self, &survey, &waiting, watch, made).await
            }
            StepKind::RestoreAll => {
                if survey.words().next().is_some() {
                    let what = "nodes of the cluster answer again";
                    return Err(surprise(what.to_owned()));
                }
                let shards: Vec<&ShardPlan> = now.shards.iter().collect();
                restore::restore(self, &survey, &shards, watch, made).await
            }
            StepKind::Join => {
                let expected = plan
                    .shards
                    .iter()
                    .filter(|shard| matches!(shard.remedy, Remedy::Restore { .. } | Remedy::Join { .. }));
                for shard in expected {
                    let shard = find(&now, &shard.slots)?;
                    if !matches!(shard.remedy, Remedy::Join { .. }) {
                        passed_over(shard)?;
                    }
                }
                self.admit(plan, &survey)?;
                let (survey, _) = self.look().await?;
                join::join(self, &survey, watch).await
            }
            StepKind::Replicas { slots, nodes } => {
                replicas::give(self, &survey, (find(&now, slots)?, nodes), watch, made).await
            }
            StepKind::Moves { leaving, .. } => moves::mend(self, &survey, leaving).await,
            StepKind::Attach { node, primary } => {
                if !now.steps.iter().any(|other| other.kind == step.kind) {
                    return Ok("not needed any more".to_owned());
                }
                join::attach(self, &survey, node, primary).await
            }
            StepKind::Forget { nodes } => join::forget(self, &survey, nodes).await,
            StepKind::Settle => join::settle(self, watch).await,
            StepKind::ApplyTail { node, slots } => tail::apply(self, &survey, (node, slots), watch).await,
        }
    }
}

impl Recovery {
    /// Counts the empty nodes that are to be replicas as the cluster's, so that the others are told of them.
    fn admit(&self, plan: &Plan, survey: &Survey) -> Result<()> {
        for addr in plan.shards.iter().flat_map(|shard| &shard.new_replicas) {
            match survey.spares.iter().find(|(spare, _)| spare == addr).map(|(_, state)| state) {
                Some(SpareState::Empty(node)) => self.memory.admit([node.id.clone()]),
                Some(SpareState::Taken(why)) => {
                    return Err(surprise(format!("{addr} can't be used any more: {why}")));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The shard with those slots, as it is judged now.
fn find<'p>(plan: &'p Plan, slots: &SlotSet) -> Result<&'p ShardPlan> {
    plan.shards.iter().find(|shard| shard.slots == *slots).ok_or_else(|| {
        surprise(format!("slots {slots} are no longer held as they were: some have another owner now"))
    })
}

/// A shard that needs nothing any more; a surprise if it needs something else than before.
fn passed_over(shard: &ShardPlan) -> Result<String> {
    if shard.is_well() {
        let by = shard.primary.as_deref().unwrap_or("a node");
        return Ok(format!("not needed any more: {by} serves slots {}", shard.slots));
    }
    Err(surprise(format!("slots {} are not as they were when this was planned", shard.slots)))
}

fn surprise(what: String) -> Error {
    Error::new(ErrorKind::Conflict, what).hint("look at the new plan (--dry-run), and decide again")
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn state_after(done: &[Done]) -> String {
    match done {
        [] => "nothing was changed".to_owned(),
        [.., last] => format!("the last thing that was done: {} ({})", last.what, last.result),
    }
}
