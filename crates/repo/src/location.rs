//! Where a repository is: a local folder, or the address of an object store.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreScheme, parse_url_opts};

use crate::error::{Problem, RepoError};
use crate::probe::PROBE_PREFIX;
use crate::store::{CONNECT_LIMIT, Early, GrowingParts, REQUEST_LIMIT, SILENCE_LIMIT, aws, settings};
use crate::unfinished::is_beside_its_place;

/// A folder, or a URL such as `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`.
///
/// Credentials, region and endpoint come from each store's usual environment variables (`AWS_…`, `GOOGLE_…`, `AZURE_…`), never
/// from the address; for S3 also from the profiles of AWS's tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A local folder.
    Folder(PathBuf),
    /// An object store.
    Url(url::Url),
}

impl FromStr for Location {
    type Err = RepoError;

    fn from_str(text: &str) -> Result<Self, RepoError> {
        let refuse = |why: String| {
            RepoError::new("use", format!("`{}` as a repository", shown(text)), Problem::Location(why))
        };
        if text.is_empty() {
            return Err(refuse("it is empty".to_owned()));
        }
        if !text.contains("://") {
            return match meant(text) {
                Some(meant) => Err(refuse(format!(
                    "did you mean `{}`? A folder of this name is given as ./NAME",
                    shown(&meant)
                ))),
                None => Ok(Self::Folder(PathBuf::from(text))),
            };
        }
        let url = url::Url::parse(text).map_err(|error| refuse(error.to_string()))?;
        if url.query().is_some() || url.fragment().is_some() {
            let why = "an address ends with the path; what else a store is to be told comes from its environment variables";
            return Err(refuse(why.to_owned()));
        }
        if url.scheme() == "file" {
            return url
                .to_file_path()
                .map(Self::Folder)
                .map_err(|()| refuse("it names no local path".to_owned()));
        }
        let names_container = AZURE_SCHEMES.contains(&url.scheme());
        if url.password().is_some() || (!url.username().is_empty() && !names_container) {
            return Err(refuse(
                "an address must not hold a key or a password: use the store's environment variables"
                    .to_owned(),
            ));
        }
        let stores = |scheme: &ObjectStoreScheme| {
            use ObjectStoreScheme as S;
            matches!(scheme, S::AmazonS3 | S::GoogleCloudStorage | S::MicrosoftAzure)
        };
        if !ObjectStoreScheme::parse(&url).is_ok_and(|(scheme, _)| stores(&scheme)) {
            let why = "it is no address of a store that Slotkeep knows: s3://bucket/…, gs://bucket/…, az://container/…";
            return Err(refuse(why.to_owned()));
        }
        Ok(Self::Url(url))
    }
}

/// The address that was meant by one that lacks slashes, and would be taken for a folder.
fn meant(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    let rest = rest.trim_start_matches('/');
    match scheme.to_ascii_lowercase().as_str() {
        "file" => Some(format!("file:///{rest}")),
        "s3" | "s3a" | "gs" | "az" | "adl" | "azure" | "abfs" | "abfss" | "http" | "https" => {
            Some(format!("{scheme}://{rest}"))
        }
        _ => None,
    }
}

/// Schemes whose addresses may name a container before the account: `az://container@account.dfs.core.windows.net/`.
const AZURE_SCHEMES: [&str; 3] = ["az", "abfs", "abfss"];

/// An address as it may be shown: without what stands before `@` and behind `?` or `#`, where secrets are put.
fn shown(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once(':') else { return text.to_owned() };
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    match rest.rfind('@') {
        // A secret may hold such a character itself: nothing of it is certain.
        Some(at) if at > end => format!("{scheme}:…"),
        Some(at) => format!("{scheme}://…@{}", rest.get(at.saturating_add(1)..end).unwrap_or_default()),
        None => format!("{scheme}:{}", rest.get(..end).unwrap_or_default()),
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

impl Location {
    /// Opens the store at this place. A local folder must exist.
    pub(crate) async fn store(&self) -> Result<Arc<dyn ObjectStore>, RepoError> {
        let failed = |error: object_store::Error| RepoError::new("open", self, error);
        match self {
            Self::Folder(path) => Ok(Arc::new(Early::new(local(path).map_err(failed)?))),
            Self::Url(url) => {
                let limits = [
                    ("timeout", REQUEST_LIMIT),
                    ("read_timeout", SILENCE_LIMIT),
                    ("connect_timeout", CONNECT_LIMIT),
                ];
                let limits = limits.map(|(name, value)| (name.to_owned(), value.to_owned()));
                let (scheme, prefix) = ObjectStoreScheme::parse(url).map_err(|error| failed(error.into()))?;
                let environment = settings::of_environment(&scheme, std::env::vars_os())
                    .map_err(|problem| RepoError::new("open", self, problem))?;
                // What comes later goes before.
                let options: Vec<_> = limits.into_iter().chain(environment).collect();
                let not_opened = |error| RepoError::new("open", self, settings::opening(error, &options));
                if matches!(scheme, ObjectStoreScheme::AmazonS3) {
                    let (store, parts) = aws::open(url, &options).await.map_err(not_opened)?;
                    let store = PrefixStore::new(store, prefix);
                    return Ok(match parts {
                        aws::Parts::Equal => Arc::new(store),
                        aws::Parts::Any => Arc::new(GrowingParts::new(store)),
                    });
                }
                let (store, prefix) = parse_url_opts(url, options.clone()).map_err(not_opened)?;
                Ok(Arc::new(GrowingParts::new(PrefixStore::new(store, prefix))))
            }
        }
    }

    /// Creates the folder of a local repository, durable when this returns. A bucket is not created.
    pub(crate) async fn create_folder(&self) -> Result<(), RepoError> {
        let Self::Folder(path) = self else { return Ok(()) };
        let failed = |error: std::io::Error| RepoError::new("create", self, folder_problem(path, &error));
        let gain_entries = gain_entries(path);
        tokio::fs::create_dir_all(path).await.map_err(failed)?;
        for folder in gain_entries {
            let synced = async { tokio::fs::File::open(&folder).await?.sync_all().await };
            match synced.await {
                // Who may write to a folder may still not open it, and can do no more.
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
                synced => synced.map_err(failed)?,
            }
        }
        Ok(())
    }

    /// Whether this is a local folder that does not exist, or is empty but for what making a repository left that was killed.
    pub(crate) async fn is_new_folder(&self) -> Result<bool, RepoError> {
        let Self::Folder(path) = self else { return Ok(false) };
        let failed = |error: std::io::Error| RepoError::new("read", self, folder_problem(path, &error));
        let mut entries = match tokio::fs::read_dir(path).await {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(failed(error)),
        };
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            let name = entry.file_name();
            let left = |name: &str| name.starts_with(PROBE_PREFIX) || is_beside_its_place(name);
            if !name.to_str().is_some_and(left) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The folders that get a new entry when this folder is made with all that lead to it.
fn gain_entries(path: &Path) -> Vec<PathBuf> {
    let new = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    let parents = new.filter_map(Path::parent);
    parents.map(|parent| if parent.as_os_str().is_empty() { ".".into() } else { parent.to_owned() }).collect()
}

fn local(path: &Path) -> Result<LocalFileSystem, object_store::Error> {
    Ok(LocalFileSystem::new_with_prefix(path)?.with_fsync(true).with_automatic_cleanup(true))
}

/// Why a folder can't be used; where a file is in its place, which.
fn folder_problem(path: &Path, error: &std::io::Error) -> Problem {
    let is_file = |path: &&Path| path.metadata().is_ok_and(|about| !about.is_dir());
    match path.ancestors().find(is_file) {
        Some(file) => Problem::NotAFolder(file.display().to_string()),
        None => io_problem(error),
    }
}

pub(crate) fn io_problem(error: &std::io::Error) -> Problem {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            Problem::Denied(error.to_string())
        }
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Problem::Full(error.to_string())
        }
        _ => Problem::Store(error.to_string()),
    }
}

/// The path of an object as a manifest names it; refused if it would leave the repository.
pub(crate) fn object_path(path: &str) -> Result<ObjectPath, RepoError> {
    ObjectPath::parse(path).map_err(|error| {
        RepoError::new("use", format!("object path `{path}`"), Problem::Damaged(error.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_addresses_are_told_apart() {
        assert_eq!("backups".parse::<Location>().unwrap(), Location::Folder("backups".into()));
        assert_eq!("file:///srv/b".parse::<Location>().unwrap(), Location::Folder("/srv/b".into()));
        assert!(matches!("s3://bucket/prefix".parse::<Location>().unwrap(), Location::Url(_)));
        assert!("".parse::<Location>().is_err());
        assert!("s3://key:secret@bucket/".parse::<Location>().is_err());
        assert!("az://container@account.dfs.core.windows.net/x".parse::<Location>().is_ok());
    }

    #[test]
    fn what_is_shown_of_an_address_holds_no_secret() {
        for (text, words) in [
            ("s3://bucket/x", "s3://bucket/x"),
            ("s3://key:secret@bucket/x", "s3://…@bucket/x"),
            ("s3://key:sec/ret@bucket/x?more", "s3://…@bucket/x"),
            ("s3://key:sec?ret@bucket/x", "s3:…"),
            ("az://c/p?sig=a@secret", "az:…"),
            ("az://c/p?sig=secret", "az://c/p"),
            ("folder", "folder"),
        ] {
            assert_eq!(shown(text), words);
        }
    }

    #[test]
    fn every_folder_that_gets_an_entry_is_made_durable() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two, three] = ["one", "one/two", "one/two/three"].map(|name| folder.path().join(name));
        assert_eq!(gain_entries(&three), [two.clone(), one.clone(), folder.path().to_owned()]);
        std::fs::create_dir(&one).unwrap();
        assert_eq!(gain_entries(&three), [two.clone(), one.clone()]);
        std::fs::create_dir_all(&three).unwrap();
        assert!(gain_entries(&three).is_empty());
        assert_eq!(gain_entries(Path::new("no-such-folder")), [PathBuf::from(".")]);
    }

    #[test]
    fn an_object_path_cannot_leave_the_repository() {
        assert!(object_path("../etc/passwd").is_err());
        assert!(object_path("main/../../x").is_err());
        assert!(object_path("main/backups/x.json").is_ok());
    }
}
