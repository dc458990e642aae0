//! Server products and versions, RDB versions, and which server loads which RDB.
//!
//! Source of the rules: `src/rdb.h` and `rdbLoadRioWithLoadingCtx` of Redis 6.2 to 8.8 and Valkey 7.2 to 9.1, and
//! `verifyDumpPayload` in their `src/cluster.c`.

use core::fmt;
use core::str::FromStr;

/// Which server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Product {
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
        })
    }
}

/// A server's product and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion {
    /// Redis or Valkey.
    pub product: Product,
    /// The version's first number.
    pub major: u16,
    /// The version's second number.
    pub minor: u16,
    /// The version's third number.
    pub patch: u16,
}

impl ServerVersion {
    /// Reads `7.0.15` as a version of that product. A trailing tag as in `8.0.0-rc1` is ignored.
    pub fn parse(product: Product, text: &str) -> Option<Self> {
        let mut numbers = text.split(['-', '+', ' ']).next()?.split('.');
        let mut next = || numbers.next().and_then(|number| number.parse().ok());
        let major = next()?;
        Some(Self { product, major, minor: next().unwrap_or(0), patch: next().unwrap_or(0) })
    }

    /// The newest RDB version that the server writes and loads.
    pub fn newest_rdb(self) -> RdbVersion {
        let redis = |number| RdbVersion { product: Product::Redis, number };
        match (self.product, self.major, self.minor) {
            (Product::Redis, 0..=2, _) => redis(6),
            (Product::Redis, 3, 0..=1) => redis(6),
            (Product::Redis, 3, _) => redis(7),
            (Product::Redis, 4, _) => redis(8),
            (Product::Redis, 5..=6, _) => redis(9),
            (Product::Redis, 7, 0..=1) => redis(10),
            (Product::Redis, 7, 2..=3) => redis(11),
            (Product::Redis, 7, _) | (Product::Redis, 8, 0..=5) => redis(12),
            (Product::Redis, 8, 6..=7) => redis(13),
            (Product::Redis, 8, 8..=9) => redis(14),
            (Product::Redis, _, _) => redis(15),
            (Product::Valkey, 0..=8, _) => redis(11),
            (Product::Valkey, _, _) => RdbVersion { product: Product::Valkey, number: 80 },
        }
    }

    /// Whether a server of this version loads an RDB of that version, with its default `rdb-version-check strict`.
    pub fn loads(self, rdb: RdbVersion) -> bool {
        match (self.newest_rdb().product, rdb.product) {
            (Product::Redis, Product::Redis) => rdb.number <= self.newest_rdb().number,
            (Product::Redis, Product::Valkey) => false,
            // Valkey reserves 12 to 79 for what is not its own and refuses them.
            (Product::Valkey, Product::Redis) => rdb.number <= 11,
            (Product::Valkey, Product::Valkey) => rdb.number <= self.newest_rdb().number,
        }
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{}.{}", self.product, self.major, self.minor, self.patch)
    }
}

/// The version of an RDB file: the magic word it starts with (`REDIS` or `VALKEY`) and the number after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RdbVersion {
    /// Whose magic word the file starts with. Valkey up to 8.1 writes `REDIS`.
    pub product: Product,
    /// The number.
    pub number: u16,
}

impl RdbVersion {
    /// Length of the magic word and number at the start of an RDB.
    pub const MAGIC_LEN: usize = 9;

    /// Reads the first nine bytes of an RDB.
    pub fn from_magic(magic: &[u8; Self::MAGIC_LEN]) -> Option<Self> {
        let text = core::str::from_utf8(magic).ok()?;
        text.parse().ok()
    }
}

impl fmt::Display for RdbVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.product {
            Product::Redis => write!(f, "REDIS{:04}", self.number),
            Product::Valkey => write!(f, "VALKEY{:03}", self.number),
        }
    }
}

/// Text that is not the magic word and number of an RDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdbVersionSyntaxError;

impl fmt::Display for RdbVersionSyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected REDIS and four digits, or VALKEY and three")
    }
}

impl core::error::Error for RdbVersionSyntaxError {}

impl FromStr for RdbVersion {
    type Err = RdbVersionSyntaxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (product, digits, count) = if let Some(digits) = text.strip_prefix("REDIS") {
            (Product::Redis, digits, 4)
        } else if let Some(digits) = text.strip_prefix("VALKEY") {
            (Product::Valkey, digits, 3)
        } else {
            return Err(RdbVersionSyntaxError);
        };
        if digits.len() != count || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(RdbVersionSyntaxError);
        }
        let number = digits.parse().map_err(|_| RdbVersionSyntaxError)?;
        Ok(Self { product, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(product: Product, text: &str) -> ServerVersion {
        ServerVersion::parse(product, text).unwrap()
    }

    #[test]
    fn rdb_versions_read_what_they_write() {
        for text in ["REDIS0009", "REDIS0012", "VALKEY080"] {
            assert_eq!(text.parse::<RdbVersion>().unwrap().to_string(), text);
        }
        for text in ["REDIS009", "VALKEY0080", "REDIS00-1", "redis0009", ""] {
            assert!(text.parse::<RdbVersion>().is_err(), "{text}");
        }
    }

    #[test]
    fn servers_load_what_their_sources_say() {
        let rdb = |text: &str| text.parse::<RdbVersion>().unwrap();
        let redis_7_0 = server(Product::Redis, "7.0.15");
        assert!(redis_7_0.loads(rdb("REDIS0010")));
        assert!(!redis_7_0.loads(rdb("REDIS0011")));
        assert!(!redis_7_0.loads(rdb("VALKEY080")));
        let valkey_9_1 = server(Product::Valkey, "9.1.2");
        assert!(valkey_9_1.loads(rdb("REDIS0010")));
        assert!(valkey_9_1.loads(rdb("VALKEY080")));
        assert!(!valkey_9_1.loads(rdb("REDIS0012")));
        assert!(!valkey_9_1.loads(rdb("VALKEY081")));
        let valkey_8_1 = server(Product::Valkey, "8.1.8");
        assert!(valkey_8_1.loads(rdb("REDIS0011")));
        assert!(!valkey_8_1.loads(rdb("REDIS0012")));
        assert!(!valkey_8_1.loads(rdb("VALKEY080")));
    }
}
