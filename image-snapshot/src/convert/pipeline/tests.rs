use std::io::Write as _;

use super::*;
use crate::{ErrorKind, merged::Merged, testing::Tar};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn run(blob: Vec<u8>, tar: &[u8], limits: &Limits) -> Result<u64, ConvertError> {
    let out = tempfile::tempfile().unwrap();
    let staged = stage_blob(io::Cursor::new(blob), &Digest::sha256(tar), out, limits)?;
    Ok(staged.finish(&Merged::new(Vec::new()))?.content)
}

fn sample() -> Vec<u8> {
    (0..20).fold(Tar::new(), |t, i| t.file(&format!("f{i}"), &vec![i as u8; 100_000])).end()
}

#[test]
fn plain_gzip_and_zstd_give_the_same_layer() {
    let tar = sample();
    let halves = [gzip(&tar[..5000]), gzip(&tar[5000..])].concat();
    let skippable =
        [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd::encode_all(&tar[..], 3).unwrap()].concat();
    for blob in [tar.clone(), gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap(), halves, skippable] {
        assert_eq!(run(blob, &tar, &Limits::default()).unwrap(), 2_000_000);
    }
}

/// As they are made for lazy loading: each file a frame or member of its own, with tables between and behind that are no layer's bytes.
#[test]
fn layers_in_pieces_as_zstd_chunked_and_estargz_have_them_come_out_whole() {
    let tar = sample();
    // More than any buffer that it passes through.
    let table = |bytes: usize| {
        let header = [&[0x5e, 0x2a, 0x4d, 0x18][..], &u32::try_from(bytes).unwrap().to_le_bytes()].concat();
        [header, vec![0xa5; bytes]].concat()
    };
    let frames = tar.chunks(70_000).map(|piece| zstd::encode_all(piece, 3).unwrap());
    let chunked: Vec<u8> = frames.flat_map(|frame| [frame, table(7)].concat()).collect();
    let chunked = [chunked, table(3 << 20), table(64)].concat();
    assert_eq!(run(chunked.clone(), &tar, &Limits::default()).unwrap(), 2_000_000);
    let members: Vec<u8> = tar.chunks(70_000).flat_map(gzip).collect();
    let footer = gzip(b"");
    assert_eq!(run([members, footer].concat(), &tar, &Limits::default()).unwrap(), 2_000_000);
    // A table that is cut short is damage, as a frame is.
    let error = run(chunked[..chunked.len() - 1].to_vec(), &tar, &Limits::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
}

#[test]
fn an_empty_layer_is_a_layer() {
    for tar in [Vec::new(), vec![0; 1024]] {
        assert_eq!(run(gzip(&tar), &tar, &Limits::default()).unwrap(), 0);
    }
}

#[test]
fn bytes_behind_the_end_marker_count_for_the_diff_id() {
    let mut tar = sample();
    tar.extend(vec![0; 1 << 20]);
    assert!(run(gzip(&tar), &tar, &Limits::default()).is_ok());
    assert!(matches!(run(gzip(&sample()), &tar, &Limits::default()), Err(ConvertError::DiffId { .. })));
}

#[test]
fn damage_is_told_as_damage() {
    let tar = sample();
    for blob in [gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap()] {
        let mut flipped = blob.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x55;
        let cut = blob[..blob.len() - 20].to_vec();
        let tailed = [&blob[..], b"more"].concat();
        // What a flipped bit breaks first is chance; that the blob's digest is wrong is for its source to say.
        assert!(run(flipped, &tar, &Limits::default()).is_err());
        for bad in [cut, tailed] {
            let error = run(bad, &tar, &Limits::default()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
        }
    }
}

#[test]
fn bombs_are_stopped_early() {
    let limits = Limits { layer_bytes: 64 << 20, ratio_from: 1 << 20, ..Limits::default() };
    struct Zeros(u64);
    impl Read for Zeros {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            buf.fill(0);
            let n = self.0.min(buf.len() as u64);
            self.0 -= n;
            Ok(n as usize)
        }
    }
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    io::copy(&mut Zeros(200 << 20), &mut packer).unwrap();
    let bomb = packer.finish().unwrap();
    let error = run(bomb, b"", &limits).unwrap_err();
    assert!(matches!(error, ConvertError::Limit { what: "times compression", .. }), "{error:?}");
    let big = zstd::encode_all(Zeros(200 << 20), 1).unwrap();
    assert!(matches!(
        run(big, b"", &Limits { ratio: 1 << 40, ..limits.clone() }),
        Err(ConvertError::Limit { what: "uncompressed bytes", .. })
    ));
    // A window of 1 GiB would be allocated by whoever believes the header.
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(30).unwrap();
    wide.long_distance_matching(true).unwrap();
    wide.write_all(&sample()).unwrap();
    let error = run(wide.finish().unwrap(), &sample(), &limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
}

#[test]
fn a_producer_that_gives_up_is_told_apart_from_a_short_blob() {
    struct Aborts(io::Cursor<Vec<u8>>);
    impl Read for Aborts {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buf)? {
                0 => Err(CANCELLED.into()),
                n => Ok(n),
            }
        }
    }
    let tar = sample();
    for cut in [0, 3, 700, 100_000] {
        let blob = Aborts(io::Cursor::new(tar[..cut].to_vec()));
        let out = tempfile::tempfile().unwrap();
        let error = stage_blob(blob, &Digest::sha256(&tar), out, &Limits::default()).unwrap_err();
        assert!(matches!(error, ConvertError::Cancelled), "{cut}: {error:?}");
    }
}
