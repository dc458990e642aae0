//! Writing what was planned.
//!
//! Invariant: everything is written into a folder beside the target, checked and made durable there, and then renamed: at the
//! target there is either nothing or all of it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use slotkeep_rdb::Envelope;
use slotkeep_repo::Repository;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::dataset::DatasetPlan;
use super::log::append_log;
use super::place::check_space;
use super::plan::{FilesPlan, NodePlan};
use crate::log::Past;
use crate::ports::random_hex;
use crate::progress::{Phase, ShardProgress};
use crate::{Context, Error, ErrorKind, Result};

/// How many datasets are written at a time.
const WRITES_IN_FLIGHT: usize = 4;

/// Where what is written is read from: the repository, and its past if a log is to be applied.
#[derive(Clone)]
pub struct Source {
    /// The repository.
    pub repository: Repository,
    /// What it holds of the cluster's past; none if no log is needed.
    pub past: Option<Arc<Past>>,
}

/// Writes the planned folders. `progress` has a row for each primary of the plan, in its order. When it fails, or the user stops
/// it, nothing stays behind but folders above the target that had to be made.
pub async fn apply(
    context: &Context,
    source: &Source,
    plan: &FilesPlan,
    progress: &[Arc<ShardProgress>],
) -> Result<()> {
    check_space(plan)?;
    let partial = beside(&plan.folder, &random_hex(&*context.rng, 8)?)?;
    let written = async {
        write_all(context, source, plan, &partial, progress).await?;
        put_in_place(&partial, &plan.folder).await
    };
    let outcome = written.await;
    if outcome.is_err()
        && let Err(error) = fs::remove_dir_all(&partial).await
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %partial.display(), %error, "an unfinished restore stays behind");
    }
    outcome
}

/// The name under which a folder is prepared.
fn beside(folder: &Path, tag: &str) -> Result<PathBuf> {
    let name = folder.file_name().ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("{} can't be made: it has no name", folder.display()))
    })?;
    let mut partial = OsString::from(name);
    partial.push(format!(".partial-{tag}"));
    Ok(folder.with_file_name(partial))
}

async fn write_all(
    context: &Context,
    source: &Source,
    plan: &FilesPlan,
    partial: &Path,
    progress: &[Arc<ShardProgress>],
) -> Result<()> {
    let mut datasets = Vec::new();
    for node in &plan.nodes {
        let folder = partial.join(node.folder.strip_prefix(&plan.folder).unwrap_or(&node.folder));
        write_small_files(node, &folder).await?;
        if let Some(dataset) = &node.dataset {
            datasets.push((folder, dataset));
        }
    }
    write_datasets(context, source, datasets, progress).await?;
    sync_folders(partial).await
}

/// Writes the datasets. When one fails the others stop as well, and all of them have ended when this returns: none writes into a
/// folder that is being removed.
async fn write_datasets(
    context: &Context,
    source: &Source,
    datasets: Vec<(PathBuf, &DatasetPlan)>,
    progress: &[Arc<ShardProgress>],
) -> Result<()> {
    let context = Context { stop: context.stop.child_token(), ..context.clone() };
    let turns = Arc::new(Semaphore::new(WRITES_IN_FLIGHT));
    let mut writes: FuturesUnordered<_> = datasets
        .into_iter()
        .zip(progress)
        .map(|((folder, dataset), progress)| {
            let (context, source, turns) = (context.clone(), source.clone(), Arc::clone(&turns));
            let (dataset, progress) = (dataset.clone(), Arc::clone(progress));
            // A task each, so that shards are decompressed and checked on all cores.
            AbortOnDropHandle::new(tokio::spawn(async move {
                let _turn = turns.acquire().await;
                let written = write_dataset(&context, &source, &folder, &dataset, &progress).await;
                progress.enter(if written.is_ok() { Phase::Done } else { Phase::Failed });
                written
            }))
        })
        .collect();
    let mut outcome = Ok(());
    while let Some(written) = writes.next().await {
        let written = written.unwrap_or_else(|error| {
            Err(Error::new(ErrorKind::Failed, format!("a writer ended unexpectedly: {error}")))
        });
        if outcome.is_ok() && written.is_err() {
            context.stop.cancel();
            outcome = written;
        }
    }
    outcome
}

async fn write_small_files(node: &NodePlan, folder: &Path) -> Result<()> {
    make_folder(folder).await?;
    let paths =
        node.files.iter().map(|file| &file.path).chain(node.dataset.iter().map(|dataset| &dataset.path));
    for inner in paths.filter_map(|path| path.parent()).filter(|inner| !inner.as_os_str().is_empty()) {
        make_folder(&folder.join(inner)).await?;
    }
    for file in &node.files {
        let path = folder.join(&file.path);
        let write = async {
            let mut out = create(&path).await?;
            out.write_all(file.text.as_bytes()).await?;
            out.flush().await?;
            out.sync_all().await
        };
        write.await.map_err(|error| failed("write", &path, &error))?;
    }
    Ok(())
}

async fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).await.map_err(|error| failed("make", folder, &error))
}

/// A new file that only its owner may read: it may hold passwords, and holds data.
async fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).await
}

/// Writes a base and the log behind it, durable when this returns.
async fn write_dataset(
    context: &Context,
    source: &Source,
    folder: &Path,
    dataset: &DatasetPlan,
    progress: &ShardProgress,
) -> Result<()> {
    if context.stop.is_cancelled() {
        return Err(Error::interrupted());
    }
    progress.enter(Phase::Running);
    let path = folder.join(&dataset.path);
    let mut file = write_base(context, &source.repository, &path, dataset, progress).await?;
    if let Some(log) = &dataset.log {
        let log_path = folder.join(&log.path);
        if log.path != dataset.path {
            end(file, &path).await?;
            file = create(&log_path).await.map_err(|error| failed("write", &log_path, &error))?;
        }
        let past = source.past.as_ref();
        let past =
            past.ok_or_else(|| Error::new(ErrorKind::Failed, "a log is to be written and none was opened"))?;
        append_log(context, past, (&mut file, &log_path), (&dataset.object, log), progress).await?;
    }
    progress.enter(Phase::Finishing);
    end(file, &path).await
}

async fn end(mut file: File, path: &Path) -> Result<()> {
    let durable = async {
        file.flush().await?;
        file.sync_all().await
    };
    durable.await.map_err(|error| failed("write", path, &error))
}

/// Writes one RDB, and checks it on its way: its length and BLAKE3 against the manifest, its magic and CRC64 by themselves.
async fn write_base(
    context: &Context,
    repository: &Repository,
    path: &Path,
    dataset: &DatasetPlan,
    progress: &ShardProgress,
) -> Result<File> {
    let mut object = repository.framed(&dataset.object).await?;
    let mut file = create(path).await.map_err(|error| failed("write", path, &error))?;
    let mut envelope = Envelope::new();
    loop {
        let frame = tokio::select! {
            biased;
            () = context.stop.cancelled() => return Err(Error::interrupted()),
            frame = object.next() => frame?,
        };
        let Some(frame) = frame else { break };
        envelope.feed(&frame);
        file.write_all(&frame).await.map_err(|error| failed("write", path, &error))?;
        let bytes = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        progress.raw_bytes.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }
    let damaged = |what: String| {
        Error::new(ErrorKind::Corrupt, format!("{} is damaged: {what}", dataset.object.path))
            .hint("nothing was restored; use another backup (`slotkeep list`), and take a new one from the running cluster")
    };
    let report = envelope.finish().map_err(|error| damaged(error.to_string()))?;
    if report.version != dataset.rdb_version {
        return Err(damaged(format!("it is {}, the manifest says {}", report.version, dataset.rdb_version)));
    }
    Ok(file)
}

/// Makes the names in a folder and in the folders below it durable.
async fn sync_folders(folder: &Path) -> Result<()> {
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        let mut entries = fs::read_dir(&folder).await.map_err(|error| failed("read", &folder, &error))?;
        while let Some(entry) = entries.next_entry().await.map_err(|error| failed("read", &folder, &error))? {
            if entry.file_type().await.is_ok_and(|kind| kind.is_dir()) {
                waiting.push(entry.path());
            }
        }
        sync_folder(&folder).await?;
    }
    Ok(())
}

async fn sync_folder(folder: &Path) -> Result<()> {
    let synced = async { File::open(folder).await?.sync_all().await };
    synced.await.map_err(|error| failed("write", folder, &error))
}

async fn put_in_place(partial: &Path, folder: &Path) -> Result<()> {
    fs::rename(partial, folder).await.map_err(|error| match error.kind() {
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            Error::new(
                ErrorKind::TargetNotEmpty,
                format!("somebody else wrote to {} meanwhile", folder.display()),
            )
            .hint("name another folder; nothing was changed")
        }
        _ => failed("make", folder, &error),
    })?;
    match folder.parent() {
        Some(parent) => sync_folder(parent).await,
        None => Ok(()),
    }
}

/// A failure of the local disk.
pub(super) fn failed(doing: &str, path: &Path, error: &io::Error) -> Error {
    let message = format!("can't {doing} {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Error::new(ErrorKind::Full, message)
                .hint("free some space, or name a folder on another disk; nothing was left behind")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Error::new(ErrorKind::Failed, message)
                .hint("name a folder that you may write to, or change its permissions")
        }
        _ => Error::new(ErrorKind::Failed, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let kind = |kind: io::ErrorKind| failed("write", Path::new("/x"), &kind.into()).kind();
        assert_eq!(kind(io::ErrorKind::StorageFull), ErrorKind::Full);
        assert_eq!(kind(io::ErrorKind::QuotaExceeded), ErrorKind::Full);
        assert_eq!(kind(io::ErrorKind::PermissionDenied), ErrorKind::Failed);
    }

    #[test]
    fn a_folder_is_prepared_beside_its_place() {
        assert_eq!(beside(Path::new("/a/b"), "0f").unwrap(), Path::new("/a/b.partial-0f"));
        assert_eq!(beside(Path::new("/"), "0f").unwrap_err().kind(), ErrorKind::Usage);
    }
}
