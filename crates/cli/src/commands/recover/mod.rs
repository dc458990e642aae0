//! `slotkeep recover`

mod render;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use slotkeep_jobs::log::Past;
use slotkeep_jobs::progress::ShardProgress;
use slotkeep_jobs::recover::{
    ApplyTail, EndDisplay, Filling, Making, Memory, Outcome, Plan, Prefer, Recovery, Verdict, Watch, Wishes,
};
use slotkeep_jobs::restore::files::{TlsFiles, UsersPolicy};
use slotkeep_jobs::{Context, Error, ErrorKind, Result};

use super::merge::EngineArgs;
use super::restore::aim::parse_moment;
use super::restore::files::new_password;
use crate::args::{ClusterArgs, RepoArgs};
use crate::exit;
use crate::output::Output;
use crate::progress::ByteDisplay;
use crate::session::{Session, parse_addr};

/// Bring a damaged cluster back, each shard by the way that loses least
///
/// Looks at the cluster from every node that can still be reached and from the repository, and shows a plan: what is wrong with each shard, what
/// would be done, what that loses, how long it takes and what can go wrong. A replica whose primary is gone is promoted; a shard of which no node
/// lives is restored from the repository to new nodes, which join the others; a cluster of which nothing lives is restored whole. --yes
/// does it. Slots that two nodes call their own are left alone. Exits with 45 if there is something to do, 46 if
/// something is left to a person, 47 if it had to stop.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own")]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    repo: RepoArgs,
    /// What to do where a replica lives whose primary is gone: promote it, or restore the shard from the repository
    #[arg(long, value_name = "WHAT", default_value = "replica", help_heading = "How")]
    prefer: PreferArg,
    /// Nodes that are to be the primaries of their shards: a replica that is not the one with the highest offset, one whose
    /// primary lives, or in a split brain the node that is to be kept
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', help_heading = "How")]
    choose: Vec<String>,
    /// Restore shards to this moment, by the servers' clocks; to the last one that each one's log leads to, if not given
    #[arg(long, value_name = "TIME", help_heading = "How")]
    at: Option<String>,
    /// Apply what the repository holds, and a replica did not when it was promoted, to the new primary: only if that has taken no writes
    /// since, or with =anyway over them
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "untouched",
        help_heading = "How"
    )]
    apply_tail: Option<ApplyTailArg>,
    /// At the end, make all nodes forget those that do not answer and hold nothing
    #[arg(long, help_heading = "How")]
    forget: bool,
    /// Show the plan and do nothing, which is so without --yes too
    #[arg(long, conflicts_with = "yes", help_heading = "How")]
    dry_run: bool,
    /// Do it
    #[arg(long, help_heading = "How")]
    yes: bool,
    /// Addresses for new nodes: primaries of lost shards first, then their replicas, then replicas of shards that have lost theirs. Either
    /// empty servers that run in cluster mode, on any machine, or, with --to-dir, addresses of this machine at which servers are started
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', help_heading = "New nodes")]
    spare: Vec<String>,
    /// Of those addresses, servers that a run left half-filled that was broken off: they are emptied (FLUSHALL, CLUSTER RESET HARD) and filled anew.
    /// Only what knows nobody and calls exactly the slots of a lost shard its own
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        requires = "spare",
        help_heading = "New nodes"
    )]
    refill: Vec<String>,
    /// Folder to make the data directories of nodes in that are started; must not exist, or be empty
    #[arg(long, value_name = "DIR", requires = "spare", help_heading = "New nodes")]
    to_dir: Option<PathBuf>,
    /// Server program that the new nodes run; `valkey-server` or `redis-server` from the PATH if not given
    #[arg(long, value_name = "PATH", requires = "to_dir", help_heading = "New nodes")]
    server: Option<PathBuf>,
    /// File whose first line is the default user's password on the new nodes; the one that opens the cluster if not given
    #[arg(long, value_name = "FILE", requires = "to_dir", help_heading = "New nodes")]
    new_password_file: Option<PathBuf>,
    /// Leave users and passwords of the new nodes out: whoever reaches them may do everything
    #[arg(long, requires = "to_dir", conflicts_with = "new_password_file", help_heading = "New nodes")]
    no_acl: bool,
    /// The certificate of nodes that are started, PEM, where the cluster speaks TLS
    #[arg(long, value_name = "FILE", requires_all = ["spare_tls_key", "spare_tls_ca", "to_dir"], help_heading = "New nodes")]
    spare_tls_cert: Option<PathBuf>,
    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE", requires = "spare_tls_cert", help_heading = "New nodes")]
    spare_tls_key: Option<PathBuf>,
    /// Certificates of the authorities that they trust, PEM
    #[arg(long, value_name = "FILE", requires = "spare_tls_cert", help_heading = "New nodes")]
    spare_tls_ca: Option<PathBuf>,
    /// Where to keep a lost shard's dataset while its log is applied to it, for a node that runs; the system's folder for temporary files if
    /// not given
    #[arg(long, value_name = "DIR", help_heading = "New nodes")]
    spool: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

/// What is preferred.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PreferArg {
    /// At once, with what the replica has
    Replica,
    /// Later, with what the repository has
    Archive,
}

/// When the log is applied that a replica lacked.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ApplyTailArg {
    /// If the new primary has taken no writes since
    Untouched,
    /// Also over what it has taken since
    Anyway,
}

pub(crate) async fn run(session: &Session, output: &Output, arguments: &RecoverArgs) -> Result<u8> {
    let recovery = recovery(session, arguments).await?;
    let plan = recovery.plan().await?;
    if !arguments.yes {
        output.data(&plan, |plan| render::plan(plan, true))?;
        return Ok(code(&plan));
    }
    if plan.steps.is_empty() {
        output.data(&plan, |plan| render::plan(plan, false))?;
        return Ok(code(&plan));
    }
    output.note(&render::plan(&plan, false));
    let outcome = recovery.apply(&plan, &Watcher { output }).await?;
    for warning in &outcome.warnings {
        output.warn(warning);
    }
    output.data(&outcome, render::outcome)?;
    Ok(outcome_code(&outcome))
}

async fn recovery(session: &Session, arguments: &RecoverArgs) -> Result<Recovery> {
    let (context, seeds) = session.cluster(&arguments.cluster)?;
    let repository = match session.location_if_given(&arguments.repo)? {
        Some(_) => {
            let (repository, name) = session.repository(&arguments.repo).await?;
            repository.check_reads()?;
            Some((repository, name))
        }
        None => None,
    };
    let past = match &repository {
        Some((repository, name)) => {
            let past = Past::load(repository, name).await?;
            // What a server lacks that took over is told by where histories come from.
            past.expect_origins()?;
            past.expect_newest_look()?;
            Some(Arc::new(past))
        }
        None => None,
    };
    let addrs = |texts: &[String]| texts.iter().map(|text| parse_addr(text)).collect::<Result<Vec<_>>>();
    let wishes = Wishes {
        prefer: match arguments.prefer {
            PreferArg::Replica => Prefer::Replica,
            PreferArg::Archive => Prefer::Archive,
        },
        choose: addrs(&arguments.choose)?,
        refill: addrs(&arguments.refill)?,
        at: arguments.at.as_deref().map(parse_moment).transpose()?,
        forget: arguments.forget,
        apply_tail: match arguments.apply_tail {
            None => ApplyTail::No,
            Some(ApplyTailArg::Untouched) => ApplyTail::Untouched,
            Some(ApplyTailArg::Anyway) => ApplyTail::Anyway,
        },
        folder: arguments.to_dir.is_some(),
        tls: context.connector.is_tls() && arguments.spare_tls_cert.is_none(),
    };
    let filling = repository.as_ref().map(|(repository, _)| Filling {
        repository: repository.clone(),
        spool: arguments.spool.clone().unwrap_or_else(std::env::temp_dir),
        engine: arguments.engine.options(),
    });
    let making = match (&arguments.to_dir, repository) {
        (Some(folder), Some((repository, _))) => Some(Making {
            repository,
            folder: folder.clone(),
            server: arguments.server.clone(),
            users: users(arguments, &context)?,
            tls: tls_files(arguments, &context)?,
        }),
        (Some(_), None) => {
            return Err(Error::new(
                ErrorKind::Usage,
                "new nodes get their data from a repository, and none was given",
            )
            .hint("give --repo DIR-OR-URL, or leave --to-dir and --spare out"));
        }
        (None, _) => None,
    };
    let spares = addrs(&arguments.spare)?;
    if let Some(addr) = wishes.refill.iter().find(|addr| !spares.contains(addr)) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("--refill {addr} is not one of the addresses for new nodes"),
        )
        .hint("name it with --spare too"));
    }
    Ok(Recovery { seeds, spares, past, wishes, making, filling, memory: Memory::default(), context })
}

/// The files by which nodes that are started speak TLS. They are to be found wherever the servers run.
fn tls_files(arguments: &RecoverArgs, context: &Context) -> Result<Option<TlsFiles>> {
    let (Some(cert), Some(key), Some(ca)) =
        (&arguments.spare_tls_cert, &arguments.spare_tls_key, &arguments.spare_tls_ca)
    else {
        return Ok(None);
    };
    if !context.connector.is_tls() {
        return Err(Error::new(ErrorKind::Usage, "--spare-tls-cert is for clusters that speak TLS").hint(
            "give --tls, --tls-ca or --tls-cert too, so that the cluster is reached by TLS; or leave it out",
        ));
    }
    let absolute = |path: &PathBuf| {
        path.canonicalize().map_err(|error| {
            Error::new(ErrorKind::Usage, format!("can't use {}: {error}", path.display()))
                .hint("give files in PEM form that this user can read")
        })
    };
    Ok(Some(TlsFiles { cert: absolute(cert)?, key: absolute(key)?, ca: absolute(ca)? }))
}

/// The users of new nodes. They have to let in whoever the cluster lets in.
fn users(arguments: &RecoverArgs, context: &Context) -> Result<UsersPolicy> {
    if arguments.no_acl {
        return Ok(UsersPolicy::None);
    }
    if let Some(path) = &arguments.new_password_file {
        return Ok(UsersPolicy::NewPassword(new_password(path)?));
    }
    let default_user = context.connector.credentials().filter(|credentials| credentials.user.is_none());
    Ok(default_user.map_or(UsersPolicy::AsRecorded, |known| UsersPolicy::NewPassword(known.password.clone())))
}

fn code(plan: &Plan) -> u8 {
    match plan.verdict {
        Verdict::Whole => exit::OK,
        Verdict::Recoverable => exit::DAMAGED,
        Verdict::NeedsDecision => exit::UNDECIDED,
    }
}

fn outcome_code(outcome: &Outcome) -> u8 {
    match (&outcome.stopped, outcome.after.verdict) {
        (Some(_), _) => exit::STOPPED,
        (None, Verdict::Whole) => exit::OK,
        // What is left has come about since: a run that did all it planned leaves nothing to do.
        (None, Verdict::Recoverable) => exit::DAMAGED,
        (None, Verdict::NeedsDecision) => exit::UNDECIDED,
    }
}

/// Shows a recovery while it goes on.
struct Watcher<'a> {
    output: &'a Output,
}

impl Watch for Watcher<'_> {
    fn note(&self, text: &str) {
        self.output.note(text);
    }

    fn begin(&self, rows: &[(Arc<ShardProgress>, u64)]) -> EndDisplay {
        Box::pin(ByteDisplay::start(self.output, rows).finish())
    }
}
