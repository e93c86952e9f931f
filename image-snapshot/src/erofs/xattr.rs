//! Extended attributes as EROFS keeps them behind an inode.

use std::collections::BTreeMap;

use super::format::{get16, put16};

/// Full name (`security.capability`) to value.
pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Marks a directory that hides what lies below it.
pub(crate) const OPAQUE: &[u8] = b"trusted.overlay.opaque";

const HEADER: usize = 12;
const ENTRY: usize = 4;

/// `erofs_fs.h`: the first whose prefix fits is taken; whole names come first.
const PREFIXES: [(u8, &[u8], bool); 5] = [
    (2, b"system.posix_acl_access", true),
    (3, b"system.posix_acl_default", true),
    (1, b"user.", false),
    (4, b"trusted.", false),
    (6, b"security.", false),
];

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix, whole)| {
        let rest = name.strip_prefix(*prefix)?;
        (rest.is_empty() == *whole && rest.len() <= 255).then_some((*index, rest))
    })
}

/// Whether the format (and Linux) has a place for this name and value.
pub(crate) fn is_storable(name: &[u8], value: &[u8]) -> bool {
    split(name).is_some() && value.len() <= usize::from(u16::MAX)
}

/// The bytes behind the inode; empty when there are none. Names that [`is_storable`] refuses must not be in the map.
pub(crate) fn encode(xattrs: &Xattrs) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut out = vec![0; HEADER];
    for (name, value) in xattrs {
        let Some((index, rest)) = split(name) else { continue };
        let at = out.len();
        out.resize(at + ENTRY, 0);
        out[at] = rest.len() as u8;
        out[at + 1] = index;
        put16(&mut out, at + 2, value.len() as u16);
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// The inode's `i_xattr_icount` for an encoded body.
pub(crate) fn icount(body: &[u8]) -> u16 {
    if body.is_empty() { 0 } else { ((body.len() - HEADER) / 4 + 1) as u16 }
}

/// Bytes of a body, from `i_xattr_icount`.
pub(crate) fn body_len(icount: u16) -> usize {
    if icount == 0 { 0 } else { HEADER + 4 * (usize::from(icount) - 1) }
}

/// The reverse of [`encode`]. `None`: damaged, or with shared attributes, which we never write.
pub(crate) fn decode(body: &[u8]) -> Option<Xattrs> {
    let mut out = Xattrs::new();
    if body.is_empty() {
        return Some(out);
    }
    if *body.get(4)? != 0 {
        return None;
    }
    let mut at = HEADER;
    while at + ENTRY <= body.len() {
        let (name_len, index) = (usize::from(body[at]), body[at + 1]);
        let value_len = usize::from(get16(body, at + 2));
        let name = body.get(at + ENTRY..at + ENTRY + name_len)?;
        let value = body.get(at + ENTRY + name_len..at + ENTRY + name_len + value_len)?;
        let (_, prefix, _) = PREFIXES.iter().find(|(i, _, _)| *i == index)?;
        out.insert([prefix, name].concat(), value.to_vec());
        at = (at + ENTRY + name_len + value_len).next_multiple_of(4);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_go_to_the_prefix_that_linux_uses() {
        type Want = Option<(u8, &'static [u8])>;
        let table: [(&[u8], Want); 7] = [
            (b"user.a", Some((1, b"a"))),
            (b"system.posix_acl_access", Some((2, b""))),
            (b"system.posix_acl_default", Some((3, b""))),
            (b"security.capability", Some((6, b"capability"))),
            (b"trusted.overlay.opaque", Some((4, b"overlay.opaque"))),
            (b"system.nfs4_acl", None),
            (b"user.", None),
        ];
        for (name, want) in table {
            assert_eq!(split(name), want, "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(
            raw in prop::collection::btree_map("(user|trusted|security)\\.[a-z]{1,40}", prop::collection::vec(any::<u8>(), 0..300), 0..12)
        ) {
            let map: Xattrs = raw.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect();
            let body = encode(&map);
            prop_assert_eq!(body.len(), body_len(icount(&body)));
            prop_assert_eq!(decode(&body), Some(map));
        }

        #[test]
        fn decoding_never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&body);
        }
    }
}
