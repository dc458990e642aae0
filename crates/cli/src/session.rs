//! What a run has at hand: settings, clock, randomness, and the word to stop.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use slotkeep_jobs::net::{AddressMap, Connector, ConnectorOptions, TlsOptions};
use slotkeep_jobs::ports::{SystemClock, SystemRng, random_hex};
use slotkeep_jobs::{Context, Error, ErrorKind, Result, unless_stopped};
use slotkeep_model::NodeAddr;
use slotkeep_repo::layout::is_cluster_name;
use slotkeep_repo::{Location, OpenOptions, RateLimit, Recipients, Repository, StopPoint};
use slotkeep_wire::replica::Credentials;
use tokio_util::sync::CancellationToken;

use crate::args::{AccessArgs, Arguments, ClusterArgs, RepoArgs};
use crate::settings_file::SettingsFile;

/// The name of a cluster in a repository when none is given.
const DEFAULT_NAME: &str = "main";

/// The runtime that everything runs on.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Failed, format!("can't start: {error}")))
}

/// What a run has at hand.
pub(crate) struct Session {
    pub(crate) file: SettingsFile,
    /// `SLOTKEEP_PASSPHRASE`; empty, as a service's template leaves it, it is none.
    pub(crate) passphrase: Option<String>,
    /// `SLOTKEEP_PASSWORD`.
    password: Option<String>,
    clock: Arc<SystemClock>,
    rng: Arc<SystemRng>,
    stop: CancellationToken,
    /// Where tests want this process to be killed.
    stop_point: Option<StopPoint>,
}

impl Session {
    pub(crate) fn new(arguments: &Arguments) -> Result<Self> {
        Ok(Self {
            file: SettingsFile::read(arguments.config.as_deref())?,
            passphrase: std::env::var("SLOTKEEP_PASSPHRASE").ok().filter(|phrase| !phrase.is_empty()),
            password: std::env::var("SLOTKEEP_PASSWORD").ok(),
            clock: Arc::new(SystemClock::new()),
            rng: Arc::new(SystemRng),
            stop: CancellationToken::new(),
            stop_point: stop_point()?,
        })
    }

    /// The same without the user's settings and password: for clusters and repositories of our own.
    pub(crate) fn without_settings(&self) -> Self {
        Self {
            file: SettingsFile::default(),
            passphrase: None,
            password: None,
            clock: Arc::clone(&self.clock),
            rng: Arc::clone(&self.rng),
            stop: self.stop.clone(),
            stop_point: None,
        }
    }

    /// Stops in order at the first Ctrl-C or SIGTERM; a second one ends the process as it would without us.
    pub(crate) fn stop_on_signals(&self) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            let mut next = async || {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            next().await;
            stop.cancel();
            next().await;
            #[expect(
                clippy::disallowed_methods,
                reason = "the user insists: there is nothing left to do in order"
            )]
            std::process::exit(i32::from(crate::exit::code(ErrorKind::Interrupted)));
        });
    }

    /// The addresses of the cluster's nodes, and the way to them.
    pub(crate) fn cluster(&self, arguments: &ClusterArgs) -> Result<(Context, Vec<NodeAddr>)> {
        let given = if arguments.cluster.is_empty() { &self.file.cluster } else { &arguments.cluster };
        if given.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "which cluster? no address was given")
                .hint("give --cluster HOST:PORT, SLOTKEEP_CLUSTER, or `cluster` in slotkeep.toml"));
        }
        let seeds = given.iter().map(|text| parse_addr(text)).collect::<Result<_>>()?;
        Ok((self.context(&arguments.access)?, seeds))
    }

    /// The way to nodes.
    pub(crate) fn context(&self, access: &AccessArgs) -> Result<Context> {
        let connector = Connector::new(self.connector_options(access)?)?;
        Ok(Context {
            clock: Arc::<SystemClock>::clone(&self.clock),
            rng: Arc::<SystemRng>::clone(&self.rng),
            connector: Arc::new(connector),
            stop: self.stop.clone(),
        })
    }

    fn connector_options(&self, access: &AccessArgs) -> Result<ConnectorOptions> {
        let file = &self.file;
        let mut addresses = AddressMap::default();
        for rule in if access.address_map.is_empty() { &file.address_map } else { &access.address_map } {
            addresses.add(rule).map_err(|error| {
                Error::new(ErrorKind::Usage, error.to_string())
                    .hint("for example --address-map 10.0.0.1:6379=127.0.0.1:7001,10.0.0.2=192.168.0.9")
            })?;
        }
        let ca = access.tls_ca.clone().or_else(|| file.tls_ca.clone());
        let certificate = access.tls_cert.clone().or_else(|| file.tls_cert.clone());
        let key = access.tls_key.clone().or_else(|| file.tls_key.clone());
        let wants_tls = access.tls
            || file.tls
            || ca.is_some()
            || certificate.is_some()
            || access.tls_server_name.is_some();
        let tls = wants_tls.then(|| TlsOptions {
            ca,
            client: certificate.zip(key),
            server_name: access.tls_server_name.clone().or_else(|| file.tls_server_name.clone()),
        });
        Ok(ConnectorOptions {
            credentials: self.credentials(access)?,
            tls,
            addresses,
            timeout: Some(Duration::from_secs(access.timeout.max(1))),
            socket_file: None,
        })
    }

    fn credentials(&self, access: &AccessArgs) -> Result<Option<Credentials>> {
        let user = access.user.clone().or_else(|| self.file.user.clone());
        let file = access.password_file.as_ref().or(self.file.password_file.as_ref());
        let password = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    Error::new(
                        ErrorKind::Usage,
                        format!("can't read password file {}: {error}", path.display()),
                    )
                    .hint("name a file that this user can read, with the password on its first line")
                })?;
                Some(text.lines().next().unwrap_or_default().to_owned())
            }
            None => self.password.clone(),
        };
        match (user, password) {
            (user, Some(password)) => Ok(Some(Credentials { user, password })),
            (None, None) => Ok(None),
            (Some(user), None) => Err(Error::new(ErrorKind::Usage, format!("no password for user `{user}`"))
                .hint("give it in SLOTKEEP_PASSWORD or --password-file")),
        }
    }

    /// Where the repository is, and the name of the cluster in it.
    pub(crate) fn location(&self, arguments: &RepoArgs) -> Result<(Location, String)> {
        let repo = arguments.repo.as_ref().or(self.file.repo.as_ref());
        let repo = repo.ok_or_else(|| {
            Error::new(ErrorKind::Usage, "which repository? none was given")
                .hint("give --repo DIR-OR-URL, SLOTKEEP_REPO, or `repo` in slotkeep.toml")
        })?;
        let name = arguments.name.as_ref().or(self.file.name.as_ref()).map_or(DEFAULT_NAME, String::as_str);
        if !is_cluster_name(name) {
            return Err(Error::new(ErrorKind::Usage, format!("`{name}` can't be a cluster's name"))
                .hint("use 1 to 64 letters, digits, `-`, `_` and `.`, not starting with a dot"));
        }
        Ok((Location::from_str(repo)?, name.to_owned()))
    }

    /// [`Self::location`], or nothing if no repository was named.
    pub(crate) fn location_if_given(&self, arguments: &RepoArgs) -> Result<Option<(Location, String)>> {
        let given = arguments.repo.is_some() || self.file.repo.is_some();
        given.then(|| self.location(arguments)).transpose()
    }

    /// Opens the repository, and gives the name of the cluster in it.
    pub(crate) async fn repository(&self, arguments: &RepoArgs) -> Result<(Repository, String)> {
        let (location, name) = self.location(arguments)?;
        let options = self.open_options(arguments)?;
        let opened = async { Ok(Repository::open_with(&location, &options).await?) };
        let repository = self.unless_stopped(Box::pin(opened)).await?;
        warn_of_no_memory(&repository, &options);
        Ok((repository, name))
    }

    /// Makes a repository.
    pub(crate) async fn init(
        &self,
        location: &Location,
        arguments: &RepoArgs,
        recipients: Recipients,
    ) -> Result<Repository> {
        let id = self.repository_id()?;
        let options = OpenOptions { recipients, ..self.open_options(arguments)? };
        if options.state.is_none() && !options.recipients.is_empty() {
            let what = "there is no folder in which to keep the repository's signing key: neither SLOTKEEP_STATE nor XDG_STATE_HOME nor HOME is set";
            return Err(Error::new(ErrorKind::Usage, what).hint(STATE_ADVICE));
        }
        Ok(Repository::init_with(location, id, self.now(), &options).await?)
    }

    /// Makes a repository in a temporary folder of our own: nobody else's settings apply.
    pub(crate) async fn temporary_repository(&self, folder: &std::path::Path) -> Result<Repository> {
        let location = Location::Folder(folder.to_owned());
        Ok(Repository::init(&location, self.repository_id()?, self.now()).await?)
    }

    /// Opens the repository, or makes it in a new local folder.
    pub(crate) async fn open_or_create(
        &self,
        location: &Location,
        arguments: &RepoArgs,
    ) -> Result<Repository> {
        let (id, options) = (self.repository_id()?, self.open_options(arguments)?);
        let opened = async { Ok(Repository::open_or_create_with(location, id, self.now(), &options).await?) };
        let repository = self.unless_stopped(Box::pin(opened)).await?;
        warn_of_no_memory(&repository, &options);
        Ok(repository)
    }

    /// How the user wants the repository to be used.
    pub(crate) fn open_options(&self, arguments: &RepoArgs) -> Result<OpenOptions> {
        let mut options = self.key_options(&arguments.keys)?;
        options.limit = arguments.limit_rate.and_then(RateLimit::new);
        options.stop.clone_from(&self.stop_point);
        Ok(options)
    }

    /// What `work` gives, or that the user has stopped it: for work that may be broken off anywhere, as looking at a store that may not answer.
    pub(crate) fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> impl Future<Output = Result<T>> {
        unless_stopped(&self.stop, work)
    }

    /// Cancelled when the user wants to stop.
    pub(crate) const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// The time of day.
    pub(crate) fn now(&self) -> jiff::Timestamp {
        slotkeep_jobs::ports::Clock::now(&*self.clock)
    }

    fn repository_id(&self) -> Result<String> {
        random_hex(&*self.rng, 32)
    }
}

/// What to do where this machine has no folder to remember in.
const STATE_ADVICE: &str = "set SLOTKEEP_STATE to a folder that stays from run to run";

/// Warns if nothing is remembered of a signed repository.
fn warn_of_no_memory(repository: &Repository, options: &OpenOptions) {
    if options.state.is_none() && repository.file().signing_key.is_some() {
        tracing::warn!(
            "nothing is remembered of {}: should it be swapped or put back to an older state, nobody will notice, as neither SLOTKEEP_STATE \
             nor XDG_STATE_HOME nor HOME is set; {STATE_ADVICE}",
            repository.location()
        );
    }
}

/// `SLOTKEEP_STOP_AT_STORE_OPERATION`, for tests alone: the number of the operation that would change the store and before which this process
/// ends as though it were killed.
fn stop_point() -> Result<Option<StopPoint>> {
    let Ok(text) = std::env::var("SLOTKEEP_STOP_AT_STORE_OPERATION") else { return Ok(None) };
    match text.parse() {
        Ok(operation) => Ok(Some(StopPoint::before(operation))),
        Err(_) => Err(Error::new(
            ErrorKind::Usage,
            format!("SLOTKEEP_STOP_AT_STORE_OPERATION={text} is not a number"),
        )
        .hint("it is for tests, and ends the process in the middle of its work: unset it")),
    }
}

/// An address as the user typed it.
pub(crate) fn parse_addr(text: &str) -> Result<NodeAddr> {
    text.parse().map_err(|error: slotkeep_model::address::AddrSyntaxError| {
        Error::new(ErrorKind::Usage, error.to_string())
            .hint("give the address of any node, for example --cluster 10.0.0.1:6379")
    })
}
