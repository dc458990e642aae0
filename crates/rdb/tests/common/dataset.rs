//! One dataset for every server: a few keys of each kind of value, the same on all that know the kind.

use std::collections::BTreeMap;

use slotkeep_model::Product;
use slotkeep_testkit::{Client, Result, Server, Value};

/// A key and the commands that make it.
pub struct Item {
    pub key: &'static str,
    pub commands: Vec<Vec<Vec<u8>>>,
}

/// How compact the server is to keep its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// As by default: all that is small in packed encodings, and compressed in RDBs.
    Packed,
    /// Nothing in packed encodings but lists and streams, whose nodes are short; nothing compressed.
    Plain,
}

pub const THRESHOLDS: [Threshold; 2] = [Threshold::Packed, Threshold::Plain];

/// The key that is in another database, so in no fixture.
pub const OTHER_DB_KEY: &str = "string:other-db";
/// The key that only servers with vector sets have.
pub const VECTORS_KEY: &str = "module:vectors";

/// Sets the limits of encodings. Names of settings that a server does not know are passed over.
pub fn configure(client: &mut Client, threshold: Threshold) -> Result<()> {
    let settings = match threshold {
        Threshold::Packed => [
            ("hash-max-ziplist-entries", "128"),
            ("zset-max-ziplist-entries", "128"),
            ("set-max-intset-entries", "512"),
            ("set-max-listpack-entries", "128"),
            ("list-max-ziplist-size", "-2"),
            ("list-compress-depth", "0"),
            ("stream-node-max-entries", "100"),
            ("rdbcompression", "yes"),
        ],
        Threshold::Plain => [
            ("hash-max-ziplist-entries", "0"),
            ("zset-max-ziplist-entries", "0"),
            ("set-max-intset-entries", "0"),
            ("set-max-listpack-entries", "0"),
            ("list-max-ziplist-size", "3"),
            ("list-compress-depth", "1"),
            ("stream-node-max-entries", "2"),
            ("rdbcompression", "no"),
        ],
    };
    for (name, value) in settings {
        match client.command(&["CONFIG", "SET", name, value]) {
            Err(slotkeep_testkit::Error::Reply { .. }) => {}
            other => {
                other?;
            }
        }
    }
    Ok(())
}

fn command(args: &[&str]) -> Vec<Vec<u8>> {
    args.iter().map(|arg| arg.as_bytes().to_vec()).collect()
}

fn item(key: &'static str, commands: &[&[&str]]) -> Item {
    Item { key, commands: commands.iter().map(|args| command(args)).collect() }
}

/// The dataset that this server can hold.
pub fn items(server: &Server) -> Vec<Item> {
    let mut items = strings();
    items.extend(collections());
    items.extend(streams());
    if server.has_hash_field_expiry() {
        items.push(item(
            "hash:expiring",
            &[
                &["HSET", "hash:expiring", "f", "v", "g", "w", "12", "-7"],
                &["HPEXPIREAT", "hash:expiring", "4000000000000", "FIELDS", "1", "f"],
                &["HPEXPIREAT", "hash:expiring", "3999999999999", "FIELDS", "1", "12"],
            ],
        ));
    }
    if server.is_at_least(Product::Redis, 7, 0) || server.version().product == Product::Valkey {
        items.push(item(
            "stream:deleted",
            &[
                &["XADD", "stream:deleted", "5-1", "f", "v"],
                &["XADD", "stream:deleted", "5-2", "f", "v"],
                &["XADD", "stream:deleted", "6-0", "f", "w"],
                &["XDEL", "stream:deleted", "5-2"],
            ],
        ));
        items.push(item(
            "stream:empty",
            &[&["XADD", "stream:empty", "9-9", "f", "v"], &["XDEL", "stream:empty", "9-9"]],
        ));
    }
    items
}

fn strings() -> Vec<Item> {
    let long = "0123456789abcdefghijklmnopqrstuvwxyz".repeat(2000);
    let mut items = vec![
        item("string:empty", &[&["SET", "string:empty", ""]]),
        item("string:int8", &[&["SET", "string:int8", "-5"]]),
        item("string:int16", &[&["SET", "string:int16", "1000"]]),
        item("string:int32", &[&["SET", "string:int32", "-100000"]]),
        item("string:digits", &[&["SET", "string:digits", "99999999999"]]),
        item("string:padded", &[&["SET", "string:padded", "007"]]),
        item("string:repeats", &[&["SET", "string:repeats", &"a".repeat(300)]]),
        item("string:long", &[&["SET", "string:long", &long]]),
        item(
            "string:expiring",
            &[&["SET", "string:expiring", "x"], &["PEXPIREAT", "string:expiring", "4000000000000"]],
        ),
    ];
    let all_bytes = vec![b"SET".to_vec(), b"string:bytes".to_vec(), (0..=255).collect()];
    items.push(Item { key: "string:bytes", commands: vec![all_bytes] });
    items
}

fn collections() -> Vec<Item> {
    let long = "xyz".repeat(100);
    let huge = "node ".repeat(2000);
    let mut push = command(&["RPUSH", "list:long"]);
    push.extend((0..40).map(|number| format!("item {number}").into_bytes()));
    vec![
        item("list:small", &[&["RPUSH", "list:small", "a", "1", "-7000", "", &long, "9223372036854775807"]]),
        Item { key: "list:long", commands: vec![push] },
        item("list:huge-item", &[&["RPUSH", "list:huge-item", "before", &huge, "after"]]),
        item("set:ints", &[&["SADD", "set:ints", "1", "2", "300", "-1"]]),
        item("set:wide", &[&["SADD", "set:wide", "1", "70000", "1099511627776"]]),
        item("set:text", &[&["SADD", "set:text", "a", "bb", "3", &long]]),
        item(
            "zset:scores",
            &[&[
                "ZADD",
                "zset:scores",
                "-inf",
                "low",
                "inf",
                "high",
                "0",
                "zero",
                "1.5",
                "m",
                "3",
                "17",
                "1e300",
                "big",
                "-0.1",
                "tenth",
            ]],
        ),
        item("set:small", &[&["SADD", "set:small", "a", "bb", "3"]]),
        item("hash:small", &[&["HSET", "hash:small", "f", "v", "1", "2", "", "empty name", "x", "-70000"]]),
        item("hash:long", &[&["HSET", "hash:long", "f", "v", "long", &long]]),
    ]
}

fn streams() -> Vec<Item> {
    vec![
        item(
            "stream:plain",
            &[
                &["XADD", "stream:plain", "1-1", "f", "v", "g", "1"],
                &["XADD", "stream:plain", "1-2", "f", "w", "g", "-300"],
                &["XADD", "stream:plain", "9000000000000-0", "other", "fields", "are", "here", "too", "3"],
                &["XADD", "stream:plain", "9000000000000-7", "f", "v", "g", "2"],
            ],
        ),
        item(
            "stream:groups",
            &[
                &["XADD", "stream:groups", "1-0", "f", "1"],
                &["XADD", "stream:groups", "2-0", "f", "2"],
                &["XADD", "stream:groups", "3-0", "f", "3"],
                &["XGROUP", "CREATE", "stream:groups", "readers", "0"],
                &["XGROUP", "CREATE", "stream:groups", "idle", "$"],
                &["XREADGROUP", "GROUP", "readers", "alice", "COUNT", "2", "STREAMS", "stream:groups", ">"],
                &["XREADGROUP", "GROUP", "readers", "bob", "COUNT", "1", "STREAMS", "stream:groups", ">"],
                &["XACK", "stream:groups", "readers", "1-0"],
            ],
        ),
    ]
}

/// Loads items. An error reply is an error.
pub fn load(client: &mut Client, items: &[Item]) -> Result<()> {
    for command in items.iter().flat_map(|item| &item.commands) {
        client.command(command)?;
    }
    Ok(())
}

/// Loads what is beyond the items: another database, a function, a vector set, if the server has such.
pub fn load_rest(client: &mut Client, server: &Server) -> Result<()> {
    client.command(&["SELECT", "1"])?;
    client.command(&["SET", OTHER_DB_KEY, "x"])?;
    client.command(&["SELECT", "0"])?;
    if server.is_at_least(Product::Redis, 7, 0) || server.version().product == Product::Valkey {
        let source = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";
        client.command(&["FUNCTION", "LOAD", "REPLACE", source])?;
    }
    if server.is_at_least(Product::Redis, 8, 0) {
        match client.command(&["VADD", VECTORS_KEY, "VALUES", "3", "0.1", "0.2", "0.3", "element"]) {
            Err(slotkeep_testkit::Error::Reply { message, .. }) if message.contains("unknown command") => {}
            other => {
                other?;
            }
        }
    }
    Ok(())
}

/// `DEBUG DIGEST-VALUE` of every key, by database and key.
pub fn digest_values(client: &mut Client) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for db in ["0", "1"] {
        client.command(&["SELECT", db])?;
        let keys = client.command(&["KEYS", "*"])?;
        for key in keys.array()? {
            let Value::Bulk(key) = key else { continue };
            let digest = client.command(&[b"DEBUG", &b"DIGEST-VALUE"[..], key])?;
            let ttl = client.command(&[b"PTTL", &key[..]])?.int()?;
            let digest = digest.array()?.first().map(Value::text).transpose()?.unwrap_or_default();
            let expires = if ttl > 0 { " expires" } else { "" };
            found.insert(format!("{db}/{}", key.escape_ascii()), digest + expires);
        }
    }
    client.command(&["SELECT", "0"])?;
    Ok(found)
}
