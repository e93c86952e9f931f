#![no_main]

libfuzzer_sys::fuzz_target!(init: { image_snapshot_fuzz::plant("erofs_writer") }, |data: &[u8]| image_snapshot::fuzz::erofs_writer(data));
