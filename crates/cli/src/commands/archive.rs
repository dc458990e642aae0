//! `slotkeep archive`

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use slotkeep_jobs::archive::{
    Ack, ArchiveOptions, ArchiveStatus, LinePhase, NearRule, Notice, NoticeKind, SealPolicy, ShardStatus,
    ShareOptions, Watch, archive,
};
use slotkeep_jobs::backup::Prefer;
use slotkeep_jobs::discover::await_cluster;
use slotkeep_jobs::ports::Clock;
use slotkeep_jobs::{Context, Result};

use super::backup::PreferArg;
use crate::args::{ClusterArgs, CutArgs, RepoArgs, SpoolArgs, size, span};
use crate::exit;
use crate::output::{Output, bytes, seconds};
use crate::repos;
use crate::session::Session;

/// How often notices are looked for.
const LOOK: Duration = Duration::from_millis(200);
/// A shorter lease would be lost to any hiccup.
const LEAST_LEASE_TIME: Duration = Duration::from_secs(1);

/// Keep every write: follow a running cluster and archive its replication streams
///
/// Follows each shard as a replica would, takes a base of each once, and keeps the stream behind it, sealed into segments every few
/// seconds. Runs until it is stopped (Ctrl-C or SIGTERM), seals what it holds and exits with 0. What could not be sealed waits in the
/// spool for the next run. Failovers, restarts, new shards and moved slots are followed by itself. Several agents, each on its own machine with its
/// own spool, divide the shards among themselves, and take over what one of them leaves.
#[derive(Debug, Args)]
pub(crate) struct ArchiveArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How long to ask for the cluster at the start while no node answers, or no slot is served yet, as where both start together
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = span, help_heading = "Cluster")]
    wait_for_cluster: Duration,
    #[command(flatten)]
    repo: RepoArgs,
    /// Seal at the latest so long after a write was received; heartbeats alone are sealed within a minute
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = span, help_heading = "Log")]
    seal_after: Duration,
    /// Seal at the latest at so many bytes
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size, help_heading = "Log")]
    seal_size: u64,
    /// What the servers are told to have been received: what WAIT and min-replicas-to-write count
    #[arg(long, value_enum, default_value_t = AckArg::Local, help_heading = "Log")]
    ack: AckArg,
    #[command(flatten)]
    spool: SpoolArgs,
    /// What is near this agent, and left to it by others for a while: a host name or address, a part of a host name between dots, or a network
    /// such as 10.0.1.0/24; the nodes that have an address of this machine if not given
    #[arg(long, value_name = "HOST|LABEL|NET", value_delimiter = ',', help_heading = "Several agents")]
    near: Vec<NearRule>,
    /// How long an agent that says nothing is waited for before others take its shards over; at least 1s
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = span, help_heading = "Several agents")]
    lease_time: Duration,
    #[command(flatten)]
    cut: CutArgs,
    /// Most shards at a time whose bases are taken
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = "Load")]
    jobs: usize,
    /// Most shards at a time whose bases are taken from nodes of one host: each forks
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    jobs_per_host: usize,
    /// Which node to follow where there is a choice
    #[arg(long, value_enum, default_value_t = PreferArg::Replica, help_heading = "Load")]
    prefer: PreferArg,
    /// Store passwords of the configuration and password hashes of ACL users too, unencrypted
    #[arg(long)]
    include_secrets: bool,
    /// How often to say how the shards stand
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = span)]
    status_every: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AckArg {
    /// What is durable on the local disk
    Local,
    /// What the repository holds
    Repo,
    /// What has been received: a crash of this machine may lose what was acknowledged
    Received,
}

/// A line of JSON.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    Notice(&'a Notice),
    Status(&'a ArchiveStatus),
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &ArchiveArgs) -> Result<u8> {
    let (context, seeds) = session.cluster(&arguments.cluster)?;
    let (location, name) = session.location(&arguments.repo)?;
    // A cluster that can't be found must leave no new repository behind.
    let discovery = await_cluster(&context, &seeds, arguments.wait_for_cluster, |why| {
        output.warn(&format!("{why}; it is asked for again"));
    })
    .await?;
    let unserved = discovery.topology().covered().complement();
    if !unserved.is_empty() {
        output.warn(&format!(
            "no shard serves the slots {unserved}: they are followed from when one does, and backups are partial until then"
        ));
    }
    let repository = session.open_or_create(&location, &arguments.repo).await?;
    repository.check_signs()?;
    if let Some(spoiled) = repository.check_newest(&name).await? {
        output.warn(&format!("{spoiled}; nothing that is archived now replaces it: see `slotkeep verify`"));
    }
    repos::warn_if_unlike(output, &repository, &name, &discovery).await;
    let options = ArchiveOptions {
        cluster: name,
        spool: arguments.spool.folder(),
        spool_limit_bytes: arguments.spool.spool_limit,
        seal: SealPolicy {
            after: arguments.seal_after,
            size_bytes: arguments.seal_size.max(1),
            ..SealPolicy::default()
        },
        ack: match arguments.ack {
            AckArg::Local => Ack::Local,
            AckArg::Repo => Ack::Repo,
            AckArg::Received => Ack::Received,
        },
        prefer: Prefer::from(arguments.prefer),
        jobs: arguments.jobs,
        jobs_per_host: arguments.jobs_per_host,
        include_secrets: arguments.include_secrets || repository.is_encrypted(),
        cut: arguments.cut.options(),
        share: ShareOptions {
            lease_time: arguments.lease_time.max(LEAST_LEASE_TIME),
            near: arguments.near.clone(),
        },
    };
    let watch = Watch::default();
    let running = archive(&context, &repository, &seeds, &options, &watch);
    tokio::pin!(running);
    let mut said_at = context.clock.elapsed();
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            () = context.clock.sleep(LOOK) => {}
        }
        tell(&context, output, &watch, arguments.status_every, &mut said_at)?;
    };
    for notice in watch.board.take() {
        say(output, &notice)?;
    }
    let unsealed = outcome?;
    let status = watch.status();
    output.line(&Line::Status(&status), |_| closing(&status, unsealed))?;
    Ok(exit::OK)
}

fn tell(
    context: &Context,
    output: &Output,
    watch: &Watch,
    every: Duration,
    said_at: &mut Duration,
) -> Result<()> {
    for notice in watch.board.take() {
        say(output, &notice)?;
    }
    let now = Clock::elapsed(&*context.clock);
    if now.saturating_sub(*said_at) >= every {
        *said_at = now;
        let status = watch.status();
        output.line(&Line::Status(&status), |_| render(&status))?;
    }
    Ok(())
}

fn say(output: &Output, notice: &Notice) -> Result<()> {
    output.line(&Line::Notice(notice), |_| {
        let about = notice.slots.as_ref().map(|slots| format!("slots {slots}: ")).unwrap_or_default();
        let mark = match notice.kind {
            NoticeKind::Gap | NoticeKind::Diverged | NoticeKind::Trouble => "warning: ",
            _ => "",
        };
        format!("{mark}{about}{}", notice.what)
    })
}

fn render(status: &ArchiveStatus) -> String {
    let mut lines: Vec<String> = status.shards.iter().map(shard).collect();
    if status.agents > 1 || status.trouble.is_some() {
        let leads = if status.leads { ", this one writes the backups" } else { "" };
        let trouble = status.trouble.as_ref().map(|trouble| format!("; {trouble}")).unwrap_or_default();
        lines.push(format!(
            "{} agents{leads}; {} shards with others{trouble}",
            status.agents, status.elsewhere
        ));
    }
    lines.extend(status.no_backup.clone());
    if status.unfollowed > 0 {
        lines.push(format!("{} shards are followed by nobody", status.unfollowed));
    }
    lines.join("\n")
}

fn shard(shard: &ShardStatus) -> String {
    let doing = match (shard.phase, &shard.source) {
        (LinePhase::Following, Some(source)) => format!("follows {source}"),
        (LinePhase::Base, Some(source)) => format!("stores a base of {source}"),
        (LinePhase::Base, None) => "takes a base".to_owned(),
        (LinePhase::Queued, _) => "waits for its turn to take a base".to_owned(),
        (LinePhase::SpoolFull, _) => "the spool is full".to_owned(),
        (LinePhase::Ended, _) => "has ended".to_owned(),
        (LinePhase::Connecting | LinePhase::Following, _) => "looks for a node".to_owned(),
    };
    let sealed = shard.sealed_ms_ago.map_or_else(
        || "nothing sealed yet".to_owned(),
        |ms| format!("last sealed {} ago", seconds(Duration::from_millis(ms))),
    );
    let trouble = shard.trouble.as_ref().map(|trouble| format!("; {trouble}")).unwrap_or_default();
    format!(
        "slots {}: {doing}, offset {}, {} behind, {} unsealed, {sealed}{trouble}",
        shard.slots,
        shard.received,
        bytes(shard.lag_bytes),
        bytes(shard.unsealed_bytes),
    )
}

fn closing(status: &ArchiveStatus, unsealed: u64) -> String {
    let segments: u64 = status.shards.iter().map(|shard| shard.segments).sum();
    let rest = if unsealed == 0 {
        "everything received is sealed".to_owned()
    } else {
        format!("{} could not be sealed and wait in the spool for the next run", bytes(unsealed))
    };
    format!("Stopped: {segments} segments sealed in this run; {rest}.")
}
