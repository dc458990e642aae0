//! Stock servers: those that `scripts/servers.sh` fetches, and one that the machine has.
//!
//! The script is part of this crate, so that an installed `slotkeep demo` can fetch a server by itself.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use slotkeep_model::{Product, ServerVersion};

use crate::error::{Error, Result};

const SCRIPT: &str = include_str!("../../../scripts/servers.sh");

/// The names of the servers that can be fetched, the usual ones first.
pub const NAMES: [&str; 10] = [
    "valkey-9.1",
    "valkey-9.0",
    "valkey-8.1",
    "valkey-8.0",
    "redis-8.2",
    "redis-8.0",
    "redis-7.4",
    "redis-7.2",
    "redis-7.0",
    "redis-6.2",
];

/// A server program that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    program: PathBuf,
    cli: Option<PathBuf>,
    version: ServerVersion,
    tls: Option<bool>,
}

impl Server {
    /// The server program at that path; it is asked for its version.
    pub fn at(program: impl Into<PathBuf>) -> Result<Self> {
        let program = program.into();
        let version = ask_version(&program)?;
        Ok(Self { program, cli: None, version, tls: None })
    }

    /// The program. It may be a script that ends with `exec`.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The command-line client that came with the server, if one did.
    pub fn cli(&self) -> Option<&Path> {
        self.cli.as_deref()
    }

    /// Product and version, as the program itself says.
    pub fn version(&self) -> ServerVersion {
        self.version
    }

    /// Whether it was built with TLS; `None` if that is not known.
    pub fn tls(&self) -> Option<bool> {
        self.tls
    }

    /// Whether it is that product in at least that version.
    pub fn is_at_least(&self, product: Product, major: u16, minor: u16) -> bool {
        self.version.product == product && (self.version.major, self.version.minor) >= (major, minor)
    }

    /// Whether hashes can have fields that expire (Redis 7.4, Valkey 9.0).
    pub fn has_hash_field_expiry(&self) -> bool {
        self.is_at_least(Product::Redis, 7, 4) || self.is_at_least(Product::Valkey, 9, 0)
    }

    /// Whether it is at least Redis 7.0: functions, multi-part AOF, `enable-debug-command`. Every Valkey is.
    pub fn is_modern(&self) -> bool {
        self.version.product == Product::Valkey || self.version.major >= 7
    }
}

/// The folder where fetched servers are kept: `$SLOTKEEP_SERVERS`, else `~/.cache/slotkeep/servers`.
pub fn folder() -> Option<PathBuf> {
    env::var_os("SLOTKEEP_SERVERS")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache/slotkeep/servers")))
}

/// The server of that name, if it has been fetched.
pub fn find(name: &str) -> Option<Server> {
    let folder = folder()?.join(name);
    let about = fs::read_to_string(folder.join("about")).ok()?;
    let field = |wanted: &str| about.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix('='));
    let product = product_called(field("product")?)?;
    Some(Server {
        program: folder.join("server"),
        cli: Some(folder.join("cli")).filter(|cli| cli.exists()),
        version: ServerVersion::parse(product, field("version")?)?,
        tls: field("tls").map(|tls| tls == "yes"),
    })
}

/// Fetches the server of that name, unless it is there. Takes seconds and the network.
///
/// Several threads and processes may do so at once: the script makes them wait for each other.
pub fn fetch(name: &str) -> Result<Server> {
    if !NAMES.contains(&name) {
        return Err(Error::UnknownServer { name: name.to_owned(), known: NAMES.join(", ") });
    }
    let failed = |message: String| Error::Fetch { name: name.to_owned(), message };
    let mut script = Command::new("bash")
        .args(["-s", "--", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("start bash"))?;
    if let Some(mut stdin) = script.stdin.take() {
        stdin.write_all(SCRIPT.as_bytes()).map_err(Error::io("hand the script to bash"))?;
    }
    let output = script.wait_with_output().map_err(Error::io("wait for the script"))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    find(name).ok_or_else(|| failed("the script succeeded but left no server".to_owned()))
}

/// The server of that name, fetched first if it is not there.
pub fn require(name: &str) -> Result<Server> {
    match find(name) {
        Some(server) => Ok(server),
        None => fetch(name),
    }
}

/// The server that is installed on the machine: `valkey-server`, else `redis-server`, from `PATH`.
pub fn from_path() -> Option<Server> {
    on_path(&env::var_os("PATH")?)
}

fn on_path(path: &OsStr) -> Option<Server> {
    ["valkey", "redis"].iter().find_map(|product| {
        env::split_paths(path).find_map(|folder| {
            let program = folder.join(format!("{product}-server"));
            let mut server = program.is_file().then(|| Server::at(program).ok())??;
            server.cli = Some(folder.join(format!("{product}-cli"))).filter(|cli| cli.exists());
            Some(server)
        })
    })
}

fn product_called(name: &str) -> Option<Product> {
    match name {
        "redis" => Some(Product::Redis),
        "valkey" => Some(Product::Valkey),
        _ => None,
    }
}

/// Reads the answer to `--version`: `Valkey server v=9.1.2 sha=… …`.
fn ask_version(program: &Path) -> Result<ServerVersion> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io(format!("start {}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    read_version(&text).ok_or_else(|| Error::NotAServer { program: program.to_owned(), output: text })
}

fn read_version(text: &str) -> Option<ServerVersion> {
    let mut words = text.split_whitespace();
    let product = product_called(&words.next()?.to_lowercase())?;
    let version = words.find_map(|word| word.strip_prefix("v="))?;
    ServerVersion::parse(product, version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_servers_say() {
        let valkey =
            read_version("Valkey server v=9.1.2 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64").unwrap();
        assert_eq!(valkey.to_string(), "Valkey 9.1.2");
        let redis =
            read_version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64\n").unwrap();
        assert_eq!(redis.to_string(), "Redis 7.0.15");
        assert_eq!(read_version("nginx version: 1.22"), None);
    }

    #[test]
    fn names_are_those_of_the_script() {
        let output = Command::new("bash").args(["-c", SCRIPT, "servers.sh", "--list"]).output().unwrap();
        let listed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(listed.lines().collect::<Vec<_>>(), NAMES);
    }

    #[test]
    fn the_machines_own_server_is_found_and_valkey_preferred() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        assert_eq!(on_path(folder.path().as_os_str()), None);
        for (folder, name, says) in [
            (&folder, "redis-server", "Redis server v=7.2.4 sha=0"),
            (&other, "valkey-server", "Valkey server v=8.0.1 sha=0"),
        ] {
            let program = folder.path().join(name);
            fs::write(&program, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let path = env::join_paths([folder.path(), other.path()]).unwrap();
        assert_eq!(on_path(&path).unwrap().version().to_string(), "Valkey 8.0.1");
        assert_eq!(on_path(folder.path().as_os_str()).unwrap().version().to_string(), "Redis 7.2.4");
        assert!(matches!(Server::at("/bin/true"), Err(Error::NotAServer { .. })));
    }

    #[test]
    fn an_unknown_name_is_refused_before_anything_is_fetched() {
        assert!(matches!(fetch("redis-1.0"), Err(Error::UnknownServer { .. })));
    }
}
