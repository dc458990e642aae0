//! A reply, decoded.

/// One reply, or one element of one.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A one-line status, such as `OK`. Bytes that are not UTF-8 are replaced.
    Simple(String),
    /// An error reply without its `-`: a code word, a space and a text. Bytes that are not UTF-8 are replaced.
    Error(String),
    /// An integer.
    Integer(i64),
    /// A binary-safe string; also RESP3's verbatim strings, without their three-letter format.
    Bulk(Vec<u8>),
    /// No value: RESP2's null bulk string and null array, RESP3's null.
    Null,
    /// An array.
    Array(Vec<Value>),
    /// A RESP3 map, in the order it was sent.
    Map(Vec<(Value, Value)>),
    /// A RESP3 set, in the order it was sent.
    Set(Vec<Value>),
    /// A RESP3 push message: it is not the reply to any command.
    Push(Vec<Value>),
    /// A RESP3 floating-point number.
    Double(f64),
    /// A RESP3 truth value.
    Boolean(bool),
    /// A RESP3 integer of any size, in decimal.
    BigNumber(String),
}

impl Value {
    /// The bytes of a string of either kind.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Simple(text) | Self::BigNumber(text) => Some(text.as_bytes()),
            Self::Bulk(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a string of either kind, if it is UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        self.as_bytes().and_then(|bytes| core::str::from_utf8(bytes).ok())
    }

    /// The bytes of a string of either kind, moved out.
    pub fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Simple(text) | Self::BigNumber(text) => Some(text.into_bytes()),
            Self::Bulk(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// An integer, also one that was sent as a decimal string, as many replies do.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            other => other.as_text()?.parse().ok(),
        }
    }

    /// An integer that is not negative, also one that was sent as a decimal string.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            other => other.as_text()?.parse().ok(),
        }
    }

    /// The text of an error reply.
    pub fn as_error(&self) -> Option<&str> {
        match self {
            Self::Error(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is the status `OK`.
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Simple(text) if text == "OK")
    }

    /// Whether there is no value.
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The elements of an array, a set or a push message.
    pub fn as_array(&self) -> Option<&[Self]> {
        match self {
            Self::Array(items) | Self::Set(items) | Self::Push(items) => Some(items),
            _ => None,
        }
    }

    /// The elements of an array, a set or a push message, moved out.
    pub fn into_array(self) -> Option<Vec<Self>> {
        match self {
            Self::Array(items) | Self::Set(items) | Self::Push(items) => Some(items),
            _ => None,
        }
    }

    /// The value of the field `name` of a map, whether it came as a RESP3 map or as RESP2's flat array of names and
    /// values; the first one where a name is repeated.
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(pairs) => {
                pairs.iter().find(|(key, _)| key.as_bytes() == Some(name.as_bytes())).map(|(_, value)| value)
            }
            Self::Array(items) => items.chunks_exact(2).find_map(|pair| match pair {
                [key, value] if key.as_bytes() == Some(name.as_bytes()) => Some(value),
                _ => None,
            }),
            _ => None,
        }
    }

    /// The pairs of a map, whether it came as a RESP3 map or as RESP2's flat array; `None` for anything else and for
    /// an array of odd length.
    pub fn pairs(&self) -> Option<Vec<(&Self, &Self)>> {
        match self {
            Self::Map(pairs) => Some(pairs.iter().map(|(key, value)| (key, value)).collect()),
            Self::Array(items) if items.len().is_multiple_of(2) => {
                Some(items.chunks_exact(2).filter_map(|pair| pair.first().zip(pair.get(1))).collect())
            }
            _ => None,
        }
    }
}
