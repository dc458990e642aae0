//! What can go wrong with real servers.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The testkit's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done with a server or a cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine refused: a file, a process, a socket.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, and on what.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no stock server of that name.
    #[error("no server is called `{name}`; there are: {known}")]
    UnknownServer {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The server could not be fetched.
    #[error("cannot fetch {name}: {message}")]
    Fetch {
        /// The server's name.
        name: String,
        /// What the script said.
        message: String,
    },
    /// The program does not say that it is a server of a known version.
    #[error("{} is not a Redis or Valkey server: `--version` says `{output}`", program.display())]
    NotAServer {
        /// The program.
        program: PathBuf,
        /// What it printed.
        output: String,
    },
    /// The cluster was asked to be what it cannot be.
    #[error("cannot set up the cluster: {reason}")]
    Setup {
        /// Which wishes do not fit together.
        reason: String,
    },
    /// A server ended although nobody asked it to.
    #[error("node {node} ended by itself ({status}); its log ends with:\n{log}")]
    ServerDied {
        /// The node's number in the cluster.
        node: usize,
        /// Its exit status.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// The node is not in the state that the operation needs.
    #[error("node {node} is {state}, expected it to be {expected}")]
    NodeState {
        /// The node's number in the cluster.
        node: usize,
        /// What it is.
        state: &'static str,
        /// What it had to be.
        expected: &'static str,
    },
    /// A condition was not met in time.
    #[error("waited {limit:?} for {what}; last seen: {last}")]
    Deadline {
        /// The condition.
        what: String,
        /// How long was waited.
        limit: Duration,
        /// What stood in the way at the last look.
        last: String,
    },
    /// The server answered with an error.
    #[error("`{command}` was answered with an error: {message}")]
    Reply {
        /// The command's name and first argument.
        command: String,
        /// The error, without the leading `-`.
        message: String,
    },
    /// The server answered with something else than the command should give.
    #[error("expected {expected}, got {got}")]
    UnexpectedReply {
        /// What was expected.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// Bytes from the server that are not RESP.
    #[error("not a RESP reply: {reason}")]
    Protocol {
        /// What is wrong with them.
        reason: String,
    },
    /// Certificates or TLS settings that do not work.
    #[error("TLS: {reason}")]
    Tls {
        /// What failed.
        reason: String,
    },
    /// There was no free port.
    #[error("no free port was found in {tried} tries")]
    NoPort {
        /// How many ports were tried.
        tried: u32,
    },
    /// The data is not what was written.
    #[error("key {key}: expected {expected}, found {found}")]
    Mismatch {
        /// The key, escaped.
        key: String,
        /// What was written.
        expected: String,
        /// What is there.
        found: String,
    },
}

impl Error {
    /// Wraps an error of the machine with what was tried.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
