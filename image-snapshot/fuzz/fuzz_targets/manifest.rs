#![no_main]

libfuzzer_sys::fuzz_target!(init: { image_snapshot_fuzz::plant("manifest") }, |data: &[u8]| image_snapshot::fuzz::manifest(data));
