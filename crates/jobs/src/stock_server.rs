//! Stock servers on this machine: finding them, and what their configuration files and logs are like.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use slotkeep_model::{Product, ServerVersion};

use crate::log::point::Point;
use crate::restore::{check_applies, check_loads};
use crate::{Error, ErrorKind, Result};

/// How many lines of a log are shown.
const LOG_LINES: usize = 12;

/// A server program.
#[derive(Clone, Debug)]
pub struct StockServer {
    /// The program.
    pub program: PathBuf,
    /// What it is, as it says itself.
    pub version: ServerVersion,
}

impl StockServer {
    /// The server program at that path; it is asked for its version.
    pub async fn at(program: &Path) -> Result<Self> {
        let refuse = |why: &str| {
            Error::new(ErrorKind::Usage, format!("{} is no Redis or Valkey server: {why}", program.display()))
                .hint("name a `redis-server` or `valkey-server` with --server")
        };
        let asked =
            tokio::process::Command::new(program).arg("--version").stdin(Stdio::null()).output().await;
        let output = asked.map_err(|error| refuse(&error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = read_version(&text)
            .ok_or_else(|| refuse("it does not tell its version when started with --version"))?;
        Ok(Self { program: program.to_owned(), version })
    }

    /// The server on `PATH` that loads the backup: one of the recorded product if there is one.
    pub async fn on_path(point: &Point) -> Result<Self> {
        let recorded = point.shards.iter().find_map(|shard| shard.server).map(|server| server.product);
        let programs = match recorded {
            Some(Product::Redis) => ["redis-server", "valkey-server"],
            _ => ["valkey-server", "redis-server"],
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut refused = None;
        for program in programs {
            let found = std::env::split_paths(&path)
                .map(|folder| folder.join(program))
                .find(|program| program.is_file());
            let Some(found) = found else { continue };
            let server = Self::at(&found).await?;
            let usable = check_loads(&point.manifest, server.version)
                .and_then(|()| check_applies(point, server.version));
            match usable {
                Ok(()) => return Ok(server),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| {
            Error::new(ErrorKind::Usage, "there is neither `valkey-server` nor `redis-server` on the PATH")
                .hint("install one, or name it with --server PATH")
        }))
    }
}

/// Reads what `--version` prints: `Valkey server v=9.1.2 sha=… …`.
fn read_version(text: &str) -> Option<ServerVersion> {
    let mut words = text.split_whitespace();
    let product = match words.next()? {
        "Redis" => Product::Redis,
        "Valkey" => Product::Valkey,
        _ => return None,
    };
    ServerVersion::parse(product, words.find_map(|word| word.strip_prefix("v="))?)
}

/// A word as configuration files have it (`sdssplitargs` in `src/sds.c`).
pub(crate) fn quoted(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/,*@+%=".contains(&byte);
    if !value.is_empty() && value.bytes().all(plain) {
        return value.to_owned();
    }
    let mut text = String::from("\"");
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' '..=b'~' => text.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => drop(write!(text, "\\x{byte:02x}")),
        }
    }
    text.push('"');
    text
}

/// The last lines of a log, indented.
pub(crate) fn last_lines(path: &Path) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    lines
        .get(from..)
        .unwrap_or_default()
        .iter()
        .map(|line| format!("  {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_servers_say() {
        let read = |text: &str| read_version(text).map(|version| version.to_string());
        assert_eq!(
            read("Valkey server v=9.1.2 sha=0:0 malloc=jemalloc bits=64").as_deref(),
            Some("Valkey 9.1.2")
        );
        assert_eq!(read("Redis server v=7.0.15 sha=0:0\n").as_deref(), Some("Redis 7.0.15"));
        assert_eq!(read("nginx version: v=1.22"), None);
        assert_eq!(read(""), None);
    }
}
