//! When keys expire, counted from the moment of the dataset.

/// The bounds of the rows between "expired" and "more": a name, and how many ms from the moment on.
const BOUNDS: [(&str, i64); 5] = [
    ("under_1_minute", 60_000),
    ("under_1_hour", 3_600_000),
    ("under_1_day", 86_400_000),
    ("under_7_days", 7 * 86_400_000),
    ("under_30_days", 30 * 86_400_000),
];

/// How many rows there are.
pub(super) const ROWS: usize = BOUNDS.len() + 3;

/// The names of the rows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let bounds = BOUNDS.iter().map(|(name, _)| *name);
    ["no_expiry", "expired"].into_iter().chain(bounds).chain(["30_days_or_more"])
}

/// The row of a key that expires then.
pub(super) fn row(expiry_ms: Option<i64>, moment_ms: i64) -> usize {
    let Some(expiry_ms) = expiry_ms else { return 0 };
    if expiry_ms <= moment_ms {
        return 1;
    }
    let left_ms = expiry_ms.saturating_sub(moment_ms);
    2 + BOUNDS.iter().take_while(|(_, bound)| left_ms >= *bound).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_row_after_it() {
        let name = |left_ms: i64| names().nth(row(Some(1000 + left_ms), 1000)).unwrap();
        assert_eq!(name(-1), "expired");
        assert_eq!(name(0), "expired");
        assert_eq!(name(1), "under_1_minute");
        assert_eq!(name(59_999), "under_1_minute");
        assert_eq!(name(60_000), "under_1_hour");
        assert_eq!(name(86_399_999), "under_1_day");
        assert_eq!(name(86_400_000), "under_7_days");
        assert_eq!(name(30 * 86_400_000 - 1), "under_30_days");
        assert_eq!(name(30 * 86_400_000), "30_days_or_more");
        assert_eq!(names().nth(row(None, 1000)), Some("no_expiry"));
        assert_eq!(names().count(), ROWS);
        assert_eq!(row(Some(i64::MAX), i64::MIN), ROWS - 1);
    }
}
