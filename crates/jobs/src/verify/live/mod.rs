//! Whether the repository holds what the running cluster holds, while that takes writes: each shard at one offset of its history, exactly.
//!
//! ```text
//! each node, captured as a replica at an offset ──────────────┐
//!                                                             ├─► digests, and the keys of the slots that differ
//! the base before it, and the log up to exactly that offset ──┘
//! ```
//!
//! Invariants: no backup is written; a node that can't be captured, or a log that does not come to the offset, is an error and never a
//! finding; at most one shard is folded at a time, and what is put into the spool is one capture of the cluster and one base.

mod reach;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use slotkeep_format::manifest::{ShardCut, ShardRecord};
use slotkeep_format::verify::{LiveRecord, LiveShard};
use slotkeep_format::{Depth, Severity, VerifyFinding};
use slotkeep_model::NodeAddr;
use slotkeep_repo::{Location, RateLimit, Repository};

use super::chain::alone;
use super::findings::{finding, problem, shortened};
use super::steps::Steps;
use super::{Run, VerifyProgress};
use crate::backup::Prefer;
use crate::diff::{CaptureOptions, Diff, DiffOptions, How, KeyDifference, Snapshot, diff, expiry_slack_ms};
use crate::fold::FoldProgress;
use crate::log::Past;
use crate::log::chain::Place;
use crate::log::point::{Point, ShardPoint, way_to};
use crate::merge::{MergeTarget, merge};
use crate::ports::random_hex;
use crate::{Error, ErrorKind, Result, WorkFolder};
use reach::Reach;

const DIGEST: (Depth, &str) = (Depth::Live, "digest");
/// So many keys that differ are named for each shard.
const NAMED_KEYS: usize = 20;
const ADVICE: &str = "ask the node and its primary for these keys: a replica that somebody wrote to, or data that did not get into the backup? \
                      Keep the backups there are, take a full one, and compare again";

/// What to compare with, and how.
#[derive(Clone)]
pub struct LiveOptions {
    /// Addresses of any of its nodes.
    pub seeds: Vec<NodeAddr>,
    /// Which node of a shard is captured, where there is a choice.
    pub prefer: Prefer,
    /// At most so many shards at a time whose nodes are on one host: each forks.
    pub jobs_per_host: usize,
    /// A limit on the bytes a second that are taken from the cluster, as they are put into the spool.
    pub limit: Option<RateLimit>,
    /// How long to wait for an archive to bring the log to where the cluster was captured.
    pub wait: Duration,
}

impl Run<'_> {
    /// Compares the running cluster with the repository. What differs is a finding.
    pub(super) async fn live(
        &mut self,
        repository: &Repository,
        progress: &VerifyProgress,
    ) -> Result<LiveRecord> {
        let context = self.context;
        let options = self.options.live.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                "which cluster is the repository to be compared with? none was given",
            )
        })?;
        let mut steps = Steps::new(context, progress);
        steps.begin("look");
        let capture = Snapshot::plan(context, &options.seeds, options.prefer).await?;
        let spool = WorkFolder::make(&self.options.spool, "verify")?;
        let mut reach =
            Reach::begin(context, repository, &self.options.cluster, &capture.plan, (options, spool.path()))
                .await?;
        steps.begin("capture");
        let how = CaptureOptions {
            spool: spool.path(),
            jobs: self.options.captures,
            jobs_per_host: options.jobs_per_host,
            limit: options.limit.clone(),
        };
        let captured = Box::pin(Snapshot::of_cluster(context, &capture, &how)).await;
        let outcome = match &captured {
            Ok(captured) => {
                steps.begin("wait for the log");
                reach.complete(&cuts(captured)).await
            }
            Err(_) => Ok(()),
        };
        let archived = reach.end().await;
        let captured = captured?;
        outcome?;
        steps.begin("fold and compare");
        let past = Arc::new(Past::load(repository, &self.options.cluster).await?);
        let mut record = LiveRecord {
            backups: Vec::new(),
            at: captured.manifest().shards.iter().filter_map(|shard| shard.server_time).max(),
            archived: archived?,
            keys: 0,
            shards: Vec::new(),
            steps: Vec::new(),
        };
        let mut used = BTreeSet::new();
        let mut slack_ms = 0;
        for shard in &captured.manifest().shards {
            let place = Place { history: shard.history.clone(), offset: shard.offset };
            let (point, base) = context.unless_stopped(way_to(&past, &shard.slots, &place)).await?;
            let side = Side { repository, past: &past, base, at: record.at };
            let (keys, found) = self.shard(&side, &captured, shard, &point).await?;
            used.extend(past.base(base).map(|(_, base)| base.base.rdb.path.clone()));
            self.findings.extend(found);
            if point.log_bytes > 0 {
                slack_ms = slack_ms.max(expiry_slack_ms(point.server));
            }
            record.keys = record.keys.saturating_add(keys);
            record.shards.push(LiveShard {
                slots: shard.slots.to_string(),
                source: shard.source.to_string(),
                history: shard.history.to_string(),
                offset: shard.offset,
                backup: point.backup,
                log_bytes: point.log_bytes,
                keys,
            });
        }
        if slack_ms > 0 {
            let what = format!(
                "Redis before 7.0 passes on for how long keys shall live, not until when: expiry times count as equal up to {} s apart",
                slack_ms / 1000
            );
            self.findings.push(finding(Severity::Note, DIGEST, &self.options.cluster, what, ""));
        }
        let proved = past
            .backups
            .iter()
            .filter(|backup| backup.shards.iter().all(|shard| used.contains(&shard.base.rdb.path)));
        record.backups = proved.map(|backup| backup.id.clone()).collect();
        record.steps = steps.finish();
        Ok(record)
    }

    /// Compares one shard; gives how many keys the node holds.
    async fn shard(
        &self,
        side: &Side<'_>,
        captured: &Snapshot,
        shard: &ShardRecord,
        point: &ShardPoint,
    ) -> Result<(u64, Option<VerifyFinding>)> {
        let object =
            side.past.base(side.base).map(|(_, base)| base.base.rdb.path.clone()).unwrap_or_default();
        match Box::pin(self.difference(side, captured, shard, point)).await {
            Ok(difference) if difference.is_empty() => Ok((difference.b.keys, None)),
            Ok(difference) => {
                let mut found = problem(DIGEST, object, words(&difference, shard), ADVICE);
                found.offset = Some(shard.offset);
                Ok((difference.b.keys, Some(found)))
            }
            Err(error) => Ok((0, Some(of_failure(error, shard, &object)?))),
        }
    }

    /// What differs between the base with its log, as the first side, and the captured node.
    async fn difference(
        &self,
        side: &Side<'_>,
        captured: &Snapshot,
        shard: &ShardRecord,
        point: &ShardPoint,
    ) -> Result<Diff> {
        let context = self.context;
        let (of, base) = side
            .past
            .base(side.base)
            .ok_or_else(|| Error::new(ErrorKind::Failed, "a base of the log belongs to no backup"))?;
        let node = Snapshot::of_backup(captured.repository().clone(), alone(captured.manifest(), shard));
        let log = if point.log_bytes == 0 { None } else { point.server };
        let options = DiffOptions { limit: NAMED_KEYS, expiry_slack_ms: expiry_slack_ms(log) };
        if point.log_bytes == 0 {
            let kept = Snapshot::of_backup(side.repository.clone(), alone(of, base));
            return Box::pin(diff(context, &kept, &node, options)).await;
        }
        let folder = WorkFolder::make(&self.options.spool, "verify")?;
        let location = Location::Folder(folder.path().to_owned());
        let id = random_hex(&*context.rng, 32)?;
        let target = Repository::init(&location, id, context.clock.now()).await?;
        let target = MergeTarget { repository: &target, cluster: &self.options.cluster, shares_bases: false };
        let point = Point {
            manifest: alone(of, base),
            at: side.at,
            shards: vec![point.clone()],
            passed_over: vec![],
        };
        let progress = [Arc::new(FoldProgress::new(format!("slots {}", shard.slots)))];
        let source = (side.repository, Some(side.past));
        let merged =
            Box::pin(merge(context, source, &point, &target, &self.options.engine, &progress)).await?;
        let kept = Snapshot::of_backup(target.repository.clone(), merged);
        Box::pin(diff(context, &kept, &node, options)).await
    }
}

/// The repository's side of one shard.
struct Side<'a> {
    repository: &'a Repository,
    past: &'a Arc<Past>,
    /// The number of the base.
    base: usize,
    at: Option<Timestamp>,
}

/// Where each shard was captured, in the order of the slots.
fn cuts(captured: &Snapshot) -> Vec<ShardCut> {
    let shards = captured.manifest().shards.iter();
    shards.map(|shard| ShardCut { history: shard.history.clone(), offset: shard.offset }).collect()
}

fn words(difference: &Diff, shard: &ShardRecord) -> String {
    let mut words = format!(
        "the repository does not hold what {} held at that offset of {}: {} slots differ ({})",
        shard.source, shard.history, difference.differing_slot_count, difference.differing_slots
    );
    if !difference.keys.is_empty() {
        let keys: Vec<String> = difference.keys.iter().map(key_words).collect();
        let more = if difference.limited { "; and more" } else { "" };
        words += &format!("; keys: {}{more}", keys.join("; "));
    }
    if difference.functions_differ {
        words += "; the function libraries differ";
    }
    words
}

fn key_words(key: &KeyDifference) -> String {
    let expiry = |expiry_ms: &Option<i64>| {
        let at = expiry_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        at.map_or_else(|| "never".to_owned(), |at| at.to_string())
    };
    let how = match &key.how {
        How::OnlyInA => "it is in the repository alone".to_owned(),
        How::OnlyInB => "it is in the cluster alone".to_owned(),
        How::Type { a, b } => format!("type: {a} in the repository, {b} in the cluster"),
        How::Value => "value".to_owned(),
        How::Expiry { a, b } => {
            format!("expiry: {} in the repository, {} in the cluster", expiry(a), expiry(b))
        }
        How::ValueAndExpiry { a, b } => {
            format!("value, and expiry: {} in the repository, {} in the cluster", expiry(a), expiry(b))
        }
    };
    let database = if key.database == 0 { String::new() } else { format!(" (database {})", key.database) };
    format!("{}{database}: {how}", shortened(&key.key))
}

/// What a comparison that could not be made says of the repository.
fn of_failure(error: Error, shard: &ShardRecord, object: &str) -> Result<VerifyFinding> {
    let advice = error.advice().unwrap_or_default().to_owned();
    let what = format!("it can't be compared with {}: {error}", shard.source);
    match error.kind() {
        ErrorKind::Unsupported => Ok(finding(Severity::Warning, DIGEST, object, what, &advice)),
        ErrorKind::Corrupt | ErrorKind::Failed => Ok(problem(DIGEST, object, what, &advice)),
        _ => Err(error),
    }
}
