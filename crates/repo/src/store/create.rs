//! Creating an object that must not exist yet, whatever becomes of the store's answers.
//!
//! Invariants: success means that the object holds exactly these bytes; "exists" means that it holds others; any other failure but "unknown" means
//! that it was not written and will not be. So a create whose answer was lost, and that finds its own bytes at the next try, has succeeded.

use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::pause;
use crate::error::Problem;

/// How often one create is tried; the library has tried each of them several times already where that is safe.
const TRIES: u32 = 3;

/// How a store creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Creating {
    /// It refuses to create what exists.
    Conditional,
    /// It ignores the condition and would overwrite. Then we look first and read back afterwards: two writers that create one object
    /// at the same moment are found out only if the other one was the last.
    LookingFirst,
}

/// Creates the object.
pub(crate) async fn create_new(
    store: &dyn ObjectStore,
    path: &Path,
    stored: PutPayload,
    how: Creating,
) -> Result<(), Problem> {
    let mut failures = 0;
    // Whether a try may have written it, and whether one may still do so when we have looked.
    let (mut unanswered, mut on_its_way) = (false, false);
    loop {
        let problem = match try_once(store, path, &stored, how).await {
            Ok(()) => return Ok(()),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                unanswered = true;
                match holds(store, path, &stored).await {
                    decided @ (Ok(()) | Err(Problem::Exists)) => return decided,
                    Err(problem) => problem,
                }
            }
            Err(error) => {
                on_its_way |= may_arrive_yet(&error);
                error.into()
            }
        };
        let is_transient = matches!(problem, Problem::Store(_));
        unanswered |= is_transient;
        failures += 1;
        if is_transient && failures < TRIES {
            pause::before_try(failures).await;
        } else if unanswered {
            // An answer may have been lost, that of the last try as well.
            return match holds(store, path, &stored).await {
                decided @ (Ok(()) | Err(Problem::Exists)) => decided,
                Err(Problem::Missing) if !on_its_way => Err(problem),
                Err(_) => Err(Problem::Unknown(problem.to_string())),
            };
        } else {
            return Err(problem);
        }
    }
}

/// Whether the request may still be carried out, as one may whose connection broke or was silent for too long: the store has it, or the network has. Not
/// one that was answered, nor one for which there was no connection.
fn may_arrive_yet(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return http.kind() != HttpErrorKind::Connect;
        }
        cause = error.source();
    }
    false
}

async fn try_once(
    store: &dyn ObjectStore,
    path: &Path,
    stored: &PutPayload,
    how: Creating,
) -> Result<(), Error> {
    match how {
        Creating::Conditional => {
            let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            store.put_opts(path, stored.clone(), create).await.map(drop)
        }
        Creating::LookingFirst => {
            let exists =
                |source: &'static str| Error::AlreadyExists { path: path.to_string(), source: source.into() };
            match store.head(path).await {
                Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error),
                Ok(_) => return Err(exists("found before writing")),
            }
            store.put(path, stored.clone()).await?;
            // What is there now decides.
            Err(exists("written, to be read back"))
        }
    }
}

/// Whether the object that exists is the one that was to be created.
async fn holds(store: &dyn ObjectStore, path: &Path, stored: &PutPayload) -> Result<(), Problem> {
    let found = store.get(path).await?;
    if found.meta.size != stored.content_length() as u64 {
        return Err(Problem::Exists);
    }
    let bytes = found.bytes().await?;
    let mut rest = bytes.as_ref();
    for piece in stored {
        match rest.split_at_checked(piece.len()) {
            Some((same, later)) if same == piece.as_ref() => rest = later,
            _ => return Err(Problem::Exists),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_request_without_an_answer_may_arrive_yet() {
        let error = |source| Error::Generic { store: "S3", source };
        let http = |kind| error(Box::new(HttpError::new(kind, io::Error::from(io::ErrorKind::TimedOut))));
        assert!(!may_arrive_yet(&http(HttpErrorKind::Connect)));
        assert!(
            may_arrive_yet(&http(HttpErrorKind::Timeout))
                && may_arrive_yet(&http(HttpErrorKind::Interrupted))
        );
        assert!(!may_arrive_yet(&error("503 Slow Down".into())));
    }
}
