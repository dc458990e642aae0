//! Whether a key matches a pattern, by the rules of `KEYS` and `SCAN … MATCH`.
//!
//! Source: `stringmatchlen_impl` in `src/util.c` and `keysCommand` in `src/db.c` of Redis 7.0 and Valkey 9.1, oddities included: a class
//! that does not end is taken to end with the pattern, the bounds of a range may come in either order and compare as signed bytes (as on
//! x86-64), `\` at the end stands for itself, and the empty key matches `*` and the empty pattern only.

/// Beyond so many nested `*` servers give up.
const MOST_NESTED: u32 = 1000;

/// Whether a key matches.
pub fn matches(pattern: &[u8], key: &[u8]) -> bool {
    // Servers do not look at the key then; their matcher alone would not let the empty key pass.
    pattern == b"*" || matches_from(pattern, key, &mut false, 0)
}

fn matches_from(mut pattern: &[u8], mut key: &[u8], hopeless: &mut bool, nested: u32) -> bool {
    if nested > MOST_NESTED {
        return false;
    }
    while let (Some((&first, rest)), Some((&byte, left))) = (pattern.split_first(), key.split_first()) {
        match first {
            b'*' => return matches_star(rest, key, hopeless, nested),
            b'?' => pattern = rest,
            b'[' => match class(rest, byte) {
                (true, after) => pattern = after,
                (false, _) => return false,
            },
            _ => {
                let (literal, after) = match rest.split_first() {
                    Some((&escaped, after)) if first == b'\\' => (escaped, after),
                    _ => (first, rest),
                };
                if literal != byte {
                    return false;
                }
                pattern = after;
            }
        }
        key = left;
        if key.is_empty() {
            while let Some((b'*', rest)) = pattern.split_first() {
                pattern = rest;
            }
        }
    }
    pattern.is_empty() && key.is_empty()
}

/// Matches what follows a `*`. Where it is found nowhere, a `*` before it need not try longer matches.
fn matches_star(mut pattern: &[u8], mut key: &[u8], hopeless: &mut bool, nested: u32) -> bool {
    while let Some((b'*', rest)) = pattern.split_first() {
        pattern = rest;
    }
    if pattern.is_empty() {
        return true;
    }
    while let Some((_, left)) = key.split_first() {
        if matches_from(pattern, key, hopeless, nested + 1) {
            return true;
        }
        if *hopeless {
            return false;
        }
        key = left;
    }
    *hopeless = true;
    false
}

/// Whether a byte is in the class that begins there, and what follows the class.
fn class(mut pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    let negated = pattern.first() == Some(&b'^');
    if negated {
        pattern = pattern.get(1..).unwrap_or_default();
    }
    let mut found = false;
    loop {
        pattern = match *pattern {
            [] => break,
            [b'\\', escaped, ..] => {
                found |= escaped == byte;
                pattern.get(2..).unwrap_or_default()
            }
            [b']', ..] => {
                pattern = pattern.get(1..).unwrap_or_default();
                break;
            }
            [one, b'-', other, ..] => {
                let signed = |byte: u8| byte.cast_signed();
                let (low, high) = (signed(one).min(signed(other)), signed(one).max(signed(other)));
                found |= (low..=high).contains(&signed(byte));
                pattern.get(3..).unwrap_or_default()
            }
            [literal, ..] => {
                found |= literal == byte;
                pattern.get(1..).unwrap_or_default()
            }
        };
    }
    (found != negated, pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_on_servers() {
        let yes: [(&[u8], &[u8]); 17] = [
            (b"*", b""),
            (b"", b""),
            (b"*", b"any"),
            (b"user:*:name", b"user:7:name"),
            (b"h?llo", b"hello"),
            (b"h[ae]llo", b"hallo"),
            (b"h[^e]llo", b"hallo"),
            (b"h[a-c]llo", b"hbllo"),
            (b"h[c-a]llo", b"hbllo"),
            (b"h[a-c", b"hb"),
            (b"[^", b"x"),
            (b"a\\*", b"a*"),
            (b"a\\", b"a\\"),
            (b"[\\]]", b"]"),
            (b"a**", b"a"),
            (b"[a-\xff]", b"\xff"),
            (b"*a*b*c*", b"xxaxxbxxcxx"),
        ];
        for (pattern, key) in yes {
            assert!(matches(pattern, key), "{} {}", pattern.escape_ascii(), key.escape_ascii());
        }
        let no: [(&[u8], &[u8]); 10] = [
            (b"**", b""),
            (b"", b"a"),
            (b"?", b""),
            (b"h[^e]llo", b"hello"),
            (b"h[ae]llo", b"hillo"),
            (b"[]", b"a"),
            (b"[a-\xff]", b"b"),
            (b"a*b", b"ac"),
            (b"abc", b"ab"),
            (b"ab", b"abc"),
        ];
        for (pattern, key) in no {
            assert!(!matches(pattern, key), "{} {}", pattern.escape_ascii(), key.escape_ascii());
        }
    }

    #[test]
    fn a_pattern_made_to_take_long_does_not() {
        let pattern = b"a*".repeat(400);
        assert!(!matches(&[pattern.as_slice(), b"b"].concat(), &b"a".repeat(4000)));
        assert!(!matches(&b"*?".repeat(5000), &b"a".repeat(6000)[..4999]));
    }
}
