//! The settings of a server that nobody has configured, line by line of versions.
//!
//! The tables are made by `scripts/config-defaults.sh` from real servers. A line of versions without a table of its own uses the
//! nearest older one of its product, or the oldest if there is none.

use slotkeep_model::{Product, ServerVersion};

use super::names::all_names;

struct Table {
    product: Product,
    line: (u16, u16),
    text: &'static str,
}

macro_rules! table {
    ($product:ident, $major:literal, $minor:literal, $file:literal) => {
        Table {
            product: Product::$product,
            line: ($major, $minor),
            text: include_str!(concat!("defaults/", $file)),
        }
    };
}

/// Oldest first in each product.
const TABLES: &[Table] = &[
    table!(Redis, 6, 2, "redis-6.2.conf"),
    table!(Redis, 7, 0, "redis-7.0.conf"),
    table!(Redis, 7, 2, "redis-7.2.conf"),
    table!(Redis, 7, 4, "redis-7.4.conf"),
    table!(Redis, 8, 0, "redis-8.0.conf"),
    table!(Redis, 8, 2, "redis-8.2.conf"),
    table!(Valkey, 8, 0, "valkey-8.0.conf"),
    table!(Valkey, 8, 1, "valkey-8.1.conf"),
    table!(Valkey, 9, 0, "valkey-9.0.conf"),
    table!(Valkey, 9, 1, "valkey-9.1.conf"),
];

/// The defaults of one server.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    text: &'static str,
    exact: bool,
}

impl Defaults {
    /// Those of that server, or of the nearest older one that is known.
    pub fn of(server: ServerVersion) -> Self {
        let line = (server.major, server.minor);
        let product = || TABLES.iter().filter(|table| table.product == server.product);
        let table = product().rfind(|table| table.line <= line).or_else(|| product().next());
        Self {
            text: table.map_or("", |table| table.text),
            exact: table.is_some_and(|table| table.line == line),
        }
    }

    /// Whether they are those of the server's own line of versions: then it knows no other settings, but for those of modules.
    pub const fn are_exact(self) -> bool {
        self.exact
    }

    /// The default of a setting, if the server knows it.
    pub fn get(self, name: &str) -> Option<&'static str> {
        self.text.lines().find_map(|line| {
            let rest = line.strip_prefix(name)?;
            // A setting whose default is empty stands alone on its line.
            if rest.is_empty() { Some(rest) } else { rest.strip_prefix(' ') }
        })
    }

    /// By which name the server knows a setting that was recorded under `name`; `None` if by none.
    pub fn name_of(self, name: &str) -> Option<&str> {
        all_names(name).find(|name| self.get(name).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(product: Product, version: &str) -> Defaults {
        Defaults::of(ServerVersion::parse(product, version).unwrap())
    }

    #[test]
    fn every_table_is_whole() {
        for table in TABLES {
            let defaults = Defaults { text: table.text, exact: true };
            assert_eq!(defaults.get("maxclients"), Some("10000"), "{:?}", table.line);
            assert_eq!(defaults.get("requirepass"), Some(""), "{:?}", table.line);
            assert_eq!(defaults.get("save"), Some("3600 1 300 100 60 10000"), "{:?}", table.line);
            assert_eq!(defaults.get("max"), None);
            assert!(table.text.lines().count() > 140);
        }
    }

    #[test]
    fn a_line_without_a_table_uses_the_nearest_older_one() {
        assert_eq!(defaults(Product::Redis, "8.6.1").text, defaults(Product::Redis, "8.2.0").text);
        assert_eq!(defaults(Product::Redis, "6.0.16").text, defaults(Product::Redis, "6.2.0").text);
        assert_eq!(defaults(Product::Valkey, "7.2.5").text, defaults(Product::Valkey, "8.0.0").text);
        assert_ne!(defaults(Product::Valkey, "9.1.0").text, defaults(Product::Valkey, "9.0.0").text);
        assert!(
            defaults(Product::Valkey, "9.1.7").are_exact() && !defaults(Product::Redis, "8.6.1").are_exact()
        );
    }

    #[test]
    fn settings_are_found_by_the_name_that_the_server_knows() {
        let old = defaults(Product::Redis, "6.2.14");
        assert_eq!(old.name_of("hash-max-listpack-entries"), Some("hash-max-ziplist-entries"));
        assert_eq!(old.name_of("shutdown-timeout"), None);
        assert_eq!(defaults(Product::Valkey, "9.1.2").name_of("slave-priority"), Some("slave-priority"));
    }
}
