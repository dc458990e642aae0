//! Restoring shards into empty nodes that run, on whatever machine, and of which nobody is told yet.
//!
//! Invariant: a node is alone until it holds its whole shard. It claims the slots with an epoch above all that anybody has seen, so that the
//! others believe it once they hear of it; whatever fails before makes every node that was written to empty again.

use std::sync::Arc;
use std::time::Duration;

use slotkeep_format::Manifest;
use slotkeep_model::{NodeAddr, NodeId};
use slotkeep_repo::{Location, Repository};
use slotkeep_wire::resp::Command;

use super::empty::{COVERAGE, empty};
use super::restore::point;
use super::{FilledNode, Filling, Made, Recovery, Watch, surprise};
use crate::discover::read_info;
use crate::fold::FoldProgress;
use crate::log::point::Point;
use crate::merge::{MergeTarget, merge};
use crate::net::Connection;
use crate::ports::random_hex;
use crate::progress::ShardProgress;
use crate::recover::facts::{EmptyNode, SpareState, Survey};
use crate::recover::plan::{Remedy, ShardPlan};
use crate::recover::spares::setting;
use crate::restore::check_loads;
use crate::restore::live::{Coverage, LiveOptions, OnConflict, plan, restore};
use crate::{Error, ErrorKind, Result, WorkFolder};

/// How long a node may take until it serves its slots. Servers wait for their node timeout, 5 s at the most (`clusterUpdateState` in
/// `src/cluster_legacy.c`).
const SERVING_LIMIT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a key may be refused for passing reasons.
const PATIENCE: Duration = Duration::from_mins(1);
/// The longest payload of one `RESTORE`.
const MOST_RESTORE_BYTES: usize = 32 << 20;

/// A node that was written to, and the setting as it had it.
struct Touched {
    addr: NodeAddr,
    id: NodeId,
    coverage: Option<String>,
}

/// Restores each shard into the node that its plan names.
pub(super) async fn fill(
    recovery: &Recovery,
    survey: &Survey,
    shards: &[&ShardPlan],
    watch: &dyn Watch,
    made: &mut Made,
) -> Result<String> {
    if shards.is_empty() {
        return Ok("nothing is left to restore".to_owned());
    }
    let Some(filling) = &recovery.filling else {
        return Err(Error::new(ErrorKind::Usage, "there is no repository").hint("give --repo"));
    };
    let mut filler = Filler { recovery, survey, filling, watch, touched: Vec::new(), filled: Vec::new() };
    let mut ends = Vec::new();
    for (shard, epoch) in shards.iter().zip(survey.highest_epoch().saturating_add(1)..) {
        match Box::pin(filler.shard(shard, epoch)).await {
            Ok(end) => ends.push(end),
            Err(error) => {
                let all_empty = filler.empty_all().await;
                let error = error.context(format!("restoring slots {}", shard.slots));
                return Err(match error.kind() {
                    ErrorKind::Interrupted => error,
                    _ if filler.touched.is_empty() => error,
                    _ if all_empty => error.hint(
                        "the new nodes are empty again; mend what the message says, and run this again",
                    ),
                    _ => error.hint(
                        "not all of the new nodes could be made empty again: mend what the message says, and see what the next plan says of them",
                    ),
                });
            }
        }
    }
    recovery.memory.admit(filler.filled.iter().map(|(id, _)| id.clone()));
    made.filled.extend(filler.filled.into_iter().map(|(_, node)| node));
    Ok(ends.join("; "))
}

struct Filler<'a> {
    recovery: &'a Recovery,
    survey: &'a Survey,
    filling: &'a Filling,
    watch: &'a dyn Watch,
    touched: Vec<Touched>,
    filled: Vec<(NodeId, FilledNode)>,
}

impl Filler<'_> {
    async fn shard(&mut self, shard: &ShardPlan, epoch: u64) -> Result<String> {
        let (addr, node) = self.spare_of(shard)?;
        let point = point(self.recovery, self.survey, &[shard]).await?;
        let folded = if point.has_log() { Some(self.fold(&point, shard).await?) } else { None };
        let (repository, manifest) = match &folded {
            Some((repository, manifest, _)) => (repository, manifest),
            None => (&self.filling.repository, &point.manifest),
        };
        // A log is applied by another server, whose format may be a newer one than the base's.
        check_loads(manifest, node.server)?;
        self.watch.note(&format!("  {addr}: is given slots {}", shard.slots));
        self.claim((&addr, &node.id), shard, epoch).await?;
        let keys = self.load((&addr, shard), repository, manifest).await?;
        self.put_back(&addr).await?;
        self.filled.push((node.id.clone(), FilledNode { addr: addr.to_string(), keys }));
        let end = point.shards.iter().map(|shard| shard.cut.offset).next().unwrap_or_default();
        Ok(format!("{keys} keys in {addr}: slots {} at offset {end}", shard.slots))
    }

    /// The node that the plan names, if it is empty still.
    fn spare_of(&self, shard: &ShardPlan) -> Result<(NodeAddr, EmptyNode)> {
        let Remedy::Restore { running: true, nodes } = &shard.remedy else {
            return Err(surprise(format!("slots {} are not to be restored any more", shard.slots)));
        };
        let found = self.survey.spares.iter().find(|(addr, _)| nodes.first() == Some(addr));
        match found {
            Some((addr, SpareState::Empty(node))) => Ok((addr.clone(), node.clone())),
            Some((addr, SpareState::Taken(why))) => {
                Err(surprise(format!("{addr} is not empty any more: {why}")))
            }
            _ => Err(surprise(format!("the node for slots {} is not there any more", shard.slots))),
        }
    }

    /// Applies the shard's log to its base, in a repository of its own for the time being.
    async fn fold(&self, point: &Point, shard: &ShardPlan) -> Result<(Repository, Manifest, WorkFolder)> {
        let context = &self.recovery.context;
        let folder = WorkFolder::make(&self.filling.spool, "recover")?;
        self.watch.note(&format!("  slots {}: a private server applies the log to the base", shard.slots));
        let id = random_hex(&*context.rng, 32)?;
        let temporary =
            Repository::init(&Location::Folder(folder.path().to_owned()), id, context.clock.now()).await?;
        let cluster = point.manifest.cluster.as_str();
        let target = MergeTarget { repository: &temporary, cluster, shares_bases: false };
        let progress = [Arc::new(FoldProgress::new(format!("slots {}", shard.slots)))];
        let source = (&self.filling.repository, self.recovery.past.as_ref());
        let manifest = merge(context, source, point, &target, &self.filling.engine, &progress).await?;
        Ok((temporary, manifest, folder))
    }

    /// Makes a node that is alone the owner of the slots, and waits until it serves them.
    async fn claim(&mut self, (addr, id): (&NodeAddr, &NodeId), shard: &ShardPlan, epoch: u64) -> Result<()> {
        let context = &self.recovery.context;
        let mut connection = context.connector.connect(addr).await?;
        let coverage = setting(&mut connection, COVERAGE).await?;
        // First: it can be set once only, so of two runs one gets the node; and what is left from here on does not count as empty.
        let set_epoch = Command::new("CLUSTER").arg("SET-CONFIG-EPOCH").arg_number(epoch);
        connection.call(&set_epoch).await?;
        self.touched.push(Touched { addr: addr.clone(), id: id.clone(), coverage });
        connection.call(&Command::new("CONFIG").arg("SET").arg(COVERAGE).arg("no")).await?;
        let mut add = Command::new("CLUSTER").arg("ADDSLOTS");
        for slot in shard.slots.iter() {
            add = add.arg_number(slot);
        }
        connection.call(&add).await?;
        let began = context.clock.elapsed();
        loop {
            let reply = connection.call(&Command::new("CLUSTER").arg("INFO")).await?;
            if reply.as_text().is_some_and(|text| text.contains("cluster_state:ok")) {
                return Ok(());
            }
            if context.clock.elapsed().saturating_sub(began) > SERVING_LIMIT {
                let what = format!(
                    "{addr} does not serve its slots after {} s (CLUSTER INFO)",
                    SERVING_LIMIT.as_secs()
                );
                return Err(Error::new(ErrorKind::Failed, what).hint("see its log for why"));
            }
            let rest = async {
                context.clock.sleep(LOOK_EVERY).await;
                Ok(())
            };
            context.unless_stopped(rest).await?;
        }
    }

    /// Writes every key and function; how many keys there are then.
    async fn load(
        &self,
        (addr, shard): (&NodeAddr, &ShardPlan),
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<u64> {
        let context = &self.recovery.context;
        let journal = WorkFolder::make(&self.filling.spool, "recover")?;
        let options = LiveOptions {
            on_conflict: OnConflict::Fail,
            allow_other_data: false,
            allow_partial: true,
            jobs: 1,
            max_restore_bytes: MOST_RESTORE_BYTES,
            patience: PATIENCE,
            state: journal.path().join("state.json"),
            restart: true,
            coverage: Coverage::Part,
        };
        let evicted_before = evicted(&mut context.connector.connect(addr).await?).await?;
        let live = plan(context, repository, manifest, std::slice::from_ref(addr), &options).await?;
        let row = ShardProgress::new(addr.to_string());
        let bytes = manifest.shards.iter().map(|shard| shard.base.rdb.raw_bytes);
        let shown = self.watch.begin(&[(Arc::clone(&row), bytes.fold(0, u64::saturating_add))]);
        let restored = restore(context, repository, manifest, live, &options, &[row]).await;
        shown.await;
        let report = restored?;
        // What a node evicts it does not tell whoever writes.
        if evicted(&mut context.connector.connect(addr).await?).await? != evicted_before {
            let what = format!("{addr} has evicted keys: its maxmemory does not hold slots {}", shard.slots);
            return Err(Error::new(ErrorKind::Full, what).hint("raise maxmemory there, or name another node"));
        }
        Ok(report.restored)
    }

    /// Puts the node's setting back: from here on it waits for the others to cover the slots that it does not have.
    async fn put_back(&self, addr: &NodeAddr) -> Result<()> {
        let touched = self.touched.iter().find(|touched| touched.addr == *addr);
        let Some(coverage) = touched.and_then(|touched| touched.coverage.as_deref()) else { return Ok(()) };
        let mut connection = self.recovery.context.connector.connect(addr).await?;
        connection.call(&Command::new("CONFIG").arg("SET").arg(COVERAGE).arg(coverage)).await?;
        Ok(())
    }

    /// Makes every node that was written to what it was: alone and empty. Whether all are.
    async fn empty_all(&self) -> bool {
        let mut all = true;
        for Touched { addr, id, coverage } in &self.touched {
            self.watch.note(&match empty(self.recovery, (addr, id), coverage.as_deref()).await {
                Ok(()) => format!("  {addr} is empty again"),
                Err(error) => {
                    all = false;
                    format!("  {addr} could not be made empty again: {error}")
                }
            });
        }
        all
    }
}

/// How many keys a node has evicted since its start.
async fn evicted(connection: &mut Connection) -> Result<Option<u64>> {
    let info = read_info(connection).await?;
    Ok(info.get("evicted_keys").and_then(|count| count.parse().ok()))
}
