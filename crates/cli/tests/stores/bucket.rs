//! A bucket, the proxy before it, and what they hold.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;
use slotkeep_repo::{OpenOptions, Repository};
use slotkeep_testkit::FaultyStore;
use slotkeep_testkit::stores::S3Server;
use tempfile::TempDir;

use crate::common::{Run, command};
use crate::harness::RUNTIME;

const BUCKET: &str = "days";

/// A bucket with a repository, to be reached with and without trouble.
pub(crate) struct Bucket {
    server: S3Server,
    pub(crate) store: FaultyStore,
    repo: String,
    folder: TempDir,
}

impl Bucket {
    pub(crate) fn new(seed: u64) -> Self {
        let server = S3Server::start().unwrap();
        server.make_bucket(BUCKET).unwrap();
        let store = FaultyStore::start(&server, seed).unwrap();
        let repo = format!("s3://{BUCKET}/redis");
        let bucket = Self { server, store, repo, folder: tempfile::tempdir().unwrap() };
        bucket.calm(&["init", "--repo", bucket.repo()], 0);
        bucket
    }

    pub(crate) fn repo(&self) -> &str {
        &self.repo
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command that meets whatever the weather is.
    pub(crate) fn command(&self) -> Command {
        let mut through = command();
        through.envs(self.store.environment());
        through
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&self.command().args(arguments).output().unwrap())
    }

    /// Runs a command that goes to the server itself.
    #[track_caller]
    pub(crate) fn calm(&self, arguments: &[&str], code: i32) -> Run {
        let mut direct = command();
        let output = direct.args(arguments).envs(self.server.environment()).output();
        Run::of(&output.unwrap()).expect_code(code)
    }

    /// The objects of the repository, through the proxy or not.
    pub(crate) fn objects(&self, through: bool) -> Arc<dyn ObjectStore> {
        let environment = if through { self.store.environment() } else { self.server.environment() };
        let mut builder = AmazonS3Builder::new().with_bucket_name(BUCKET);
        for (name, value) in environment {
            builder = builder.with_config(name.to_ascii_lowercase().parse().unwrap(), value);
        }
        Arc::new(PrefixStore::new(builder.build().unwrap(), "redis"))
    }

    /// The repository in this process.
    pub(crate) fn open(&self, through: bool) -> Repository {
        let location = self.repo().parse().unwrap();
        let options = OpenOptions::default();
        RUNTIME.block_on(Repository::open_in(self.objects(through), &location, &options)).unwrap()
    }

    /// The ids of its backups.
    pub(crate) fn listed(&self) -> Vec<String> {
        RUNTIME.block_on(self.open(false).backup_ids("main")).unwrap()
    }

    /// A copy of it in a folder, made in fair weather.
    #[track_caller]
    pub(crate) fn fetched(&self, name: &str) -> PathBuf {
        let target = self.path(name);
        self.calm(&["copy", "--quiet", "--repo", self.repo(), "--to", text(&target)], 0);
        target
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
