//! A base: from the snapshot on a link to its record.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_format::LineBase;
use slotkeep_format::manifest::{
    BaseRecord, CrcRecord, NodeRecord, ObjectRecord, ReadRecord, RoleRecord, ServerRecord, ShardCut,
    ShardRecord,
};
use slotkeep_model::{Node, NodeAddr, ReplId, Shard, SlotDigest};
use slotkeep_rdb::Crc;
use slotkeep_repo::layout::BaseLayout;
use slotkeep_repo::{Problem, RepoError, Repository};
use slotkeep_wire::transfer::PayloadHeader;

use super::HASH_VERSION;
use super::pipeline::{Pipeline, PipelineReport};
use super::plan::Candidate;
use crate::archive::link::{Interruption, Link};
use crate::fold::Folded;
use crate::progress::{Phase, ShardProgress};
use crate::{Context, Error, ErrorKind, Result};

/// How long what was begun may take to be removed after the user has stopped the job. Where a store does not answer, that would take minutes.
const CLEANING_LIMIT: Duration = Duration::from_secs(10);

/// A base that has been stored.
#[derive(Clone, Debug)]
pub(crate) struct TakenBase {
    pub(crate) source: NodeAddr,
    pub(crate) source_role: RoleRecord,
    pub(crate) server: ServerRecord,
    pub(crate) history: ReplId,
    pub(crate) offset: u64,
    pub(crate) server_time: Option<Timestamp>,
    pub(crate) base: BaseRecord,
    /// How it was read, if it did not come over a replication link.
    pub(crate) read: Option<ReadRecord>,
    /// Its keys and digest, if they are known without reading it.
    total: Option<SlotDigest>,
    /// The backup that lists it already.
    pub(crate) listed_in: Option<String>,
}

/// What a snapshot is to become.
#[derive(Clone, Debug)]
pub(crate) struct Announced {
    pub(crate) source: NodeAddr,
    pub(crate) source_role: RoleRecord,
    pub(crate) server: ServerRecord,
    pub(crate) history: ReplId,
    pub(crate) offset: u64,
    pub(crate) server_time: Option<Timestamp>,
    pub(crate) layout: BaseLayout,
}

/// A snapshot that has been received whole and is still being stored.
pub(crate) struct Received {
    pipeline: Pipeline,
    announced: Announced,
}

/// Receives a snapshot. Unless it succeeds, nothing of it stays in the repository.
pub(crate) async fn receive(
    context: &Context,
    repository: &Repository,
    link: &mut Link<'_>,
    header: PayloadHeader,
    announced: Announced,
    progress: &Arc<ShardProgress>,
) -> Result<Received> {
    let mut taking = Taking::begin(context, repository, announced, progress).await?;
    let received = tokio::select! {
        received = link.receive(header, &mut taking.pipeline) => received,
        () = context.stop.cancelled() => Err(Interruption::Other(Error::interrupted())),
    };
    taking.end(context, repository, received, progress).await
}

/// A base whose RDB is being written.
pub(crate) struct Taking {
    /// Where its bytes go.
    pub(crate) pipeline: Pipeline,
    announced: Announced,
}

impl Taking {
    /// Begins a base.
    pub(crate) async fn begin(
        context: &Context,
        repository: &Repository,
        announced: Announced,
        progress: &Arc<ShardProgress>,
    ) -> Result<Self> {
        let started = Pipeline::start(repository, &announced.layout, Arc::clone(progress));
        let pipeline = context.unless_stopped(Box::pin(started)).await?;
        progress.enter(Phase::Running);
        Ok(Self { pipeline, announced })
    }

    /// Ends it, with what came of the writing. Unless that succeeded, nothing of it stays in the repository.
    pub(crate) async fn end(
        self,
        context: &Context,
        repository: &Repository,
        written: Result<(), Interruption>,
        progress: &ShardProgress,
    ) -> Result<Received> {
        let Self { pipeline, announced } = self;
        let Err(interruption) = written else {
            progress.enter(Phase::Finishing);
            return Ok(Received { pipeline, announced });
        };
        let cleaned = async {
            let cause = pipeline.abandon().await;
            discard(repository, &announced.layout).await;
            cause
        };
        let cause = clean_up(context, Box::pin(cleaned)).await.flatten();
        Err(match interruption {
            Interruption::Other(error) => error,
            Interruption::Pipeline => {
                cause.unwrap_or_else(|| Error::new(ErrorKind::Failed, "the snapshot could not be stored"))
            }
        })
    }
}

impl Received {
    /// The database that is selected in the stream behind it, if it says so.
    pub(crate) fn database(&mut self) -> Option<u32> {
        self.pipeline.head().database
    }

    /// Waits until the base is durable. Unless it succeeds, or if the job is stopped before, nothing of it stays in the repository.
    pub(crate) async fn store(self, context: &Context, repository: &Repository) -> Result<TakenBase> {
        let Self { pipeline, announced } = self;
        let layout = announced.layout.clone();
        let store = async {
            let report = pipeline.finish(&context.stop).await?;
            describe(repository, report, announced).await
        };
        // What stops it here is a store that does not answer.
        let stored = clean_up(context, Box::pin(store)).await.unwrap_or_else(|| Err(Error::interrupted()));
        if stored.is_err() {
            clean_up(context, Box::pin(discard(repository, &layout))).await;
        }
        stored
    }
}

/// What `work` gives, which removes what was begun; nothing if the user has stopped the job and it takes too long then.
pub(crate) async fn clean_up<T>(context: &Context, work: impl Future<Output = T>) -> Option<T> {
    let too_long = async {
        context.stop.cancelled().await;
        context.clock.sleep(CLEANING_LIMIT).await;
    };
    tokio::select! {
        done = work => Some(done),
        () = too_long => {
            tracing::warn!(
                "the repository does not answer: what was begun may stay in it, unlisted; `slotkeep prune` deletes it, or what the bucket's rules say of \
                 uploads that were broken off"
            );
            None
        }
    }
}

async fn describe(
    repository: &Repository,
    report: PipelineReport,
    announced: Announced,
) -> Result<TakenBase> {
    let mut base = BaseRecord {
        rdb: report.rdb,
        rdb_version: report.envelope.version,
        crc64: match report.envelope.crc {
            Crc::Matches(_) => CrcRecord::Verified,
            Crc::NotComputed | Crc::None => CrcRecord::NotComputed,
        },
        index: None,
        digest: None,
        keys: None,
        functions: None,
        not_interpreted: None,
    };
    let mut total = None;
    match report.interpretation {
        Ok((interpretation, index)) => {
            total = Some(interpretation.digest.total());
            let bytes = slotkeep_format::encode_digest(&interpretation.digest, HASH_VERSION);
            base.index = Some(index);
            base.digest = Some(put_digest(repository, announced.layout.digest(), bytes).await?);
            base.keys = Some(interpretation.digest.keys());
            base.functions = Some(interpretation.digest.functions.keys);
        }
        Err(reason) => base.not_interpreted = Some(reason),
    }
    let Announced { source, source_role, server, history, offset, server_time, layout: _ } = announced;
    let (read, listed_in) = (None, None);
    Ok(TakenBase { source, source_role, server, history, offset, server_time, base, read, total, listed_in })
}

pub(crate) async fn put_digest(
    repository: &Repository,
    path: String,
    bytes: Vec<u8>,
) -> Result<ObjectRecord> {
    let raw_bytes = bytes.len() as u64;
    let mut writer = repository.create_object(path).await?;
    match writer.write(bytes.into()).await {
        Ok(()) => Ok(writer.finish(raw_bytes).await?),
        Err(error) => {
            // The first error is the one to report.
            let _ = writer.abort().await;
            Err(error.into())
        }
    }
}

impl TakenBase {
    /// A base that a backup lists.
    pub(crate) fn of(record: &ShardRecord, backup: &str) -> Self {
        Self {
            source: record.source.clone(),
            source_role: record.source_role,
            server: record.server.clone(),
            history: record.history.clone(),
            offset: record.offset,
            server_time: record.server_time,
            base: record.base.clone(),
            read: record.read.clone(),
            total: None,
            listed_in: Some(backup.to_owned()),
        }
    }

    /// The same base, as a backup describes it.
    pub(crate) fn described(&self, base: &BaseRecord) -> Self {
        Self { base: base.clone(), ..self.clone() }
    }

    /// The same base, read in that way.
    pub(crate) fn with_read(self, read: ReadRecord) -> Self {
        Self { read: Some(read), ..self }
    }

    /// A base that an engine made, of what was read from a node.
    pub(crate) fn folded(folded: Folded, candidate: &Candidate, read: ReadRecord) -> Self {
        Self {
            source: candidate.addr.clone(),
            source_role: candidate.role.into(),
            server: folded.engine.into(),
            history: folded.history,
            offset: folded.offset.0,
            server_time: Some(read.until),
            base: folded.base,
            read: Some(read),
            total: folded.digest,
            listed_in: None,
        }
    }

    /// A base that another agent has taken.
    pub(crate) fn told(told: &LineBase) -> Self {
        Self { total: told.digest, listed_in: None, ..Self::of(&told.record, "") }
    }

    /// What to tell other agents of it.
    pub(crate) fn tell(&self, shard: &Shard) -> LineBase {
        LineBase { record: self.record(shard, None), digest: self.total }
    }

    /// The shard's record in a manifest.
    pub(crate) fn record(&self, shard: &Shard, cut: Option<ShardCut>) -> ShardRecord {
        let node =
            |node: &Node| NodeRecord { id: node.id.clone(), addr: node.addr.clone(), online: node.online };
        ShardRecord {
            slots: shard.slots.clone(),
            config_epoch: shard.config_epoch,
            primary: node(&shard.primary),
            replicas: shard.replicas.iter().map(node).collect(),
            source: self.source.clone(),
            source_role: self.source_role,
            server: self.server.clone(),
            history: self.history.clone(),
            offset: self.offset,
            server_time: self.server_time,
            base: self.base.clone(),
            cut,
            read: self.read.clone(),
        }
    }

    /// Its keys and digest; nothing if it was not interpreted, or if this machine may only write.
    pub(crate) async fn total(&self, repository: &Repository) -> Result<Option<SlotDigest>> {
        if self.total.is_some() || self.base.not_interpreted.is_some() {
            return Ok(self.total);
        }
        if !repository.is_readable() {
            return Ok(None);
        }
        Ok(Some(crate::base::Base::open(repository, &self.base)?.digest().await?.total()))
    }

    /// Deletes a base that will not be listed. What can't be deleted stays, unlisted.
    pub(crate) async fn take_back(&self, repository: &Repository) {
        if self.listed_in.is_some() {
            return;
        }
        for object in self.base.objects() {
            if let Err(error) = repository.discard(&object.path).await {
                tracing::warn!(%error, "an unlisted object stays in the repository");
            }
        }
    }
}

/// Deletes what there is of a base that will not be listed: one of its objects may be complete where another failed.
async fn discard(repository: &Repository, layout: &BaseLayout) {
    for path in [layout.rdb(), layout.index(), layout.digest()] {
        match repository.discard(&path).await {
            Ok(()) | Err(RepoError { problem: Problem::Missing, .. }) => {}
            Err(error) => tracing::warn!(%error, "an unlisted object stays in the repository"),
        }
    }
}
