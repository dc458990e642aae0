//! `slotkeep.toml`: defaults for options that would otherwise be typed every time. What is typed, or in the environment, goes
//! before it.
//!
//! ```toml
//! cluster = ["10.0.0.1:6379", "10.0.0.2:6379"]
//! repo = "s3://backups/redis"
//! name = "main"
//! user = "backup"
//! password_file = "/etc/slotkeep/password"
//! tls = true
//! tls_ca = "/etc/slotkeep/ca.pem"
//! identity = ["/etc/slotkeep/identity.txt"]
//! trust = "00112233445566778899aabbccddeeff00112233"
//!
//! [retention]
//! keep_daily = 7
//! keep_monthly = 12
//! window = "7d"
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;
use slotkeep_jobs::{Error, ErrorKind, Result};
use slotkeep_repo::shown;

const DEFAULT_FILE: &str = "slotkeep.toml";

/// The file's contents. Unknown settings are refused: a misspelt one must not be passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettingsFile {
    #[serde(default)]
    pub(crate) cluster: Vec<String>,
    pub(crate) repo: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) tls: bool,
    pub(crate) tls_ca: Option<PathBuf>,
    pub(crate) tls_cert: Option<PathBuf>,
    pub(crate) tls_key: Option<PathBuf>,
    pub(crate) tls_server_name: Option<String>,
    #[serde(default)]
    pub(crate) address_map: Vec<String>,
    #[serde(default)]
    pub(crate) identity: Vec<PathBuf>,
    pub(crate) identity_command: Option<String>,
    pub(crate) passphrase_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "one_or_more")]
    pub(crate) signing_key: Vec<PathBuf>,
    #[serde(default, deserialize_with = "one_or_more")]
    pub(crate) trust: Vec<String>,
    #[serde(default)]
    pub(crate) retention: Retention,
}

/// A value, or a list of them.
fn one_or_more<'de, D, T>(deserializer: D) -> std::result::Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore<T> {
        One(T),
        More(Vec<T>),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::One(one) => vec![one],
        OneOrMore::More(all) => all,
    })
}

/// Which backups `slotkeep prune` keeps. Spans of time are written as on the command line: `30d`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    pub(crate) keep_last: Option<usize>,
    pub(crate) keep_within: Option<String>,
    pub(crate) keep_hourly: Option<usize>,
    pub(crate) keep_daily: Option<usize>,
    pub(crate) keep_weekly: Option<usize>,
    pub(crate) keep_monthly: Option<usize>,
    pub(crate) window: Option<String>,
    pub(crate) grace: Option<String>,
}

impl SettingsFile {
    /// Reads the file that was named, or `slotkeep.toml` in the current folder if there is one.
    pub(crate) fn read(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_FILE));
        let refuse = |why: String| {
            Error::new(ErrorKind::Usage, format!("can't use settings file {}: {why}", path.display()))
                .hint("correct the file, or name another one with -c FILE")
        };
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| refuse(said(&error, &text))),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(refuse(error.to_string())),
        }
    }
}

/// What is wrong, and in which line. The line itself is not quoted, as a password may stand in it.
fn said(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| before.matches('\n').count().saturating_add(1));
    let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    format!("{line}{}", shown(error.message()))
}
