use super::*;

fn load(text: &str) -> Result<Policy, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("devices.toml");
    std::fs::write(&file, text).unwrap();
    Policy::load(&file).map_err(|error| crate::errors::chain(&error))
}

fn units(policy: &Policy, resource: &str) -> Vec<String> {
    policy.offer(resource).unwrap().units().map(str::to_owned).collect()
}

#[test]
fn each_device_is_a_unit_of_its_own_unless_all_are_shared() {
    let policy = load(
        "[\"a.com/own\"]\ndevices = [\"/dev/f?ll\", \"/dev/full\"]\npath = \"/dev/own/\"\naccess = \"r\"\n\
         [\"a.com/shared\"]\ndevices = [\"/dev/full\"]\nunits = 2\npath = \"/dev/mine\"\n\
         [\"a.com/unplugged\"]\ndevices = [\"/dev/does-not-exist-*\"]\n\
         [\"a.com/broken\"]\ndevices = [\"/dev/full\", \"/dev/does-not-exist\"]\npath = \"/dev/x/\"\nunits = 9\n",
    )
    .unwrap();
    assert_eq!(units(&policy, "a.com/own"), ["/dev/full"]);
    assert_eq!(units(&policy, "a.com/shared"), ["0", "1"]);
    let told: Vec<_> = policy.capacity().into_iter().collect();
    let expected = [("a.com/broken", 0), ("a.com/own", 1), ("a.com/shared", 2), ("a.com/unplugged", 0)];
    assert_eq!(told, expected.map(|(name, units)| (name.to_owned(), units)));
    let nodes = |resource: &str, unit: &str| {
        let wanted = [(resource.to_owned(), [unit.to_owned()].into())].into();
        super::super::nodes(&policy, &wanted).map_err(|error| error.to_string())
    };
    let node = &nodes("a.com/own", "/dev/full").unwrap()[0];
    assert_eq!((node.path.as_path(), node.major, node.minor), (Path::new("/dev/own/full"), 1, 7));
    assert_eq!((node.access.to_string().as_str(), node.mode & 0o222), ("r", 0));
    assert_eq!(nodes("a.com/shared", "1").unwrap()[0].path, Path::new("/dev/mine"));
    for (resource, unit) in [("a.com/own", "/dev/zero"), ("a.com/shared", "2"), ("b.com/x", "0")] {
        let words = format!("the device policy of this host offers {resource} as this pod has it no more");
        assert_eq!(nodes(resource, unit).unwrap_err(), words);
    }
}

#[test]
fn what_cannot_be_is_refused_with_what_where_and_what_to_do() {
    for (text, words) in [
        ("[\"fuse\"]\ndevices = [\"/dev/full\"]\n", "DOMAIN/NAME, as example.com/fuse"),
        ("[\"kubernetes.io/x\"]\ndevices = [\"/dev/full\"]\n", "not in kubernetes.io"),
        ("[\"a.com/x\"]\ndevices = []\n", "name at least one path"),
        ("[\"a.com/x\"]\n", "missing field `devices`"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\nunit = 1\n", "unknown field `unit`"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\nunits = 0\n", "`units` is 0"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\nunits = 10001\n", "more than 10000"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\naccess = \"rwm\"\n", "containers never make devices"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\naccess = \"all\"\n", "is no device access"),
        ("[\"a.com/x\"]\ndevices = [\"dev/full\"]\n", "not an absolute path on the host"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/../etc/passwd\"]\n", "not an absolute path on the host"),
        ("[\"a.com/x\"]\ndevices = [\"/etc/passwd\"]\n", "/etc/passwd is no device"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\n", "/dev/full is a container's own in any case; say with `path`"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\npath = \"/dev/pts/9\"\n", "is a container's own in any case"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\npath = \"/etc/x\"\n", "not a path below /dev"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/full\"]\npath = \"/dev/../etc/x\"\n", "not a path below /dev"),
        ("[\"a.com/x\"]\ndevices = [\"/dev/fu*\"]\npath = \"/dev/x\"\n", "end it with a slash"),
        (
            "[\"a.com/x\"]\ndevices = [\"/dev/full\"]\npath = \"/dev/x\"\n[\"a.com/y\"]\ndevices = [\"/dev/full\"]\npath = \"/dev/y\"\n",
            "/dev/full is given to one pod at a time, and is also a unit of \"a.com/x\"",
        ),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(words) && error.contains("devices.toml"), "{text}: {error}");
    }
    let missing = Policy::load(Path::new("/does/not/exist.toml")).unwrap_err();
    assert!(missing.to_string().contains("/does/not/exist.toml"));
}

#[test]
fn patterns_stand_for_parts_of_one_name() {
    for (pattern, name, is) in [
        ("tty*", "ttyS0", true),
        ("tty*", "tty", true),
        ("tty?", "tty", false),
        ("*0", "ttyS0", true),
        ("*S*0", "ttyS10", true),
        ("*", ".hidden", false),
        (".h*", ".hidden", true),
        ("full", "full", true),
        ("full", "fully", false),
    ] {
        assert_eq!(matches(pattern, name), is, "{pattern} {name}");
    }
}
