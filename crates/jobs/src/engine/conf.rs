//! The engine's configuration file.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use slotkeep_wire::replica::Credentials;

use super::EngineOptions;
use crate::stock_server::quoted;

/// The file. Every setting is known to Redis 6.2 and to everything after it.
pub(super) fn render(
    folder: &Path,
    socket_file: &Path,
    primary: SocketAddr,
    credentials: &Credentials,
    options: &EngineOptions,
) -> String {
    let databases = options.databases.to_string();
    let (folder, socket_file) = (folder.to_string_lossy(), socket_file.to_string_lossy());
    let settings: [(&str, &str); 19] = [
        ("dir", &folder),
        ("port", "0"),
        ("unixsocket", &socket_file),
        ("unixsocketperm", "700"),
        ("masterauth", &credentials.password),
        ("databases", &databases),
        ("save", ""),
        ("appendonly", "no"),
        ("maxmemory", "0"),
        ("replica-read-only", "yes"),
        ("replica-serve-stale-data", "yes"),
        // Into memory, not by way of a file; there is nothing in it that could be kept meanwhile.
        ("repl-diskless-load", "on-empty-db"),
        ("repl-diskless-sync", "yes"),
        ("repl-diskless-sync-delay", "0"),
        // A link at rest is not dead: whoever feeds it watches it. In seconds, and no server adds so many to its clock.
        ("repl-timeout", "31536000"),
        // Whatever a server with larger limits has put into the log has to fit.
        ("proto-max-bulk-len", "1099511627776"),
        ("client-query-buffer-limit", "1099511627776"),
        ("repl-backlog-size", "16kb"),
        ("loglevel", "notice"),
    ];
    let mut text = String::new();
    for (name, value) in settings {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name} {}", quoted(value));
    }
    if let Some(user) = &credentials.user {
        let _ = writeln!(text, "masteruser {}", quoted(user));
    }
    // The snapshot goes to us at our own pace.
    text.push_str("client-output-buffer-limit replica 0 0 0\n");
    for module in &options.modules {
        let _ = writeln!(text, "loadmodule {}", quoted(&module.to_string_lossy()));
    }
    let _ = writeln!(text, "replicaof {} {}", primary.ip(), primary.port());
    text
}
