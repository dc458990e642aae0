//! Which values get to which servers, and how.

use slotkeep_model::{Product, ServerVersion};

use super::support::redis;
use super::values::encodings;
use crate::owned::{HashField, Value};
use crate::{
    Delivery, DeliveryOptions, DumpPayload, ErrorKind, FieldExpiry, Route, ValueType, deliver, route,
};

fn server(text: &str) -> ServerVersion {
    let (product, version) = text.split_once(' ').unwrap();
    let product = if product == "redis" { Product::Redis } else { Product::Valkey };
    ServerVersion::parse(product, version).unwrap()
}

/// What becomes of a type on a server: `=footer`, `type@footer`, or `-`.
fn shown(value_type: ValueType, target: &str) -> String {
    match route(value_type, server(target), &DeliveryOptions::default()) {
        Route::AsItIs { footer } => format!("={footer}"),
        Route::Translated { to, footer } => format!("{}@{footer}", to.byte()),
        Route::Impossible(_) => "-".to_owned(),
    }
}

#[test]
fn the_table_of_routes() {
    use ValueType as T;
    let servers = [
        "redis 6.2.14",
        "redis 7.0.15",
        "redis 7.2.4",
        "redis 7.4.1",
        "redis 8.8.0",
        "valkey 8.1.8",
        "valkey 9.1.2",
    ];
    for (value_type, expected) in [
        (T::String, ["=6", "=6", "=6", "=6", "=6", "=6", "=6"]),
        (T::HashZipmap, ["=6", "=6", "=6", "=6", "=6", "=6", "=6"]),
        (T::ListQuicklist, ["=7", "=7", "=7", "=7", "=7", "=7", "=7"]),
        (T::ListQuicklist2, ["14@7", "=10", "=10", "=10", "=10", "=10", "=10"]),
        (T::HashListpack, ["4@6", "=10", "=10", "=10", "=10", "=10", "=10"]),
        (T::ZsetListpack, ["5@8", "=10", "=10", "=10", "=10", "=10", "=10"]),
        (T::SetListpack, ["2@6", "2@6", "=11", "=11", "=11", "=11", "=11"]),
        (T::StreamListpacks3, ["15@9", "19@10", "=11", "=11", "=11", "=11", "=11"]),
        (T::StreamListpacks5, ["15@9", "19@10", "21@11", "21@11", "=14", "21@11", "21@11"]),
        (T::HashListpackEx, ["4@6", "4@6", "4@6", "=12", "=12", "4@6", "22@80"]),
        (T::ValkeyHash2, ["4@6", "4@6", "4@6", "24@12", "24@12", "4@6", "=80"]),
        (T::Array, ["-", "-", "-", "-", "=14", "-", "-"]),
        (T::Module2, ["=8", "=8", "=8", "=8", "=8", "=8", "=8"]),
    ] {
        let found = servers.map(|target| shown(value_type, target));
        assert_eq!(found, expected, "{value_type:?}");
    }
}

fn ttl_hash() -> Value {
    let field = |name: &[u8], expiry_ms| HashField { field: name.to_vec(), value: b"v".to_vec(), expiry_ms };
    Value::Hash(vec![field(b"f", Some(4_000_000_000_000)), field(b"g", None)])
}

#[test]
fn values_are_delivered_as_payloads_commands_or_not_at_all() {
    for encoded in encodings(&ttl_hash()) {
        let value_type = ValueType::from_byte(encoded.value_type, encoded.version.product).unwrap();
        let send = |target: &str, options: &DeliveryOptions| {
            deliver(b"k", value_type, encoded.version, &encoded.bytes, server(target), options).unwrap()
        };
        let mut options = DeliveryOptions::default();
        for (target, wanted) in [("valkey 9.1.2", 22), ("redis 7.4.1", 24)] {
            let Delivery::Payload(payload) = send(target, &options) else {
                panic!("no payload for {target}")
            };
            let parsed = DumpPayload::parse(&payload).unwrap();
            assert!(parsed.value_type.byte() == wanted || parsed.value_type == value_type);
        }
        let Delivery::Impossible(why) = send("redis 7.2.4", &options) else { panic!("delivered") };
        assert_eq!(why, "a hash with expiry of fields cannot be written as REDIS0011");
        options.payload_bytes = 10;
        let Delivery::Commands(commands) = send("valkey 9.1.2", &options) else { panic!("no commands") };
        assert_eq!(commands.len(), 2);
        assert!(matches!(send("valkey 8.1.8", &options), Delivery::Impossible(_)));
        options.field_expiry = FieldExpiry::Drop;
        let Delivery::Commands(commands) = send("valkey 8.1.8", &options) else { panic!("no commands") };
        assert_eq!(commands.len(), 1);
        options.payload_bytes = 1000;
        assert!(matches!(send("valkey 8.1.8", &options), Delivery::Payload(_)));
    }
}

#[test]
fn damaged_values_are_errors() {
    let options = DeliveryOptions { payload_bytes: 5, ..DeliveryOptions::default() };
    let error =
        deliver(b"k", ValueType::Set, redis(12), b"\x02\x01a", server("redis 7.4.1"), &options).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Truncated { .. }));
}
