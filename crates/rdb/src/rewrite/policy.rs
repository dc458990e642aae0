//! What a rewriter keeps and what it changes.

use slotkeep_model::{RdbVersion, Slot, SlotSet};

use crate::parser::KeyHeader;
use crate::translate::{FieldExpiry, Translation};

/// What becomes of the expiry of keys.
#[derive(Default)]
pub enum Expiry<'p> {
    /// It stays.
    #[default]
    Keep,
    /// It is dropped: keys stay for good.
    Drop,
    /// It is moved by that many ms, but not before the first ms of 1970.
    Shift(i64),
    /// It is what the function says.
    Map(ExpiryMap<'p>),
}

/// Which modules' values go to the target, which loads them only if it has the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Modules {
    /// All, if the target is of the product that the RDB is from; else they are an error.
    #[default]
    SameProduct,
    /// All: the target is known to have the modules.
    All,
    /// They are an error.
    None,
}

/// Says when a key is to expire, in ms since the epoch.
pub type ExpiryMap<'p> = Box<dyn FnMut(&KeyHeader<'_>) -> Option<i64> + Send + 'p>;

/// Says whether a key is kept.
pub type Filter<'p> = Box<dyn FnMut(&KeyHeader<'_>) -> bool + Send + 'p>;

/// What a [`super::Rewriter`] keeps and what it changes.
pub struct Policy<'p> {
    /// The version to write, and how values are translated for it. Its limit also holds for any other record.
    pub translation: Translation,
    /// Only keys of these slots; all if `None`.
    pub slots: Option<SlotSet>,
    /// Only keys for which this says so. Values are not looked at.
    pub filter: Option<Filter<'p>>,
    /// What becomes of the expiry of keys. That of hashes' fields is [`Translation::field_expiry`].
    pub expiry: Expiry<'p>,
    /// Whether function libraries are kept.
    pub functions: bool,
    /// Which modules' values are kept.
    pub modules: Modules,
}

impl Policy<'_> {
    /// Keeps everything and changes nothing, but for what the version demands.
    pub fn new(target: RdbVersion) -> Self {
        Self {
            translation: Translation::new(target),
            slots: None,
            filter: None,
            expiry: Expiry::Keep,
            functions: true,
            modules: Modules::SameProduct,
        }
    }

    pub(super) const fn keeps_all_keys(&self) -> bool {
        self.slots.is_none() && self.filter.is_none()
    }

    pub(super) fn keeps_everything(&self) -> bool {
        self.keeps_all_keys()
            && matches!(self.expiry, Expiry::Keep)
            && self.translation.field_expiry == FieldExpiry::Keep
            && self.functions
            && self.modules != Modules::None
    }

    pub(super) fn wants(&mut self, header: &KeyHeader<'_>, slot: Slot) -> bool {
        self.slots.as_ref().is_none_or(|slots| slots.contains(slot))
            && self.filter.as_mut().is_none_or(|filter| filter(header))
    }

    pub(super) fn expiry_of(&mut self, header: &KeyHeader<'_>) -> Option<i64> {
        match &mut self.expiry {
            Expiry::Keep => header.expiry_ms,
            Expiry::Drop => None,
            Expiry::Shift(ms) => header.expiry_ms.map(|expiry_ms| expiry_ms.saturating_add(*ms).max(1)),
            Expiry::Map(map) => map(header),
        }
    }
}
