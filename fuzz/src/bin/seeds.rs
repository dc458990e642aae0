//! Writes the seeds of a fuzzer into a folder: `seeds NAME FOLDER`; without arguments, prints the names of all fuzzers.

use std::path::Path;

use slotkeep_fuzz::{seeds::seeds, targets::TARGETS};

fn main() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut args = std::env::args().skip(1);
    let (Some(name), Some(folder)) = (args.next(), args.next()) else {
        TARGETS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    std::fs::create_dir_all(&folder).expect("a folder that can be made");
    for (number, seed) in seeds(&name, &repository).iter().enumerate() {
        std::fs::write(Path::new(&folder).join(format!("{number:03}")), seed)
            .expect("a file that can be written");
    }
}
