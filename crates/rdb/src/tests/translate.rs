//! Every encoding, for every version.

use proptest::prelude::*;
use slotkeep_model::{Product, RdbVersion};

use super::owned::{ROOMY_BYTES, VERSIONS, as_held_in, fits, records};
use super::rewrite::{rewrite, rewritten};
use super::support::{cut, redis};
use super::values::{Encoded, encodings, value};
use super::writer;
use crate::owned::{HashField, Stream};
use crate::translate::{FieldExpiry, Plan, Released, Translation};
use crate::{ErrorKind, Modules, Policy, Value, ValueType};

pub(crate) fn rdb_of(encoded: &Encoded) -> Vec<u8> {
    let mut body = Vec::new();
    writer::record(&mut body, Some(77), encoded.value_type, b"key", &encoded.bytes);
    writer::rdb(&encoded.version.to_string(), &body)
}

fn policy(target: RdbVersion) -> Policy<'static> {
    Policy { modules: Modules::All, ..Policy::new(target) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_value_is_the_same_in_every_version_that_can_hold_it(
        value in value(),
        lengths in proptest::collection::vec(1..3000_usize, 1..4),
    ) {
        for encoded in encodings(&value) {
            let rdb = rdb_of(&encoded);
            let before = as_held_in(&value, encoded.version);
            for &(product, number) in VERSIONS {
                let target = RdbVersion { product, number };
                let outcome = rewrite(policy(target), &cut(&rdb, &lengths));
                let whole = rewrite(policy(target), &[&rdb]);
                let title = format!("type {} of {} to {target}", encoded.value_type, encoded.version);
                prop_assert_eq!(outcome.is_ok(), fits(&before, target), "{}: {:?}", title, outcome.err());
                let (Ok(new), Ok(whole)) = (outcome, whole) else { continue };
                prop_assert!(new == whole, "{}: chunks make a difference", title);
                let found = records(&[&new], ROOMY_BYTES).unwrap();
                prop_assert_eq!(&found[0].value, &as_held_in(&before, target), "{}", title);
                prop_assert!(found[0].value_type.exists_in(target));
            }
        }
    }

    #[test]
    fn expiries_of_fields_are_moved_and_dropped(value in value(), shift in -1_000_000..1_000_000_i64) {
        let Value::Hash(fields) = &value else { return Ok(()) };
        for encoded in encodings(&value) {
            for (number, field_expiry) in [(12, FieldExpiry::Shift(shift)), (7, FieldExpiry::Drop), (14, FieldExpiry::Drop)] {
                let mut policy = policy(redis(number));
                policy.translation.field_expiry = field_expiry;
                let new = rewrite(policy, &[&rdb_of(&encoded)]).unwrap();
                let wanted: Vec<HashField> = fields
                    .iter()
                    .map(|field| HashField { expiry_ms: field_expiry.apply(field.expiry_ms), ..field.clone() })
                    .collect();
                prop_assert_eq!(&records(&[&new], ROOMY_BYTES).unwrap()[0].value, &Value::Hash(wanted));
            }
        }
    }

    #[test]
    fn released_entries_can_get_an_owner(value in value()) {
        let Value::Stream(stream) = &value else { return Ok(()) };
        let mut bytes = Vec::new();
        let value_type = value.encode(redis(14), &mut bytes).unwrap().byte();
        let rdb = rdb_of(&Encoded { value_type, bytes, version: redis(14) });
        for number in [9, 11, 13] {
            let mut policy = policy(redis(number));
            policy.translation.released = Released::Own(b"heir".to_vec());
            let new = rewrite(policy, &[&rdb]).unwrap();
            let mut wanted: Stream = (**stream).clone();
            for group in &mut wanted.groups {
                let pending = std::mem::take(&mut group.released);
                if !pending.is_empty() {
                    let heir = crate::owned::Consumer { name: b"heir".to_vec(), pending, ..Default::default() };
                    group.consumers.push(heir);
                }
            }
            let wanted = as_held_in(&Value::Stream(Box::new(wanted)), redis(number));
            prop_assert_eq!(&records(&[&new], ROOMY_BYTES).unwrap()[0].value, &wanted);
            let mut policy = self::policy(redis(number));
            policy.translation.released = Released::Own(b"c1".to_vec());
            let outcome = rewrite(policy, &[&rdb]);
            prop_assert_eq!(outcome.is_ok(), stream.groups.iter().all(|group| group.released.is_empty()));
        }
    }

    #[test]
    fn damage_is_an_error_in_every_translation(value in value(), at in any::<usize>(), bit in 0..8_u8) {
        for mut encoded in encodings(&value) {
            let at = at % encoded.bytes.len();
            encoded.bytes[at] ^= 1 << bit;
            let rdb = rdb_of(&encoded);
            for target in [redis(6), redis(9), redis(12), RdbVersion { product: Product::Valkey, number: 80 }] {
                // What is not an error must be readable as far as it is written.
                let _ = rewrite(policy(target), &[&rdb]);
            }
        }
    }
}

#[test]
fn a_value_that_must_be_held_is_limited() {
    let value =
        Value::Hash(vec![HashField { field: b"f".to_vec(), value: vec![1; 200_000], expiry_ms: None }]);
    let packed = encodings(&value).into_iter().find(|encoded| encoded.value_type == 16).unwrap();
    let policy = |limit_bytes| {
        let mut policy = policy(redis(9));
        policy.translation.limit_bytes = limit_bytes;
        policy
    };
    let error = rewrite(policy(100_000), &[&rdb_of(&packed)]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ValueTooLarge { limit_bytes: 100_000 });
    assert_eq!(error.key.as_deref(), Some(&b"key"[..]));
    assert!(rewrite(policy(300_000), &[&rdb_of(&packed)]).is_ok());
    // One whose count stands before it is not.
    let plain = encodings(&value).into_iter().find(|encoded| encoded.value_type == 4).unwrap();
    assert!(rewrite(policy(1000), &[&rdb_of(&plain)]).is_ok());
}

#[test]
fn what_cannot_be_written_is_named() {
    let array = encodings(&Value::Array(crate::owned::Array::default())).pop().unwrap();
    let error = rewritten(&rdb_of(&array), redis(12)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "an array cannot be written as REDIS0012 (at byte 23, in a value of type 28, array sparse, key `key`)"
    );
    let field = HashField { field: b"f".to_vec(), value: b"v".to_vec(), expiry_ms: Some(5) };
    for encoded in encodings(&Value::Hash(vec![field])) {
        let error = rewritten(&rdb_of(&encoded), redis(11)).unwrap_err();
        assert!(
            matches!(error.kind, ErrorKind::NoEquivalent { what: "a hash with expiry of fields", target } if target == redis(11))
        );
    }
}

#[test]
fn plans_go_to_the_newest_type_that_the_target_has() {
    let plan = |number, value_type| Translation::new(redis(number)).plan(value_type).unwrap();
    assert_eq!(plan(14, ValueType::StreamListpacks5), Plan::Copy);
    for (number, to) in [
        (13, ValueType::StreamListpacks4),
        (12, ValueType::StreamListpacks3),
        (10, ValueType::StreamListpacks2),
        (9, ValueType::StreamListpacks),
    ] {
        assert_eq!(plan(number, ValueType::StreamListpacks5), Plan::Translate(to));
    }
    assert_eq!(plan(9, ValueType::ListQuicklist2), Plan::Translate(ValueType::ListQuicklist));
    assert_eq!(plan(6, ValueType::ListQuicklist2), Plan::Translate(ValueType::List));
    assert_eq!(plan(7, ValueType::ZsetListpack), Plan::Translate(ValueType::Zset));
    let valkey = Translation::new(RdbVersion { product: Product::Valkey, number: 80 });
    assert_eq!(valkey.plan(ValueType::HashListpackEx), Ok(Plan::Translate(ValueType::ValkeyHash2)));
    assert_eq!(valkey.plan(ValueType::StreamListpacks5), Ok(Plan::Translate(ValueType::StreamListpacks3)));
}
