//! What followed a place.

use slotkeep_model::ReplId;

use super::{Chain, Piece, Place};

impl Chain {
    /// The bytes that followed a place on the main line, by history, up to the first one that is missing. What its history holds behind the
    /// fork at which the main line left it is no part of them, unless the place itself lies behind that fork. `own` is the history that a
    /// server began at the place which is to be given them: what it has written itself did not follow.
    pub fn behind(&self, place: &Place, own: Option<&ReplId>) -> Vec<Piece> {
        let others;
        let chain = match own.filter(|own| **own != place.history) {
            Some(own) => {
                others = self.without(own);
                &others
            }
            None => self,
        };
        let main = chain.path(&chain.main_tip(&place.history));
        let path = if main.holds(place) { main } else { chain.path(&place.history) };
        path.pieces(place.offset, chain.reach(&path, place.offset))
    }

    fn without(&self, history: &ReplId) -> Self {
        let mut chain = self.clone();
        chain.strands.remove(history);
        chain.bases.retain(|base| base.place.history != *history);
        chain
    }
}
