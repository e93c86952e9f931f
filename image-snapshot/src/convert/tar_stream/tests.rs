use crate::{
    convert::{ConvertError, Limits},
    testing::{Stack, Tar},
};

fn refused(tar: Vec<u8>) -> ConvertError {
    Stack::default().push(&tar).expect_err("accepted")
}

#[test]
fn sizes_that_disagree_are_refused() {
    let inner = Tar::new().file("smuggled", b"x").end();
    let tar = Tar::new().pax("size", b"0").file("f", &inner).end();
    assert!(matches!(refused(tar), ConvertError::Header { .. }));
    let tar = Tar::new().pax("size", b"1536").with("f", b'0', b"", |h| h.set_size(0)).end();
    assert!(matches!(refused(tar), ConvertError::Header { .. }));
    let tar = Tar::new().pax("size", b"3").file("f", b"abc").end();
    assert_eq!(Stack::of(&[tar]).show()["/f"], "file 644 abc");
}

#[test]
fn names_that_climb_or_hold_nul_are_refused() {
    for name in ["../x", "a/../../x", "..", "a/.."] {
        assert!(matches!(refused(Tar::new().file(name, b"").end()), ConvertError::Name { .. }), "{name}");
        assert!(matches!(refused(Tar::new().file("a", b"").hardlink("b", name).end()), ConvertError::Name { .. }));
    }
    assert!(matches!(refused(Tar::new().pax("path", b"a\0b").file("x", b"").end()), ConvertError::Header { .. }));
}

#[test]
fn the_archive_may_not_end_early() {
    let whole = Tar::new().file("a", &[7; 3000]).cut();
    for len in [1, 511, 513, 1024, 3000, whole.len() - 1] {
        assert!(matches!(refused(whole[..len].to_vec()), ConvertError::Truncated { .. }), "{len}");
    }
    assert_eq!(Stack::of(&[whole]).show().len(), 2, "a missing end marker is common");
}

#[test]
fn a_lone_zero_record_with_more_behind_it_is_refused() {
    let mut tar = Tar::new().file("a", b"").cut();
    tar.extend([0; 512]);
    tar.extend(Tar::new().file("b", b"").end());
    assert!(matches!(refused(tar), ConvertError::Header { .. }));
}

#[test]
fn long_names_come_by_pax_and_by_gnu_and_must_agree() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let tar = Tar::new().file(&long, b"1").end();
    assert_eq!(Stack::of(&[tar]).show()[&format!("/{long}")], "file 644 1");
    let gnu = |t: Tar| t.with("././@LongLink", b'L', format!("{long}\0").as_bytes(), |_| {});
    assert_eq!(Stack::of(&[gnu(Tar::new()).file("x", b"1").end()]).show()[&format!("/{long}")], "file 644 1");
    let both = gnu(Tar::new()).pax("path", b"other").file("x", b"").end();
    assert!(matches!(refused(both), ConvertError::Header { .. }));
}

#[test]
fn a_global_header_may_comment_but_not_command() {
    let global = |body: &[u8]| Tar::new().with("pax_global_header", b'g', body, |_| {}).file("a", b"").end();
    assert!(Stack::of(&[global(b"18 comment=abcdef\n")]).show().contains_key("/a"));
    assert!(matches!(refused(global(b"9 size=5\n")), ConvertError::Header { .. }));
}

#[test]
fn ids_beyond_what_linux_has_are_refused() {
    for id in ["4294967295", "4294967296", "99999999999"] {
        assert!(matches!(
            refused(Tar::new().pax("uid", id.as_bytes()).file("a", b"").end()),
            ConvertError::Header { .. }
        ));
    }
    assert!(Stack::default().push(&Tar::new().pax("uid", b"4294967294").file("a", b"").end()).is_ok());
}

#[test]
fn extension_headers_are_bounded() {
    let huge = Tar::new().with("x", b'x', &vec![b'1'; 2 << 20], |_| {}).file("a", b"").end();
    assert!(matches!(refused(huge), ConvertError::Limit { .. }));
    let claims = Tar::new().with("x", b'L', b"", |h| h.set_size(1 << 33)).cut();
    assert!(matches!(refused(claims), ConvertError::Limit { .. }));
    let xattr = Tar::new().pax("SCHILY.xattr.user.big", &[1; 70_000]).file("a", b"").end();
    assert!(matches!(refused(xattr), ConvertError::Limit { .. }));
}

#[test]
fn limits_hold() {
    let limits = Limits { entries: 3, ..Limits::default() };
    let tar = (0..5).fold(Tar::new(), |t, i| t.file(&format!("{i}"), b"")).end();
    let out = tempfile::tempfile().unwrap();
    let error = crate::convert::convert(&tar[..], &[], out, &limits).unwrap_err();
    assert!(matches!(error, ConvertError::Limit { what: "entries", .. }));
    let claims = Tar::new().with("f", b'0', b"", |h| h.set_size(1 << 35)).cut();
    assert!(matches!(refused(claims), ConvertError::Limit { .. }));
}

#[test]
fn what_we_do_not_take_is_named() {
    for kind in [b'V', b'M', b'D', b'Z'] {
        assert!(matches!(refused(Tar::new().with("a", kind, b"", |_| {}).end()), ConvertError::Unsupported { .. }));
    }
}

/// Archives of one file with holes, in every format that GNU tar has for it; and the file.
fn sparse_archives() -> (Vec<u8>, Vec<(&'static str, Vec<u8>)>) {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    // More pieces than a header and the first record behind it have room for.
    for i in 0..40 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[i as u8 + 1; 5000], i * 70_000).unwrap();
    }
    file.set_len(3_000_000).unwrap();
    let content = std::fs::read(dir.path().join("sparse")).unwrap();
    let pack = |args: &'static str| {
        let mut command = std::process::Command::new("tar");
        command.arg("-C").arg(dir.path()).args(args.split(' ')).args(["--sparse", "-cf", "-", "sparse"]);
        (args, command.output().unwrap().stdout)
    };
    let formats = [
        "--format=gnu",
        "--format=posix --sparse-version=0.0",
        "--format=posix --sparse-version=0.1",
        "--format=posix --sparse-version=1.0",
    ];
    (content, formats.map(pack).to_vec())
}

#[test]
fn files_with_holes_come_out_whole_and_take_only_their_data() {
    let (content, archives) = sparse_archives();
    for (format, archive) in archives {
        assert!(archive.len() < 700_000, "{format}: tar saw no holes");
        let stack = Stack::of(&[archive]);
        let have = stack.merged().read_file("sparse", 1 << 30).unwrap().unwrap();
        assert!(have == content, "{format}");
    }
    // Holes of a megabyte and more take no room on the disk.
    let map = b"1\n0\n512\n".iter().copied().chain(std::iter::repeat(0)).take(512).chain([7; 512]).collect::<Vec<u8>>();
    let sparse = |t: Tar| {
        t.pax("GNU.sparse.major", b"1").pax("GNU.sparse.minor", b"0").pax("GNU.sparse.realsize", b"1073741824")
    };
    let stack = Stack::of(&[sparse(Tar::new()).pax("GNU.sparse.name", b"own/name").file("x", &map).end()]);
    let meta = stack.layers[0].metadata().unwrap();
    assert!(meta.len() > 1 << 30 && std::os::unix::fs::MetadataExt::blocks(&meta) * 512 < 8 << 20, "{meta:?}");
    assert_eq!(stack.show().keys().collect::<Vec<_>>(), ["/", "/own/", "/own/name"]);
}

#[test]
fn maps_of_holes_that_do_not_fit_are_refused() {
    let (_, archives) = sparse_archives();
    for (format, archive) in archives {
        // A digit of a map, wherever it is: nothing but a refusal or the same size may come of it.
        for at in (0..2000).filter(|at| archive[*at].is_ascii_digit()).step_by(7) {
            let mut bad = archive.clone();
            bad[at] = if bad[at] == b'9' { b'0' } else { bad[at] + 1 };
            if Stack::default().push(&bad).is_ok() {
                assert_eq!(Stack::of(&[bad]).show().len(), 2, "{format} {at}");
            }
        }
        for len in (512..archive.len() - 10_240).step_by(30_011) {
            assert!(Stack::default().push(&archive[..len]).is_err(), "{format} {len}");
        }
    }
    let old = |size: &[u8]| {
        Tar::new().with("a", b'S', b"data", |h| {
            let bytes = h.as_mut_bytes();
            bytes[257..265].copy_from_slice(b"ustar  \0");
            bytes[386..410].copy_from_slice(b"00000000000\x0000000000004\0");
            bytes[483..483 + size.len()].copy_from_slice(size);
        })
    };
    assert_eq!(Stack::of(&[old(b"00000000006\0").end()]).show()["/a"], "file 644 data\0\0");
    for bad in [
        old(b"00000000003\0"),
        old(b"\x80\0\0\0\0\0\0\x10\0\0\0\0"),
        Tar::new().with("a", b'S', b"", |_| {}),
        Tar::new().pax("GNU.sparse.major", b"2").pax("GNU.sparse.realsize", b"0").file("a", b""),
        Tar::new().pax("GNU.sparse.realsize", b"5").file("a", b"12345"),
        Tar::new().pax("GNU.sparse.size", b"5").pax("GNU.sparse.map", b"0,5").file("a", b"12345"),
        Tar::new().pax("GNU.sparse.other", b"5").file("a", b"12345"),
    ] {
        let error = refused(bad.end());
        assert!(matches!(error, ConvertError::Header { .. } | ConvertError::Limit { .. }), "{error:?}");
    }
}
