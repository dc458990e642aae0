//! One of each: every type in every encoding, with the edge cases of each.
//!
//! Sizes are chosen by the servers' default thresholds: hashes, sets and sorted sets leave the listpack at 128 elements
//! (512 before Redis 7.0 and for integer sets) or at an element of more than 64 bytes; list nodes hold 8 KiB.

use super::text::{push_json, push_random};
use super::{Loaded, Sample, load_functions};
use crate::cluster::Cluster;
use crate::cluster_client::{ClusterClient, KeyedCommand};
use crate::error::{Error, Result};
use crate::random::Random;

/// 2100-01-01.
const FAR_FUTURE_MS: u64 = 4_102_444_800_000;

/// How many commands are sent at once.
const BATCH: usize = 500;

const BIG_STRING_BYTES: usize = 64 * 1024 * 1024;
const BIG_HASH_FIELDS: u64 = 1_000_000;

/// Writes all of it and reads it back.
pub(super) fn load(cluster: &Cluster, seed: u64, big_string: bool, big_hash: bool) -> Result<Loaded> {
    let mut recipe = Recipe { random: Random::from_seed(seed), commands: Vec::new(), keys: Vec::new() };
    recipe.strings();
    recipe.lists();
    recipe.sets();
    recipe.zsets();
    recipe.hashes();
    recipe.streams();
    if cluster.server().has_hash_field_expiry() {
        recipe.fields_that_expire();
    }
    if big_string {
        recipe.big_string();
    }
    if big_hash {
        recipe.big_hash();
    }
    let mut client = cluster.client()?;
    let mut loaded = Loaded { functions: load_functions(cluster, &mut client)?, ..Loaded::default() };
    with_plain_list_nodes(&mut client, |client| recipe.send(client, &mut loaded))?;
    for (kind, key) in &recipe.keys {
        loaded.count(kind);
        let sample = Sample::read(&mut client, key)?;
        if sample.kind() != *kind {
            return Err(Error::Mismatch {
                key: key.escape_ascii().to_string(),
                expected: (*kind).to_owned(),
                found: sample.to_string(),
            });
        }
        loaded.samples.push(sample);
    }
    Ok(loaded)
}

/// Runs `load` while list elements above 1 KiB get a node of their own, and list nodes but the outermost are compressed.
/// Servers whose `DEBUG` is shut make plain nodes from 8 KiB on (Redis 7.2, Valkey) or from 1 GiB on (Redis 7.0).
fn with_plain_list_nodes(
    client: &mut ClusterClient,
    load: impl FnOnce(&mut ClusterClient) -> Result<()>,
) -> Result<()> {
    let set = |client: &mut ClusterClient, threshold: &str, depth: &str| -> Result<()> {
        for addr in client.primaries()? {
            let connection = client.connection(addr)?;
            connection.command(&["CONFIG", "SET", "list-compress-depth", depth])?;
            match connection.command(&["DEBUG", "QUICKLIST-PACKED-THRESHOLD", threshold]) {
                Ok(_) | Err(Error::Reply { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    set(client, "1024b", "1")?;
    let loaded = load(client);
    set(client, "0", "0")?;
    loaded
}

/// The commands to send, and the keys they make with their types.
struct Recipe {
    random: Random,
    commands: Vec<KeyedCommand>,
    keys: Vec<(&'static str, Vec<u8>)>,
}

impl Recipe {
    fn send(&self, client: &mut ClusterClient, loaded: &mut Loaded) -> Result<()> {
        for batch in self.commands.chunks(BATCH) {
            loaded.bytes += batch.iter().map(KeyedCommand::payload_bytes).sum::<u64>();
            client.pipeline(batch)?;
        }
        Ok(())
    }

    /// One command that makes a key: `name key args…`.
    fn make<A: AsRef<[u8]>>(&mut self, kind: &'static str, name: &str, key: impl AsRef<[u8]>, args: &[A]) {
        self.keys.push((kind, key.as_ref().to_vec()));
        self.then(name, key, args);
    }

    /// One more command on a key that is made already.
    fn then<A: AsRef<[u8]>>(&mut self, name: &str, key: impl AsRef<[u8]>, args: &[A]) {
        let mut all: Vec<&[u8]> = vec![name.as_bytes(), key.as_ref()];
        all.extend(args.iter().map(AsRef::as_ref));
        self.commands.push(KeyedCommand::new(&all));
    }

    /// One command in full, whose key is not its first argument.
    fn on(&mut self, key: &str, args: &[&str]) {
        self.commands.push(KeyedCommand::on(key, args));
    }

    fn random_text(&mut self, len: usize) -> Vec<u8> {
        let mut text = Vec::new();
        push_random(&mut text, &mut self.random, len);
        text
    }

    fn random_bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.random.next().to_le_bytes()[0]).collect()
    }

    fn json(&mut self, len: usize) -> Vec<u8> {
        let mut text = Vec::new();
        push_json(&mut text, &mut self.random, len);
        text
    }

    fn strings(&mut self) {
        const NUMBERS: [&str; 14] = [
            "0",
            "-1",
            "12",
            "127",
            "-128",
            "128",
            "32767",
            "32768",
            "-32769",
            "2147483647",
            "2147483648",
            "9223372036854775807",
            "-9223372036854775808",
            "9223372036854775808",
        ];
        const NEAR_NUMBERS: [&str; 6] = ["007", "+1", "-0", "3.14", " 1", "1e3"];
        const ODD_KEYS: [&[u8]; 10] = [
            b"",
            b"nul\0inside",
            b"line\r\nbreak",
            b"{",
            b"}",
            b"{}empty tag",
            b"a{b",
            b"{tag}{other}",
            b"\xff\xfe\x00\x80 not text",
            b"'\"\\ $*",
        ];
        self.make("string", "SET", "string:empty", &[""]);
        self.make("string", "SET", "string:one byte", &["x"]);
        for number in NUMBERS.iter().chain(&NEAR_NUMBERS) {
            self.make("string", "SET", format!("string:number:{number}"), &[number]);
        }
        for key in ODD_KEYS {
            self.make("string", "SET", key, &[key]);
        }
        self.make("string", "SET", vec![b'k'; 5_000], &["long key"]);
        let every_byte: Vec<u8> = (0..=u8::MAX).collect();
        self.make("string", "SET", "string:every byte", &[every_byte]);
        // Lengths around those where the encoding of a length or of a string changes.
        for len in [4, 20, 21, 44, 45, 63, 64, 16_383, 16_384, 100_000] {
            let (text, bytes) = (self.json(len), self.random_bytes(len));
            self.make("string", "SET", format!("string:json:{len}"), &[text]);
            self.make("string", "SET", format!("string:bytes:{len}"), &[bytes]);
            self.make("string", "SET", format!("string:same:{len}"), &[vec![b'a'; len]]);
        }
        for user in 0..50 {
            let text = self.json(100);
            self.make("string", "SET", format!("{{user:{user}}}:profile"), &[text]);
            self.make("string", "SET", format!("{{user:{user}}}:visits"), &[user.to_string()]);
        }
        for number in 0..800 {
            let text = self.random_text(number % 120);
            self.make("string", "SET", format!("string:many:{number}"), &[text]);
        }
        self.strings_by_other_commands();
        for number in 0..50_u64 {
            let key = format!("expires:{number}");
            let at = (FAR_FUTURE_MS + number * 1001).to_string();
            self.make("string", "SET", &key, &["value"]);
            self.then("PEXPIREAT", &key, &[at]);
        }
    }

    fn strings_by_other_commands(&mut self) {
        self.make("string", "APPEND", "string:appended", &["one"]);
        self.then("APPEND", "string:appended", &["two"]);
        self.make("string", "INCRBYFLOAT", "string:float", &["10.5"]);
        self.make("string", "SETRANGE", "string:range", &["1000", "after zeros"]);
        self.make("string", "SETBIT", "bitmap:sparse", &["100007", "1"]);
        for bit in (0..4000).step_by(3) {
            let bit = bit.to_string();
            self.then("SETBIT", "bitmap:dense", &[bit.as_str(), "1"]);
        }
        self.keys.push(("string", b"bitmap:dense".to_vec()));
        self.make("string", "PFADD", "hyperloglog:empty", &[] as &[&str]);
        self.make("string", "PFADD", "hyperloglog:sparse", &["a", "b", "c"]);
        let elements: Vec<String> = (0..10_000).map(|number| format!("element {number}")).collect();
        self.make("string", "PFADD", "hyperloglog:dense", &elements);
    }

    fn lists(&mut self) {
        self.make("list", "RPUSH", "list:one", &[""]);
        // Every width of number that a listpack stores.
        let numbers =
            ["0", "127", "-1", "4095", "-4096", "32767", "8388607", "2147483647", "9223372036854775807"];
        self.make("list", "RPUSH", "list:numbers", &numbers);
        let long: Vec<Vec<u8>> = (0..3_000).map(|number| self.json(number % 70)).collect();
        self.make("list", "RPUSH", "list:long", &long);
        let elements = [self.random_text(2_000), self.json(20_000), b"small".to_vec(), vec![b'z'; 100_000]];
        self.make("list", "RPUSH", "list:big elements", &elements);
        self.make("list", "RPUSH", "list:expires", &["a", "b"]);
        self.then("PEXPIREAT", "list:expires", &[FAR_FUTURE_MS.to_string()]);
    }

    fn sets(&mut self) {
        for (bits, step) in [(16, 100_i64), (32, 3_000_000), (64, 90_000_000_000_000_000)] {
            let members: Vec<String> = (-50..50).map(|number| (number * step).to_string()).collect();
            self.make("set", "SADD", format!("set:intset:{bits}"), &members);
        }
        let numbers: Vec<String> = (0..1_000).map(|number| (number * 7).to_string()).collect();
        self.make("set", "SADD", "set:numbers in a table", &numbers);
        self.make("set", "SADD", "set:small", &["", "a", "1", "b\0c"]);
        let words: Vec<String> = (0..1_500).map(|number| format!("member {number}")).collect();
        self.make("set", "SADD", "set:table", &words);
        let big = self.json(3_000);
        self.make("set", "SADD", "set:big member", &[big, b"small".to_vec()]);
    }

    fn zsets(&mut self) {
        const SCORES: [&str; 12] = [
            "inf",
            "-inf",
            "0",
            "-1",
            "1.5",
            "-2.25",
            "3",
            "1e300",
            "-1e-300",
            "0.1",
            "9007199254740993",
            "17",
        ];
        let with_scores = |prefix: &str| -> Vec<String> {
            SCORES.iter().flat_map(|score| [(*score).to_owned(), format!("{prefix}{score}")]).collect()
        };
        self.make("zset", "ZADD", "zset:small", &with_scores(""));
        let mut large = with_scores("special ");
        large.extend(
            (0..1_500).flat_map(|number| [format!("{}.5", number % 300), format!("member {number}")]),
        );
        self.make("zset", "ZADD", "zset:skiplist", &large);
        let big = self.json(3_000);
        self.make("zset", "ZADD", "zset:big member", &[b"1".to_vec(), big]);
        self.make("zset", "ZADD", "zset:empty member", &["7", ""]);
        self.make(
            "zset",
            "GEOADD",
            "geo",
            &["13.361389", "38.115556", "Palermo", "15.087269", "37.502669", "Catania"],
        );
    }

    fn hashes(&mut self) {
        self.make(
            "hash",
            "HSET",
            "hash:small",
            &["field", "value", "", "empty field", "empty value", "", "n", "-7"],
        );
        let fields: Vec<String> = (0..1_500).flat_map(|n| [format!("field {n}"), n.to_string()]).collect();
        self.make("hash", "HSET", "hash:table", &fields);
        let big = self.json(10_000);
        self.make(
            "hash",
            "HSET",
            "hash:big value",
            &[b"big".to_vec(), big, b"bin\0ary".to_vec(), vec![0, 255]],
        );
        self.make("hash", "HSET", "hash:expires", &["a", "b"]);
        self.then("PEXPIREAT", "hash:expires", &[FAR_FUTURE_MS.to_string()]);
    }

    /// Some fields that expire beside some that do not, in a listpack and in a table.
    fn fields_that_expire(&mut self) {
        for (name, count) in [("small", 6_u64), ("table", 1_000)] {
            let key = format!("hash:fields expire:{name}");
            let fields: Vec<String> =
                (0..count).flat_map(|n| [format!("f{n}"), format!("value {n}")]).collect();
            self.make("hash", "HSET", &key, &fields);
            for field in (0..count).step_by(2) {
                let at = (FAR_FUTURE_MS + field * 60_000).to_string();
                let field = format!("f{field}");
                self.then("HPEXPIREAT", &key, &[at.as_str(), "FIELDS", "1", &field]);
            }
        }
    }

    fn streams(&mut self) {
        self.keys.push(("stream", b"stream:no entries".to_vec()));
        self.on("stream:no entries", &["XGROUP", "CREATE", "stream:no entries", "group", "$", "MKSTREAM"]);
        self.make("stream", "XADD", "stream:other fields", &["1-1", "a", "1"]);
        self.then("XADD", "stream:other fields", &["1-2", "b", "2", "c", ""]);
        self.then("XADD", "stream:other fields", &["18446744073709551614-5", "", "far"]);
        self.keys.push(("stream", b"stream:long".to_vec()));
        for number in 1..=600 {
            let id = format!("1700000000{number:03}-{}", number % 3);
            let text = String::from_utf8(self.random_text(30)).unwrap_or_default();
            self.then("XADD", "stream:long", &[&id, "level", "info", "text", &text]);
        }
        self.groups("stream:long");
        self.then("XDEL", "stream:long", &["1700000000001-1", "1700000000010-1", "1700000000300-0"]);
        self.make("stream", "XADD", "stream:all deleted", &["5-0", "a", "b"]);
        self.then("XDEL", "stream:all deleted", &["5-0"]);
        self.keys.push(("stream", b"stream:trimmed".to_vec()));
        for number in 1..=300 {
            self.then("XADD", "stream:trimmed", &[&format!("{number}-0"), "n", &number.to_string()]);
        }
        self.then("XTRIM", "stream:trimmed", &["MAXLEN", "=", "120"]);
    }

    /// Two groups: one with entries pending at two consumers, some delivered twice and some to be deleted; one without a
    /// consumer, set back into the middle.
    fn groups(&mut self, key: &str) {
        self.on(key, &["XGROUP", "CREATE", key, "workers", "0"]);
        self.on(key, &["XGROUP", "CREATE", key, "idle group", "1700000000050-2"]);
        self.on(key, &["XGROUP", "CREATECONSUMER", key, "workers", "never read"]);
        for (consumer, count) in [("one", "20"), ("two", "5")] {
            let read = ["XREADGROUP", "GROUP", "workers", consumer, "COUNT", count, "STREAMS", key, ">"];
            self.on(key, &read);
        }
        self.then("XACK", key, &["workers", "1700000000002-2", "1700000000003-0"]);
        self.then("XCLAIM", key, &["workers", "two", "0", "1700000000004-1", "1700000000005-2"]);
    }

    fn big_string(&mut self) {
        let mut text = self.json(BIG_STRING_BYTES / 2);
        push_random(&mut text, &mut self.random, BIG_STRING_BYTES / 2);
        self.make("string", "SET", "string:64 MiB", &[text]);
    }

    fn big_hash(&mut self) {
        self.keys.push(("hash", b"hash:a million fields".to_vec()));
        for start in (0..BIG_HASH_FIELDS).step_by(1_000) {
            let fields: Vec<String> =
                (start..start + 1_000).flat_map(|n| [format!("field:{n}"), format!("value {n}")]).collect();
            self.then("HSET", "hash:a million fields", &fields);
        }
    }
}
