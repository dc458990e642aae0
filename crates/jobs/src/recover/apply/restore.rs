//! Restoring shards to new nodes, which nobody is told of yet.

use std::sync::Arc;

use slotkeep_format::ShardState;
use slotkeep_model::{NodeAddr, NodeId, Role};
use slotkeep_wire::nodes_conf::{ConfNode, ConfRole};

use super::{Made, Making, Recovery, Watch, moves};
use crate::log::point::Point;
use crate::log::point::shards::{recorded_shard, resolve_shards};
use crate::progress::ShardProgress;
use crate::recover::facts::Survey;
use crate::recover::moves::{broken, with_lost};
use crate::recover::plan::{Remedy, ShardPlan};
use crate::restore::files::{
    FilesOptions, FilesPlan, Joining, Source, StockServer, apply, check_start, plan, start,
};
use crate::{Error, ErrorKind, Result};

/// Restores shards to the nodes that their plan names, and starts these.
pub(super) async fn restore(
    recovery: &Recovery,
    survey: &Survey,
    shards: &[&ShardPlan],
    watch: &dyn Watch,
    made: &mut Made,
) -> Result<String> {
    if shards.is_empty() {
        return Ok("nothing is left to restore".to_owned());
    }
    let context = &recovery.context;
    let (Some(past), Some(making)) = (&recovery.past, &recovery.making) else {
        return Err(Error::new(ErrorKind::Usage, "there is no folder to restore to")
            .hint("give --to-dir and --spare"));
    };
    let point = point(recovery, survey, shards).await?;
    let server = server(making, &point).await?;
    let files = files_plan(recovery, survey, making, &point, (shards, &server)).await?;
    check_start(context, &files)?;
    made.warnings.extend(files.warnings.iter().cloned());
    let primaries = files.nodes.iter().filter_map(|node| Some((node, node.dataset.as_ref()?)));
    let rows: Vec<(Arc<ShardProgress>, u64)> = primaries
        .map(|(node, dataset)| (ShardProgress::new(node.addr.to_string()), dataset.bytes()))
        .collect();
    let progress: Vec<_> = rows.iter().map(|(row, _)| Arc::clone(row)).collect();
    let source = Source { repository: making.repository.clone(), past: Some(Arc::clone(past)) };
    let shown = watch.begin(&rows);
    let written = apply(context, &source, &files, &progress).await;
    shown.await;
    written?;
    let tell = |waiting: &str| watch.note(&format!("  {waiting}"));
    let started = start(context, &files, &server, tell).await?;
    drop_copies(recovery, shards, watch).await?;
    let keys =
        started.iter().take(files.nodes.len()).zip(&files.nodes).filter(|(_, node)| node.dataset.is_some());
    let keys = keys.fold(0_u64, |sum, (node, _)| sum.saturating_add(node.keys));
    let ends: Vec<String> = point
        .shards
        .iter()
        .map(|shard| format!("slots {} at offset {}", shard.slots, shard.cut.offset))
        .collect();
    made.started.extend(started);
    let nodes =
        if files.nodes.len() == 1 { "one node".to_owned() } else { format!("{} nodes", files.nodes.len()) };
    Ok(format!("{keys} keys in {nodes} of {}: {}", server.version, ends.join(", ")))
}

/// Starts servers that are replicas of a primary that lives.
pub(super) async fn start_replicas(
    recovery: &Recovery,
    survey: &Survey,
    (shard, primary, nodes): (&ShardPlan, &NodeId, &[NodeAddr]),
    watch: &dyn Watch,
    made: &mut Made,
) -> Result<()> {
    let context = &recovery.context;
    let (Some(past), Some(making)) = (&recovery.past, &recovery.making) else {
        return Err(Error::new(ErrorKind::Usage, "there is no folder for new nodes").hint("give --to-dir"));
    };
    let point = point(recovery, survey, &[shard]).await?;
    let server = server(making, &point).await?;
    let first = shard.slots.iter().next().map(|slot| slot.to_string()).unwrap_or_default();
    let options = FilesOptions {
        folder: making.folder.join(format!("replicas-{first}")),
        nodes: nodes.to_vec(),
        target: Some(server.version),
        allow_partial: true,
        users: making.users.clone(),
        tls: making.tls.clone(),
        joining: Some(Joining { followed: Some(primary.clone()), ..joining(survey, &[]) }),
        ..FilesOptions::default()
    };
    let files = plan(context, &point, &options).await?;
    check_start(context, &files)?;
    made.warnings.extend(files.warnings.iter().cloned());
    let source = Source { repository: making.repository.clone(), past: Some(Arc::clone(past)) };
    apply(context, &source, &files, &[]).await?;
    let tell = |waiting: &str| watch.note(&format!("  {waiting}"));
    made.started.extend(start(context, &files, &server, tell).await?);
    Ok(())
}

/// The server that new nodes run.
async fn server(making: &Making, point: &Point) -> Result<StockServer> {
    match &making.server {
        Some(program) => StockServer::at(program).await,
        None => StockServer::on_path(point).await,
    }
}

/// Before anybody knows the new nodes: what has left them after the last byte of their logs must not be read there.
async fn drop_copies(recovery: &Recovery, shards: &[&ShardPlan], watch: &dyn Watch) -> Result<()> {
    let (survey, _) = recovery.look().await?;
    let restored = |slot| shards.iter().any(|shard| shard.slots.contains(slot));
    for one in broken(&survey).iter().filter(|one| one.was_lost && restored(one.slot)) {
        if let Err(error) = moves::drop_copies(recovery, &survey, one).await {
            // A cluster that is down serves nothing that is too old either; a later step does it.
            watch.note(&format!("  {error}"));
        }
    }
    Ok(())
}

/// Where the shards are to be brought back to, each with as many replicas as it gets.
pub(super) async fn point(recovery: &Recovery, survey: &Survey, shards: &[&ShardPlan]) -> Result<Point> {
    let Some(past) = &recovery.past else {
        return Err(Error::new(ErrorKind::Usage, "there is no repository"));
    };
    let mut wanted = Vec::new();
    for shard in shards {
        let recorded = recorded_shard(&survey.recorded.shards, &shard.slots).ok_or_else(|| {
            Error::new(ErrorKind::Gap, format!("the repository knows of no shard with slots {}", shard.slots))
        })?;
        let replicas = match &shard.remedy {
            Remedy::Restore { nodes, .. } => nodes.len().saturating_sub(1),
            _ => 0,
        };
        wanted.push(ShardState {
            slots: shard.slots.clone(),
            replicas: recorded.replicas.iter().take(replicas).cloned().collect(),
            ..recorded.clone()
        });
    }
    recovery.context.unless_stopped(resolve_shards(past, &wanted, recovery.wishes.at)).await
}

async fn files_plan(
    recovery: &Recovery,
    survey: &Survey,
    making: &Making,
    point: &Point,
    (shards, server): (&[&ShardPlan], &StockServer),
) -> Result<FilesPlan> {
    let joining = survey.words().next().is_some().then(|| joining(survey, shards));
    let nodes: Vec<NodeAddr> = shards
        .iter()
        .flat_map(|shard| match &shard.remedy {
            Remedy::Restore { nodes, .. } => nodes.clone(),
            _ => vec![],
        })
        .collect();
    let options = FilesOptions {
        folder: making.folder.clone(),
        nodes: in_order_given(recovery, &nodes),
        target: Some(server.version),
        allow_partial: true,
        users: making.users.clone(),
        tls: making.tls.clone(),
        joining,
        ..FilesOptions::default()
    };
    plan(&recovery.context, point, &options).await
}

/// The addresses in the order in which the user gave them: so they are assigned as the plan says.
fn in_order_given(recovery: &Recovery, nodes: &[NodeAddr]) -> Vec<NodeAddr> {
    recovery.spares.iter().filter(|spare| nodes.contains(spare)).cloned().collect()
}

/// The living nodes, as the new ones are to know them.
fn joining(survey: &Survey, shards: &[&ShardPlan]) -> Joining {
    let mut others: Vec<ConfNode> = Vec::new();
    for (_, word) in survey.words() {
        let Some(row) = word.own_row() else { continue };
        let role = match word.role {
            Role::Primary => ConfRole::Primary { config_epoch: row.config_epoch, slots: word.own_slots() },
            // One whose primary is gone is heard of later.
            Role::Replica => match word
                .follows()
                .filter(|id| survey.word(id).is_some_and(|word| word.role == Role::Primary))
            {
                Some(primary) => ConfRole::Replica { primary: primary.clone() },
                None => continue,
            },
        };
        // A node may not know its own address; others do.
        let seen = survey.words().filter_map(|(_, other)| {
            other.rows.iter().find(|other| other.id == word.id && !other.ip.is_empty())
        });
        let Some(known) = seen.into_iter().next() else { continue };
        others.push(ConfNode {
            id: word.id.clone(),
            ip: known.ip.clone(),
            port: known.port,
            bus_port: known.bus_port,
            role,
        });
    }
    let restored: Vec<ShardPlan> = shards.iter().map(|shard| (*shard).clone()).collect();
    Joining {
        others,
        current_epoch: survey.highest_epoch(),
        moves: with_lost(survey, &restored),
        followed: None,
    }
}
