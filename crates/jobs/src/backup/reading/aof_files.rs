//! The files of a multi-part append-only file, opened as they belong together while the server writes and rewrites them.
//!
//! A manifest names them: at most one base, then the increments in their order. The server replaces the manifest as a whole (it renames), ends a file
//! before it begins the next one, and deletes files only when no manifest names them any more (`src/aof.c` of Redis 7.0 to 8.8 and Valkey 7.2 to
//! 9.1). So: read the manifest, open what it names, look whether it still says the same. Then all but the last file are as long
//! as they will ever be, and what is deleted later stays readable through its descriptor.

use std::io;
use std::path::Path;

use tokio::fs::File;

/// What a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AofManifest {
    /// The file before the increments.
    pub(super) base: Option<String>,
    /// The increments, the oldest first.
    pub(super) increments: Vec<String>,
}

/// A manifest that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number} of the manifest, `{line}`, {what}")]
pub(super) struct ManifestProblem {
    number: usize,
    line: String,
    what: &'static str,
}

impl AofManifest {
    /// Reads a manifest: lines of names and values, of which unknown ones are passed over.
    pub(super) fn parse(text: &str) -> Result<Self, ManifestProblem> {
        let mut manifest = Self::default();
        for (number, line) in text.lines().enumerate() {
            let problem =
                |what| ManifestProblem { number: number.saturating_add(1), line: line.to_owned(), what };
            if line.starts_with('#') {
                continue;
            }
            if line.contains('"') {
                return Err(problem("names a file with characters that can't be read"));
            }
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let value = |name: &str| {
                let mut pairs = words.chunks_exact(2);
                pairs.find_map(|pair| match pair {
                    [key, value] if key.eq_ignore_ascii_case(name) => Some(*value),
                    _ => None,
                })
            };
            let (Some(file), Some(kind)) = (value("file"), value("type")) else {
                return Err(problem("names no file or no type"));
            };
            if file.contains('/') {
                return Err(problem("names a file elsewhere"));
            }
            match kind {
                "b" if manifest.base.is_none() => manifest.base = Some(file.to_owned()),
                "b" => return Err(problem("names a second base")),
                "i" => manifest.increments.push(file.to_owned()),
                // Files that are not needed any more.
                "h" => {}
                _ => return Err(problem("has a type that is not known")),
            }
        }
        Ok(manifest)
    }

    fn files(&self) -> impl Iterator<Item = &String> {
        self.base.iter().chain(&self.increments)
    }
}

/// A file that was opened, and how long it was then.
pub(super) struct AofFile {
    pub(super) name: String,
    pub(super) file: File,
    pub(super) bytes: u64,
}

/// Files that belong together: the base if there is one, then the increments.
pub(super) struct AofFiles {
    pub(super) has_base: bool,
    pub(super) files: Vec<AofFile>,
}

impl AofFiles {
    /// Opens what the manifest names; nothing if it does not say the same afterwards, or if a file has gone meanwhile.
    pub(super) async fn open(folder: &Path, manifest: &Path) -> io::Result<Option<Self>> {
        let named = read(manifest).await?;
        let mut files = Vec::new();
        for name in named.files() {
            match File::open(folder.join(name)).await {
                Ok(file) => files.push(AofFile { name: name.clone(), file, bytes: 0 }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        if read(manifest).await? != named {
            return Ok(None);
        }
        for file in &mut files {
            file.bytes = file.file.metadata().await?.len();
        }
        Ok(Some(Self { has_base: named.base.is_some(), files }))
    }

    /// How long they are together, and how long the increments are.
    pub(super) fn bytes(&self) -> (u64, u64) {
        let sum = |files: &[AofFile]| files.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes));
        let increments = self.files.get(usize::from(self.has_base)..).unwrap_or_default();
        (sum(&self.files), sum(increments))
    }
}

async fn read(manifest: &Path) -> io::Result<AofManifest> {
    let text = tokio::fs::read_to_string(manifest).await?;
    AofManifest::parse(&text).map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_names_a_base_and_its_increments() {
        let text = "file a.2.base.rdb seq 2 type b\nfile a.1.incr.aof seq 1 type h\n# a remark\n\
                    FILE a.2.incr.aof SEQ 2 TYPE i startoffset 5\nfile a.3.incr.aof seq 3 type i unknown x\n";
        let manifest = AofManifest::parse(text).unwrap();
        assert_eq!(manifest.base.as_deref(), Some("a.2.base.rdb"));
        assert_eq!(manifest.increments, ["a.2.incr.aof", "a.3.incr.aof"]);
        for wrong in [
            "file a seq 1 type b\nfile b seq 2 type b\n",
            "file ../a seq 1 type i\n",
            "file a seq 1 type z\n",
            "seq 1 type i\n",
            "file \"a b\" seq 1 type i\n",
            "\n",
        ] {
            assert!(AofManifest::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn files_that_are_gone_or_renamed_meanwhile_are_looked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("m");
        std::fs::write(&manifest, "file b seq 1 type b\nfile i seq 1 type i\n").unwrap();
        std::fs::write(folder.path().join("b"), "base").unwrap();
        assert!(AofFiles::open(folder.path(), &manifest).await.unwrap().is_none());
        std::fs::write(folder.path().join("i"), "more").unwrap();
        let files = AofFiles::open(folder.path(), &manifest).await.unwrap().unwrap();
        assert!(files.has_base);
        assert_eq!(files.bytes(), (8, 4));
        assert!(AofFiles::open(folder.path(), &folder.path().join("none")).await.is_err());
    }
}
