//! Where the nodes are to be: addresses that they can have, and a folder that is free. Nothing is touched.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use slotkeep_format::Manifest;
use slotkeep_model::NodeAddr;

use super::assign::{ShardAddrs, assign};
use super::plan::{FilesOptions, FilesPlan};
use crate::{Error, ErrorKind, Result};

/// How far a node's bus port lies above its port, unless `cluster-port` says otherwise.
const BUS_OFFSET: u16 = 10_000;

/// The bus port of a node; none if there is no such port.
pub(super) fn bus_port(addr: &NodeAddr) -> Option<u16> {
    addr.port().checked_add(BUS_OFFSET)
}

/// Gives every node of the backup its address.
pub(super) fn place_nodes(manifest: &Manifest, options: &FilesOptions) -> Result<Vec<ShardAddrs>> {
    let replicas: Vec<usize> = manifest
        .shards
        .iter()
        .map(|shard| if options.no_replicas { 0 } else { shard.replicas.len() })
        .collect();
    assign(&options.nodes, &replicas).ok_or_else(|| {
        let all: usize = manifest.shards.iter().map(|shard| shard.replicas.len() + 1).sum();
        let primaries = manifest.shards.len();
        let needed = if options.no_replicas { primaries } else { all };
        Error::new(
            ErrorKind::Usage,
            format!(
                "backup {} needs {needed} nodes ({primaries} primaries, {} replicas), but {} addresses were given",
                manifest.id,
                needed - primaries,
                options.nodes.len()
            ),
        )
        .hint(if options.no_replicas || all == primaries {
            format!("give {primaries} addresses with --nodes")
        } else {
            format!("give {all} addresses with --nodes, or {primaries} and --no-replicas")
        })
    })
}

/// The IP addresses of the nodes, which is all that `nodes.conf` holds.
pub(super) async fn resolve(cluster_mode: bool, addrs: &[NodeAddr]) -> Result<Vec<(NodeAddr, IpAddr)>> {
    let refuse = |addr: &NodeAddr, why: &str| {
        Err(Error::new(ErrorKind::Usage, format!("{addr} can't be a node's address: {why}")))
    };
    let mut ips = Vec::new();
    let mut used = BTreeSet::new();
    for addr in addrs {
        let found: Vec<IpAddr> = match tokio::net::lookup_host((addr.host(), addr.port())).await {
            Ok(found) => found.map(|found| found.ip()).collect(),
            Err(_) => vec![],
        };
        // A name that means both is meant for everybody.
        let Some(ip) = found.iter().find(|ip| ip.is_ipv4()).or(found.first()).copied() else {
            return refuse(addr, "its name can't be resolved here; give the IP address");
        };
        if ip.is_unspecified() {
            return refuse(addr, "other nodes can't reach it there; give the address that they shall use");
        }
        let bus = bus_port(addr);
        let ports = [Some(addr.port()), bus].into_iter().take(if cluster_mode { 2 } else { 1 });
        for port in ports {
            let Some(port) = port else {
                return refuse(addr, "its bus port, 10000 above, would be more than 65535");
            };
            if !used.insert((ip, port)) {
                return refuse(
                    addr,
                    &format!(
                        "port {port} would be used twice (a node needs its port and the one 10000 above)"
                    ),
                );
            }
        }
        ips.push((addr.clone(), ip));
    }
    Ok(ips)
}

/// The absolute path of a folder that does not exist or is empty, and that another can be renamed to.
pub(super) fn free_folder(folder: &Path) -> Result<PathBuf> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Failed, format!("can't look at {}: {error}", folder.display()))
    };
    let absolute = std::path::absolute(folder).map_err(failed)?;
    let not_empty = |what: &str| {
        Err(Error::new(ErrorKind::TargetNotEmpty, format!("{} {what}", absolute.display()))
            .hint("name a folder that does not exist yet, or an empty one; nothing was changed"))
    };
    match std::fs::read_dir(&absolute) {
        Ok(mut entries) => match entries.next() {
            None => {}
            Some(_) => return not_empty("is not empty"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(absolute),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return not_empty("is not a folder");
        }
        Err(error) => return Err(failed(error)),
    }
    // It may be a link to a folder, or a disk by itself.
    let absolute = absolute.canonicalize().map_err(failed)?;
    let disk = |folder: &Path| folder.metadata().map(|metadata| metadata.dev()).map_err(failed);
    match absolute.parent() {
        Some(parent) if disk(parent)? == disk(&absolute)? => Ok(absolute),
        _ => Err(Error::new(
            ErrorKind::Usage,
            format!("{} is a mount point, which can't be replaced", absolute.display()),
        )
        .hint("name a new folder inside it")),
    }
}

/// Refuses a disk that has no room for what is going to be written.
pub(super) fn check_space(plan: &FilesPlan) -> Result<()> {
    let needed = plan.nodes.iter().filter_map(|node| node.dataset.as_ref());
    let needed = needed.fold(0, |sum: u64, dataset| sum.saturating_add(dataset.bytes()));
    let existing = plan.folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok());
    let Some(disk) = existing else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free >= needed {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let what = format!(
        "{} has room for {} MiB, and {} MiB are going to be written",
        plan.folder.display(),
        mib(free),
        mib(needed)
    );
    Err(Error::new(ErrorKind::Full, what)
        .hint("free some space, or name a folder on another disk; nothing was written"))
}
