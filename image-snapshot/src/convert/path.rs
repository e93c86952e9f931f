//! Names within an archive: which are allowed, and their components.

use super::{ConvertError, Limits, tar_stream::lossy};
use crate::erofs::format::NAME_MAX;

/// Cuts a member's name into components. A leading `/` means the image's root, as for GNU tar and every runtime (the builder `ko` writes
/// such names); nothing is ever opened by these names, so that is harmless. `..`, NUL, and what the format cannot hold are refused.
pub(super) fn member<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, ConvertError> {
    let bad = |problem| ConvertError::Name { path: lossy(path), problem };
    if path.is_empty() {
        return Err(bad("empty"));
    }
    if path.len() > limits.path_bytes {
        return Err(ConvertError::Limit { what: "bytes of a path", limit: limits.path_bytes as u64 });
    }
    if path.contains(&0) {
        return Err(bad("NUL"));
    }
    let mut out = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(bad("'..'")),
            _ if part.len() > NAME_MAX => return Err(bad("component longer than 255 bytes")),
            _ => out.push(part),
        }
    }
    if out.len() > limits.depth {
        return Err(ConvertError::Limit { what: "components of a path", limit: limits.depth as u64 });
    }
    Ok(out)
}

/// What the last component of a name asks for, by the image specification's rules for whiteouts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Special<'a> {
    /// Nothing: an ordinary entry.
    No,
    /// `.wh.NAME`: NAME of the layers below goes.
    Whiteout(&'a [u8]),
    /// `.wh..wh..opq`: all that layers below have in this directory goes.
    Opaque,
    /// Bookkeeping of an old union file system.
    Ignore,
}

/// Looks at the last component.
pub(super) fn special<'a>(components: &[&'a [u8]]) -> Result<Special<'a>, ConvertError> {
    let Some(name) = components.last() else {
        return Ok(Special::No);
    };
    let Some(hidden) = name.strip_prefix(b".wh.") else {
        return Ok(Special::No);
    };
    match hidden {
        b".wh..opq" => Ok(Special::Opaque),
        _ if hidden.starts_with(b".wh.") => Ok(Special::Ignore),
        b"" | b"." | b".." => Err(ConvertError::Name { path: lossy(name), problem: "whiteout of nothing" }),
        _ => Ok(Special::Whiteout(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &[u8]) -> Result<Vec<&[u8]>, ConvertError> {
        member(path, &Limits::default())
    }

    #[test]
    fn names_stay_below_the_root_or_are_refused() {
        assert_eq!(parts(b"./a//b/./c/").unwrap(), [b"a", b"b", b"c"]);
        assert_eq!(parts(b"/etc/x").unwrap(), [&b"etc"[..], b"x"]);
        assert_eq!(parts(b"./").unwrap().len(), 0);
        assert_eq!(parts(b"..a/...").unwrap(), [&b"..a"[..], b"..."]);
        for bad in
            [&b""[..], b"..", b"a/..", b"../a", b"/../a", b"a\0b", &[b'x'; 256], &[b'a'; 5000], &b"a/".repeat(300)]
        {
            assert!(parts(bad).is_err(), "{}", lossy(bad));
        }
    }

    #[test]
    fn whiteouts_are_recognised() {
        assert_eq!(special(&[b"a", b".wh.b"]).unwrap(), Special::Whiteout(b"b"));
        assert_eq!(special(&[b"a", b".wh..wh..opq"]).unwrap(), Special::Opaque);
        assert_eq!(special(&[b"a", b".wh..wh.plnk"]).unwrap(), Special::Ignore);
        assert_eq!(special(&[b".wh.x", b"b"]).unwrap(), Special::No);
        assert_eq!(special(&[]).unwrap(), Special::No);
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(special(&[bad]).is_err());
        }
    }
}
