use super::*;
use crate::Decoder;
use crate::tests::{redis, writer};

fn commands(
    value_type: ValueType,
    value: &[u8],
    version: &str,
    budget_bytes: usize,
) -> Result<Vec<String>, CommandError> {
    let target = ServerVersion::parse(Product::Redis, version).unwrap();
    let mut builder = CommandBuilder::new(b"k", value_type, target, budget_bytes);
    let (mut decoder, mut input, mut commands) = (Decoder::new(value_type, redis(14)), value, Vec::new());
    while let Some(element) = decoder.next(&mut input).unwrap() {
        builder.element(&element, &mut commands)?;
        if element == Element::End {
            break;
        }
    }
    Ok(commands.iter().map(|command| command.join(&b' ').escape_ascii().to_string()).collect())
}

#[test]
fn collections_are_split_by_the_budget() {
    let list = b"\x03\x02aa\x02bb\x02cc";
    assert_eq!(commands(ValueType::List, list, "7.0.0", 5).unwrap(), ["RPUSH k aa bb", "RPUSH k cc"]);
    assert_eq!(commands(ValueType::Set, list, "7.0.0", 100).unwrap(), ["SADD k aa bb cc"]);
    assert_eq!(
        commands(ValueType::String, b"\x05hello", "7.0.0", 2).unwrap(),
        ["SET k he", "APPEND k ll", "APPEND k o"]
    );
    assert_eq!(commands(ValueType::String, b"\x00", "7.0.0", 2).unwrap(), ["SET k "]);
    let mut zset = b"\x01\x01m".to_vec();
    zset.extend(1.5_f64.to_le_bytes());
    assert_eq!(commands(ValueType::Zset2, &zset, "7.0.0", 100).unwrap(), ["ZADD k 1.5 m"]);
}

#[test]
fn expiry_of_fields_follows_the_fields() {
    let mut hash = 1000_i64.to_le_bytes().to_vec();
    hash.extend(b"\x03\x01\x01a\x01b\x01\x01c\x01d\x00\x01e\x01f");
    assert_eq!(
        commands(ValueType::HashMetadata, &hash, "7.4.0", 100).unwrap(),
        ["HSET k a b c d e f", "HPEXPIREAT k 1000 FIELDS 2 a c"]
    );
    assert!(commands(ValueType::HashMetadata, &hash, "7.2.0", 100).is_err());
}

#[test]
fn streams_come_back_with_groups_and_pending_entries() {
    let node: Vec<Vec<u8>> = ["1", "0", "1", "f", "0", "2", "5", "0", "v", "4"]
        .iter()
        .map(|entry| entry.as_bytes().to_vec())
        .collect();
    let mut stream = vec![1, 16];
    stream.extend([0; 16]);
    writer::string(&mut stream, &writer::listpack(&node));
    stream.extend([1, 5, 0, 5, 0, 0, 0, 1]);
    stream.extend([1, 1, b'g', 5, 0, 1, 1]);
    let id = [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    stream.extend(id);
    stream.extend(77_i64.to_le_bytes());
    stream.extend([3, 1, 1, b'c']);
    stream.extend([7; 16]);
    stream.push(1);
    stream.extend(id);
    assert_eq!(
        commands(ValueType::StreamListpacks3, &stream, "7.2.0", 100).unwrap(),
        [
            "XADD k 5-0 f v",
            "XSETID k 5-0 ENTRIESADDED 1 MAXDELETEDID 0-0",
            "XGROUP CREATE k g 5-0 ENTRIESREAD 1",
            "XGROUP CREATECONSUMER k g c",
            "XCLAIM k g c 0 5-0 TIME 77 RETRYCOUNT 3 FORCE JUSTID",
        ]
    );
}
