//! Tests of the crate as a whole: vectors of real servers, properties, hostile input.

mod ancient;
mod deliver;
mod hostile;
mod owned;
mod properties;
mod rewrite;
mod support;
mod translate;
mod values;
mod vectors;
pub(crate) mod writer;

pub(crate) use support::redis;

/// The digests of an RDB that is whole and right.
pub(crate) fn digests_of(rdb: &[u8]) -> Vec<crate::KeyDigest> {
    let found = support::read(crate::Level::Element, &[rdb]).unwrap();
    found.digests.into_iter().map(|(_, digest)| digest).collect()
}
