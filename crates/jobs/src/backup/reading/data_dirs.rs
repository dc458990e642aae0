//! Where the data of nodes lies on this machine.
//!
//! A folder is named by the user, or by the server itself if the node's address is one of this machine. Neither is proof: what is read there
//! has to say that it was made by that server, at that time ([`super::snapshot`]).

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::PathBuf;

use slotkeep_model::{NodeAddr, SlotSet};
use slotkeep_wire::resp::Command;

use crate::backup::BackupPlan;
use crate::net::Connection;
use crate::{Context, Error, ErrorKind, Result};

/// The folders of nodes, by the addresses that the cluster knows them by.
pub type DataDirs = BTreeMap<NodeAddr, PathBuf>;

/// Finds the folder of at least one node of every shard, and leaves in the plan only nodes that have one. Shards without one are left out if
/// `allow_partial`.
pub async fn find_data_dirs(
    context: &Context,
    plan: &mut BackupPlan,
    given: &DataDirs,
    allow_partial: bool,
) -> Result<DataDirs> {
    context.unless_stopped(find(context, plan, given, allow_partial)).await
}

async fn find(
    context: &Context,
    plan: &mut BackupPlan,
    given: &DataDirs,
    allow_partial: bool,
) -> Result<DataDirs> {
    let nodes: Vec<&NodeAddr> = plan
        .discovery
        .topology()
        .shards
        .iter()
        .flat_map(slotkeep_model::Shard::nodes)
        .map(|node| &node.addr)
        .collect();
    if let Some(stranger) = given.keys().find(|addr| !nodes.contains(addr)) {
        let what = format!("--data-dir names {stranger}, which is no node of the cluster");
        return Err(Error::new(ErrorKind::Usage, what)
            .hint("name nodes by the addresses that the cluster announces (`redis-cli cluster nodes`)"));
    }
    let mut dirs = given.clone();
    for shard in &mut plan.shards {
        let named = shard.candidates.iter().any(|candidate| given.contains_key(&candidate.addr));
        for candidate in shard.candidates.iter().filter(|_| !named) {
            if let Some(dir) = own_folder(context, &candidate.addr).await? {
                dirs.insert(candidate.addr.clone(), dir);
            }
        }
        shard.candidates.retain(|candidate| dirs.contains_key(&candidate.addr));
    }
    let (found, without): (Vec<_>, Vec<_>) =
        std::mem::take(&mut plan.shards).into_iter().partition(|shard| !shard.candidates.is_empty());
    if let Some(shard) = without.first().filter(|_| !allow_partial || found.is_empty()) {
        let what = format!(
            "it is not known where the data of the shard with slots {} lies: none of its nodes has an address of this machine and tells its folder (CONFIG GET dir)",
            shard.shard.slots
        );
        return Err(Error::new(ErrorKind::Usage, what).hint(format!(
            "name it: --data-dir {}=DIR; or back up the shards of this machine alone with --allow-partial",
            shard.shard.primary.addr
        )));
    }
    plan.shards = found;
    let covered: SlotSet =
        plan.shards.iter().flat_map(|shard| shard.shard.slots.ranges().iter().copied()).collect();
    plan.missing_slots = covered.complement();
    Ok(dirs)
}

/// The folder that a node of this machine names, if it does and there is such a one here.
async fn own_folder(context: &Context, addr: &NodeAddr) -> Result<Option<PathBuf>> {
    let reached = context.connector.reach(addr);
    let Ok(mut ips) = tokio::net::lookup_host((reached.host(), reached.port())).await else {
        return Ok(None);
    };
    // Only addresses of this machine can be taken by a socket of its own.
    if !ips.any(|addr| UdpSocket::bind((addr.ip(), 0)).is_ok()) {
        return Ok(None);
    }
    let mut connection = context.connector.connect(addr).await?;
    let dir = setting(&mut connection, "dir").await?.map(PathBuf::from);
    Ok(dir.filter(|dir| dir.is_absolute() && dir.is_dir()))
}

/// A setting of the server; nothing if the user may not ask for it.
pub(super) async fn setting(connection: &mut Connection, name: &str) -> Result<Option<String>> {
    let reply = connection.exchange(&Command::new("CONFIG").args(["GET", name])).await?;
    Ok(reply.get(name).and_then(|value| value.as_text()).map(str::to_owned))
}
