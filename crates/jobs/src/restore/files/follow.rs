//! New nodes that follow us: each primary to be is told by its `nodes.conf` that we are its primary. It takes base and log from our link
//! up to the cut and then takes its slots over; its replicas are started after that.
//!
//! Source: `clusterLoadConfig` and `clusterUpdateSlotsConfigWith` in `src/cluster_legacy.c`; seen on Redis 7.0 and Valkey 9.1: a
//! node that is a replica by its `nodes.conf` dials its primary's port even when nothing answers on the cluster bus there.
//!
//! Invariants: slots are taken over only when every shard has applied its cut; either all nodes run when this returns, or none
//! does and their folders are gone.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{try_join, try_join_all};
use slotkeep_format::manifest::RoleRecord;
use slotkeep_model::NodeAddr;
use slotkeep_wire::resp::Command;
use slotkeep_wire::stream::Reader;
use tokio::sync::Barrier;
use tokio_util::task::AbortOnDropHandle;

use super::led::LedPrimary;
use super::plan::FilesPlan;
use super::start::{Nodes, StartedNode, context_for};
use crate::link::{Feed, LinkListener, LinkOptions, LogEditor};
use crate::progress::{Phase, ShardProgress};
use crate::source::ByteSource;
use crate::stock_server::StockServer;
use crate::{Context, Error, ErrorKind, Result};

/// How long a node may stand still.
const PATIENCE: Duration = Duration::from_secs(300);
/// A node gives its primary up after `repl-timeout`, a minute by default, without a byte.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How often nodes are looked after while they follow.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Where the primaries to be are going to follow us.
pub struct Links {
    listeners: Vec<LinkListener>,
}

impl Links {
    /// Takes so many free ports of the address `ip`, which the nodes have to reach.
    pub async fn bind(ip: IpAddr, shards: usize) -> Result<Self> {
        let options = LinkOptions {
            credentials: None,
            listening_port: None,
            patience: PATIENCE,
            keep_alive: Some(KEEP_ALIVE),
        };
        let listeners = (0..shards).map(|_| LinkListener::bind(ip, options.clone()));
        Ok(Self { listeners: try_join_all(listeners).await? })
    }

    /// For [`FilesOptions::links`](super::FilesOptions::links).
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(LinkListener::addr).collect()
    }
}

/// Starts the nodes of a plan that was made with [`Links::addrs`] and applied, leads each primary through its feed (in the order of
/// the plan's primaries) and waits until the cluster is whole. `may_open` is awaited when all have their data and before any takes
/// writes; if it fails, none does. `progress` has a row for each primary.
pub async fn start_following<B: ByteSource + 'static, L: ByteSource + 'static>(
    context: &Context,
    plan: &FilesPlan,
    server: &StockServer,
    (links, feeds): (Links, Vec<Feed<B, L>>),
    progress: &[Arc<ShardProgress>],
    may_open: impl Future<Output = Result<()>>,
    tell: impl FnMut(&str),
) -> Result<Vec<StartedNode>> {
    let context = context_for(context, plan)?;
    let mut nodes = Nodes::new(&context, plan);
    let started = async {
        nodes.spawn(server, |node| matches!(node.role, RoleRecord::Primary)).await?;
        let led = lead_all(&context, plan, (links, feeds), progress, may_open);
        tokio::pin!(led);
        loop {
            tokio::select! {
                led = &mut led => break led?,
                () = context.clock.sleep(LOOK_EVERY) => nodes.check_alive()?,
            }
        }
        nodes.spawn(server, |node| matches!(node.role, RoleRecord::Replica)).await?;
        nodes.wait_ready(tell).await
    };
    let started = started.await;
    if started.is_err() {
        nodes.stop().await;
    }
    match started {
        Ok(started) => Ok(started),
        Err(error) => Err(not_led(error, &plan.folder).await),
    }
}

/// What follows from a failure: folders of nodes without their data are of no use to anybody.
async fn not_led(error: Error, folder: &Path) -> Error {
    let place = folder.display();
    match tokio::fs::remove_dir_all(folder).await {
        Ok(()) => error
            .context(
                "the new nodes did not get their data; none of them runs, and their folders were removed",
            )
            .hint("mend what the message says, then restore again"),
        Err(why) => error
            .context(format!(
                "the new nodes did not get their data; none of them runs ({place} stays: {why})"
            ))
            .hint(format!("mend what the message says, remove {place}, then restore again")),
    }
}

/// Leads every primary, and lets them take over when all have applied their cuts.
async fn lead_all<B: ByteSource + 'static, L: ByteSource + 'static>(
    context: &Context,
    plan: &FilesPlan,
    (links, feeds): (Links, Vec<Feed<B, L>>),
    progress: &[Arc<ShardProgress>],
    may_open: impl Future<Output = Result<()>>,
) -> Result<()> {
    if feeds.len() != plan.led.len() || links.listeners.len() != plan.led.len() {
        return Err(Error::new(ErrorKind::Failed, "there is not a link and a feed for every primary"));
    }
    // One more than there are shards: this function, which opens the cluster.
    let parties = feeds.len().saturating_add(1);
    let (all_applied, opened) = (Arc::new(Barrier::new(parties)), Arc::new(Barrier::new(parties)));
    let shards = links.listeners.into_iter().zip(feeds).zip(&plan.led).zip(progress);
    // A task each, so that shards are decompressed, checked and filtered on all cores.
    let led = shards.map(|(((listener, feed), led), progress)| {
        let shard = Lead {
            context: context.clone(),
            led: led.clone(),
            all_applied: Arc::clone(&all_applied),
            opened: Arc::clone(&opened),
            progress: Arc::clone(progress),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(shard.run(listener, feed)));
        async {
            task.await.unwrap_or_else(|error| {
                Err(Error::new(ErrorKind::Failed, format!("a worker ended unexpectedly: {error}")))
            })
        }
    });
    let open = async {
        all_applied.wait().await;
        may_open.await?;
        opened.wait().await;
        Ok(())
    };
    try_join(try_join_all(led), open).await?;
    forget_leaders(context, &plan.led).await
}

/// One primary to be.
struct Lead {
    context: Context,
    led: LedPrimary,
    all_applied: Arc<Barrier>,
    opened: Arc<Barrier>,
    progress: Arc<ShardProgress>,
}

impl Lead {
    async fn run<B: ByteSource, L: ByteSource>(
        self,
        mut listener: LinkListener,
        feed: Feed<B, L>,
    ) -> Result<()> {
        listener.expect(self.led.credentials.clone(), Some(self.led.addr.port()));
        let mut follower = listener.accept(&self.context).await?;
        self.progress.enter(Phase::Running);
        let mut editor = LogEditor::new(feed.base.offset, Reader::Node, None);
        let sent = feed.send(&mut follower, &mut editor, &self.progress.raw_bytes).await?;
        self.progress.enter(Phase::Finishing);
        follower.wait_acknowledged(sent).await?;
        let opened = async {
            self.all_applied.wait().await;
            self.opened.wait().await;
            Ok(())
        };
        follower.keep_until(opened).await?;
        // A primary follows nobody: it ends the link itself.
        follower.hold(take_over(&self.context, &self.led.addr)).await?;
        self.progress.enter(Phase::Done);
        Ok(())
    }
}

/// Makes a node the primary of its shard, without asking the others.
async fn take_over(context: &Context, node: &NodeAddr) -> Result<()> {
    let mut connection = context.connector.connect(node).await?;
    let take_over = Command::new("CLUSTER").arg("FAILOVER").arg("TAKEOVER");
    connection.call(&take_over).await.map_err(|error| Error::from(error).context("taking its slots over"))?;
    Ok(())
}

/// Makes every primary forget the nodes that we were to them.
async fn forget_leaders(context: &Context, led: &[LedPrimary]) -> Result<()> {
    for node in led {
        let mut connection = context.connector.connect(&node.addr).await?;
        for leader in led {
            let forget = Command::new("CLUSTER").arg("FORGET").arg(leader.leader.as_str());
            let reply = connection.exchange(&forget).await?;
            // Another node's word may have come before ours.
            if let Some(text) = reply.as_error().filter(|text| !text.contains("Unknown node")) {
                return Err(Error::new(ErrorKind::Failed, format!("{}: CLUSTER FORGET: {text}", node.addr)));
            }
        }
    }
    Ok(())
}
