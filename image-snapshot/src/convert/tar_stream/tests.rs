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
    assert!(matches!(refused(Tar::new().pax("path", b"a\0b").file("x", b"").end()), ConvertError::Name { .. }));
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
    for kind in [b'S', b'V', b'M', b'D', b'Z'] {
        assert!(matches!(refused(Tar::new().with("a", kind, b"", |_| {}).end()), ConvertError::Unsupported { .. }));
    }
    let sparse = Tar::new().pax("GNU.sparse.major", b"1").file("a", b"").end();
    assert!(matches!(refused(sparse), ConvertError::Unsupported { .. }));
}
