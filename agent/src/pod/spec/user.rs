//! Who runs a container: ids from the pod and the image, names from the image's own `passwd` and `group`.
//!
//! Those files and the image's `User` are attacker input: numbers above 2^31-1 are refused (they wrap to 0 elsewhere), names must
//! match exactly, files have a size limit.

use sandbox::spec::User;

use crate::ports::RootFiles;

/// Largest id, as Kubernetes and the runtimes have it.
pub(super) const LARGEST: u32 = i32::MAX as u32;
/// Largest `passwd` or `group` that is read.
const FILE_LIMIT: u64 = 1 << 20;

/// Why a user could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// An id beyond 2^31-1, or below 0.
    #[error("id {text:?} is not in the range 0 to 2147483647")]
    Range {
        /// As written.
        text: String,
    },
    /// No such user.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    NoUser {
        /// As written.
        name: String,
    },
    /// No such group.
    #[error("unable to find group {name}: no matching entries in group file")]
    NoGroup {
        /// As written.
        name: String,
    },
    /// A file could not be read.
    #[error("could not read {path} of the image: {message}")]
    File {
        /// Which file.
        path: &'static str,
        /// Why.
        message: String,
    },
}

/// What the pod says about identity.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `runAsUser`.
    pub uid: Option<i64>,
    /// `runAsGroup`.
    pub gid: Option<i64>,
    /// `supplementalGroups` and `fsGroup`.
    pub groups: Vec<i64>,
    /// `supplementalGroupsPolicy: Strict`: the image's group file adds nothing.
    pub strict: bool,
}

/// A resolved identity and its home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Ids.
    pub user: User,
    /// From `passwd`, else `/` (or `/root` for id 0).
    pub home: String,
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// Resolves the identity that the pod asks for over the one that the image names.
pub fn resolve(asked: &Asked, image_user: &str, files: &dyn RootFiles) -> Result<Identity, UserError> {
    let (image_name, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user, None),
    };
    // Asking for a user makes the image's group moot, as it does with containerd.
    let (wanted, image_group) = match asked.uid {
        Some(uid) => (number(&uid.to_string())?.map_or(Wanted::Name(String::new()), Wanted::Id), None),
        None if image_name.is_empty() => (Wanted::Id(0), image_group),
        None => (number(image_name)?.map_or_else(|| Wanted::Name(image_name.to_owned()), Wanted::Id), image_group),
    };
    let passwd = read(files, "etc/passwd")?;
    let entry = passwd.lines().filter_map(passwd_line).find(|line| match &wanted {
        Wanted::Id(uid) => line.uid == *uid,
        Wanted::Name(name) => line.name == *name,
    });
    let uid = match (&wanted, &entry) {
        (Wanted::Id(uid), _) => *uid,
        (Wanted::Name(_), Some(line)) => line.uid,
        (Wanted::Name(name), None) => return Err(UserError::NoUser { name: name.clone() }),
    };
    let group_file = read(files, "etc/group")?;
    let gid = match (asked.gid, image_group.filter(|g| !g.is_empty())) {
        (Some(gid), _) => id(gid)?,
        (None, Some(group)) => match number(group)? {
            Some(gid) => gid,
            None => group_file
                .lines()
                .filter_map(group_line)
                .find(|(name, _, _)| *name == group)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| UserError::NoGroup { name: group.to_owned() })?,
        },
        (None, None) => entry.as_ref().map_or(0, |line| line.gid),
    };
    let mut groups = vec![gid];
    for group in &asked.groups {
        groups.push(id(*group)?);
    }
    if let (false, Some(line)) = (asked.strict, &entry) {
        let member = |members: &str| members.split(',').any(|m| m == line.name);
        groups.extend(group_file.lines().filter_map(group_line).filter(|(_, _, m)| member(m)).map(|(_, gid, _)| gid));
    }
    let mut seen = std::collections::BTreeSet::new();
    groups.retain(|gid| seen.insert(*gid));
    let home = entry.map(|line| line.home).filter(|home| home.starts_with('/'));
    let home = home.unwrap_or_else(|| if uid == 0 { "/root" } else { "/" }.to_owned());
    Ok(Identity { user: User { uid, gid, additional_gids: groups }, home })
}

enum Wanted {
    Id(u32),
    Name(String),
}

fn id(value: i64) -> Result<u32, UserError> {
    u32::try_from(value).ok().filter(|v| *v <= LARGEST).ok_or_else(|| UserError::Range { text: value.to_string() })
}

/// A text of digits only is an id; anything else is a name, but never one that looks like a negative number.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let range = || UserError::Range { text: text.to_owned() };
    text.parse::<i64>().map_err(|_| range()).and_then(id).map(Some)
}

fn read(files: &dyn RootFiles, path: &'static str) -> Result<String, UserError> {
    let bytes = files.read_file(path, FILE_LIMIT).map_err(|message| UserError::File { path, message })?;
    Ok(bytes.map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default())
}

fn passwd_line(line: &str) -> Option<Passwd> {
    let mut parts = line.split(':');
    let name = parts.next()?;
    let _password = parts.next()?;
    let uid = number(parts.next()?).ok()??;
    let gid = number(parts.next()?).ok()??;
    let home = parts.nth(1).unwrap_or_default().to_owned();
    (!name.is_empty()).then(|| Passwd { name: name.to_owned(), uid, gid, home })
}

fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut parts = line.split(':');
    let name = parts.next()?;
    let _password = parts.next()?;
    let gid = number(parts.next()?).ok()??;
    (!name.is_empty()).then(|| (name, gid, parts.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(String, String);

    impl RootFiles for Files {
        fn read_file(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, String> {
            let text = if path == "etc/passwd" { &self.0 } else { &self.1 };
            if text.len() as u64 > max_bytes {
                return Err("file is too large".to_owned());
            }
            Ok(Some(text.clone().into_bytes()))
        }
    }

    fn files() -> Files {
        Files(
            "root:x:0:0:root:/root:/bin/sh\n\nbroken\nwrap:x:4294967296:0::/:\napp:x:1000:1001::/home/app:/bin/sh\nbig:x:4294967295:1::/:\n"
                .to_owned(),
            "root:x:0:\nstaff:x:50:app,other\nnogroup:x:65534:\n".to_owned(),
        )
    }

    fn image(user: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        resolve(&Asked::default(), user, &files()).map(|i| (i.user.uid, i.user.gid, i.user.additional_gids))
    }

    #[test]
    fn the_images_user_is_resolved_exactly_or_refused() {
        assert_eq!(image(""), Ok((0, 0, vec![0])));
        assert_eq!(image("0:0"), Ok((0, 0, vec![0])));
        assert_eq!(image("app"), Ok((1000, 1001, vec![1001, 50])));
        assert_eq!(image("1000"), Ok((1000, 1001, vec![1001, 50])));
        assert_eq!(image("1000:nogroup"), Ok((1000, 65534, vec![65534, 50])));
        assert_eq!(image("2000"), Ok((2000, 0, vec![0])));
        assert_eq!(image("2147483647"), Ok((2_147_483_647, 0, vec![0])));
        for bad in ["-1", "4294967295", "4294967296", "2147483648", "1000:-1", "1000:2147483648"] {
            assert!(matches!(image(bad), Err(UserError::Range { .. })), "{bad}");
        }
        for bad in ["root ", " root", "nobody", "wrap", "big", "ROOT", "+0", "0x0"] {
            assert!(matches!(image(bad), Err(UserError::NoUser { .. })), "{bad}: {:?}", image(bad));
        }
        assert_eq!(image("1000:nosuch"), Err(UserError::NoGroup { name: "nosuch".into() }));
    }

    #[test]
    fn the_pods_ids_win_and_the_primary_group_is_always_in_the_list() {
        let asked = Asked { uid: Some(1000), gid: Some(7), groups: vec![9, 7], strict: false };
        let got = resolve(&asked, "root", &files()).unwrap();
        assert_eq!((got.user.uid, got.user.gid), (1000, 7));
        assert_eq!(got.user.additional_gids, [7, 9, 50]);
        assert_eq!(got.home, "/home/app");
        let strict = Asked { strict: true, ..asked };
        assert_eq!(resolve(&strict, "root", &files()).unwrap().user.additional_gids, [7, 9]);
        let negative = Asked { uid: Some(-1), ..Asked::default() };
        assert!(resolve(&negative, "", &files()).is_err());
    }

    #[test]
    fn a_huge_passwd_is_refused() {
        let huge = Files("x".repeat(2 << 20), String::new());
        assert!(matches!(resolve(&Asked::default(), "app", &huge), Err(UserError::File { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_text_becomes_an_id_beyond_the_largest(user in "[-+ 0-9a-z:]{0,14}") {
            if let Ok((uid, gid, _)) = image(&user) {
                proptest::prop_assert!(uid <= LARGEST && gid <= LARGEST);
                if uid == 0 {
                    let name = user.split(':').next().unwrap_or_default();
                    proptest::prop_assert!(name.is_empty() || name == "root" || name.bytes().all(|b| b == b'0') || name == "-0", "{user}");
                }
            }
        }
    }
}
