//! What all looks at one object have in common: reading no faster than allowed, counting, and telling what was found.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use slotkeep_format::manifest::ObjectRecord;
use slotkeep_format::verify::VerifyTotals;
use slotkeep_format::{Depth, VerifyFinding};
use slotkeep_model::SlotDigest;
use slotkeep_repo::{RepoError, Repository, StoredObject};

use super::VerifyProgress;
use super::findings::of_object;
use super::log::Summary;
use crate::Result;

/// What every look needs.
#[derive(Clone)]
pub(super) struct Looker {
    pub(super) repository: Repository,
    pub(super) progress: Arc<VerifyProgress>,
    pub(super) depth: Depth,
}

/// What a look at one object, or at the objects of one base, came to.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) findings: Vec<VerifyFinding>,
    /// What was found right, with its BLAKE3.
    pub(super) proved: Vec<(StoredObject, String)>,
    pub(super) totals: VerifyTotals,
    /// Of a base that was taken apart: what its keys add up to.
    pub(super) digest: Option<(usize, SlotDigest)>,
    /// Of a segment that was taken apart: what its neighbours must fit to.
    pub(super) summary: Option<Summary>,
}

impl Looker {
    /// Counts stored bytes that were read.
    pub(super) fn count(&self, bytes: u64) {
        self.progress.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Reads an object to its end.
    pub(super) async fn read_through(&self, object: &ObjectRecord) -> Result<(), RepoError> {
        let mut stream = self.repository.stream(object).await?;
        while let Some(piece) = stream.next().await? {
            self.count(piece.len() as u64);
        }
        Ok(())
    }

    /// Reads an object to its end; a finding if it is not what was written.
    pub(super) async fn whole(&self, object: &ObjectRecord, advice: &str) -> Result<Option<VerifyFinding>> {
        match self.read_through(object).await {
            Ok(()) => Ok(None),
            Err(error) => of_object(error, (Depth::Objects, "bytes"), &object.path, advice).map(Some),
        }
    }

    /// What a failed read of an object means. If its stored bytes are those that were written, they were written wrongly.
    pub(super) async fn explain(
        &self,
        error: RepoError,
        object: &ObjectRecord,
        check: &str,
        advice: &str,
    ) -> Result<VerifyFinding> {
        match self.whole(object, advice).await? {
            Some(mut damaged) => {
                let detail = of_object(error, (Depth::Objects, check), &object.path, advice)?.what;
                if detail != damaged.what {
                    damaged.what = format!("{} ({detail})", damaged.what);
                }
                Ok(damaged)
            }
            None => of_object(error, (Depth::Structure, check), &object.path, advice),
        }
    }
}
