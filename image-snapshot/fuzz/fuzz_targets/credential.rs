#![no_main]

libfuzzer_sys::fuzz_target!(init: { image_snapshot_fuzz::plant("credential") }, |data: &[u8]| image_snapshot::fuzz::credential(data));
