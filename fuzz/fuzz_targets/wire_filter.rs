#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| slotkeep_fuzz::targets::wire_filter(data));
