use proptest::prelude::*;

use super::*;

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn short_names_get_dockers_defaults() {
    let table = [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("a/b", "docker.io/a/b:latest"),
        ("localhost/b", "localhost/b:latest"),
        ("localhost:5000/b", "localhost:5000/b:latest"),
        ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("index.docker.io/x", "docker.io/library/x:latest"),
        ("ghcr.io/x__y/z---w", "ghcr.io/x__y/z---w:latest"),
        ("oci-layout:/a/b:tag", "oci-layout:/a/b:tag"),
        ("oci-layout:/a:b/c", "oci-layout:/a:b/c"),
        ("docker-archive:/a.tar:busybox:1", "docker-archive:/a.tar:busybox:1"),
    ];
    for (input, want) in table {
        assert_eq!(input.parse::<Reference>().unwrap().to_string(), want, "{input}");
    }
    let with_both = format!("busybox:1@{D}");
    let parsed: Reference = with_both.parse().unwrap();
    assert_eq!(parsed.to_string(), format!("docker.io/library/busybox:1@{D}"));
    assert!(parsed.is_pinned() && !parsed.defaults_to_always());
    assert_eq!(format!("x@{D}").parse::<Reference>().unwrap().to_string(), format!("docker.io/library/x@{D}"));
}

#[test]
fn a_bad_name_is_refused_with_the_part_that_is_wrong() {
    let table = [
        ("", "empty"),
        ("Busybox", "lower case"),
        ("a/B", "lower case"),
        ("a:", "tag"),
        ("a:.x", "tag"),
        ("a b", "component"),
        ("a//b", "component"),
        ("/a", "component"),
        ("a/", "component"),
        ("a..b", "component"),
        ("a___b", "component"),
        ("-a", "component"),
        ("x.io:99999/a", "registry"),
        ("x.io:/a", "registry"),
        ("x_y.io/a", "registry"),
        ("[::1/a", "registry"),
        ("a@sha256:00", "digest"),
        ("a@md5:00", "digest"),
        ("oci-layout:rel/path", "absolute"),
        ("oci-layout:/a/../b", "absolute"),
        ("oci-layout:/a:b c", "tag"),
        (&D["sha256:".len()..], "image id"),
        ("https://x.io/a", "registry"),
    ];
    for (input, want) in table {
        let error = input.parse::<Reference>().expect_err(input).to_string();
        assert!(error.contains(want), "{input}: {error}");
    }
    let long = "a/".repeat(127) + "abc";
    assert!(matches!(long.parse::<Reference>(), Err(ReferenceError::TooLong { .. })));
}

proptest! {
    #[test]
    fn parsing_never_panics(s in "\\PC{0,300}") {
        let _ = s.parse::<Reference>();
    }

    #[test]
    fn near_names_never_panic_and_the_normal_form_is_a_fixed_point(s in "[a-zA-Z0-9:/@._\\[\\]-]{0,60}") {
        if let Ok(parsed) = s.parse::<Reference>() {
            let normal = parsed.to_string();
            prop_assert_eq!(normal.parse::<Reference>().unwrap().to_string(), normal);
        }
    }

    /// The specification crate's parser is looser on hosts; what both accept must mean the same.
    #[test]
    fn what_we_accept_means_what_the_reference_grammar_says(
        s in "([a-z]{1,4}(\\.[a-z]{1,3})?(:[0-9]{1,4})?/)?[a-z0-9]{1,4}([._-][a-z0-9]{1,3})?(/[a-z0-9]{1,4})?(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,4})?"
    ) {
        let ours = s.parse::<Reference>();
        let theirs = s.parse::<oci_spec::distribution::Reference>();
        if let (Ok(Reference::Registry(ours)), Ok(theirs)) = (&ours, &theirs) {
            prop_assert_eq!(ours.registry(), theirs.registry());
            prop_assert_eq!(ours.repository(), theirs.repository());
            prop_assert_eq!(ours.tag(), theirs.tag());
        }
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} {:?}", ours, theirs);
    }
}
