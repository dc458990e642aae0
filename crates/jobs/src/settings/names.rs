//! What the names of settings mean: which belong to one machine, which are secrets, which are two names of one thing.
//!
//! Source: the tables `static_configs` in `src/config.c` of Redis 6.2 to 8.8 and Valkey 7.2 to 9.1.

/// Settings that belong to one machine, one process or one place in the cluster, and why each is never recorded.
const LOCAL: &[(&str, &str)] = &[
    ("aclfile", "a path; users are recorded by themselves"),
    ("aof-rewrite-cpulist", "the machine's processors"),
    ("appenddirname", "a name inside the node's folder; a restored node uses the usual one"),
    ("appendfilename", "a name inside the node's folder; a restored node uses the usual one"),
    ("availability-zone", "where the machine stands"),
    ("bgsave-cpulist", "the machine's processors"),
    ("bind", "the machine's addresses"),
    ("bind-source-addr", "the machine's addresses"),
    ("bio-cpulist", "the machine's processors"),
    ("cluster-config-file", "a name inside the node's folder; a restored node uses the usual one"),
    ("cluster-enabled", "recorded as the cluster's mode"),
    ("cluster-port", "the machine's ports"),
    ("daemonize", "how the process is started"),
    ("dbfilename", "a name inside the node's folder; a restored node uses the usual one"),
    ("dir", "a path"),
    ("disable-thp", "the machine's kernel"),
    ("import-mode", "a state that passes, not a setting"),
    ("logfile", "a path"),
    ("oom-score-adj", "how the machine treats the process"),
    ("oom-score-adj-values", "how the machine treats the process"),
    ("pidfile", "a path"),
    ("port", "the machine's ports"),
    ("proc-title-template", "how the process is shown"),
    ("rdma-bind", "the machine's addresses"),
    ("rdma-completion-vector", "the machine's processors"),
    ("rdma-port", "the machine's ports"),
    ("replica-announced", "the node's place in the cluster"),
    ("replicaof", "recorded as the topology"),
    ("server-cpulist", "the machine's processors"),
    ("set-proc-title", "how the process is shown"),
    ("slaveof", "recorded as the topology"),
    ("socket-mark-id", "the machine's routing"),
    ("supervised", "how the process is started"),
    ("syslog-enabled", "where the machine keeps its logs"),
    ("syslog-facility", "where the machine keeps its logs"),
    ("syslog-ident", "where the machine keeps its logs"),
    ("tls-ca-cert-dir", "a path"),
    ("tls-ca-cert-file", "a path"),
    ("tls-cert-file", "a path"),
    ("tls-client-cert-file", "a path"),
    ("tls-client-key-file", "a path"),
    ("tls-dh-params-file", "a path"),
    ("tls-key-file", "a path"),
    ("tls-port", "the machine's ports"),
    ("unixsocket", "a path"),
    ("unixsocketgroup", "the machine's groups"),
    ("unixsocketperm", "belongs to the path of `unixsocket`"),
    ("watchdog-period", "an aid for debugging one process"),
];

/// Beginnings of such names: what a node announces of itself.
const LOCAL_PREFIXES: &[&str] = &["cluster-announce-", "replica-announce-", "slave-announce-"];

/// Settings that are secrets, or half of one.
const SECRETS: &[&str] = &[
    "hash-seed",
    "masterauth",
    "masteruser",
    "primaryauth",
    "primaryuser",
    "requirepass",
    "tls-client-key-file-pass",
    "tls-key-file-pass",
];

/// Two names of one setting: the older one, and the one that newer servers use. `CONFIG GET *` shows both.
const ALIASES: &[(&str, &str)] = &[
    ("aof_rewrite_cpulist", "aof-rewrite-cpulist"),
    ("bgsave_cpulist", "bgsave-cpulist"),
    ("bio_cpulist", "bio-cpulist"),
    ("cluster-slave-no-failover", "cluster-replica-no-failover"),
    ("cluster-slave-validity-factor", "cluster-replica-validity-factor"),
    ("hash-max-ziplist-entries", "hash-max-listpack-entries"),
    ("hash-max-ziplist-value", "hash-max-listpack-value"),
    ("list-max-ziplist-size", "list-max-listpack-size"),
    ("lua-time-limit", "busy-reply-threshold"),
    ("masterauth", "primaryauth"),
    ("masteruser", "primaryuser"),
    ("min-slaves-max-lag", "min-replicas-max-lag"),
    ("min-slaves-to-write", "min-replicas-to-write"),
    ("repl-ping-slave-period", "repl-ping-replica-period"),
    ("server_cpulist", "server-cpulist"),
    ("slave-ignore-maxmemory", "replica-ignore-maxmemory"),
    ("slave-lazy-flush", "replica-lazy-flush"),
    ("slave-priority", "replica-priority"),
    ("slave-read-only", "replica-read-only"),
    ("slave-serve-stale-data", "replica-serve-stale-data"),
    ("slowlog-log-slower-than", "commandlog-execution-slower-than"),
    ("slowlog-max-len", "commandlog-slow-execution-max-len"),
    ("zset-max-ziplist-entries", "zset-max-listpack-entries"),
    ("zset-max-ziplist-value", "zset-max-listpack-value"),
];

/// Whether a setting belongs to one machine or process and is never recorded.
pub fn is_local(name: &str) -> bool {
    let is = |name: &str| LOCAL.iter().any(|(local, _)| *local == name);
    is(name) || is(newer(name)) || LOCAL_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a setting is a secret. One that nobody knows yet is taken for one if its name sounds so.
pub fn is_secret(name: &str) -> bool {
    let sounds_so = ["pass", "secret", "token", "credential"].iter().any(|part| name.contains(part));
    SECRETS.contains(&name) || sounds_so || name.ends_with("auth")
}

/// The newest name of a setting.
pub fn newer(name: &str) -> &str {
    ALIASES.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new)
}

/// The names of a setting, the given one first.
pub fn all_names(name: &str) -> impl Iterator<Item = &str> {
    let others = ALIASES.iter().filter_map(move |(old, new)| match name {
        name if name == *old => Some(*new),
        name if name == *new => Some(*old),
        _ => None,
    });
    std::iter::once(name).chain(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_say_a_thing_once() {
        assert!(LOCAL.is_sorted_by(|(a, _), (b, _)| a < b));
        assert!(SECRETS.is_sorted_by(|a, b| a < b));
        assert!(ALIASES.is_sorted_by(|(a, _), (b, _)| a < b));
        assert!(LOCAL.iter().all(|(name, reason)| !reason.is_empty() && !is_secret(name)));
    }

    #[test]
    fn names_are_sorted_into_local_secret_and_neither() {
        for name in ["dir", "bio_cpulist", "cluster-announce-hostname", "slaveof", "tls-key-file"] {
            assert!(is_local(name), "{name}");
        }
        for name in ["requirepass", "masterauth", "primaryauth", "tls-key-file-pass", "ldap-bind-password"] {
            assert!(is_secret(name) && !is_local(name), "{name}");
        }
        for name in [
            "maxmemory",
            "loglevel",
            "tls-auth-clients",
            "slave-priority",
            "databases",
            "aof-use-rdb-preamble",
        ] {
            assert!(!is_secret(name) && !is_local(name), "{name}");
        }
        assert_eq!(all_names("slave-priority").collect::<Vec<_>>(), ["slave-priority", "replica-priority"]);
        assert_eq!(all_names("maxmemory").collect::<Vec<_>>(), ["maxmemory"]);
    }
}
