//! Creating an object that must not exist yet, whatever becomes of the store's answers.
//!
//! Invariants: success means that the object holds exactly these bytes; "exists" means that it holds others. So a create whose
//! answer was lost, and that finds its own bytes at the next try, has succeeded.

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
    loop {
        let outcome = match try_once(store, path, &stored, how).await {
            Ok(()) => Ok(()),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                holds(store, path, &stored).await
            }
            Err(error) => Err(error.into()),
        };
        let problem = match outcome {
            Err(problem @ Problem::Store(_)) => problem,
            decided => return decided,
        };
        failures += 1;
        if failures == TRIES {
            // The last answer may have been lost too.
            return holds(store, path, &stored).await.map_err(|_| problem);
        }
        pause::before_try(failures).await;
    }
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
