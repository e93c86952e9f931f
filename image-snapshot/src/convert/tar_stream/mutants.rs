//! Archives with something wrong in them, for the judges of our reader.

use std::process::Command;

use crate::testing::Tar;

/// Sound archives that use everything there is.
pub(super) fn bases() -> Vec<Vec<u8>> {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(90));
    let gnu_name = |t: Tar| t.with("././@LongLink", b'L', format!("{long}\0").as_bytes(), |_| {});
    let mut out = vec![
        Tar::new()
            .dir("d/", 0o755)
            .file("d/f", b"content")
            .symlink("l", "d")
            .hardlink("h", "d/f")
            .device("c", b'3', 1, 3)
            .end(),
        Tar::new()
            .pax("mtime", b"1234567890.123456789")
            .pax("uid", b"70000")
            .pax("SCHILY.xattr.user.a", b"v\n\0v")
            .file("f", &[7; 700])
            .pax("path", long.as_bytes())
            .pax("size", b"3")
            .file("x", b"abc")
            .pax("linkpath", long.as_bytes())
            .symlink("s", "x")
            .end(),
        gnu_name(Tar::new()).file("x", b"1").with("././@LongLink", b'K', b"target\0", |_| {}).symlink("s", "y").end(),
        Tar::new().with("pax", b'g', b"17 comment=hello\n", |_| {}).file("f", b"").end(),
    ];
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    for i in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[i as u8 + 1; 600], i * 16_384).unwrap();
    }
    std::fs::write(dir.path().join("n".repeat(140)), b"x").unwrap();
    for args in [
        &["--format=gnu", "--sparse"][..],
        &["--format=v7"],
        &["--format=ustar"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(dir.path()).args(args).args(["--numeric-owner", "-cf", "-", "."]);
        out.push(tar.output().unwrap().stdout);
    }
    out
}

/// Where the headers are.
fn headers(bytes: &[u8]) -> Vec<usize> {
    let mut out = Vec::new();
    let mut at = 0;
    while at + 512 <= bytes.len() && bytes[at..at + 512] != [0; 512] {
        out.push(at);
        let size = std::str::from_utf8(&bytes[at + 124..at + 135]).ok().and_then(|t| u64::from_str_radix(t, 8).ok());
        let mut more = bytes[at + 156] == b'S' && bytes[at + 482] != 0;
        at += 512;
        while more {
            more = bytes[at + 504] != 0;
            at += 512;
        }
        at += (size.unwrap_or(0) as usize).next_multiple_of(512);
    }
    out
}

fn sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A base with some bytes changed, its headers' checksums right again.
pub(super) fn mutant(base: &[u8], seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let headers = headers(base);
    let mut out = base.to_vec();
    for _ in 0..=below(3) {
        let header = headers[below(headers.len())];
        // Mostly where the meaning is: fields of the header, and the extension or map behind it.
        let at = match below(6) {
            0 => header + 156,
            1 => header + 124 + below(12),
            2 => header + 257 + below(8),
            3 => header + below(512),
            4 => header + 345 + below(160),
            _ => header + 512 + below(200),
        };
        let interesting = [0, b' ', b'0', b'1', b'7', b'/', b'.', b'S', b'x', b'\n', b'=', 0x80, 0xff, b'5', b'L'];
        let byte = if below(3) == 0 { below(256) as u8 } else { interesting[below(interesting.len())] };
        if let Some(place) = out.get_mut(at) {
            *place = byte;
        }
    }
    for header in headers {
        sum(&mut out[header..header + 512]);
    }
    out
}
