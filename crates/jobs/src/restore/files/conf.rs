//! The configuration file of a restored node.
//!
//! What the restore itself decides comes first; the recorded settings follow, as far as the target knows them. Paths are
//! relative to `dir`, so that whoever moves the folder changes one line.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use slotkeep_model::{Product, ServerVersion};

use crate::settings::{Defaults, is_local, is_secret, newer};
use crate::stock_server::quoted;
use crate::{Error, ErrorKind, Result};

/// The ACL file's name in a node's folder.
pub(super) const USERS_FILE: &str = "users.acl";
/// The log's name in a node's folder.
pub(super) const LOG_FILE: &str = "server.log";
/// The name of the file that holds the process's number, in a node's folder.
pub(super) const PID_FILE: &str = "server.pid";

/// Settings whose value is a list of words in the file, not one word.
const WORDS: &[&str] = &["latency-tracking-info-percentiles", "shutdown-on-sigint", "shutdown-on-sigterm"];

/// TLS settings that every version since Redis 6.0 knows, if it was built with TLS: a build without it does not show them
/// (`USE_OPENSSL` in `src/config.c`).
const TLS_SETTINGS: &[&str] = &[
    "tls-auth-clients",
    "tls-ciphers",
    "tls-ciphersuites",
    "tls-cluster",
    "tls-prefer-server-ciphers",
    "tls-protocols",
    "tls-replication",
    "tls-session-cache-size",
    "tls-session-cache-timeout",
    "tls-session-caching",
];

/// The file's name, as the product's own packages have it.
pub(super) const fn file_name(product: Product) -> &'static str {
    match product {
        Product::Redis => "redis.conf",
        Product::Valkey => "valkey.conf",
    }
}

/// Files by which a server speaks TLS, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate.
    pub cert: PathBuf,
    /// The certificate's key.
    pub key: PathBuf,
    /// The authorities that it trusts.
    pub ca: PathBuf,
}

/// What the restore decides.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) folder: &'a Path,
    pub(super) ip: IpAddr,
    pub(super) port: u16,
    /// How it speaks TLS, on that port and no other; in plain text without.
    pub(super) tls: Option<&'a TlsFiles>,
    pub(super) cluster_mode: bool,
    /// Whether the cluster shall serve what it has although slots are uncovered.
    pub(super) partial: bool,
    /// The primary of a replica outside cluster mode.
    pub(super) follows: Option<(IpAddr, u16)>,
    pub(super) replication: Option<&'a (Option<String>, String)>,
    pub(super) users: bool,
    pub(super) modules: &'a BTreeMap<String, u64>,
}

/// Settings as they were recorded, sorted by what becomes of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Recorded {
    /// What goes into the file, by the target's names.
    pub(super) kept: BTreeMap<String, String>,
    /// Names that the target does not know.
    pub(super) unknown: Vec<String>,
    /// TLS settings: they need certificates, which are not part of a backup.
    pub(super) tls: Vec<String>,
}

/// Sorts recorded settings by what becomes of them on a server of version `target`. Where nobody has seen what its line of versions
/// knows, it is taken to know what was recorded on it (`same_line`), unless a module brought that.
/// TLS settings are kept if `tls`.
pub(super) fn sort(
    config: &BTreeMap<String, String>,
    target: ServerVersion,
    (same_line, tls): (bool, bool),
) -> Recorded {
    let defaults = Defaults::of(target);
    let presumed = |name: &str| same_line && !defaults.are_exact() && is_plain_setting(name);
    let mut sorted = Recorded::default();
    for (name, value) in config {
        // Passwords go to the ACL file and to `masterauth`.
        if is_local(name) || is_secret(name) {
            continue;
        }
        if name.starts_with("tls-") && !tls {
            sorted.tls.push(name.clone());
        } else if TLS_SETTINGS.contains(&name.as_str()) {
            sorted.kept.insert(name.clone(), value.clone());
        } else if let Some(known) = defaults.name_of(name) {
            sorted.kept.insert(known.to_owned(), value.clone());
        } else if presumed(name) {
            sorted.kept.insert(name.clone(), value.clone());
        } else {
            sorted.unknown.push(name.clone());
        }
    }
    sorted
}

/// Has a node speak TLS to the others as well, if they do, and if that is not known.
pub(super) fn speak_tls(recorded: &mut Recorded, is_known: bool) -> Result<()> {
    for name in ["tls-cluster", "tls-replication"] {
        if !is_known {
            recorded.kept.insert(name.to_owned(), "yes".to_owned());
        } else if recorded.kept.get(name).is_none_or(|value| value != "yes") {
            let what = format!(
                "the recorded nodes speak TLS to clients and plain text to each other ({name} is not yes)"
            );
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint("start empty nodes in cluster mode that are set up as the others are, and give their addresses with --spare"));
        }
    }
    Ok(())
}

/// Whether that can be a setting of `CONFIG GET`, and not a directive that reads files or runs code.
fn is_plain_setting(name: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    name.bytes().all(letters) && !["include", "loadmodule", "rename-command", "user"].contains(&name)
}

/// The file.
pub(super) fn render(heading: &str, place: &Place<'_>, recorded: &Recorded) -> String {
    let mut lines: Vec<String> = heading.lines().map(|line| format!("# {line}")).collect();
    let mut set = |name: &str, value: &str| lines.push(format!("{name} {}", quoted(value)));
    set("dir", &place.folder.to_string_lossy());
    set("bind", &place.ip.to_string());
    match place.tls {
        None => set("port", &place.port.to_string()),
        Some(files) => {
            set("port", "0");
            set("tls-port", &place.port.to_string());
            set("tls-cert-file", &files.cert.to_string_lossy());
            set("tls-key-file", &files.key.to_string_lossy());
            set("tls-ca-cert-file", &files.ca.to_string_lossy());
        }
    }
    set("logfile", LOG_FILE);
    set("pidfile", PID_FILE);
    if place.users {
        set("aclfile", USERS_FILE);
    }
    if let Some((user, password)) = place.replication {
        if let Some(user) = user {
            set("masteruser", user);
        }
        set("masterauth", password);
    }
    if place.cluster_mode {
        set("cluster-enabled", "yes");
        set("cluster-config-file", "nodes.conf");
        set("cluster-announce-ip", &place.ip.to_string());
    }
    if let Some((ip, port)) = place.follows {
        lines.push(format!("replicaof {ip} {port}"));
    }
    for (module, version) in place.modules {
        let module = quoted(module);
        lines.push(format!("# Module {module}, version {version}, was loaded: give its path here."));
        lines.push("# loadmodule /path/to/the/module.so".to_owned());
    }
    for (name, value) in &recorded.kept {
        if !(place.partial && name == "cluster-require-full-coverage") {
            lines.extend(setting(name, value));
        }
    }
    if place.partial {
        lines.push("# Slots are uncovered: what there is shall be served nevertheless.".to_owned());
        lines.push("cluster-require-full-coverage no".to_owned());
    }
    lines.join("\n") + "\n"
}

/// The lines of one recorded setting.
fn setting(name: &str, value: &str) -> Vec<String> {
    let words: Vec<&str> = value.split_ascii_whitespace().collect();
    let grouped =
        |size: usize| words.chunks(size).map(|group| format!("{name} {}", group.join(" "))).collect();
    match newer(name) {
        _ if words.is_empty() => vec![format!("{name} \"\"")],
        // Redis 6.2 takes one group a line; several lines add up.
        "save" => grouped(2),
        "client-output-buffer-limit" => grouped(4),
        name if WORDS.contains(&name) => vec![format!("{name} {}", words.join(" "))],
        _ => vec![format!("{name} {}", quoted(value))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(product: Product, version: &str) -> ServerVersion {
        ServerVersion::parse(product, version).unwrap()
    }

    fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn settings_are_sorted_by_what_the_target_knows() {
        let recorded = config(&[
            ("hash-max-listpack-entries", "100"),
            ("io-threads", "4"),
            ("bf-error-rate", "0.1"),
            ("masterauth", "secret"),
            ("tls-cluster", "yes"),
            ("dir", "/old"),
        ]);
        let sorted = sort(&recorded, server(Product::Redis, "6.2.14"), (false, false));
        assert_eq!(sorted.kept, config(&[("hash-max-ziplist-entries", "100"), ("io-threads", "4")]));
        assert_eq!(sorted.unknown, ["bf-error-rate"]);
        assert_eq!(sorted.tls, ["tls-cluster"]);
        let with_files = sort(&recorded, server(Product::Redis, "6.2.14"), (false, true));
        assert_eq!(with_files.kept.get("tls-cluster").map(String::as_str), Some("yes"));
        assert!(with_files.tls.is_empty());
        // What its line knows has been seen: this must be a module's.
        assert_eq!(
            sort(&recorded, server(Product::Redis, "6.2.14"), (true, false)).unknown,
            ["bf-error-rate"]
        );
    }

    #[test]
    fn a_server_that_nobody_has_seen_knows_what_was_recorded_on_it() {
        let recorded = config(&[("brand-new", "7"), ("loadmodule", "/x.so"), ("a\nloadmodule", "/x.so")]);
        let target = server(Product::Redis, "8.8.0");
        let sorted = sort(&recorded, target, (true, false));
        assert_eq!(sorted.kept, config(&[("brand-new", "7")]));
        assert_eq!(sorted.unknown.len(), 2);
        assert_eq!(sort(&recorded, target, (false, false)).unknown.len(), 3);
    }

    #[test]
    fn values_are_written_as_every_version_reads_them() {
        assert_eq!(setting("save", "3600 1 300 100"), ["save 3600 1", "save 300 100"]);
        assert_eq!(setting("save", ""), ["save \"\""]);
        assert_eq!(setting("client-output-buffer-limit", "normal 0 0 0 slave 1 2 3").len(), 2);
        assert_eq!(setting("maxmemory-policy", "allkeys-lru"), ["maxmemory-policy allkeys-lru"]);
        assert_eq!(setting("shutdown-on-sigterm", "save force"), ["shutdown-on-sigterm save force"]);
        assert_eq!(quoted("a \"b\" \\ \u{e9}\n"), "\"a \\\"b\\\" \\\\ \\xc3\\xa9\\x0a\"");
        assert_eq!(quoted(""), "\"\"");
    }

    #[test]
    fn a_partial_cluster_serves_what_it_has() {
        let place = Place {
            folder: Path::new("/data/a b"),
            ip: IpAddr::from([127, 0, 0, 1]),
            port: 7000,
            tls: None,
            cluster_mode: true,
            partial: true,
            follows: None,
            replication: Some(&(None, "p w".to_owned())),
            users: true,
            modules: &[("bf".to_owned(), 20612)].into(),
        };
        let recorded =
            Recorded { kept: config(&[("cluster-require-full-coverage", "yes")]), ..Recorded::default() };
        let text = render("First\nsecond", &place, &recorded);
        assert!(
            text.starts_with("# First\n# second\ndir \"/data/a b\"\nbind 127.0.0.1\nport 7000\n"),
            "{text}"
        );
        assert!(text.contains("masterauth \"p w\"\n"), "{text}");
        assert_eq!(text.matches("cluster-require-full-coverage").count(), 1);
        assert!(text.ends_with("cluster-require-full-coverage no\n"), "{text}");
    }
}
