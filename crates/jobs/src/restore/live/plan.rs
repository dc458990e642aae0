//! Everything that can be found out before the first byte is written.

use std::collections::BTreeSet;

use serde::Serialize;
use slotkeep_format::Manifest;
use slotkeep_model::{NodeAddr, Product, ServerVersion, Slot, SlotSet};
use slotkeep_repo::Repository;
use slotkeep_wire::resp::Command;

use super::functions::{self, Library};
use super::journal::Record;
use super::options::{Coverage, LiveOptions, OnConflict};
use super::target::{SlotMap, Target};
use super::vacancy;
use crate::base::Base;
use crate::discover::{discover, read_info};
use crate::net::{LinkError, LinkProblem};
use crate::ports::random_hex;
use crate::restore::{check_complete, check_loads};
use crate::{Context, Error, ErrorKind, Result};

/// What a restore into a running cluster would do.
#[derive(Serialize)]
pub struct LivePlan {
    /// The backup.
    pub backup: String,
    /// What the target runs; the oldest version among its primaries.
    pub server: String,
    /// Whether the target runs in cluster mode.
    pub cluster_mode: bool,
    /// The target's primaries.
    pub nodes: Vec<PlannedNode>,
    /// What happens to keys that exist.
    pub on_conflict: OnConflict,
    /// How many keys the backup holds, expired ones included.
    pub keys: u64,
    /// How many bytes of RDB it holds.
    pub rdb_bytes: u64,
    /// The databases that hold keys, other than 0.
    pub databases: Vec<u32>,
    /// The function libraries of the backup.
    pub functions: Vec<String>,
    /// Where an earlier run left off, in percent of the RDBs.
    pub resumes_at_percent: Option<u8>,
    /// What needs attention.
    pub warnings: Vec<String>,
    #[serde(skip)]
    pub(super) parts: Parts,
}

/// One primary of the target.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedNode {
    /// Its address.
    pub node: String,
    /// What it runs.
    pub server: String,
    /// The slots it serves.
    pub slots: String,
    /// How many keys it holds already.
    pub keys: u64,
    /// How many keys of the backup go there, expired ones included.
    pub keys_to_come: u64,
}

/// What the restore itself needs.
pub(super) struct Parts {
    pub(super) target: Target,
    pub(super) record: Record,
    pub(super) libraries: Vec<Library>,
    /// Whether an earlier run is gone on from.
    pub(super) resumes: bool,
}

/// Looks at target and backup, and refuses what can't work. Nothing is written.
pub async fn plan(
    context: &Context,
    repository: &Repository,
    manifest: &Manifest,
    seeds: &[NodeAddr],
    options: &LiveOptions,
) -> Result<LivePlan> {
    check_complete(manifest, options.allow_partial)?;
    let bases: Vec<Base<'_>> =
        manifest.shards.iter().map(|shard| Base::open(repository, &shard.base)).collect::<Result<_>>()?;
    let discovery = discover(context, seeds).await?;
    let topology = discovery.topology();
    if options.coverage == Coverage::Whole {
        check_covered(topology)?;
    }
    let target = Target::open(context, topology, options.coverage).await?;
    let map = target.map();
    for node in &map.nodes {
        check_loads(manifest, node.server)?;
    }
    if map.cluster_mode {
        check_state(context, &map).await?;
    }
    let mut digest = slotkeep_model::DatasetDigest::default();
    for base in &bases {
        digest.merge_keys(&base.digest().await?);
    }
    let databases = databases(manifest, &bases).await?;
    check_databases(context, &map, &databases).await?;

    let repository_id = &repository.file().repository_id;
    let earlier = match Record::read(&options.state) {
        // The old one's id is kept if it can be: what its run left behind under temporary names is found by it.
        Err(_) if options.restart => None,
        read => read?,
    };
    let (record, resumes) = match earlier {
        Some(record) if !options.restart => {
            record.check(manifest, repository_id, options.on_conflict, &options.state)?;
            (record, true)
        }
        earlier => {
            let id = earlier.map(|earlier| earlier.restore_id);
            let id = id.map_or_else(|| random_hex(&*context.rng, 12), Ok)?;
            (Record::new(manifest, repository_id, id, options.on_conflict), false)
        }
    };
    let occupied: SlotSet = digest.occupied().map(|(slot, _)| slot).collect();
    if options.on_conflict == OnConflict::Fail && !resumes {
        vacancy::check(context, &map, &occupied, options.allow_other_data).await?;
    }
    let libraries = functions::of_backup(repository, manifest).await?;
    let addrs: Vec<NodeAddr> = map.nodes.iter().map(|node| node.addr.clone()).collect();
    functions::compare(context, &addrs, &libraries, options.on_conflict).await?;

    let mut nodes = Vec::new();
    for node in &map.nodes {
        nodes.push(PlannedNode {
            node: node.addr.to_string(),
            server: node.server.to_string(),
            slots: node.slots.to_string(),
            keys: vacancy::keys_on(context, node).await?,
            keys_to_come: node.slots.iter().map(|slot| digest.slot(slot).keys).sum(),
        });
    }
    let rdb_bytes = manifest.shards.iter().map(|shard| shard.base.rdb.raw_bytes).sum();
    let mut warnings = Vec::new();
    if discovery.slots_are_moving() {
        warnings.push("slots of the target are being moved: it works, but slower".to_owned());
    }
    warnings.extend(memory_warning(context, &map, rdb_bytes).await?);
    let oldest = map.nodes.iter().map(|node| node.server).min();
    Ok(LivePlan {
        backup: manifest.id.clone(),
        server: oldest.map(|server| server.to_string()).unwrap_or_default(),
        cluster_mode: map.cluster_mode,
        nodes,
        on_conflict: options.on_conflict,
        keys: digest.keys(),
        rdb_bytes,
        databases: databases.into_iter().filter(|database| *database != 0).collect(),
        functions: libraries.iter().map(|library| library.name.clone()).collect(),
        resumes_at_percent: resumes.then(|| record.percent(manifest)),
        warnings,
        parts: Parts { target, record, libraries, resumes },
    })
}

fn check_covered(topology: &slotkeep_model::Topology) -> Result<()> {
    let missing = topology.covered().complement();
    if !missing.is_empty() {
        let what = format!(
            "the target serves only {} of {} slots: {missing} have no node",
            topology.covered().len(),
            Slot::COUNT
        );
        return Err(
            Error::new(ErrorKind::NotACluster, what).hint("assign every slot first (CLUSTER ADDSLOTS)")
        );
    }
    match topology.shards.iter().find(|shard| !shard.primary.online) {
        None => Ok(()),
        Some(shard) => Err(Error::new(
            ErrorKind::NotACluster,
            format!("{}, the target's primary of slots {}, is down", shard.primary.addr, shard.slots),
        )
        .hint("bring the target up first, or wait for its failover")),
    }
}

async fn check_state(context: &Context, map: &SlotMap) -> Result<()> {
    for node in &map.nodes {
        let mut connection = context.connector.connect(&node.addr).await?;
        let reply = connection.call(&Command::new("CLUSTER").arg("INFO")).await?;
        let ok =
            reply.as_text().is_some_and(|text| text.lines().any(|line| line.trim() == "cluster_state:ok"));
        if !ok {
            let what = format!("{} says that the target is not whole (cluster_state is not ok)", node.addr);
            return Err(Error::new(ErrorKind::NotACluster, what)
                .hint("CLUSTER INFO and CLUSTER NODES there tell what is missing"));
        }
    }
    Ok(())
}

/// The databases that hold keys. The index tells; it is read only where a server could have had more than one.
async fn databases(manifest: &Manifest, bases: &[Base<'_>]) -> Result<BTreeSet<u32>> {
    let mut databases = BTreeSet::new();
    for (shard, base) in manifest.shards.iter().zip(bases) {
        let server = shard.server.version();
        let several = |server: ServerVersion| server.product == Product::Valkey && server.major >= 9;
        if manifest.cluster_mode && !server.is_none_or(several) {
            databases.insert(0);
        } else {
            databases.extend(base.databases().await?);
        }
    }
    Ok(databases)
}

/// Refuses a target that lacks a database of the backup.
async fn check_databases(context: &Context, map: &SlotMap, databases: &BTreeSet<u32>) -> Result<()> {
    let Some(highest) = databases.last().copied().filter(|highest| *highest > 0) else { return Ok(()) };
    for node in &map.nodes {
        let mut connection = context.connector.connect(&node.addr).await?;
        let reply = connection.exchange(&Command::new("SELECT").arg_number(highest)).await?;
        if let Some(text) = reply.as_error() {
            let what = format!(
                "the backup holds keys in database {highest}, which {} does not have ({text})",
                node.addr
            );
            return Err(Error::new(ErrorKind::Unsupported, what).hint(
                "restore into a server without cluster mode, or Valkey 9.0 or newer with cluster-databases set high enough",
            ));
        }
    }
    Ok(())
}

/// A warning if the data may not fit.
async fn memory_warning(context: &Context, map: &SlotMap, rdb_bytes: u64) -> Result<Option<String>> {
    let mut free = 0_u64;
    for node in &map.nodes {
        let mut connection = context.connector.connect(&node.addr).await?;
        let memory = read_info(&mut connection).await?.memory().map_err(|error| {
            Error::from(LinkError {
                node: node.addr.clone(),
                problem: LinkProblem::Protocol(error.to_string()),
            })
        })?;
        if memory.limit_bytes == 0 {
            return Ok(None);
        }
        free = free.saturating_add(memory.limit_bytes.saturating_sub(memory.used_bytes));
    }
    let mib = |bytes: u64| bytes >> 20;
    Ok((free < rdb_bytes).then(|| {
        format!(
            "the target has {} MiB below its maxmemory, the snapshots have {} MiB and take more in memory: the data may not fit",
            mib(free),
            mib(rdb_bytes)
        )
    }))
}
