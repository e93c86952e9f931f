use super::*;

fn platform(architecture: &str, variant: &str) -> Platform {
    Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
}

fn entry(os: &str, architecture: &str, variant: Option<&str>, seed: &str) -> Descriptor {
    Descriptor {
        media_type: MANIFESTS[0].into(),
        digest: Digest::sha256(seed.as_bytes()),
        size: 1,
        platform: Some(DescriptorPlatform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(str::to_owned),
        }),
        annotations: None,
    }
}

#[test]
fn the_best_variant_is_chosen() {
    let entries = [
        entry("unknown", "unknown", None, "attestation"),
        entry("windows", "amd64", None, "w"),
        entry("linux", "amd64", None, "amd64"),
        entry("linux", "arm", Some("v5"), "v5"),
        entry("linux", "arm", Some("v6"), "v6"),
        entry("linux", "arm64", Some("v8"), "v8"),
        entry("linux", "amd64", None, "second"),
    ];
    let pick = |p: &Platform| choose(&entries, p).map(|d| d.digest.clone());
    assert_eq!(pick(&platform("amd64", "")).unwrap(), Digest::sha256(b"amd64"));
    assert_eq!(pick(&platform("arm", "v7")).unwrap(), Digest::sha256(b"v6"));
    assert_eq!(pick(&platform("arm", "v5")).unwrap(), Digest::sha256(b"v5"));
    assert_eq!(pick(&platform("arm64", "")).unwrap(), Digest::sha256(b"v8"));
    let error = pick(&platform("riscv64", "")).unwrap_err().to_string();
    assert!(error.contains("linux/riscv64") && error.contains("linux/arm/v5"), "{error}");
}

fn desc() -> String {
    format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{}","size":1}}"#, Digest::sha256(b""))
}

#[test]
fn documents_must_be_one_thing_and_what_they_say() {
    let d = desc();
    let manifest = format!(r#"{{"schemaVersion":2,"config":{d},"layers":[{d}]}}"#);
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{d}]}}"#);
    assert!(matches!(Document::parse(manifest.as_bytes(), None), Ok(Document::Manifest(_))));
    assert!(matches!(Document::parse(manifest.as_bytes(), Some("application/json")), Ok(Document::Manifest(_))));
    assert!(matches!(Document::parse(index.as_bytes(), Some(INDEXES[1])), Ok(Document::Index(_))));
    let both = format!(r#"{{"config":{d},"layers":[{d}],"manifests":[{d}]}}"#);
    let lies = format!(r#"{{"mediaType":"{}","config":{d},"layers":[{d}]}}"#, INDEXES[0]);
    for (text, content_type) in
        [(&both, None), (&lies, None), (&index, Some(MANIFESTS[0])), (&manifest, Some(INDEXES[0]))]
    {
        assert!(matches!(Document::parse(text.as_bytes(), content_type), Err(ManifestError::Ambiguous(_))), "{text}");
    }
    assert!(matches!(Document::parse(br#"{"schemaVersion":1,"fsLayers":[]}"#, None), Err(ManifestError::MediaType(_))));
    let deep = "[".repeat(100_000);
    assert!(matches!(Document::parse(deep.as_bytes(), None), Err(ManifestError::Parse { .. })));
}

#[test]
fn a_manifest_is_checked_before_anything_is_fetched() {
    let limits = crate::Limits::default();
    let layer = |media_type: &str, size| Descriptor {
        media_type: media_type.into(),
        digest: Digest::sha256(b""),
        size,
        platform: None,
        annotations: None,
    };
    let manifest = |layers| Manifest { config: layer("", 10), layers };
    assert!(manifest(vec![layer(LAYERS[1], 5)]).check(&limits).is_ok());
    assert!(matches!(manifest(vec![]).check(&limits), Err(ManifestError::NoLayers)));
    assert!(matches!(
        manifest(vec![layer(LAYERS[1], 5); 129]).check(&limits),
        Err(ManifestError::TooManyLayers { .. })
    ));
    assert!(matches!(manifest(vec![layer(LAYERS[1], 1 << 40)]).check(&limits), Err(ManifestError::TooLarge { .. })));
    assert!(matches!(
        manifest(vec![layer("application/vnd.erofs", 5)]).check(&limits),
        Err(ManifestError::MediaType(_))
    ));
}

#[test]
fn a_configuration_may_be_full_of_nulls_and_strangers() {
    let diff = Digest::sha256(b"");
    let manifest = Manifest { config: entry("", "", None, "c"), layers: vec![entry("", "", None, "l")] };
    let json = format!(
        r#"{{"os":"linux","architecture":"amd64","config":{{"Env":null,"Cmd":["a"],"Volumes":{{"/v":{{}}}},"Entrypoint":null,"Labels":null,
            "ExposedPorts":{{"80/tcp":{{}}}},"StopSignal":"","Healthcheck":{{"Test":["x"]}}}},"rootfs":{{"type":"layers","diff_ids":["{diff}"]}},"history":[1]}}"#
    );
    let config = Config::parse(json.as_bytes(), &manifest, &platform("amd64", "")).unwrap();
    assert_eq!(config.run.cmd, ["a"]);
    assert_eq!(config.run.volumes, ["/v"]);
    assert_eq!(config.run.exposed_ports, ["80/tcp"]);
    assert_eq!(config.run.stop_signal, None);
    assert!(matches!(
        Config::parse(json.as_bytes(), &manifest, &platform("arm64", "")),
        Err(ManifestError::WrongPlatform { .. })
    ));
    let two = Manifest { layers: vec![manifest.layers[0].clone(); 2], ..manifest };
    assert!(matches!(
        Config::parse(json.as_bytes(), &two, &platform("amd64", "")),
        Err(ManifestError::LayerCount { .. })
    ));
}
