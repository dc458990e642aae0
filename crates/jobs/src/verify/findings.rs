//! Findings, put together.

use std::borrow::Cow;

use slotkeep_format::{Depth, Severity, VerifyFinding};
use slotkeep_repo::{Problem, RepoError};

use crate::Error;

/// How many characters of a key, a value or what a program said a finding repeats: enough to know it by, whatever its length.
const SHOWN_CHARACTERS: usize = 200;

/// What to do about a base that can't be used.
pub(super) const BASE_ADVICE: &str =
    "do not delete other backups; take a new one from the running cluster, and look at the disk or the store";
/// What to do about log that can't be used.
pub(super) const LOG_ADVICE: &str = "moments behind the last base before it can't be restored past it: take a new backup, which begins a new line";
/// What to do about a record of how the cluster looked that can't be used.
pub(super) const LOOK_ADVICE: &str = "moments between the look before it and the one behind it can't be restored (`slotkeep list`), all others can; it goes when they are pruned";
/// What to do about log of which there is more than one segment.
pub(super) const COVERED_ADVICE: &str = "other segments hold the same bytes, and nothing was found wrong with them: they are read in its place; `slotkeep compact` joins them anew, or delete this one";
/// What to do about derived data.
pub(super) const DERIVED_ADVICE: &str = "the data itself is in the RDB; comparisons and single keys of this backup can't be had until `slotkeep repair` makes it again";

/// A finding without an offset.
pub(super) fn finding(
    severity: Severity,
    (depth, check): (Depth, &str),
    object: impl Into<String>,
    what: impl Into<String>,
    advice: &str,
) -> VerifyFinding {
    VerifyFinding {
        severity,
        depth,
        check: check.to_owned(),
        object: object.into(),
        offset: None,
        what: what.into(),
        advice: (!advice.is_empty()).then(|| advice.to_owned()),
    }
}

/// A finding that something is not what it must be.
pub(super) fn problem(
    where_found: (Depth, &str),
    object: impl Into<String>,
    what: impl Into<String>,
    advice: &str,
) -> VerifyFinding {
    finding(Severity::Problem, where_found, object, what, advice)
}

/// What a failed read says of the object; a failure of the store itself says nothing of it and is an error.
pub(super) fn of_object(
    error: RepoError,
    (depth, check): (Depth, &str),
    object: &str,
    advice: &str,
) -> Result<VerifyFinding, Error> {
    match &error.problem {
        Problem::Missing => Ok(problem((Depth::Objects, "present"), object, "it is missing", advice)),
        Problem::Damaged(what) => Ok(problem((depth, check), object, what.clone(), advice)),
        Problem::Newer(what) => {
            let advice = "verify it with a newer Slotkeep";
            Ok(finding(Severity::Warning, (depth, "version"), object, what.clone(), advice))
        }
        _ => Err(error.into()),
    }
}

/// The beginning of a text of any length.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => {
            Cow::Owned(format!("{}… ({} bytes)", text.get(..end).unwrap_or_default(), text.len()))
        }
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_repeated_as_far_as_it_helps() {
        assert_eq!(shortened("short"), "short");
        let long = "ü".repeat(SHOWN_CHARACTERS);
        assert_eq!(shortened(&long), long);
        assert_eq!(shortened(&format!("{long}more")), format!("{long}… (404 bytes)"));
    }
}
