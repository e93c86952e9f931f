//! What the fuzzer begins with: small things that mean something, made here, so that none is checked in.

/// A manifest of one layer.
pub(super) const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}]}"#;

const INDEX: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"platform":{"os":"linux","architecture":"amd64"}},{"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}"#;

const CONFIG: &str = r#"{"os":"linux","architecture":"amd64","config":{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=b"],"WorkingDir":"/w","User":"1:2","Volumes":{"/v":{}},"ExposedPorts":{"80/tcp":{}},"StopSignal":"SIGINT","Labels":{"l":"m"}},"rootfs":{"type":"layers","diff_ids":["sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"]}}"#;

/// An archive, entry by entry.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
}

/// What a header says.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) path: &'a [u8],
    pub(super) kind: u8,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: u32,
    pub(super) link: &'a [u8],
    pub(super) content: &'a [u8],
    pub(super) device: (u16, u16),
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self { path: b"", kind: b'0', mode: 0o644, uid: 0, gid: 0, mtime: 1, link: b"", content: b"", device: (0, 0) }
    }
}

impl Archive {
    /// Appends one. Names longer than their fields are cut.
    pub(super) fn entry(mut self, entry: &Entry<'_>) -> Self {
        let mut header = [0_u8; 512];
        let mut text = |at: usize, most: usize, bytes: &[u8]| {
            let n = bytes.len().min(most);
            header[at..at + n].copy_from_slice(&bytes[..n]);
        };
        text(0, 100, entry.path);
        text(100, 8, format!("{:07o}", entry.mode).as_bytes());
        text(108, 8, format!("{:07o}", entry.uid).as_bytes());
        text(116, 8, format!("{:07o}", entry.gid).as_bytes());
        text(124, 12, format!("{:011o}", entry.content.len()).as_bytes());
        text(136, 12, format!("{:011o}", entry.mtime).as_bytes());
        text(148, 8, b"        ");
        text(156, 1, &[entry.kind]);
        text(157, 100, entry.link);
        text(257, 8, b"ustar\x0000");
        text(329, 8, format!("{:07o}", entry.device.0).as_bytes());
        text(337, 8, format!("{:07o}", entry.device.1).as_bytes());
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(entry.content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// Extended records for the entry that comes next.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut len = body + 1;
            while len != body + len.to_string().len() {
                len = body + len.to_string().len();
            }
            content.extend_from_slice(format!("{len} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.entry(&Entry { path: b"pax", kind: b'x', content: &content, ..Entry::default() })
    }

    fn simple(self, path: &str, kind: u8, link: &str) -> Self {
        self.entry(&Entry { path: path.as_bytes(), kind, link: link.as_bytes(), ..Entry::default() })
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.entry(&Entry { path: path.as_bytes(), content, ..Entry::default() })
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}

/// Seeds of a target, by its name; none of one that there is not.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "tar" => archives().into_iter().map(|archive| [&[0][..], &archive].concat()).chain(stacks()).collect(),
        "erofs_reader" => archives().iter().filter_map(|archive| super::erofs::image(archive)).collect(),
        "erofs_writer" => {
            (0..8_u8).map(|n| (0..200_u8).map(|i| i.wrapping_mul(n) ^ n.wrapping_mul(37)).collect()).collect()
        }
        "manifest" => {
            let docker = MANIFEST.replace("vnd.oci.image.manifest.v1", "vnd.docker.distribution.manifest.v2");
            let nested = format!(r#"{{"manifests":{}}}"#, "[".repeat(200));
            [MANIFEST, INDEX, CONFIG, &docker, &nested, "{}", r#"{"fsLayers":[]}"#]
                .map(|text| text.as_bytes().to_vec())
                .into()
        }
        "reference" => [
            "busybox",
            "docker.io/library/busybox:1.36",
            "registry.example:5000/a/b_c/d--e:Tag.1",
            "localhost/x@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "[::1]:5000/x:1",
            "oci-layout:/dir/with space:1",
            "oci-archive:/a.tar",
            "docker-archive:/b.tar:name:tag",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into(),
        "credential" => [
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#,
            r#"{"auths":{"registry.example/some":{"username":"u","password":"p"}}}"#,
            r#"{"registry.example":{"auth":"dTpw","email":"e"}}"#,
            r#"{"auths":{"*.example:5000":{"identitytoken":"t"}}}"#,
            r#"{"auths":{"x":{"auth":"OnA="}}}"#,
        ]
        .map(|text| text.as_bytes().to_vec())
        .into(),
        _ => Vec::new(),
    }
}

fn archives() -> Vec<Vec<u8>> {
    let new = Archive::default;
    let long = "n".repeat(300);
    let deep = "d/".repeat(30);
    vec![
        new().file("a", b"content").end(),
        new().simple("d/", b'5', "").file("d/f", &[7; 5000]).simple("d/l", b'1', "d/f").simple("s", b'2', "d/f").end(),
        new()
            .pax(&[("path", &long.as_bytes()[..200]), ("SCHILY.xattr.user.k", b"v"), ("mtime", b"1.5")])
            .file("x", b"y")
            .end(),
        new().entry(&Entry { path: b"c", kind: b'3', device: (1, 3), ..Entry::default() }).simple("p", b'6', "").end(),
        new().simple("d", b'5', "").simple("d/.wh..wh..opq", b'0', "").simple(".wh.gone", b'0', "").end(),
        new().file("././@LongLink", b"x").simple("../../etc/passwd", b'0', "").end(),
        new()
            .entry(&Entry { path: b"././@LongLink", kind: b'L', content: &long.as_bytes()[..150], ..Entry::default() })
            .file("x", b"z")
            .end(),
        new().simple("lib", b'2', "usr/lib").simple("usr/lib", b'5', "").file("lib/a.so", b"so").end(),
        new().file(&deep[..59], b"deep").end(),
        new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.realsize", b"9000"),
            ])
            .file("GNUSparseFile.0/s", &[&b"1\n8192\n4\n"[..], &[0; 503], b"data"].concat())
            .end(),
        new()
            .pax(&[("size", b"3"), ("uid", b"70000"), ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\0\0\0")])
            .file("caps", b"123")
            .end(),
    ]
}

/// A layer on a layer.
fn stacks() -> Vec<Vec<u8>> {
    let lower = Archive::default().simple("usr/lib", b'5', "").simple("lib", b'2', "usr/lib").file("f", b"old").end();
    let blocks = (lower.len() / 512) as u8;
    let uppers = [
        Archive::default().file("lib/x.so", b"x").simple("link", b'1', "f").end(),
        Archive::default().simple(".wh.f", b'0', "").simple("usr/.wh..wh..opq", b'0', "").end(),
        Archive::default().file("lib", b"a file now").simple("f", b'5', "").file("f/g", b"h").end(),
    ];
    uppers.iter().map(|upper| [&[blocks][..], &lower, upper].concat()).collect()
}
