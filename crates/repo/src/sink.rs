//! A segment on its way into one repository. The segment is compressed once, for all; encrypted and signed it is by each for itself.

use bytes::Bytes;
use object_store::PutPayload;
use object_store::path::Path;
use slotkeep_format::SegmentRecord;

use crate::crypt::Sealer;
use crate::error::{Problem, RepoError};
use crate::repository::Repository;
use crate::write::{WRITE_BUFFER_BYTES, Writing};

/// A segment of at most so many stored bytes is written in one request, by a create that fails if it exists. As much as an upload in
/// parts would hold in memory.
const ONE_PUT_BYTES: usize = WRITE_BUFFER_BYTES;

/// A segment on its way into one repository.
pub(crate) struct Sink {
    pub(crate) repository: Repository,
    path: Path,
    /// It was there before: nothing is written.
    pub(crate) is_there: bool,
    /// What has been compressed, as long as it fits into one request.
    small: Vec<Bytes>,
    small_bytes: usize,
    large: Option<Writing>,
}

impl Sink {
    pub(crate) fn new(repository: &Repository, path: &Path) -> Self {
        let (repository, path) = (repository.clone(), path.clone());
        Self { repository, path, is_there: false, small: Vec::new(), small_bytes: 0, large: None }
    }

    pub(crate) async fn look(&mut self) -> Result<(), RepoError> {
        match self.repository.must_not_exist(&self.path).await {
            Err(RepoError { problem: Problem::Exists, .. }) => self.is_there = true,
            looked => looked?,
        }
        Ok(())
    }

    pub(crate) async fn append(&mut self, stored: Bytes) -> Result<(), RepoError> {
        if self.is_there {
            return Ok(());
        }
        if let Some(large) = &mut self.large {
            return large.write(stored).await;
        }
        // Piece by piece: one buffer that grew would take twice as much.
        self.small_bytes = self.small_bytes.saturating_add(stored.len());
        self.small.push(stored);
        if self.small_bytes <= ONE_PUT_BYTES {
            return Ok(());
        }
        let large = self.large.insert(self.repository.begin_object(self.path.to_string()).await?);
        for piece in std::mem::take(&mut self.small) {
            large.write(piece).await?;
        }
        Ok(())
    }

    /// Writes the record behind it and completes it; false if it was there before.
    pub(crate) async fn finish(&mut self, record: &SegmentRecord) -> Result<bool, RepoError> {
        if self.is_there {
            return Ok(false);
        }
        match self.finish_new(record).await {
            Ok(()) => Ok(true),
            Err(RepoError { problem: Problem::Exists, .. }) => Ok(false),
            Err(error) => {
                if let Some(large) = self.large.take() {
                    // The first error is the one to report.
                    let _ = large.abort().await;
                }
                Err(error)
            }
        }
    }

    async fn finish_new(&mut self, record: &SegmentRecord) -> Result<(), RepoError> {
        let failed = |problem: Problem| RepoError::new("write", &self.path, problem);
        let json = record.to_json().map_err(|error| failed(error.into()))?;
        let json = self.repository.sign(&self.path, json).map_err(failed)?;
        let end = SegmentRecord::render_json(&json).map_err(|error| failed(error.into()))?;
        self.append(end.into()).await?;
        let Some(mut large) = self.large.take() else {
            let stored = self.sealed_whole()?;
            return self.repository.create(&self.path, stored).await;
        };
        // Uploads in parts know no condition: another writer of the same bytes is kept off by the lease of the line, and seen here
        // unless both complete at the same moment.
        if let Err(error) = self.repository.must_not_exist(&self.path).await {
            // The first error is the one to report.
            let _ = large.abort().await;
            return Err(error);
        }
        large.finish(record.raw_bytes()).await.map(drop)
    }

    /// What is stored for a segment that is written in one request.
    fn sealed_whole(&mut self) -> Result<PutPayload, RepoError> {
        let pieces = std::mem::take(&mut self.small);
        let Some(recipient) = &self.repository.keyring.recipient else {
            return Ok(pieces.into_iter().collect());
        };
        let seal = || {
            let (mut sealer, header) = Sealer::start(recipient)?;
            let mut stored = vec![Bytes::from(header)];
            for piece in pieces {
                stored.push(sealer.seal(&piece)?.into());
            }
            stored.push(sealer.finish()?.into());
            Ok(stored.into_iter().collect())
        };
        seal().map_err(|problem: Problem| RepoError::new("encrypt", &self.path, problem))
    }

    /// Gives it up. Nothing of it is visible.
    pub(crate) async fn abort(self) {
        if let Some(large) = self.large {
            // What is left is not visible, and the first error is the one to report.
            let _ = large.abort().await;
        }
    }
}
