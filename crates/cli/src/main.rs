//! slotkeep
fn main() {}
