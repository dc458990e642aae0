use super::*;

#[test]
fn the_users_line_names_what_a_backup_needs() {
    let line = minimal_backup_user("backup");
    assert!(line.starts_with(
        "ACL SETUSER backup on -@all +psync +replconf +ping +info +cluster|shards +cluster|slots +cluster|nodes +cluster|myid +cluster|info "
    ));
    assert!(!line.contains("client|") && !line.contains('>') && !line.contains("nopass"));
    assert_eq!(barrier_rules(), "+client|pause +client|unpause");
    assert!(minimal_backup_user("a\"\nb").starts_with(r#"ACL SETUSER "a\"\nb" on "#));
}

#[test]
fn no_command_is_listed_twice_or_without_a_reason() {
    for (index, command) in COMMANDS.iter().enumerate() {
        assert!(!command.why.is_empty());
        assert!(COMMANDS.iter().skip(index + 1).all(|other| other.name != command.name));
    }
}

#[test]
fn secrets_are_dropped_and_nothing_else() {
    for (line, expected) in [
        ("user default on nopass ~* &* +@all", "user default on nopass ~* &* +@all"),
        ("user #x on >pass #0123abcd <old !0123 ~#key* -@all +get", "user #x on ~#key* -@all +get"),
        ("user a on #ff (~temp:* +get) %R~x", "user a on (~temp:* +get) %R~x"),
        ("", ""),
    ] {
        assert_eq!(without_secrets(line), expected);
    }
}

#[test]
fn what_real_servers_list_holds_no_secret_afterwards() {
    for reply in [
        include_str!("../../fixtures/valkey-9.1.2/acl-list.resp2"),
        include_str!("../../fixtures/redis-7.0.15/acl-list.resp2"),
    ] {
        let line = reply.lines().find(|line| line.starts_with("user backup")).unwrap();
        assert!(line.contains(" #"));
        let kept = without_secrets(line);
        assert!(!kept.contains('#') && kept.contains("+psync") && kept.contains("+cluster|shards"), "{kept}");
    }
}
