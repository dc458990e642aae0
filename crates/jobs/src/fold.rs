//! Base and log, through an engine, to one base at the cut.
//!
//! The engine follows our link: it loads the base, applies the log, and, being a replica, expires nothing by its own clock. When it
//! has applied the cut, neither less nor more, we become its replica and take its dataset as any backup does. So memory and
//! disk are as bounded as a backup's; the engine itself needs the memory that the shard's server needs.
//!
//! Invariants: what is stored was at the cut exactly: the engine's own words (`INFO`, then `+FULLRESYNC`) have to name the offset of
//! the last byte sent; a fold that fails or is stopped takes back what it stored.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use slotkeep_format::manifest::{BaseRecord, RoleRecord};
use slotkeep_model::{Product, ReplId, ReplOffset, ServerVersion, SlotDigest};
use slotkeep_repo::Repository;
use slotkeep_repo::layout::BaseLayout;
use slotkeep_wire::replica::{Credentials, Request};
use slotkeep_wire::stream::Reader;

use crate::archive::link::{Answer, Link};
use crate::backup::base::{Announced, TakenBase, receive};
use crate::engine::{Engine, EngineClient, EngineNeeds, EngineOptions};
use crate::link::{Feed, LinkListener, LinkOptions, LogEditor, TimeOf};
use crate::ports::random_hex;
use crate::progress::ShardProgress;
use crate::source::ByteSource;
use crate::stock_server::StockServer;
use crate::{Context, Error, ErrorKind, Result};

/// How long an engine may stand still: with one command, one huge value, it does nothing else for a while.
const PATIENCE: Duration = Duration::from_secs(300);

/// What to fold, of one shard.
pub struct FoldInput<B, L> {
    /// The base and the log up to the cut.
    pub feed: Feed<B, L>,
    /// What they need of an engine.
    pub needs: EngineNeeds,
    /// Gives the server's time at an offset: needed for logs of Redis 6.2 and older.
    pub time_of: Option<TimeOf>,
}

/// Where the new base goes.
#[derive(Clone, Copy)]
pub struct FoldDestination<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The name under which it keeps the cluster.
    pub cluster: &'a str,
    /// The id of the backup that the base belongs to.
    pub backup_id: &'a str,
}

/// How far a fold has come.
#[derive(Debug)]
pub struct FoldProgress {
    /// Bytes of base and log that the engine has taken.
    pub fed_bytes: AtomicU64,
    /// The capture of the result.
    pub capture: Arc<ShardProgress>,
}

impl FoldProgress {
    /// Progress that has not begun.
    pub fn new(name: String) -> Self {
        Self { fed_bytes: AtomicU64::new(0), capture: ShardProgress::new(name) }
    }
}

/// A new base.
#[derive(Debug)]
pub struct Folded {
    /// What was stored.
    pub base: BaseRecord,
    /// The sum of its keys' digests, if it was understood.
    pub digest: Option<SlotDigest>,
    /// The history that it belongs to: the log's.
    pub history: ReplId,
    /// The cut.
    pub offset: ReplOffset,
    /// What applied the log.
    pub engine: ServerVersion,
    /// How many commands of the log were of no concern to a dataset and left out.
    pub left_out_commands: u64,
}

/// Folds a log into a base. Cancelling it ends the engine but may leave unlisted objects in the repository; to stop in order, cancel
/// [`Context::stop`].
pub async fn fold<B: ByteSource, L: ByteSource>(
    context: &Context,
    server: &StockServer,
    options: &EngineOptions,
    input: FoldInput<B, L>,
    destination: &FoldDestination<'_>,
    progress: &FoldProgress,
) -> Result<Folded> {
    let relative_times =
        input.needs.source.is_some_and(|source| source.product == Product::Redis && source.major < 7);
    if relative_times && input.time_of.is_none() && input.feed.cut != input.feed.base.offset {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the log's expiry times are relative (Redis before 7.0), and it is not known when its bytes were written",
        ));
    }
    let credentials = Credentials { user: None, password: random_hex(&*context.rng, 48)? };
    let link = LinkOptions {
        credentials: Some(credentials.clone()),
        listening_port: None,
        patience: PATIENCE,
        // The engine's own time limit is longer than any fold.
        keep_alive: None,
    };
    let listener = LinkListener::bind(IpAddr::V4(Ipv4Addr::LOCALHOST), link).await?;
    let mut engine = Engine::start(server, options, listener.addr(), &credentials).await?;
    let inner = Context { stop: context.stop.child_token(), ..context.clone() };
    let outcome = {
        let run = Run {
            context: &inner,
            listener,
            client: engine.client(),
            server: engine.version(),
            destination,
            progress,
        };
        let mut work = Box::pin(run.run(input));
        tokio::select! {
            biased;
            outcome = &mut work => outcome,
            error = engine.died() => {
                // In order: it takes back what it has stored.
                inner.stop.cancel();
                let _ = work.await;
                Err(error)
            }
        }
    };
    let outcome = match outcome {
        Ok(done) => Ok(done),
        Err(error) => Err(engine.explain(context, error).await),
    };
    let version = engine.version();
    engine.stop().await;
    outcome.map(|done| Folded {
        base: done.base,
        digest: done.digest,
        history: done.history,
        offset: done.offset,
        engine: version,
        left_out_commands: done.left_out_commands,
    })
}

struct Run<'a> {
    context: &'a Context,
    listener: LinkListener,
    client: EngineClient,
    server: ServerVersion,
    destination: &'a FoldDestination<'a>,
    progress: &'a FoldProgress,
}

struct Done {
    base: BaseRecord,
    digest: Option<SlotDigest>,
    history: ReplId,
    offset: ReplOffset,
    left_out_commands: u64,
}

impl Run<'_> {
    async fn run<B: ByteSource, L: ByteSource>(&self, input: FoldInput<B, L>) -> Result<Done> {
        let (history, cut) = (input.feed.base.history.clone(), input.feed.cut);
        let mut editor = LogEditor::new(input.feed.base.offset, Reader::Engine, input.time_of);
        let mut follower = self.listener.accept(self.context).await?;
        let sent = input.feed.send(&mut follower, &mut editor, &self.progress.fed_bytes).await?;
        follower.keep_until(self.client.wait_applied(self.context, sent, PATIENCE)).await?;
        // Stopped or not, it has to come to its end, where it takes back what it has stored.
        let taken = Box::pin(follower.hold(self.take(&history, sent, cut))).await?;
        let digest = taken.total(self.destination.repository).await?;
        Ok(Done { base: taken.base, digest, history, offset: cut, left_out_commands: editor.left_out() })
    }

    /// Takes the engine's dataset, which has to be at offset `sent`, as that at the cut.
    async fn take(&self, history: &ReplId, sent: ReplOffset, cut: ReplOffset) -> Result<TakenBase> {
        let context = self.client.context(self.context);
        let mut link = context.unless_stopped(Link::open(&context, self.client.node())).await?;
        let answer = context.unless_stopped(link.begin(Request::Full)).await?;
        let header = match answer {
            Answer::Snapshot { history: given, offset, header, .. }
                if given == *history && offset == sent =>
            {
                header
            }
            other => {
                return Err(Error::new(
                    ErrorKind::Failed,
                    format!(
                        "the engine gave something else than its dataset at offset {sent} of {history}: {other:?}"
                    ),
                ));
            }
        };
        let announced = Announced {
            source: self.client.node().clone(),
            source_role: RoleRecord::Replica,
            server: self.server.into(),
            history: history.clone(),
            offset: cut.0,
            server_time: None,
            layout: self.layout(history, cut),
        };
        let repository = self.destination.repository;
        let received =
            receive(&context, repository, &mut link, header, announced, &self.progress.capture).await?;
        drop(link);
        received.store(&context, repository).await
    }

    fn layout(&self, history: &ReplId, cut: ReplOffset) -> BaseLayout {
        BaseLayout::new(self.destination.cluster, history, cut, self.destination.backup_id)
    }
}
