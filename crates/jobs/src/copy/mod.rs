//! Bringing another repository up to date.
//!
//! Invariants: objects first, each proved by its BLAKE3 while it is copied, and a backup's manifest only when everything it needs is in the
//! target; so that a copy which ends anywhere leaves whole backups and is gone on with by the next one. What is damaged in the source is named, and
//! takes only the backups with it that need it.

mod plan;
mod report;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use slotkeep_format::Manifest;
use slotkeep_repo::layout::manifest_file;
use slotkeep_repo::{
    BackupSelector, CopyError, Location, OpenOptions, Problem, Pruned, RepoError, Repository, Way,
};

use crate::ports::random_hex;
use crate::progress::{Phase, ShardProgress, add};
use crate::{Context, Error, ErrorKind, ObjectKind, Result};
use plan::{BackupPlan, ClusterPlan, Item, Sight, Sum, Wanted, Work, plan};
pub use report::{BackupRow, CopyReport, KindRow, Refused, State};

/// How many objects are on their way at a time.
const COPIES_IN_FLIGHT: usize = 4;

/// What to copy.
#[derive(Clone, Debug, Default)]
pub struct CopyOptions {
    /// The cluster; all if not given.
    pub cluster: Option<String>,
    /// The backup, of the cluster that is given; all, and all log, if not given.
    pub backup: Option<BackupSelector>,
}

/// The repository to bring up to date.
pub struct Target {
    /// Where it is.
    pub location: Location,
    /// How to use it. Nothing has to open it: bytes are copied as they are stored.
    pub options: OpenOptions,
    repository: Option<Repository>,
}

impl Target {
    /// Looks at the place. What encrypts or signs can only be copied to where it means the same.
    pub async fn find(source: &Repository, location: Location, options: OpenOptions) -> Result<Self> {
        if location == *source.location() {
            return Err(Error::new(ErrorKind::Usage, "source and target are the same place")
                .hint("give the other repository with --to"));
        }
        let repository = source.open_target(&location, &options).await.map_err(|error| {
            let is_plain = matches!(error.problem, Problem::WouldBePlain(_));
            let error = Error::from(error);
            if !is_plain {
                return error;
            }
            let advice = format!(
                "{} is not encrypted, and neither would its copy be: where that is meant, make the target first with `slotkeep init --repo {location}`",
                source.location()
            );
            Error::new(error.kind(), error.to_string()).hint(advice)
        })?;
        if let Some(target) = &repository
            && !source.mirrors(target)
        {
            let what = format!(
                "{location} is another repository than {}: its id or its keys differ, and what is encrypted or signed holds in one \
                 repository alone",
                source.location()
            );
            return Err(Error::new(ErrorKind::Key, what).hint(
                "name an empty folder or prefix: it is made a mirror, with the same id, keys and readers; docs/copy.md says more",
            ));
        }
        Ok(Self { location, options, repository })
    }
}

/// What a copy would do.
pub struct CopyPlan {
    from: String,
    to: String,
    makes_target: bool,
    clusters: Vec<ClusterPlan>,
    remarks: Vec<String>,
}

impl CopyPlan {
    /// Looks at what both hold; reads manifests, and no data.
    pub async fn make(source: &Repository, target: &Target, options: &CopyOptions) -> Result<Self> {
        let clusters = match &options.cluster {
            Some(cluster) => vec![cluster.clone()],
            None => source.clusters().await?,
        };
        let mut plans = Vec::new();
        for cluster in &clusters {
            plans.push(cluster_plan(source, target, cluster, options).await?);
        }
        let mut remarks = Vec::new();
        if let Some(target) = &target.repository
            && source.is_encrypted()
            && source.key_file_names().await? != target.key_file_names().await?
        {
            remarks.push(format!(
                "the readers of one of the two were changed: key files are copied only when a mirror is made. `slotkeep key rekey --repo {}` \
                 gives the target the readers that you name",
                target.location()
            ));
        }
        Ok(Self {
            from: source.location().to_string(),
            to: target.location.to_string(),
            makes_target: target.repository.is_none(),
            clusters: plans,
            remarks,
        })
    }

    /// How many bytes are to be copied.
    pub fn bytes(&self) -> u64 {
        self.rows().iter().fold(0, |sum, row| sum.saturating_add(row.bytes))
    }

    /// What would be done.
    pub fn preview(&self) -> CopyReport {
        self.report(self.rows(), None)
    }

    /// Copies. `progress` counts the bytes in its `raw_bytes`.
    pub async fn run(
        mut self,
        context: &Context,
        source: &Repository,
        target: Target,
        progress: &ShardProgress,
    ) -> Result<CopyReport> {
        source.check_reads()?;
        let started = context.clock.now();
        let target = match target.repository {
            Some(repository) => repository,
            None => {
                let nonce = random_hex(&*context.rng, 16)?;
                // The next copy goes on with one that was broken off.
                let made = source.make_mirror(&target.location, &nonce, &target.options);
                context.unless_stopped(Box::pin(async { Ok(made.await?) })).await?
            }
        };
        progress.enter(Phase::Running);
        let mut copied = Vec::new();
        for cluster in &mut self.clusters {
            let mut copying = Copying { source, target: &target, progress, copied: BTreeMap::new() };
            let outcome = context.unless_stopped(copying.cluster(cluster)).await;
            if outcome.is_err() {
                progress.enter(Phase::Failed);
            }
            outcome?;
            copied.push(copying.copied);
        }
        progress.enter(Phase::Done);
        let rows = self.clusters.iter().zip(&copied);
        let rows = rows.flat_map(|(cluster, copied)| kind_rows(&cluster.cluster, copied, &cluster.there));
        let took_ms = context.clock.now().duration_since(started).as_millis();
        Ok(self.report(rows.collect(), Some(u64::try_from(took_ms).unwrap_or_default())))
    }

    fn rows(&self) -> Vec<KindRow> {
        let planned = |cluster: &ClusterPlan| {
            let mut sums: BTreeMap<ObjectKind, Sum> = BTreeMap::new();
            let backups = cluster.backups.iter().filter(|backup| backup.state == State::ToCopy);
            for backup in backups.clone() {
                sums.entry(ObjectKind::Backup).or_default().add(backup.manifest_bytes);
            }
            let pins = cluster.backups.iter().flat_map(|backup| &backup.pins);
            for work in cluster.files.iter().chain(&cluster.data).chain(&cluster.records).chain(pins) {
                sums.entry(work.kind).or_default().add(work.bytes);
            }
            sums
        };
        let rows = self.clusters.iter();
        rows.flat_map(|cluster| kind_rows(&cluster.cluster, &planned(cluster), &cluster.there)).collect()
    }

    fn report(&self, kinds: Vec<KindRow>, took_ms: Option<u64>) -> CopyReport {
        let sum = |of: fn(&KindRow) -> u64| kinds.iter().map(of).fold(0, u64::saturating_add);
        let backups = self.clusters.iter().flat_map(|cluster| {
            cluster.backups.iter().map(|backup| BackupRow {
                cluster: cluster.cluster.clone(),
                id: backup.id.clone(),
                state: backup.state,
            })
        });
        CopyReport {
            from: self.from.clone(),
            to: self.to.clone(),
            dry_run: took_ms.is_none(),
            makes_target: self.makes_target,
            backups: backups.collect(),
            bytes: sum(|row| row.bytes),
            there_bytes: sum(|row| row.there_bytes),
            kinds,
            took_ms,
            refused: self.clusters.iter().flat_map(|cluster| cluster.refused.clone()).collect(),
            remarks: self
                .remarks
                .iter()
                .chain(self.clusters.iter().flat_map(|cluster| &cluster.remarks))
                .cloned()
                .collect(),
        }
    }
}

fn kind_rows(
    cluster: &str,
    copied: &BTreeMap<ObjectKind, Sum>,
    there: &BTreeMap<ObjectKind, Sum>,
) -> Vec<KindRow> {
    let kinds: std::collections::BTreeSet<ObjectKind> = copied.keys().chain(there.keys()).copied().collect();
    let row = |kind: ObjectKind| {
        let of = |sums: &BTreeMap<ObjectKind, Sum>| sums.get(&kind).copied().unwrap_or_default();
        let (copied, there) = (of(copied), of(there));
        KindRow {
            cluster: cluster.to_owned(),
            kind,
            objects: copied.objects,
            bytes: copied.bytes,
            there_objects: there.objects,
            there_bytes: there.bytes,
        }
    };
    kinds.into_iter().map(row).collect()
}

async fn cluster_plan(
    source: &Repository,
    target: &Target,
    cluster: &str,
    options: &CopyOptions,
) -> Result<ClusterPlan> {
    let mut refused = Vec::new();
    let manifests: Vec<Manifest> = match &options.backup {
        Some(selector) => vec![source.find(cluster, selector).await?],
        None => {
            let listing = source.backups(cluster).await?;
            for unreadable in listing.unreadable {
                refused.push(refusal(&manifest_file(cluster, &unreadable.id), unreadable.error));
            }
            listing.backups
        }
    };
    let mut wanted = Vec::new();
    for manifest in manifests {
        match ways(source, cluster, &manifest).await {
            Ok(way) => {
                wanted.push(Wanted { manifest, ways: way.parts, leads: way.leads });
            }
            // What is wrong is not the manifest: the words say what is.
            Err(error) if is_of_object(&error.problem) => {
                let why = error.to_string();
                refused.push(Refused { why, ..refusal(&manifest_file(cluster, &manifest.id), error) });
            }
            Err(error) => return Err(error.into()),
        }
    }
    // After the manifests: what they name was there before them.
    let here = source.objects_of(cluster).await?;
    let (there, pruned) = match &target.repository {
        Some(target) => (target.objects_of(cluster).await?, target.pruned(cluster).await?),
        None => (vec![], Pruned::default()),
    };
    let only = options.backup.is_some();
    let mut plan = plan(Sight { cluster, here: &here, there: &there, wanted, only, pruned: &pruned });
    plan.refused.extend(refused);
    let given_up = plan.backups.iter().filter(|backup| backup.state == State::GivenUp).count();
    if given_up > 0 {
        plan.remarks.push(format!(
            "the target had {given_up} of the backups of `{cluster}` and has pruned them: they are not copied again"
        ));
    }
    Ok(plan)
}

async fn ways(source: &Repository, cluster: &str, manifest: &Manifest) -> Result<Way, RepoError> {
    let mut ways = Way { parts: vec![], leads: true };
    for shard in &manifest.shards {
        let way = source.way(cluster, shard).await?;
        ways.parts.extend(way.parts);
        ways.leads &= way.leads;
    }
    Ok(ways)
}

/// Whether the failure is one of the object, and not of the whole repository.
const fn is_of_object(problem: &Problem) -> bool {
    matches!(
        problem,
        Problem::Damaged(_)
            | Problem::Missing
            | Problem::Untrusted(_)
            | Problem::Exists
            | Problem::Pruned(_)
            | Problem::Newer(_)
    )
}

fn refusal(path: &str, error: RepoError) -> Refused {
    let why = error.problem.to_string();
    let kind = match error.problem {
        Problem::Exists => ErrorKind::Conflict,
        _ => Error::from(error).kind(),
    };
    Refused { path: path.to_owned(), why, kind }
}

/// One cluster on its way.
struct Copying<'a> {
    source: &'a Repository,
    target: &'a Repository,
    progress: &'a ShardProgress,
    copied: BTreeMap<ObjectKind, Sum>,
}

impl Copying<'_> {
    async fn cluster(&mut self, plan: &mut ClusterPlan) -> Result<()> {
        self.all(&plan.files, &mut plan.refused).await?;
        self.all(&plan.data, &mut plan.refused).await?;
        for backup in &mut plan.backups {
            if plan.refused.iter().any(|refused| backup.needs(&refused.path)) && backup.state == State::ToCopy
            {
                backup.state = State::Refused;
            }
            if backup.state == State::Refused {
                continue;
            }
            // First: a prune of the target must not find the backup without them.
            self.all(&backup.pins, &mut plan.refused).await?;
            if backup.state != State::ToCopy {
                self.check_pinned(&plan.cluster, backup, &mut plan.refused).await?;
                continue;
            }
            let copied = self.source.copy_manifest(self.target, &plan.cluster, &backup.id).await;
            let path = manifest_file(&plan.cluster, &backup.id);
            let done = self.note(ObjectKind::Backup, &path, copied, &mut plan.refused)?;
            backup.state = if done { State::Copied } else { State::Refused };
        }
        self.all(&plan.records, &mut plan.refused).await
    }

    /// Refuses a backup that is there if its pins came too late: a prune writes down what it gives up before it looks for pins, so it has seen
    /// these, or is seen here.
    async fn check_pinned(
        &self,
        cluster: &str,
        backup: &mut BackupPlan,
        refused: &mut Vec<Refused>,
    ) -> Result<()> {
        if backup.pins.is_empty() {
            return Ok(());
        }
        let pruned = self.target.pruned(cluster).await;
        let pruned = pruned.map_err(|error| Error::from(error).context("the target"))?;
        if pruned.gave_up_backup(cluster, &backup.id) {
            let on = manifest_file(cluster, &backup.id);
            let problem = Problem::Pruned(format!("backup {}", backup.id));
            refused.push(refusal(&on, RepoError { doing: "pin", on: on.clone(), problem }));
            backup.state = State::Refused;
        }
        Ok(())
    }

    /// Copies these, several at a time.
    async fn all(&mut self, work: &[Work], refused: &mut Vec<Refused>) -> Result<()> {
        let (source, target, progress) = (self.source, self.target, self.progress);
        let mut copies = futures::stream::iter(work)
            .map(async |work| (work, copy_one(source, target, progress, work).await))
            .buffer_unordered(COPIES_IN_FLIGHT);
        while let Some((work, outcome)) = copies.next().await {
            self.note(work.kind, &work.path, outcome, refused)?;
        }
        Ok(())
    }

    /// Counts what was copied; whether it was. What goes wrong with the object alone is kept, everything else ends the copy.
    fn note(
        &mut self,
        kind: ObjectKind,
        path: &str,
        outcome: Result<u64, CopyError>,
        refused: &mut Vec<Refused>,
    ) -> Result<bool> {
        match outcome {
            Ok(bytes) => {
                self.copied.entry(kind).or_default().add(bytes);
                Ok(true)
            }
            Err(CopyError::Source(error) | CopyError::Target(error)) if is_of_object(&error.problem) => {
                refused.push(refusal(path, error));
                Ok(false)
            }
            Err(CopyError::Source(error)) => Err(Error::from(error).context("the source")),
            Err(CopyError::Target(error)) => Err(Error::from(error).context("the target")),
        }
    }
}

/// Copies one object; gives its length.
async fn copy_one(
    source: &Repository,
    target: &Repository,
    progress: &ShardProgress,
    work: &Work,
) -> Result<u64, CopyError> {
    let counted = |bytes| add(&progress.raw_bytes, bytes);
    match &work.item {
        Item::Object(record) => source.copy_object(target, record, counted).await?,
        Item::Segment(entry) => source.copy_segment(target, entry, counted).await?,
        Item::File(part) => {
            let bytes = source.copy_file(target, &work.path, part).await?;
            counted(bytes);
            return Ok(bytes);
        }
    }
    Ok(work.bytes)
}

/// The progress of a copy, for a display.
pub fn copy_progress() -> Arc<ShardProgress> {
    ShardProgress::new("copy".to_owned())
}
