use std::{fs::File, sync::Arc};

use crate::{
    Limits,
    convert::ConvertError,
    testing::{Stack, Tar, show},
};

fn paths(stack: &Stack) -> Vec<String> {
    stack.show().into_keys().collect()
}

#[test]
fn an_entry_goes_through_a_symbolic_link_of_a_lower_layer() {
    let stack = Stack::of(&[
        Tar::new().dir("usr/lib/", 0o711).symlink("lib", "usr/lib").file("usr/lib/libc", b"c").end(),
        Tar::new().file("lib/app.so", b"app").end(),
    ]);
    assert_eq!(paths(&stack), ["/", "/lib", "/usr/", "/usr/lib/", "/usr/lib/app.so", "/usr/lib/libc"]);
    let top = show(&stack.top_alone());
    assert_eq!(top["/usr/lib/"], "711 0:0", "an omitted parent keeps the metadata from below");
    assert!(!top.contains_key("/lib"));
}

#[test]
fn absolute_and_climbing_links_stay_inside_the_root() {
    let stack = Stack::of(&[
        Tar::new().dir("a/b/", 0o755).symlink("a/b/up", "../../../../etc").symlink("abs", "/a/./b").end(),
        Tar::new().file("a/b/up/x", b"1").file("abs/y", b"2").end(),
    ]);
    let shown = stack.show();
    assert_eq!(shown["/etc/x"], "file 644 1");
    assert_eq!(shown["/a/b/y"], "file 644 2");
}

#[test]
fn links_that_lead_nowhere_make_the_directory_and_circles_are_refused() {
    let stack = Stack::of(&[Tar::new().symlink("l", "new/dir").file("l/x", b"1").end()]);
    assert_eq!(stack.show()["/new/dir/x"], "file 644 1");
    let mut stack = Stack::default();
    let error = stack.push(&Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"").end());
    assert!(matches!(error, Err(ConvertError::Place { .. })), "{error:?}");
}

#[test]
fn omitted_parents_are_plain_directories() {
    let stack = Stack::of(&[Tar::new().file("a/b/c", b"").end()]);
    assert_eq!(stack.show()["/a/b/"], "755 0:0");
}

#[test]
fn directories_that_an_archive_leaves_out_count_as_entries() {
    let limits = Limits { entries: 4, ..Limits::default() };
    let convert = |archive: &[u8]| crate::convert::convert(archive, &[], tempfile::tempfile().unwrap(), &limits);
    convert(&Tar::new().file("a/b/c/d", b"").end()).unwrap();
    convert(&Tar::new().dir("a", 0o755).dir("a/b", 0o755).dir("a/b/c", 0o755).file("a/b/c/d", b"").end()).unwrap();
    let error = convert(&Tar::new().file("a/b/c/d/e", b"").end()).unwrap_err();
    assert!(matches!(error, ConvertError::Limit { limit: 4, .. }), "{error:?}");
}

#[test]
fn a_directory_entry_replaces_a_link_but_merges_into_a_directory() {
    let stack = Stack::of(&[
        Tar::new().file("d/x", b"x").symlink("l", "d").end(),
        Tar::new().owned_dir("d", 5, 6).dir("l", 0o700).file("l/y", b"y").end(),
    ]);
    let shown = stack.show();
    assert_eq!(shown["/d/"], "750 5:6");
    assert_eq!(shown["/d/x"], "file 644 x");
    assert_eq!(shown["/l/"], "700 0:0");
    assert_eq!(shown["/l/y"], "file 644 y");
    assert!(!shown.contains_key("/d/y"));
}

#[test]
fn the_last_entry_of_a_name_wins() {
    let stack = Stack::of(&[
        Tar::new().file("lower/x", b"").end(),
        Tar::new()
            .file("f", b"1")
            .file("f", b"2")
            .file("d/x", b"")
            .file("d", b"file")
            .file("g", b"")
            .dir("g", 0o755)
            .file("lower", b"")
            .dir("lower", 0o755)
            .end(),
    ]);
    let shown = stack.show();
    assert_eq!(shown["/f"], "file 644 2");
    assert_eq!(shown["/d"], "file 644 file");
    assert!(shown.contains_key("/g/"));
    assert!(shown.contains_key("/lower/") && !shown.contains_key("/lower/x"), "the file in between hid it");
}

#[test]
fn whiteouts_hide_only_what_is_below() {
    let base = Tar::new().file("a/x", b"").file("a/y", b"").file("b/x", b"").file("c/x", b"").file("f", b"").end();
    let stack = Stack::of(&[
        base,
        Tar::new()
            .file("a/new", b"")
            .file("a/.wh..wh..opq", b"")
            .file(".wh.b", b"")
            .file("c/.wh.x", b"")
            .file("c/.wh.none", b"")
            .file("f", b"new")
            .file(".wh.f", b"")
            .file(".wh.nothing", b"")
            .end(),
    ]);
    assert_eq!(paths(&stack), ["/", "/a/", "/a/new", "/c/", "/f"]);
    assert_eq!(stack.show()["/f"], "file 644 new");
    let top = open_names(&stack);
    assert!(!top.contains(&"nothing".to_owned()), "nothing to hide, nothing written");
}

fn open_names(stack: &Stack) -> Vec<String> {
    let top = crate::erofs::ErofsFile::open(stack.layers[stack.layers.len() - 1].clone()).unwrap();
    let root = top.inode(top.root()).unwrap();
    top.entries(&root).unwrap().into_iter().map(|e| String::from_utf8(e.name).unwrap()).collect()
}

#[test]
fn a_whiteout_and_the_same_name_in_one_layer_keep_the_new_one_in_either_order() {
    let base = Tar::new().file("d/old", b"").end();
    let first = Tar::new().file(".wh.d", b"").file("d/new", b"").end();
    let last = Tar::new().file("d/new", b"").file(".wh.d", b"").end();
    for upper in [first, last] {
        let stack = Stack::of(&[base.clone(), upper]);
        assert_eq!(paths(&stack), ["/", "/d/", "/d/new"]);
    }
}

#[test]
fn a_directory_that_was_only_passed_through_goes_with_its_whiteout() {
    let stack =
        Stack::of(&[Tar::new().file("d/e/x", b"").end(), Tar::new().file("d/e/.wh.x", b"").file(".wh.d", b"").end()]);
    assert_eq!(paths(&stack), ["/"]);
}

#[test]
fn an_opaque_root_hides_everything_by_name() {
    let stack = Stack::of(&[
        Tar::new().file("gone/x", b"").file("f", b"").file("kept/old", b"").end(),
        Tar::new().file(".wh..wh..opq", b"").file("kept/new", b"").end(),
    ]);
    assert_eq!(paths(&stack), ["/", "/kept/", "/kept/new"]);
}

#[test]
fn opaque_marks_of_lower_layers_do_not_leak_into_upper_ones() {
    let stack = Stack::of(&[
        Tar::new().file("d/one", b"").end(),
        Tar::new().file("d/.wh..wh..opq", b"").file("d/two", b"").end(),
        Tar::new().file("d/three", b"").end(),
    ]);
    assert_eq!(paths(&stack), ["/", "/d/", "/d/three", "/d/two"]);
}

#[test]
fn hard_links_share_an_inode_also_with_a_file_below() {
    let stack = Stack::of(&[
        Tar::new().file("a", &[b'z'; 10_000]).end(),
        Tar::new().hardlink("d/b", "a").file("x", b"x").hardlink("y", "x").hardlink("z", "y").end(),
    ]);
    let merged = stack.merged();
    let inode = |path: &str| match merged.walk(path).unwrap().unwrap() {
        crate::merged::Node::Leaf(leaf) => (leaf.layer, leaf.inode.nid, leaf.inode.nlink, leaf.inode.size),
        crate::merged::Node::Dir(_) => panic!("{path} is a directory"),
    };
    assert_eq!(inode("a"), inode("d/b"));
    assert_eq!((inode("a").0, inode("a").2, inode("a").3), (1, 2, 10_000));
    assert_eq!(inode("x"), inode("z"));
    assert_eq!(inode("y").2, 3);
    assert_eq!(merged.read_file("d/b", 1 << 20).unwrap().unwrap(), [b'z'; 10_000]);
}

#[test]
fn files_below_that_a_layer_links_to_count_against_its_bytes_each_once() {
    let limits = Limits { layer_bytes: 25_000, ..Limits::default() };
    let convert = |archive: &[u8], below: &[Arc<File>]| {
        let out = tempfile::tempfile().unwrap();
        crate::convert::convert(archive, below, out.try_clone().unwrap(), &limits).map(|done| (done, Arc::new(out)))
    };
    let big = [b'z'; 10_000];
    let (_, one) = convert(&Tar::new().file("a", &big).hardlink("d/a", "a").symlink("l", "d").end(), &[]).unwrap();
    let (_, two) = convert(&Tar::new().file("b", &big).end(), std::slice::from_ref(&one)).unwrap();
    let below = [one, two];
    let mut tar = Tar::new().file("own", &[b'o'; 6_000]);
    for i in 0..50 {
        tar = tar.hardlink(&format!("x/{i}"), ["a", "d/a", "l/a", "x/0"][i % 4]);
    }
    let archive = tar.end();
    let (done, _) = convert(&archive, &below).unwrap();
    assert_eq!(done.content, 16_000, "one copy");
    assert!(done.bytes < 32 << 10, "{}", done.bytes);
    let archive = [&archive[..archive.len() - 1024], &Tar::new().hardlink("y", "b").end()].concat();
    let error = convert(&archive, &below).unwrap_err();
    assert!(matches!(error, ConvertError::Limit { limit: 25_000, .. }), "{error:?}");
    assert_eq!(error.kind(), crate::ErrorKind::InvalidImage);
    // As many as fit.
    let (done, _) =
        convert(&Tar::new().file("own", &[b'o'; 5_000]).hardlink("x", "a").hardlink("y", "b").end(), &below).unwrap();
    assert_eq!(done.content, 25_000);
}

#[test]
fn a_file_below_keeps_all_its_names_when_one_of_them_is_linked_to() {
    let stack = Stack::of(&[
        Tar::new()
            .file("a", &[b'z'; 5000])
            .hardlink("d/b", "a")
            .hardlink("d/c", "a")
            .hardlink("e/f", "a")
            .hardlink("g", "a")
            .end(),
        Tar::new().file("g", b"other").file("e/.wh.f", b"").hardlink("new", "d/b").end(),
    ]);
    let merged = stack.merged();
    let inode = |path: &str| match merged.walk(path).unwrap() {
        Some(crate::merged::Node::Leaf(leaf)) => (leaf.layer, leaf.inode.nid, leaf.inode.nlink),
        other => panic!("{path}: {other:?}"),
    };
    let new = inode("new");
    assert_eq!(new.2, 4, "new, a, d/b, d/c");
    for path in ["a", "d/b", "d/c"] {
        assert_eq!(inode(path), new, "{path}");
    }
    assert_eq!(stack.show()["/g"], "file 644 other");
    assert!(!stack.show().contains_key("/e/f"));
}

#[test]
fn hard_links_to_nothing_directories_or_themselves() {
    for bad in
        [Tar::new().hardlink("a", "none"), Tar::new().dir("d", 0o755).hardlink("a", "d"), Tar::new().hardlink("a", "a")]
    {
        assert!(matches!(Stack::default().push(&bad.end()), Err(ConvertError::Place { .. })));
    }
    let stack = Stack::of(&[Tar::new().file("a", b"1").hardlink("a", "a").end()]);
    assert_eq!(stack.show()["/a"], "file 644 1");
}

#[test]
fn nothing_goes_below_a_file() {
    for bad in [Tar::new().file("f", b"").file("f/x", b""), Tar::new().device("f", b'6', 0, 0).file("f/.wh.x", b"")] {
        assert!(matches!(Stack::default().push(&bad.end()), Err(ConvertError::Place { .. })));
    }
}
