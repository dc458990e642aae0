//! Value types: the byte before a key, what it means, and which servers know it.
//!
//! Source: `src/rdb.h` of Redis 6.2 to 8.8 and Valkey 7.2 to 9.1. Numbers from 22 on differ between the products, so a
//! [`ValueType`] is read from a number *and* a product.

use slotkeep_model::{Product, RdbVersion, ServerVersion};

use crate::error::ErrorKind;

/// What a value is to a user, whatever its encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LogicalType {
    /// A string.
    String,
    /// A list.
    List,
    /// A set.
    Set,
    /// A sorted set.
    Zset,
    /// A hash, with or without expiry of fields.
    Hash,
    /// A stream.
    Stream,
    /// A module's own type.
    Module,
    /// An array (Redis 8.8).
    Array,
}

impl LogicalType {
    /// The number that stands for the type in digests. It never changes.
    pub const fn code(self) -> u8 {
        match self {
            Self::String => 1,
            Self::List => 2,
            Self::Set => 3,
            Self::Zset => 4,
            Self::Hash => 5,
            Self::Stream => 6,
            Self::Module => 7,
            Self::Array => 8,
        }
    }

    /// The name, as `TYPE` gives it where it has one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::Zset => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
            Self::Module => "module",
            Self::Array => "array",
        }
    }
}

/// The encoding of a value in an RDB, by the type byte before its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ValueType {
    /// 0: a string.
    String,
    /// 1: a list, item by item.
    List,
    /// 2: a set, member by member.
    Set,
    /// 3: a sorted set with scores as text.
    Zset,
    /// 4: a hash, field by field.
    Hash,
    /// 5: a sorted set with binary scores.
    Zset2,
    /// 7: a module's value.
    Module2,
    /// 9: a hash as a zipmap.
    HashZipmap,
    /// 10: a list as a ziplist.
    ListZiplist,
    /// 11: a set as an intset.
    SetIntset,
    /// 12: a sorted set as a ziplist.
    ZsetZiplist,
    /// 13: a hash as a ziplist.
    HashZiplist,
    /// 14: a list as ziplists.
    ListQuicklist,
    /// 15: a stream (Redis 5.0 to 6.2).
    StreamListpacks,
    /// 16: a hash as a listpack.
    HashListpack,
    /// 17: a sorted set as a listpack.
    ZsetListpack,
    /// 18: a list as listpacks and plain nodes.
    ListQuicklist2,
    /// 19: a stream (Redis 7.0).
    StreamListpacks2,
    /// 20: a set as a listpack.
    SetListpack,
    /// 21: a stream (Redis 7.2 to 8.4, Valkey).
    StreamListpacks3,
    /// 22 of Valkey 9.0: a hash with expiry of fields.
    ValkeyHash2,
    /// 24 of Redis 7.4: a hash with expiry of fields.
    HashMetadata,
    /// 25 of Redis 7.4: a hash with expiry of fields, as a listpack.
    HashListpackEx,
    /// 26 of Redis 8.6: a stream.
    StreamListpacks4,
    /// 27 of Redis 8.8: a stream.
    StreamListpacks5,
    /// 28 of Redis 8.8: an array.
    Array,
}

impl ValueType {
    /// The type of that number in an RDB or DUMP payload of that product.
    pub fn from_byte(number: u8, product: Product) -> Result<Self, ErrorKind> {
        Ok(match (number, product) {
            (0, _) => Self::String,
            (1, _) => Self::List,
            (2, _) => Self::Set,
            (3, _) => Self::Zset,
            (4, _) => Self::Hash,
            (5, _) => Self::Zset2,
            (7, _) => Self::Module2,
            (9, _) => Self::HashZipmap,
            (10, _) => Self::ListZiplist,
            (11, _) => Self::SetIntset,
            (12, _) => Self::ZsetZiplist,
            (13, _) => Self::HashZiplist,
            (14, _) => Self::ListQuicklist,
            (15, _) => Self::StreamListpacks,
            (16, _) => Self::HashListpack,
            (17, _) => Self::ZsetListpack,
            (18, _) => Self::ListQuicklist2,
            (19, _) => Self::StreamListpacks2,
            (20, _) => Self::SetListpack,
            (21, _) => Self::StreamListpacks3,
            (22, Product::Valkey) => Self::ValkeyHash2,
            (24, Product::Redis) => Self::HashMetadata,
            (25, Product::Redis) => Self::HashListpackEx,
            (26, Product::Redis) => Self::StreamListpacks4,
            (27, Product::Redis) => Self::StreamListpacks5,
            (28, Product::Redis) => Self::Array,
            (6, _) | (22 | 23, Product::Redis) => return Err(ErrorKind::PreRelease { number }),
            _ => return Err(ErrorKind::UnknownType { number, product }),
        })
    }

    /// The type byte.
    pub const fn byte(self) -> u8 {
        match self {
            Self::String => 0,
            Self::List => 1,
            Self::Set => 2,
            Self::Zset => 3,
            Self::Hash => 4,
            Self::Zset2 => 5,
            Self::Module2 => 7,
            Self::HashZipmap => 9,
            Self::ListZiplist => 10,
            Self::SetIntset => 11,
            Self::ZsetZiplist => 12,
            Self::HashZiplist => 13,
            Self::ListQuicklist => 14,
            Self::StreamListpacks => 15,
            Self::HashListpack => 16,
            Self::ZsetListpack => 17,
            Self::ListQuicklist2 => 18,
            Self::StreamListpacks2 => 19,
            Self::SetListpack => 20,
            Self::StreamListpacks3 => 21,
            Self::ValkeyHash2 => 22,
            Self::HashMetadata => 24,
            Self::HashListpackEx => 25,
            Self::StreamListpacks4 => 26,
            Self::StreamListpacks5 => 27,
            Self::Array => 28,
        }
    }

    /// The name of the encoding, as names of fixtures have it; unique among the types of one kind of value and product.
    pub const fn encoding(self) -> &'static str {
        match self {
            Self::String => "raw",
            Self::List => "linked",
            Self::Set | Self::Hash => "hashtable",
            Self::Zset => "skiplist-text",
            Self::Zset2 => "skiplist",
            Self::Module2 => "opaque",
            Self::HashZipmap => "zipmap",
            Self::ListZiplist | Self::ZsetZiplist | Self::HashZiplist => "ziplist",
            Self::SetIntset => "intset",
            Self::ListQuicklist => "quicklist",
            Self::ListQuicklist2 => "quicklist2",
            Self::HashListpack | Self::ZsetListpack | Self::SetListpack => "listpack",
            Self::StreamListpacks => "listpacks",
            Self::StreamListpacks2 => "listpacks2",
            Self::StreamListpacks3 => "listpacks3",
            Self::StreamListpacks4 => "listpacks4",
            Self::StreamListpacks5 => "listpacks5",
            Self::ValkeyHash2 | Self::HashMetadata => "hashtable-ttl",
            Self::HashListpackEx => "listpack-ttl",
            Self::Array => "sparse",
        }
    }

    /// What the value is to a user.
    pub const fn logical(self) -> LogicalType {
        match self {
            Self::String => LogicalType::String,
            Self::List | Self::ListZiplist | Self::ListQuicklist | Self::ListQuicklist2 => LogicalType::List,
            Self::Set | Self::SetIntset | Self::SetListpack => LogicalType::Set,
            Self::Zset | Self::Zset2 | Self::ZsetZiplist | Self::ZsetListpack => LogicalType::Zset,
            Self::Hash
            | Self::HashZipmap
            | Self::HashZiplist
            | Self::HashListpack
            | Self::ValkeyHash2
            | Self::HashMetadata
            | Self::HashListpackEx => LogicalType::Hash,
            Self::StreamListpacks
            | Self::StreamListpacks2
            | Self::StreamListpacks3
            | Self::StreamListpacks4
            | Self::StreamListpacks5 => LogicalType::Stream,
            Self::Module2 => LogicalType::Module,
            Self::Array => LogicalType::Array,
        }
    }

    /// The lowest RDB version number under which that product knows the type, or `None` if it never does. It is the lowest
    /// number a DUMP footer of the value can honestly carry, and at least 6, with which `DUMP` began.
    pub const fn introduced_in(self, product: Product) -> Option<u16> {
        match (self, product) {
            (Self::Zset2 | Self::Module2, _) => Some(8),
            (Self::ListQuicklist, _) => Some(7),
            (Self::StreamListpacks, _) => Some(9),
            (Self::HashListpack | Self::ZsetListpack | Self::ListQuicklist2 | Self::StreamListpacks2, _) => {
                Some(10)
            }
            (Self::SetListpack | Self::StreamListpacks3, _) => Some(11),
            (Self::ValkeyHash2, Product::Valkey) => Some(80),
            (Self::HashMetadata | Self::HashListpackEx, Product::Redis) => Some(12),
            (Self::StreamListpacks4, Product::Redis) => Some(13),
            (Self::StreamListpacks5 | Self::Array, Product::Redis) => Some(14),
            (
                Self::ValkeyHash2
                | Self::HashMetadata
                | Self::HashListpackEx
                | Self::StreamListpacks4
                | Self::StreamListpacks5
                | Self::Array,
                _,
            ) => None,
            _ => Some(6),
        }
    }

    /// Whether an RDB or DUMP payload of that version may hold values of this type.
    pub fn exists_in(self, version: RdbVersion) -> bool {
        self.introduced_in(version.product).is_some_and(|number| number <= version.number)
    }

    /// Whether a server of that version decodes values of this type, in an RDB or in `RESTORE`. Of a module's value this says
    /// only that the frame is known: the server must have the module too.
    pub fn loads_on(self, server: ServerVersion) -> bool {
        self.exists_in(RdbVersion { product: server.product, number: server.newest_rdb().number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_by_product() {
        for product in [Product::Redis, Product::Valkey] {
            for number in 0..=255 {
                if let Ok(value_type) = ValueType::from_byte(number, product) {
                    assert_eq!(value_type.byte(), number);
                    assert!(value_type.introduced_in(product).is_some());
                }
            }
        }
        assert!(matches!(
            ValueType::from_byte(22, Product::Redis),
            Err(ErrorKind::PreRelease { number: 22 })
        ));
        assert!(matches!(ValueType::from_byte(24, Product::Valkey), Err(ErrorKind::UnknownType { .. })));
    }

    #[test]
    fn names_of_encodings_tell_the_encodings_of_a_type_apart() {
        for product in [Product::Redis, Product::Valkey] {
            let mut names = std::collections::BTreeSet::new();
            for value_type in (0..=255).filter_map(|number| ValueType::from_byte(number, product).ok()) {
                assert!(
                    names.insert((value_type.logical(), value_type.encoding())),
                    "{value_type:?} on {product}"
                );
            }
        }
    }

    #[test]
    fn servers_know_the_types_of_their_time() {
        let server = |product, text| ServerVersion::parse(product, text).unwrap();
        let redis_7_0 = server(Product::Redis, "7.0.15");
        assert!(ValueType::HashListpack.loads_on(redis_7_0));
        assert!(!ValueType::SetListpack.loads_on(redis_7_0));
        let valkey_8_1 = server(Product::Valkey, "8.1.8");
        assert!(ValueType::StreamListpacks3.loads_on(valkey_8_1));
        assert!(!ValueType::ValkeyHash2.loads_on(valkey_8_1));
        assert!(ValueType::ValkeyHash2.loads_on(server(Product::Valkey, "9.1.2")));
        assert!(!ValueType::HashMetadata.loads_on(server(Product::Valkey, "9.1.2")));
    }
}
