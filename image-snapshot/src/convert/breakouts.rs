//! The classic ways out of a directory that an archive is unpacked into, one by one: by symbolic links, hard links, whiteouts, absolute names
//! and `..`, in one layer and across two. Nothing is ever opened by the names of an archive here, so there is no outside to reach; what remains
//! to be shown is that each ends inside the image, where a runtime that got it right would put it, or in a refusal.
//!
//! The cases are those that containerd's, Docker's and umoci's defects were found by (their regression tests run to the same list); `..` in a
//! name is refused where some of them resolve it inside the root.

use super::ConvertError;
use crate::{
    merged::Node,
    testing::{Stack, Tar},
};

/// What becomes of the upper archive.
enum Want {
    /// Paths, with what is shown there (`None`: nothing), and pairs of names of one file.
    Shows(&'static [(&'static str, Option<&'static str>)], &'static [(&'static str, &'static str)]),
    /// It is refused for a name.
    Name,
}
use Want::{Name, Shows};

const INSIDE: Option<&str> = Some("file 644 inside");
const NEW: Option<&str> = Some("file 644 new");

/// `etc` with a file.
fn etc() -> Tar {
    Tar::new().dir("etc/", 0o770).file("/etc/passwd", b"inside")
}

/// The case, the layer below (or none), the layer, and what becomes of it.
fn cases() -> Vec<(&'static str, Option<Tar>, Tar, Want)> {
    let wrote = || Shows(&[("/etc/new", NEW), ("/etc/passwd", INSIDE)], &[]);
    let linked = |what, tar: Tar| (what, None, tar, Shows(&[("/local", INSIDE)], &[("local", "etc/passwd")]));
    let refused = |what, tar: Tar| (what, Some(etc()), tar, Name);
    vec![
        // Written through symbolic links.
        ("absolute link", None, etc().symlink("l", "/etc").file("/l/new", b"new"), wrote()),
        ("link up and out", None, etc().dir("d/", 0o755).symlink("l", "/d/../etc").file("/l/new", b"new"), wrote()),
        (
            "absolute links in a row",
            None,
            etc().dir("d/", 0o755).symlink("/d/etc", "/etc").symlink("l", "/d/etc").file("/l/new", b"new"),
            wrote(),
        ),
        (
            "relative links in a row",
            None,
            etc().dir("d/", 0o755).symlink("/d/etc", "/etc").symlink("l", "./d/etc").file("/l/new", b"new"),
            wrote(),
        ),
        (
            "emptied through a link",
            None,
            etc().file("etc/emptied", b"full").symlink("l", "/etc").file("/l/emptied", b""),
            Shows(&[("/etc/emptied", Some("file 644 "))], &[]),
        ),
        (
            "link that climbs far above",
            None,
            etc().symlink("l", "../../../../../../../etc").file("l/new", b"new"),
            wrote(),
        ),
        // Hard links through symbolic ones, to a file.
        linked(
            "hard link through a link up",
            etc().dir("b/", 0o755).symlink("b/d", "../../etc").hardlink("local", "/b/d/passwd"),
        ),
        linked(
            "hard link down and out",
            etc()
                .dir("b/", 0o755)
                .dir("down/", 0o755)
                .symlink("b/d", "../down/../../etc")
                .hardlink("local", "/b/d/passwd"),
        ),
        linked("hard link through an absolute link", etc().symlink("l", "/etc").hardlink("local", "/l/passwd")),
        linked(
            "hard link through a long climb",
            etc().symlink("l", "../../../../../../etc").hardlink("local", "/l/passwd"),
        ),
        linked(
            "hard link through what is not there",
            etc().symlink("l", "up/../../../etc").hardlink("local", "/l/passwd"),
        ),
        linked("hard link by an absolute name", etc().hardlink("local", "/etc/passwd")),
        refused("hard link by a name that climbs", etc().hardlink("local", "../../../../../etc/passwd")),
        // Names of links that are no names.
        refused("link in place of the parent", etc().symlink("..", "/etc/")),
        refused("link without a name", etc().symlink("", "/etc/")),
        refused("link in place of a parent below", etc().symlink("l/sub/..", "/etc/")),
        // Links and directories in each other's place.
        (
            "name that ends in a slash",
            None,
            etc().dir("l/", 0o770).hardlink("/l/local", "/etc/passwd"),
            Shows(&[("/l/local", INSIDE)], &[("l/local", "etc/passwd")]),
        ),
        (
            "link in place of a directory below",
            Some(etc().dir("l/", 0o755)),
            Tar::new().symlink("l", "/etc").hardlink("/l/local", "/etc/passwd"),
            Shows(&[("/l", Some("-> /etc")), ("/etc/local", INSIDE)], &[("etc/local", "etc/passwd")]),
        ),
        (
            "climbing link in place of a directory below",
            Some(etc().dir("l/", 0o755)),
            Tar::new().symlink("l", "../../etc").hardlink("/l/local", "/etc/passwd"),
            Shows(&[("/l", Some("-> ../../etc")), ("/etc/local", INSIDE)], &[("etc/local", "etc/passwd")]),
        ),
        (
            "directory in place of a link below",
            Some(etc().symlink("l", "/etc")),
            Tar::new().dir("/l/", 0o755).hardlink("/l/local", "/etc/passwd"),
            Shows(&[("/l/local", INSIDE), ("/etc/local", None)], &[("l/local", "etc/passwd")]),
        ),
        (
            "directory in place of a link below, over a hard link",
            Some(etc().symlink("l", "etc").hardlink("/l/local", "/etc/passwd")),
            Tar::new().dir("/l/", 0o755).file("/l/local", b"new"),
            Shows(&[("/l/local", NEW), ("/etc/local", INSIDE), ("/etc/passwd", INSIDE)], &[]),
        ),
        (
            "mode through a link",
            Some(etc().dir("own/", 0o700).symlink("l", "own")),
            Tar::new().dir("l/", 0o777),
            Shows(&[("/own/", Some("700 0:0")), ("/l/", Some("777 0:0"))], &[]),
        ),
        // Whiteouts.
        refused("whiteout of the root's parent", Tar::new().file(".wh...", b"")),
        refused("whiteout of a parent", Tar::new().file("etc/.wh...", b"")),
        refused("whiteout of the root", Tar::new().file(".wh..", b"")),
        refused("whiteout of the directory itself", Tar::new().file("etc/.wh..", b"")),
        (
            "whiteout of a link",
            Some(etc().symlink("l", "/etc")),
            Tar::new().file(".wh.l", b""),
            Shows(&[("/l", None), ("/etc/passwd", INSIDE)], &[]),
        ),
        (
            "whiteout through a link",
            Some(etc().file("etc/gone", b"").symlink("l", "/etc")),
            Tar::new().file("l/.wh.gone", b""),
            Shows(&[("/etc/gone", None), ("/etc/passwd", INSIDE)], &[]),
        ),
        (
            "directory named as a whiteout",
            Some(etc()),
            Tar::new().file(".wh.etc/new", b"new"),
            Shows(&[("/etc/passwd", INSIDE), ("/.wh.etc/new", NEW)], &[]),
        ),
        (
            "whiteout through a dead link",
            Some(etc().symlink("l", "/dead")),
            Tar::new().file("l/.wh.etc", b""),
            Shows(&[("/etc/passwd", INSIDE)], &[]),
        ),
        refused("whiteout by a name that climbs", Tar::new().file("dead/../.wh.etc", b"")),
        (
            "all below the root goes, and no more than that",
            Some(etc()),
            Tar::new().file(".wh..wh..opq", b"").file("new", b"new"),
            Shows(&[("/etc/passwd", None), ("/new", NEW)], &[]),
        ),
        // Hard links to symbolic links are symbolic links.
        (
            "hard link to a link, its target later",
            None,
            Tar::new()
                .dir("etc/", 0o770)
                .symlink("l", "/etc/passwd")
                .hardlink("local", "l")
                .file("/etc/passwd", b"inside"),
            Shows(&[("/local", Some("-> /etc/passwd")), ("/etc/passwd", INSIDE)], &[("local", "l")]),
        ),
        (
            "hard link to a link that climbs",
            None,
            etc().symlink("l", "../../../../../etc/passwd").hardlink("local", "/l"),
            Shows(&[("/local", Some("-> ../../../../../etc/passwd"))], &[("local", "l")]),
        ),
        (
            "hard link to an absolute link",
            None,
            etc().symlink("l", "/etc/passwd").hardlink("local", "/l"),
            Shows(&[("/local", Some("-> /etc/passwd"))], &[("local", "l")]),
        ),
        (
            "hard link to a link to what is outside",
            None,
            Tar::new().symlink("/run/outside/link", "/run/outside/private").hardlink("local", "/run/outside/link"),
            Shows(
                &[("/local", Some("-> /run/outside/private")), ("/run/outside/link", Some("-> /run/outside/private"))],
                &[],
            ),
        ),
    ]
}

#[test]
fn each_classic_breakout_ends_inside_the_image_or_in_a_refusal() {
    let cases = cases();
    assert!(cases.len() >= 34);
    for (what, lower, upper, want) in cases {
        let mut stack = Stack::default();
        if let Some(lower) = lower {
            stack.push(&lower.end()).unwrap();
        }
        let taken = stack.push(&upper.end());
        let (paths, same) = match want {
            Name => {
                assert!(matches!(taken, Err(ConvertError::Name { .. })), "{what}: {taken:?}");
                continue;
            }
            Shows(paths, same) => (paths, same),
        };
        taken.unwrap_or_else(|error| panic!("{what}: {error}"));
        let shown = stack.show();
        for (path, line) in paths {
            assert_eq!(shown.get(*path).map(String::as_str), *line, "{what}: {path} of {shown:?}");
        }
        let merged = stack.merged();
        let inode = |path: &str| match merged.walk(path).unwrap() {
            Some(Node::Leaf(leaf)) => (leaf.layer, leaf.inode.nid),
            other => panic!("{what}: {path} is {other:?}"),
        };
        for (one, other) in same {
            assert_eq!(inode(one), inode(other), "{what}: {one} and {other}");
        }
    }
}
