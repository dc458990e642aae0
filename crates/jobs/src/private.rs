//! Files and folders that hold a cluster's data in plain, or keys: for this user alone, whatever the umask.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// What group and others may do.
const OTHERS: u32 = 0o077;

/// Makes a folder and those above it, as far as they are not there. One that is there stays as it is.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(path)
}

/// Takes from all others what they may do in a folder, if it is this user's. Gives the mode if it is not, and others may do something there.
pub(crate) fn close_folder(path: &Path) -> io::Result<Option<u32>> {
    let about = fs::metadata(path)?;
    let mode = about.mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(None);
    }
    if about.uid() != rustix::process::geteuid().as_raw() {
        return Ok(Some(mode));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode & !OTHERS))?;
    Ok(None)
}

/// Options to write a file with; one that is made is for this user alone.
pub(crate) fn to_write() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    options
}
