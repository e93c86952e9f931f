//! Archives that are bad in one way, and blobs that are no archives.

use super::{
    random::Random,
    support::images::{Packing, pack},
};

pub(crate) type Archive = fn(&mut Random) -> Vec<u8>;
pub(crate) type Blob = fn(&[u8], &mut Random) -> Vec<u8>;

/// An archive in the making. Names that are good begin with `g`, so that nothing meets them by chance.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    /// A few entries that nobody can object to.
    fn some(random: &mut Random) -> Self {
        let mut tar = Self::default();
        for i in 0..=random.below(3) {
            let path = format!("g{i}/{}", random.path());
            let content = random.bytes(3000);
            tar = tar.file(&path, &content);
        }
        tar
    }

    fn entry(mut self, path: &[u8], kind: u8, content: &[u8], change: impl FnOnce(&mut tar::Header)) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(0o644);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(path.as_bytes(), b'0', content, |_| {})
    }

    fn link(self, path: &str, kind: u8, target: &[u8]) -> Self {
        self.entry(path.as_bytes(), kind, b"", |h| h.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target))
    }

    /// A PAX header for the next entry.
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.entry(b"pax", b'x', &body, |_| {})
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// One that is good.
pub(crate) fn good(random: &mut Random) -> Vec<u8> {
    Tar::some(random).end()
}

/// One of many names for each of some files below.
pub(crate) fn links(targets: &[&str], random: &mut Random) -> Vec<u8> {
    let mut tar = Tar::some(random);
    for i in 0..40 {
        let target = targets[i % targets.len()];
        tar = tar.link(&format!("links/{i}"), b'1', target.as_bytes());
    }
    tar.end()
}

/// A path with `..` in it.
fn climbing(random: &mut Random) -> String {
    let (a, b) = (random.path(), random.path());
    random.of(&["..", "../x", "../../etc/passwd"]).to_owned().replace('x', &a)
        + random.of(&["", "/", "/y"]).replace('y', &b).as_str()
}

fn prefixed(random: &mut Random, path: &str) -> String {
    match random.below(4) {
        0 => path.to_owned(),
        1 => format!("/{path}"),
        2 => format!("./{path}"),
        _ => format!("{}/{path}", random.path()),
    }
}

fn ends(tar: Tar, random: &mut Random) -> Vec<u8> {
    let tar = if random.below(2) == 0 { tar.file("gz/last", b"last") } else { tar };
    tar.end()
}

pub(crate) const ARCHIVES: [(&str, Archive); 39] = [
    ("file climbs", |r| {
        let path = climbing(r);
        let path = prefixed(r, &path);
        let tar = Tar::some(r).file(&path, b"x");
        ends(tar, r)
    }),
    ("directory climbs", |r| {
        let path = climbing(r);
        let path = prefixed(r, &path);
        let tar = Tar::some(r).entry(path.as_bytes(), b'5', b"", |_| {});
        ends(tar, r)
    }),
    ("symbolic link's name climbs", |r| {
        let path = climbing(r);
        let tar = Tar::some(r).link(&path, b'2', b"x");
        ends(tar, r)
    }),
    ("device climbs", |r| {
        let path = climbing(r);
        let kind = r.of(b"346");
        let tar = Tar::some(r).entry(path.as_bytes(), kind, b"", |_| {});
        ends(tar, r)
    }),
    ("whiteout climbs", |r| {
        let tar = Tar::some(r).file(r.of(&["../.wh.x", "a/../.wh.etc", "..//.wh..wh..opq"]), b"");
        ends(tar, r)
    }),
    ("hard link to what is outside", |r| {
        let path = climbing(r);
        let tar = Tar::some(r).link("gl", b'1', path.as_bytes());
        ends(tar, r)
    }),
    ("long name climbs", |r| {
        let path = format!("{}/../../{}", "d".repeat(90), "e".repeat(90));
        let tar = Tar::some(r).pax(&[("path", path.as_bytes())]).file("x", b"");
        ends(tar, r)
    }),
    ("GNU long name climbs", |r| {
        let path = format!("{}/../../{}\0", "d".repeat(90), r.path());
        let tar = Tar::some(r).entry(b"././@LongLink", b'L', path.as_bytes(), |_| {}).file("x", b"");
        ends(tar, r)
    }),
    ("hard link to nothing", |r| {
        let path = r.path();
        let tar = Tar::some(r).link("gl", b'1', path.as_bytes());
        ends(tar, r)
    }),
    ("hard link to a directory", |r| {
        let tar = Tar::some(r).entry(b"d", b'5', b"", |_| {}).link("gl", b'1', b"d");
        ends(tar, r)
    }),
    ("hard link to the root", |r| {
        let target = r.of(&["/", ".", "./", "//"]);
        let tar = Tar::some(r).link("gl", b'1', target.as_bytes());
        ends(tar, r)
    }),
    ("hard link to a name of a whiteout", |r| {
        let tar = Tar::some(r).file(".wh.d", b"").link("gl", b'1', b"d");
        ends(tar, r)
    }),
    ("link to oneself", |r| {
        let tar = Tar::some(r).link("gl", b'1', b"gl");
        ends(tar, r)
    }),
    ("symbolic link without a target", |r| {
        let tar = Tar::some(r).link("gl", b'2', b"");
        ends(tar, r)
    }),
    ("target of a link too long", |r| {
        let target = vec![b't'; 4096 + r.below(100)];
        let tar = Tar::some(r).pax(&[("linkpath", &target)]).link("gl", b'2', b"x");
        ends(tar, r)
    }),
    ("links in a circle", |r| {
        let through = r.path();
        let tar = Tar::some(r).link("a", b'2', b"b").link("b", b'2', b"/a").file(&format!("a/{through}"), b"");
        ends(tar, r)
    }),
    ("file below a file", |r| {
        let kind = r.of(b"046");
        let path = format!("f/{}", r.path());
        let tar = Tar::some(r).entry(b"f", kind, b"", |_| {}).file(&path, b"");
        ends(tar, r)
    }),
    ("root is no directory", |r| {
        let (path, kind) = (r.of(&["./", "/", ".", "./."]), r.of(b"0236"));
        let tar = Tar::some(r).entry(path.as_bytes(), kind, b"", |h| h.as_mut_bytes()[157] = b'x');
        ends(tar, r)
    }),
    ("name holds NUL", |r| {
        let tar = Tar::some(r).pax(&[("path", b"a\0b")]).file("x", b"");
        ends(tar, r)
    }),
    ("empty name", |r| {
        let tar = Tar::some(r).file("", b"");
        ends(tar, r)
    }),
    ("component too long", |r| {
        let path = vec![b'c'; 256 + r.below(300)];
        let tar = Tar::some(r).pax(&[("path", &path)]).file("x", b"");
        ends(tar, r)
    }),
    ("too deep", |r| {
        let path = "d/".repeat(256 + r.below(50));
        let tar = Tar::some(r).pax(&[("path", path.as_bytes())]).entry(b"x", b'5', b"", |_| {});
        ends(tar, r)
    }),
    ("path too long", |r| {
        let path = format!("{}/", "d".repeat(200)).repeat(21 + r.below(9));
        let tar = Tar::some(r).pax(&[("path", path.as_bytes())]).entry(b"x", b'5', b"", |_| {});
        ends(tar, r)
    }),
    ("PAX size hides an entry", |r| {
        let inner = Tar::default().file("smuggled", b"x").end();
        let size = (r.below(inner.len() / 512) * 512).to_string();
        let tar = Tar::some(r).pax(&[("size", size.as_bytes())]).file("f", &inner);
        ends(tar, r)
    }),
    ("PAX records of a wrong length", |r| {
        let body = r.of(&["9 path=ab\n", "99 path=a\n", "x path=a\n", "7 path\n", "0 a=b\n", "10 path=ab\n\n"]);
        let tar = Tar::some(r).entry(b"pax", b'x', body.as_bytes(), |_| {}).file("f", b"");
        ends(tar, r)
    }),
    ("global PAX header that commands", |r| {
        let key = r.of(&["path", "linkpath", "size", "uid", "mtime", "SCHILY.xattr.user.a"]);
        let value = if key == "path" || key == "linkpath" { &b"x"[..] } else { b"1" };
        let tar = Tar::some(r).entry(b"g", b'g', &record(key, value), |_| {}).file("f", b"");
        ends(tar, r)
    }),
    ("extension without an entry", |r| Tar::some(r).pax(&[("path", b"x")]).end()),
    ("two names at once", |r| {
        let tar = Tar::some(r).entry(b"././@LongLink", b'L', b"one\0", |_| {}).pax(&[("path", b"two")]).file("x", b"");
        ends(tar, r)
    }),
    ("extended header too large", |r| {
        let tar = Tar::some(r).pax(&[("comment", &vec![b'c'; 100 << 10])]).file("x", b"");
        ends(tar, r)
    }),
    ("attributes too large", |r| {
        let tar = Tar::some(r).pax(&[("SCHILY.xattr.user.a", &vec![1; 66_000])]).file("x", b"");
        ends(tar, r)
    }),
    ("unknown kind of entry", |r| {
        let kind = r.of(b"VMDNZ89");
        let tar = Tar::some(r).entry(b"x", kind, b"", |_| {});
        ends(tar, r)
    }),
    ("directory or link with content", |r| {
        let kind = r.of(b"52346");
        let tar = Tar::some(r).entry(b"x", kind, b"content", |h| h.as_mut_bytes()[157] = b'x');
        ends(tar, r)
    }),
    ("file named as a directory", |r| {
        let tar = Tar::some(r).file("x/", b"content");
        ends(tar, r)
    }),
    ("number that is none", |r| {
        // Mode, owner, group, size, time.
        let field = r.of(&[100, 108, 116, 124, 136]);
        let tar =
            Tar::some(r).entry(b"x", b'0', b"", |h| h.as_mut_bytes()[field..field + 7].copy_from_slice(b"12x4567"));
        ends(tar, r)
    }),
    ("owner that means no owner", |r| {
        let (key, value) = (r.of(&["uid", "gid"]), r.of(&["4294967295", "4294967296", "18446744073709551615"]));
        let tar = Tar::some(r).pax(&[(key, value.as_bytes())]).file("x", b"");
        ends(tar, r)
    }),
    ("device number too large", |r| {
        let tar = Tar::some(r).entry(b"x", b'3', b"", |h| h.set_device_major(4096).unwrap());
        ends(tar, r)
    }),
    ("more behind a single zero record", |r| {
        let mut bytes = Tar::some(r).0;
        bytes.extend([0; 512]);
        bytes.extend(Tar::some(r).end());
        bytes
    }),
    ("whiteout of nothing", |r| {
        let name = r.of(&[".wh.", ".wh..", ".wh..."]);
        let path = prefixed(r, name);
        let tar = Tar::some(r).file(&path, b"");
        ends(tar, r)
    }),
    ("too many entries", |r| {
        let mut tar = Tar::some(r);
        for i in 0..101 {
            tar = tar.file(&format!("many/{i}"), b"");
        }
        ends(tar, r)
    }),
];

/// From an archive to a blob that does not hold it.
pub(crate) const BLOBS: [(&str, Blob); 16] = [
    ("archive is cut", |archive, r| {
        // Within the first entry's header or its name at the latest.
        pack(&archive[..1 + r.below(511)], Packing::Gzip)
    }),
    ("header's checksum is wrong", |archive, r| {
        let mut bytes = archive.to_vec();
        // Not the checksum's own field.
        let at = r.of(&[0, 50, 99, 101, 110, 125, 137, 156, 260, 400, 511]);
        bytes[at] ^= 1;
        pack(&bytes, Packing::Zstd)
    }),
    ("gzip is cut", |archive, r| cut(pack(archive, Packing::Gzip), r)),
    ("zstd is cut", |archive, r| cut(pack(archive, Packing::Zstd), r)),
    ("gzip's sum is wrong", |archive, r| {
        let mut bytes = pack(archive, Packing::Gzip);
        let at = bytes.len() - 1 - r.below(8);
        bytes[at] ^= 1 << r.below(8);
        bytes
    }),
    ("more behind gzip", |archive, r| [pack(archive, Packing::Gzip), vec![b'x'; 1 + r.below(50)]].concat()),
    ("more behind zstd", |archive, r| [pack(archive, Packing::Zstd), vec![b'x'; 1 + r.below(50)]].concat()),
    ("gzip in gzip", |archive, _| pack(&pack(archive, Packing::Gzip), Packing::Gzip)),
    ("gzip bomb", |_, r| pack(&vec![0; (5 << 20) + r.below(1 << 16)], Packing::Gzip)),
    ("zstd bomb", |_, r| pack(&vec![0; (5 << 20) + r.below(1 << 16)], Packing::Zstd)),
    ("zstd window too large", |archive, _| {
        let mut out = zstd::Encoder::new(Vec::new(), 1).unwrap();
        out.window_log(27).unwrap();
        out.include_contentsize(false).unwrap();
        std::io::Write::write_all(&mut out, archive).unwrap();
        out.finish().unwrap()
    }),
    ("noise", |_, r| [vec![b'n'], r.bytes(3000)].concat()),
    ("EROFS for an archive", |_, r| {
        let mut bytes = vec![0; 4096 * (1 + r.below(3))];
        bytes[1024..1028].copy_from_slice(&0xE0F5_E1E2_u32.to_le_bytes());
        bytes
    }),
    ("zip for an archive", |_, r| [b"PK\x03\x04".to_vec(), r.bytes(2000)].concat()),
    ("other archive than the configuration says", |archive, r| {
        let mut bytes = archive.to_vec();
        let at = bytes.len() - 1 - r.below(1024);
        bytes[at] ^= 1;
        pack(&bytes, Packing::Plain)
    }),
    ("one archive twice", |archive, _| pack(&[archive, archive].concat(), Packing::Gzip)),
];

fn cut(bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    let keep = 5 + random.below(bytes.len() - 5);
    bytes[..keep].to_vec()
}
