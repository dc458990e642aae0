use super::*;

#[test]
fn replies_of_real_servers_are_sorted() {
    let no_permission = |command: &str| ServerError::NoPermission { command: Some(command.to_owned()) };
    let unknown = |command: &str| ServerError::UnknownCommand { command: Some(command.to_owned()) };
    for (text, expected) in [
        ("-NOAUTH Authentication required.\r\n", ServerError::AuthRequired),
        ("ERR operation not permitted", ServerError::AuthRequired),
        ("WRONGPASS invalid username-password pair or user is disabled.", ServerError::WrongPassword),
        ("ERR invalid password", ServerError::WrongPassword),
        (
            "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?",
            ServerError::WrongPassword,
        ),
        ("ERR Client sent AUTH, but no password is set", ServerError::WrongPassword),
        ("NOPERM User b has no permissions to run the 'psync' command", no_permission("psync")),
        (
            "NOPERM this user has no permissions to run the 'config|get' command or its subcommand",
            no_permission("config|get"),
        ),
        ("NOPERM No permissions to access a key", ServerError::NoPermission { command: None }),
        ("LOADING Redis is loading the dataset in memory", ServerError::Loading),
        ("CLUSTERDOWN Hash slot not served", ServerError::ClusterDown),
        ("TRYAGAIN Multiple keys request during rehashing of slot", ServerError::TryAgain),
        ("BUSYKEY Target key name already exists.", ServerError::BusyKey),
        ("OOM command not allowed when used memory > 'maxmemory'.", ServerError::OutOfMemory),
        ("NOMASTERLINK Can't SYNC while not connected with my master", ServerError::NoPrimaryLink),
        ("READONLY You can't write against a read only replica.", ServerError::ReadOnly),
        ("ERR unknown command 'PSYNC', with args beginning with: '?' '-1' ", unknown("PSYNC")),
        ("ERR unknown command `PSYNC`, with args beginning with: `?`, `-1`, ", unknown("PSYNC")),
        ("ERR unknown subcommand 'SHARDS'. Try CLUSTER HELP.", unknown("SHARDS")),
        ("ERR BGSAVE failed, replication can't continue", ServerError::SnapshotFailed),
        ("ERR max number of clients reached", ServerError::TooManyClients),
        ("ERR syntax error", ServerError::Other("ERR syntax error".to_owned())),
        ("", ServerError::Other(String::new())),
    ] {
        assert_eq!(ServerError::classify(text), expected, "{text}");
    }
}

#[test]
fn redirections_lead_to_an_address() {
    let dialled = NodeAddr::new("10.0.0.9", 7000);
    for (text, slot, addr) in [
        ("MOVED 3999 127.0.0.1:6381", 3999, "127.0.0.1:6381"),
        ("MOVED 0 node.example:6381", 0, "node.example:6381"),
        ("MOVED 16383 ::1:6381", 16383, "[::1]:6381"),
        ("MOVED 1 :6381", 1, "10.0.0.9:6381"),
        ("MOVED 1 ?:6381", 1, "10.0.0.9:6381"),
    ] {
        let ServerError::Moved(redirect) = ServerError::classify(text) else { panic!("{text}") };
        assert_eq!((redirect.slot.number(), redirect.addr(&dialled).to_string()), (slot, addr.to_owned()));
    }
    assert!(matches!(ServerError::classify("ASK 5 127.0.0.1:1"), ServerError::Ask(_)));
    for text in ["MOVED", "MOVED 16384 h:1", "MOVED 1 h", "MOVED 1 h:99999", "MOVED x h:1", "ASK 1"] {
        assert_eq!(ServerError::classify(text), ServerError::Other(text.to_owned()));
    }
}
