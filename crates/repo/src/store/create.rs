//! Creating an object that must not exist yet, whatever becomes of the store's answers.
//!
//! Invariants: success means that the object holds exactly these bytes; "exists" means that it holds others; another failure is certain only if the
//! object was looked for afterwards, and no request is left that may still write it. So a create whose answer was lost, and that finds its own bytes
//! at the next try, has succeeded.

use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::pause;
use crate::error::{Problem, io_cause};

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

/// Why an object was not created, as far as is known.
#[derive(Debug)]
pub(crate) struct NotCreated {
    pub(crate) problem: Problem,
    /// Whether it was not written and will not be; else it may be there, now or later.
    pub(crate) is_certain: bool,
}

impl From<NotCreated> for Problem {
    fn from(not: NotCreated) -> Self {
        not.problem
    }
}

/// Creates the object.
pub(crate) async fn create_new(
    store: &dyn ObjectStore,
    path: &Path,
    stored: PutPayload,
    how: Creating,
) -> Result<(), NotCreated> {
    let (mut failures, mut on_its_way) = (0, false);
    loop {
        let problem = match try_once(store, path, &stored, how).await {
            Ok(()) => return Ok(()),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                match holds(store, path, &stored).await {
                    Ok(()) => return Ok(()),
                    Err(problem) => problem,
                }
            }
            Err(error) => {
                on_its_way |= may_arrive_yet(&error);
                error.into()
            }
        };
        failures += 1;
        match problem {
            Problem::Exists => return Err(NotCreated { problem, is_certain: true }),
            Problem::Store(_) | Problem::NoKeys(_) if failures < TRIES => pause::before_try(failures).await,
            // Whatever was answered at last: an answer before it may have been lost, also where the library tried by itself.
            problem => {
                return match holds(store, path, &stored).await {
                    Ok(()) => Ok(()),
                    Err(Problem::Exists) => Err(NotCreated { problem: Problem::Exists, is_certain: true }),
                    Err(Problem::Missing | Problem::NoBucket) => {
                        Err(NotCreated { problem, is_certain: !on_its_way })
                    }
                    Err(_) => Err(NotCreated { problem, is_certain: false }),
                };
            }
        }
    }
}

/// Whether the request may still be carried out, as one may whose connection broke or was silent for too long, or that a gateway gave up: the store has
/// it, or the network. Not one that was refused, nor one for which there was no connection, nor a call of this machine's system.
fn may_arrive_yet(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return http.kind() != HttpErrorKind::Connect;
        }
        cause = error.source();
    }
    matches!(error, Error::Generic { .. }) && io_cause(error).is_none()
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
    let found = store.get(path).await.map_err(|error| match io_cause(&error) {
        // Below what is no folder there is no object.
        Some(std::io::ErrorKind::NotADirectory) => Problem::Missing,
        _ => error.into(),
    })?;
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
    fn only_a_request_without_the_stores_own_answer_may_arrive_yet() {
        let error = |source| Error::Generic { store: "S3", source };
        let io = || io::Error::from(io::ErrorKind::TimedOut);
        let http = |kind| error(Box::new(HttpError::new(kind, io())));
        assert!(!may_arrive_yet(&http(HttpErrorKind::Connect)));
        assert!(
            may_arrive_yet(&http(HttpErrorKind::Timeout))
                && may_arrive_yet(&http(HttpErrorKind::Interrupted))
        );
        assert!(may_arrive_yet(&error("504 Gateway Timeout".into())));
        assert!(!may_arrive_yet(&error(Box::new(io()))));
        let denied = Error::PermissionDenied { path: String::new(), source: "403 Forbidden".into() };
        assert!(!may_arrive_yet(&denied));
    }
}
