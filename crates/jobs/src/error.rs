//! One error for all jobs: a kind to act on, what failed on what, and what to do next.

use std::fmt;

use slotkeep_repo::{Problem, RepoError};

use crate::net::{LinkError, LinkProblem};

/// The result of a job.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is; the command gives each its own exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// None of the others.
    Failed,
    /// What was asked for makes no sense as it was asked.
    Usage,
    /// A node can't be reached, or went away.
    Unreachable,
    /// A password is wrong or missing.
    Authentication,
    /// The user may not run a command that is needed.
    Permission,
    /// One side speaks TLS and the other doesn't, or a certificate isn't accepted.
    Tls,
    /// What answers is not a server that can be backed up, or the cluster is not whole.
    NotACluster,
    /// The repository can't be used: missing, not writable, not answering.
    Repository,
    /// There is no space left where it is needed.
    Full,
    /// There is no such backup.
    NotFound,
    /// Stored bytes are not what was written.
    Corrupt,
    /// The log does not lead there, or can't be continued from there: a gap, or a moment before its beginning or after its end.
    Gap,
    /// An identity, passphrase or signing key is missing or wrong.
    Key,
    /// The repository is not the one that it was, or holds what its key did not sign.
    Untrusted,
    /// The target is not empty.
    TargetNotEmpty,
    /// The target holds other data in the slots that are to be restored.
    Conflict,
    /// A version that can't be used here.
    Unsupported,
    /// The old cluster may still take writes, and another would open beside it.
    NotFenced,
    /// Another agent does the same work, and the two can't be kept apart.
    Contended,
    /// This machine's clock is not to be relied on.
    ClockOff,
    /// Some of the repositories that must have a backup have it, and another does not.
    PartlyStored,
    /// The user stopped it.
    Interrupted,
}

/// A failed job.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl Error {
    /// A failure of that kind: `message` says what failed, on what, and why.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// With what to do next. The innermost hint is kept.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// With what was being done when it failed.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// That the user stopped the job.
    pub fn interrupted() -> Self {
        Self::new(ErrorKind::Interrupted, "interrupted")
    }

    /// What sort of failure it is.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What to do next, if there is something.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<RepoError> for Error {
    fn from(error: RepoError) -> Self {
        let (kind, hint) = match &error.problem {
            Problem::Location(_) => {
                (ErrorKind::Usage, "give a folder, or an address such as s3://bucket/prefix")
            }
            Problem::Settings(_) => (
                ErrorKind::Usage,
                "set, correct or unset that variable (AWS_…, GOOGLE_…, AZURE_…); docs/stores.md says what they mean",
            ),
            Problem::ForeignName(_) => {
                (ErrorKind::Repository, "Slotkeep writes no such names: move that file out of the repository")
            }
            Problem::NotAFolder(_) => {
                (ErrorKind::Repository, "name a folder, or a place where nothing is yet")
            }
            Problem::NoRepository => (
                ErrorKind::Repository,
                "check --repo, or make a repository there with `slotkeep init --repo …`",
            ),
            Problem::NoBucket => (
                ErrorKind::Repository,
                "check --repo and what the environment says of the store; a bucket or container is made with the store's own tools, not by Slotkeep",
            ),
            Problem::AlreadyRepository => (ErrorKind::Repository, "it can be used as it is"),
            Problem::NotEmpty => {
                (ErrorKind::Repository, "name an empty folder, or one that does not exist yet")
            }
            Problem::NoSuchBackup(_) | Problem::NoBackups | Problem::Ambiguous(_) => {
                (ErrorKind::NotFound, "`slotkeep list --repo …` shows what there is")
            }
            Problem::Missing | Problem::Damaged(_) => (
                ErrorKind::Corrupt,
                "do not delete other backups: use another one (`slotkeep list`), and take a new one from the running cluster",
            ),
            Problem::DamagedKey(_) => (
                ErrorKind::Corrupt,
                "if another key file stands beside it (slotkeep-key-….age), give the identity or the passphrase for that one and run `slotkeep key rekey`, \
                 which replaces both; else put this one back from a mirror of the repository",
            ),
            Problem::Locked => {
                (ErrorKind::Key, "give --identity FILE, or the passphrase in SLOTKEEP_PASSPHRASE")
            }
            Problem::NoConditions => (
                ErrorKind::Unsupported,
                "let one Slotkeep alone write to this repository, or use a store that honours conditional writes",
            ),
            Problem::NotEncrypted => (ErrorKind::Usage, "only an encrypted repository has keys"),
            Problem::WrongKey(_) => {
                (ErrorKind::Key, "check --identity, the passphrase, --recipient and --signing-key")
            }
            Problem::NoSigningKey => (
                ErrorKind::Key,
                "bring the key here from a machine that has it (`slotkeep key export-signing`), and give it with --signing-key FILE",
            ),
            Problem::Pruned(_) => {
                (ErrorKind::Repository, "run it again: what is to be deleted is not built on then")
            }
            Problem::Untrusted(_) => (
                ErrorKind::Untrusted,
                "find out who can write to the repository before you use it; docs/security.md says what is checked",
            ),
            Problem::Missed(_) => (
                ErrorKind::Untrusted,
                "mount what belongs there, or correct --repo; where a new repository is meant, make it with `slotkeep init`",
            ),
            Problem::WouldBePlain(_) => (
                ErrorKind::Untrusted,
                "mount what belongs there, or correct --repo; else make it first: an encrypted one with `slotkeep init --repo … --recipient age1…`, \
                 one that is not encrypted with `slotkeep init --repo …`",
            ),
            Problem::Exists => {
                (ErrorKind::Repository, "another Slotkeep may be writing to the same repository")
            }
            Problem::Denied(_) => {
                (ErrorKind::Repository, "check the permissions, or the credentials in the environment")
            }
            Problem::NoKeys(_) => (
                ErrorKind::Repository,
                "set the store's keys in the environment (docs/stores.md), or run it where the machine has a role",
            ),
            Problem::Full(_) => {
                (ErrorKind::Full, "free some space and run it again; nothing incomplete is listed")
            }
            Problem::MayBeListed { .. } => (
                ErrorKind::Repository,
                "when the store answers again, `slotkeep list` says whether it is listed, and `slotkeep verify` whether it is whole; if it is not listed, \
                 take another one: `slotkeep repair` can list what is left of this one, and `slotkeep prune` deletes it",
            ),
            Problem::Newer(_) => (ErrorKind::Unsupported, "install a newer Slotkeep"),
            Problem::Store(_) => (ErrorKind::Repository, "check that the store answers, and run it again"),
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}

/// What to do where replication is refused.
const WITHOUT_REPLICATION: &str = "`slotkeep check` prints the ACL SETUSER line that suffices; where replication is not to be had, as with managed services, \
     `slotkeep backup --source scan` does without (docs/sources.md)";

fn replicates(command: &str) -> bool {
    ["psync", "sync", "replconf"].iter().any(|name| command.eq_ignore_ascii_case(name))
}

impl From<LinkError> for Error {
    fn from(error: LinkError) -> Self {
        let (kind, hint) = match &error.problem {
            LinkProblem::Resolve(_) | LinkProblem::Connect(_) => (
                ErrorKind::Unreachable,
                "check the address; if nodes announce addresses that can't be reached from here, use --address-map",
            ),
            LinkProblem::Timeout { .. } | LinkProblem::Closed | LinkProblem::Io(_) => (
                ErrorKind::Unreachable,
                "check that the server lives and that nothing between cuts the connection",
            ),
            LinkProblem::Tls(_) => {
                (ErrorKind::Tls, "check --tls, --tls-ca, --tls-cert, --tls-key and --tls-server-name")
            }
            LinkProblem::ServerSpeaksTls => (ErrorKind::Tls, "this port wants TLS: add --tls"),
            LinkProblem::NotRedis(_) => {
                (ErrorKind::NotACluster, "give the address of a Redis or Valkey server's client port")
            }
            LinkProblem::WrongPassword(_) => (
                ErrorKind::Authentication,
                "give the password in SLOTKEEP_PASSWORD or --password-file, the user in --user",
            ),
            LinkProblem::NoPermission { command, .. } | LinkProblem::UnknownCommand { command, .. }
                if replicates(command) =>
            {
                (ErrorKind::Permission, WITHOUT_REPLICATION)
            }
            LinkProblem::NoPermission { .. } => {
                (ErrorKind::Permission, "`slotkeep check` prints the ACL SETUSER line that suffices")
            }
            LinkProblem::UnknownCommand { .. } => (
                ErrorKind::Permission,
                "the server has the command renamed or blocked, as managed services do; Slotkeep needs it",
            ),
            LinkProblem::Transient(_) => {
                (ErrorKind::Unreachable, "the server is busy with something else: try again shortly")
            }
            LinkProblem::Server(_) | LinkProblem::Protocol(_) => {
                (ErrorKind::Failed, "run `slotkeep check` to see whether the server can be backed up")
            }
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}
