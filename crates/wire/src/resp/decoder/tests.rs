use proptest::prelude::*;

use super::*;
use crate::resp::{Command, write_command};

fn decode(decoder: &mut Decoder) -> (Vec<Value>, Option<RespError>) {
    let mut values = Vec::new();
    loop {
        match decoder.next() {
            Ok(Some(value)) => values.push(value),
            Ok(None) => return (values, None),
            Err(error) => return (values, Some(error)),
        }
    }
}

fn one(bytes: &[u8]) -> Value {
    let mut decoder = Decoder::new();
    decoder.feed(bytes);
    let value = decoder.next().unwrap().unwrap();
    assert!(decoder.is_between_replies());
    value
}

fn bulk(text: &str) -> Value {
    Value::Bulk(text.as_bytes().to_vec())
}

#[test]
fn every_type_is_decoded() {
    for (bytes, expected) in [
        ("+OK\r\n", Value::Simple("OK".to_owned())),
        ("-ERR no\r\n", Value::Error("ERR no".to_owned())),
        (":-5\r\n", Value::Integer(-5)),
        ("$0\r\n\r\n", bulk("")),
        ("$4\r\na\r\nb\r\n", bulk("a\r\nb")),
        ("$-1\r\n", Value::Null),
        ("*-1\r\n", Value::Null),
        ("_\r\n", Value::Null),
        ("*0\r\n", Value::Array(vec![])),
        (
            "*2\r\n:1\r\n*1\r\n+x\r\n",
            Value::Array(vec![Value::Integer(1), Value::Array(vec![Value::Simple("x".to_owned())])]),
        ),
        ("%1\r\n+a\r\n:1\r\n", Value::Map(vec![(Value::Simple("a".to_owned()), Value::Integer(1))])),
        ("~1\r\n:1\r\n", Value::Set(vec![Value::Integer(1)])),
        (">1\r\n+x\r\n", Value::Push(vec![Value::Simple("x".to_owned())])),
        (",1.5\r\n", Value::Double(1.5)),
        (",inf\r\n", Value::Double(f64::INFINITY)),
        ("#t\r\n", Value::Boolean(true)),
        ("(-12345678901234567890123\r\n", Value::BigNumber("-12345678901234567890123".to_owned())),
        ("!6\r\nERR no\r\n", Value::Error("ERR no".to_owned())),
        ("=7\r\ntxt:abc\r\n", bulk("abc")),
        ("|1\r\n+ttl\r\n:3\r\n:9\r\n", Value::Integer(9)),
        ("*2\r\n|1\r\n+ttl\r\n:3\r\n:9\r\n:8\r\n", Value::Array(vec![Value::Integer(9), Value::Integer(8)])),
    ] {
        assert_eq!(one(bytes.as_bytes()), expected, "{bytes}");
    }
}

#[test]
fn fields_are_found_in_maps_of_both_protocols() {
    let (flat, map) = (
        one(b"*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n$1\r\n7\r\n"),
        one(b"%2\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n$1\r\n7\r\n"),
    );
    for value in [flat, map] {
        assert_eq!(value.get("b").and_then(Value::as_u64), Some(7));
        assert_eq!(value.get("c"), None);
        assert_eq!(value.pairs().unwrap().len(), 2);
    }
}

#[test]
fn what_follows_a_reply_is_handed_over() {
    let mut decoder = Decoder::new();
    decoder.feed(b"+CONTINUE\r\n*1\r\n$4");
    assert_eq!(decoder.next().unwrap(), Some(Value::Simple("CONTINUE".to_owned())));
    assert_eq!(decoder.take_rest(), b"*1\r\n$4");
}

#[test]
fn malformed_and_lying_input_is_refused() {
    let limits = Limits { depth: 3, elements: 100, reply_bytes: 1000, line_bytes: 50 };
    for (bytes, kind) in [
        ("HTTP/1.1 400\r\n".to_owned(), "UnknownType"),
        ("\r\n".to_owned(), "UnknownType"),
        (":\r\n".to_owned(), "BadLine"),
        (":1 \r\n".to_owned(), "BadLine"),
        ("$-2\r\n".to_owned(), "BadLine"),
        ("$+1\r\n".to_owned(), "BadLine"),
        ("$?\r\n".to_owned(), "BadLine"),
        ("$99999999999999999999999\r\n".to_owned(), "BadLine"),
        ("#x\r\n".to_owned(), "BadLine"),
        ("(\r\n".to_owned(), "BadLine"),
        ("_x\r\n".to_owned(), "BadLine"),
        ("$1\r\nab\r\n".to_owned(), "Unterminated"),
        ("$999999999999\r\n".to_owned(), "TooLarge"),
        ("*18446744073709551615\r\n".to_owned(), "TooManyElements"),
        ("%9223372036854775808\r\n".to_owned(), "TooManyElements"),
        ("*60\r\n*60\r\n".to_owned(), "TooManyElements"),
        ("*1\r\n*1\r\n*1\r\n*1\r\n".to_owned(), "TooDeep"),
        ("*3\r\n$400\r\n".to_owned() + &"x".repeat(400) + "\r\n$600\r\n", "TooLarge"),
        ("+".to_owned() + &"x".repeat(53), "LineTooLong"),
    ] {
        let mut decoder = Decoder::with_limits(limits);
        decoder.feed(bytes.as_bytes());
        let error = decode(&mut decoder).1.unwrap_or_else(|| panic!("{bytes} is accepted"));
        assert!(format!("{error:?}").starts_with(kind), "{bytes}: {error}");
        assert_eq!(decoder.next(), Err(error));
    }
}

#[test]
fn a_lying_length_takes_no_memory() {
    let mut decoder = Decoder::new();
    decoder.feed(b"*1000000\r\n$500000000\r\n");
    assert_eq!(decoder.next(), Ok(None));
    assert!(decoder.buffer.capacity() < 1000);
    assert!(decoder.open.iter().all(|frame| frame.items.capacity() == 0));
}

#[test]
fn commands_are_written_as_arrays_of_strings() {
    let mut out = Vec::new();
    write_command(&mut out, &[b"GET", b"a\r\n"]);
    assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$3\r\na\r\n\r\n");
    let command = Command::new("GET").arg("a\r\n");
    assert_eq!(command.to_bytes(), out);
    assert_eq!(
        Command::new("WAIT").arg_number(1).args(["x", "y"]).to_bytes(),
        b"*4\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$1\r\nx\r\n$1\r\ny\r\n"
    );
}

#[test]
fn a_long_reply_byte_by_byte_takes_linear_time() {
    let mut bytes = Vec::new();
    write_command(&mut bytes, &[&vec![b'x'; 4 << 20]]);
    for _ in 0..20_000 {
        bytes.extend_from_slice(b"+OK\r\n");
    }
    let mut decoder = Decoder::new();
    let mut replies = 0;
    for byte in &bytes {
        decoder.feed(core::slice::from_ref(byte));
        replies += usize::from(decoder.next().unwrap().is_some());
    }
    assert_eq!(replies, 20_001);
}

fn encode(value: &Value, out: &mut Vec<u8>) {
    let mut line = |text: String| out.extend_from_slice(format!("{text}\r\n").as_bytes());
    match value {
        Value::Simple(text) => line(format!("+{text}")),
        Value::Error(text) => line(format!("-{text}")),
        Value::Integer(number) => line(format!(":{number}")),
        Value::Null => line("_".to_owned()),
        Value::Double(number) => line(format!(",{number}")),
        Value::Boolean(truth) => line(format!("#{}", if *truth { 't' } else { 'f' })),
        Value::BigNumber(digits) => line(format!("({digits}")),
        Value::Bulk(bytes) => {
            line(format!("${}", bytes.len()));
            out.extend_from_slice(bytes);
            out.extend_from_slice(b"\r\n");
        }
        Value::Array(items) | Value::Set(items) | Value::Push(items) => {
            let mark = match value {
                Value::Array(_) => '*',
                Value::Set(_) => '~',
                _ => '>',
            };
            line(format!("{mark}{}", items.len()));
            for item in items {
                encode(item, out);
            }
        }
        Value::Map(pairs) => {
            line(format!("%{}", pairs.len()));
            for (key, value) in pairs {
                encode(key, out);
                encode(value, out);
            }
        }
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        "[ -~]{0,12}".prop_map(Value::Simple),
        "[ -~]{0,12}".prop_map(Value::Error),
        any::<i64>().prop_map(Value::Integer),
        prop::collection::vec(any::<u8>(), 0..30).prop_map(Value::Bulk),
        Just(Value::Null),
        any::<bool>().prop_map(Value::Boolean),
        (-1e9..1e9).prop_map(Value::Double),
        "-?[0-9]{1,30}".prop_map(Value::BigNumber),
    ];
    leaf.prop_recursive(4, 30, 5, |inner| {
        let items = prop::collection::vec(inner.clone(), 0..5);
        prop_oneof![
            items.clone().prop_map(Value::Array),
            items.clone().prop_map(Value::Set),
            items.prop_map(Value::Push),
            prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Value::Map),
        ]
    })
}

fn in_pieces(bytes: &[u8], sizes: &[usize], limits: Limits) -> (Vec<Value>, Option<RespError>) {
    let mut decoder = Decoder::with_limits(limits);
    let (mut left, mut size, mut values) = (bytes, sizes.iter().cycle(), Vec::new());
    while !left.is_empty() {
        let (piece, after) = left.split_at((*size.next().unwrap()).min(left.len()));
        left = after;
        decoder.feed(piece);
        let (more, error) = decode(&mut decoder);
        values.extend(more);
        if error.is_some() {
            return (values, error);
        }
    }
    (values, None)
}

proptest! {
    #[test]
    fn values_survive_any_chunking(values in prop::collection::vec(any_value(), 1..5), sizes in prop::collection::vec(1usize..30, 1..8)) {
        let mut bytes = Vec::new();
        for value in &values {
            encode(value, &mut bytes);
        }
        prop_assert_eq!(in_pieces(&bytes, &sizes, Limits::default()), (values, None));
    }

    #[test]
    fn any_bytes_give_the_same_in_any_chunking(
        parts in prop::collection::vec(prop_oneof![
            prop::sample::select(vec!["*2\r\n", "$3\r\n", "abc\r\n", "%1\r\n", "|1\r\n", "+x\r\n", ":1\r\n", "\r\n", "*9", "$"]).prop_map(|text| text.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..4),
        ], 0..30),
        sizes in prop::collection::vec(1usize..10, 1..8),
    ) {
        let bytes = parts.concat();
        let limits = Limits { depth: 3, elements: 20, reply_bytes: 60, line_bytes: 20 };
        prop_assert_eq!(in_pieces(&bytes, &sizes, limits), in_pieces(&bytes, &[usize::MAX], limits));
    }
}
