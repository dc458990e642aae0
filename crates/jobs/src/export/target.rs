//! A file that is there whole or not at all.

use std::fs::{File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, ErrorKind, Result};

const BUFFER_BYTES: usize = 256 << 10;

/// A file being written beside its place; gone if it is dropped before it is committed.
pub(super) struct OutputFile {
    temporary: NamedTempFile,
    path: PathBuf,
    force: bool,
}

impl OutputFile {
    /// Begins a file, and gives the way to write to it.
    pub(super) fn create(path: PathBuf, force: bool) -> Result<(Self, Box<dyn Write + Send>)> {
        if path.is_dir() {
            return Err(Error::new(ErrorKind::Usage, format!("{} is a folder", path.display()))
                .hint("name the file to write: --output FILE"));
        }
        if !force && path.exists() {
            return Err(exists(&path));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let temporary = tempfile::Builder::new()
            .prefix(&format!(".{name}."))
            .suffix(".partial")
            // What any program would give it: the user's umask takes away what it is to.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder_of(&path))
            .map_err(|error| failed("write beside", &path, &error))?;
        let file = temporary.as_file().try_clone().map_err(|error| failed("write beside", &path, &error))?;
        Ok((Self { temporary, path, force }, Box::new(BufWriter::with_capacity(BUFFER_BYTES, file))))
    }

    /// Makes the file durable and puts it in its place. Everything written must have been flushed.
    pub(super) fn commit(self) -> Result<PathBuf> {
        let Self { temporary, path, force } = self;
        temporary.as_file().sync_all().map_err(|error| failed("write", &path, &error))?;
        let placed = if force { temporary.persist(&path) } else { temporary.persist_noclobber(&path) };
        placed.map_err(|error| match error.error.kind() {
            std::io::ErrorKind::AlreadyExists => exists(&path),
            _ => failed("write", &path, &error.error),
        })?;
        let folder = folder_of(&path);
        File::open(&folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| failed("make durable", &path, &error))?;
        Ok(path)
    }
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn exists(path: &Path) -> Error {
    Error::new(ErrorKind::Conflict, format!("{} exists", path.display()))
        .hint("name another file, or replace it with --force")
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, format!("can't {doing} {}: {error}", path.display()))
        .hint("name a file in a folder that exists, has space and may be written to")
}
