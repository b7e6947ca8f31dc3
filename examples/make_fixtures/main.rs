//! Makes the fixture images, the same bytes every time: `cargo run --example make_fixtures`.
//!
//! `-- --check` compares what is committed with what would be made, and fails where they differ. `-- --build` first
//! builds `fixtures/program/keelbox.rs` with the `rustc` at hand into `fixtures/program/keelbox-<arch>`; that one is
//! committed, so that neither this nor the tests need it. Compressed members depend on the versions of the compressors
//! in Cargo.lock: after an update of those `--check` may ask for a new run.

mod appc;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use keelblock_actors::image::digest::Digest;
use serde_json::{Value, json};
use tar::{EntryType, Header};

type Files = BTreeMap<PathBuf, Vec<u8>>;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let options: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = options.iter().find(|option| !["--check", "--build"].contains(&option.as_str())) {
        eprintln!("unknown option {unknown:?}; known are --check and --build");
        return Ok(ExitCode::from(2));
    }
    if options.iter().any(|option| option == "--build") {
        build(&root)?;
    }
    let files = make(&root)?;
    if options.iter().any(|option| option == "--check") {
        return check(&root, &files);
    }
    let images = root.join("images");
    if images.exists() {
        std::fs::remove_dir_all(&images)?;
    }
    for (path, bytes) in &files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap_or(&root))?;
        std::fs::write(&path, bytes)?;
    }
    println!("made {} files, {} bytes", files.len(), files.values().map(Vec::len).sum::<usize>());
    Ok(ExitCode::SUCCESS)
}

/// Builds the program for this machine's processor. Nothing but `rustc` and its linker is needed.
fn build(root: &Path) -> Result<(), Box<dyn Error>> {
    let output = format!("keelbox-{}", std::env::consts::ARCH);
    let arguments = "--edition 2024 -C panic=abort -C opt-level=s -C strip=symbols -C relocation-model=static \
        -C link-arg=-nostartfiles -C link-arg=-static -C link-arg=-nostdlib -C link-arg=-Wl,--build-id=none \
        -C link-arg=-Wl,-z,noseparate-code keelbox.rs -o";
    let mut rustc = Command::new("rustc");
    rustc.args(arguments.split_whitespace()).arg(&output).current_dir(root.join("program"));
    if rustc.status()?.success() { Ok(()) } else { Err("rustc failed".into()) }
}

fn check(root: &Path, files: &Files) -> Result<ExitCode, Box<dyn Error>> {
    let mut wrong = Vec::new();
    for (path, bytes) in files {
        match std::fs::read(root.join(path)) {
            Ok(there) if there == *bytes => {}
            Ok(_) => wrong.push(format!("{} differs", path.display())),
            Err(error) => wrong.push(format!("{}: {error}", path.display())),
        }
    }
    let mut directories = vec![root.join("images")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if !files.contains_key(path.strip_prefix(root)?) {
                wrong.push(format!("{} is not made by this program", path.display()));
            }
        }
    }
    if wrong.is_empty() {
        println!("{} files are as made", files.len());
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("{}\nrun cargo run --example make_fixtures", wrong.join("\n"));
    Ok(ExitCode::FAILURE)
}

/// Every file, by its path below `fixtures/`.
fn make(root: &Path) -> Result<Files, Box<dyn Error>> {
    let program = std::fs::read(root.join("program/keelbox-x86_64"))?;
    let base = base_layer(&program);
    let greeting = greeting_layer();
    let hello = Image {
        name: "hello",
        config: json!({"Cmd": ["/bin/hello"], "Env": ["PATH=/bin:/usr/bin", "GREETING=ahoy"], "WorkingDir": "/"}),
        layers: vec![base.clone(), greeting.clone()],
    };
    let old = Image { name: "hello-old", ..hello.clone() };
    let mut single_layer = base.clone();
    single_layer.extend([dir("mnt", 0o755), dir("mnt/mesos", 0o755), dir("mnt/mesos/sandbox", 0o755)]);
    let single = Image { name: "single", layers: vec![single_layer], ..hello.clone() };
    let layers = Image {
        name: "layers",
        config: json!({
            "User": "app", "WorkingDir": "/home/app", "Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"],
            "Env": ["PATH=/bin:/usr/bin", "EMPTY=", "EQUALS=a=b"], "StopSignal": "SIGUSR1",
            "Labels": {"org.example.fixture": "layers"}, "Volumes": {"/data/volume": {}},
        }),
        layers: [vec![base.clone()], feature_layers(&program)].concat(),
    };
    let devices = Image { name: "devices", layers: vec![base.clone(), device_layer()], ..hello.clone() };
    let sparse = Image { name: "sparse", layers: vec![base.clone(), sparse_layer()], ..hello.clone() };
    let entrypoint = Image {
        name: "entrypoint",
        config: json!({"Entrypoint": ["/bin/sh", "-c", "echo entry point: $GREETING"], "User": "1000:2000",
                       "Env": ["GREETING=ahoy"]}),
        layers: vec![base.clone()],
    };

    let mut files = Files::new();
    for image in [&hello, &single, &layers, &devices, &sparse, &entrypoint] {
        files.insert(format!("images/{}.tar", image.name).into(), image.docker_archive());
    }
    files.insert("images/hello-old.tar".into(), old.old_docker_archive());
    let layout = layout(&hello, &greeting);
    let mut archive = Vec::new();
    for (path, bytes) in &layout {
        let path = path.to_str().ok_or("a path of the layout is no text")?;
        for (place, _) in path.match_indices('/') {
            let parent = dir(&path[..place], 0o755);
            if !archive.iter().any(|item: &Item| item.path == parent.path) {
                archive.push(parent);
            }
        }
        archive.push(file(path, 0o644, bytes));
    }
    files.insert("images/hello-oci.tar".into(), tar(&archive));
    files.extend(layout.into_iter().map(|(path, bytes)| (Path::new("images/oci/hello").join(path), bytes)));
    files.insert("images/hello.aci".into(), appc::aci(&hello));
    for (name, bytes) in appc::appc(&program) {
        files.insert(format!("images/appc/keelblock.example/{name}-linux-amd64.aci").into(), bytes);
    }

    for (name, bytes) in appc::signed() {
        files.insert(format!("images/appc-signed/{name}").into(), bytes);
    }

    let readme = std::fs::read_to_string(root.join("README.md"))?;
    let listed = readme_with_digests(&readme, root, &files)?;
    files.insert("README.md".into(), listed.into_bytes());
    Ok(files)
}

// ---- content ------------------------------------------------------------------------------------------------

const COMMANDS: [&str; 21] = [
    "true",
    "false",
    "exit",
    "echo",
    "cat",
    "ls",
    "stat",
    "id",
    "env",
    "pwd",
    "hostname",
    "sleep",
    "hello",
    "write",
    "mkdir",
    "rm",
    "mounts",
    "trap",
    "spawn",
    "kill-self",
    "tty",
];

/// A root filesystem with the program, two users and the usual empty directories.
fn base_layer(program: &[u8]) -> Vec<Item> {
    let mut items = vec![dir("bin", 0o755), file("bin/keelbox", 0o755, program)];
    items.extend(COMMANDS.map(|name| hard_link(&format!("bin/{name}"), "bin/keelbox")));
    items.extend([
        symlink("bin/sh", "keelbox"),
        dir("dev", 0o755),
        dir("etc", 0o755),
        file("etc/group", 0o644, b"root:x:0:\napp:x:1000:\nkeel:x:2000:app\n"),
        file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"),
        dir("home", 0o755),
        dir("home/app", 0o750).owned(1000, 1000),
        dir("proc", 0o555),
        dir("root", 0o700),
        dir("sys", 0o555),
        dir("tmp", 0o1777),
        dir("usr", 0o755),
        dir("usr/bin", 0o755),
    ]);
    items
}

fn greeting_layer() -> Vec<Item> {
    vec![
        dir("etc", 0o755),
        file("etc/motd", 0o644, b"Welcome aboard.\n"),
        dir("usr", 0o755),
        dir("usr/share", 0o755),
        symlink("usr/share/motd", "/etc/motd"),
    ]
}

/// What layers may do to those below them, and what a tar may hold that an ordinary user can unpack.
fn feature_layers(program: &[u8]) -> Vec<Vec<Item>> {
    let long = ["data/long", &["component-of-thirty-two-bytes-00"; 9].join("/")].join("/");
    let mut long_path = vec![dir("data", 0o755)];
    long_path.extend(long.match_indices('/').skip(1).map(|(place, _)| dir(&long[..place], 0o755)));
    long_path.extend([
        dir(&long, 0o755),
        file(&format!("{long}/file"), 0o644, b"a path of more than 255 bytes\n"),
        symlink("data/long/link", &format!("/{long}/file")),
        hard_link("data/long/hard", &format!("{long}/file")),
        file("data/\u{e4}\u{fc}\u{1f6a2} name", 0o644, b"not ASCII\n"),
    ]);
    vec![
        vec![
            dir("data", 0o755),
            symlink("data/absolute", "/data/keep"),
            symlink("data/dangling", "../nowhere/at/all"),
            dir("data/dir", 0o755),
            file("data/dir/a", 0o644, b"a\n"),
            dir("data/dir/sub", 0o755),
            file("data/dir/sub/b", 0o644, b"b\n"),
            file("data/empty", 0o600, b"").owned(1000, 2000),
            file("data/gone", 0o644, b"gone\n"),
            file("data/hard-a", 0o640, b"two names\n"),
            hard_link("data/hard-b", "data/hard-a"),
            file("data/keep", 0o644, b"keep\n"),
            file("data/nanoseconds", 0o644, b"finer than a second\n").at(1_234_567_890, 123_456_789),
            dir("data/opaque", 0o755),
            file("data/opaque/old", 0o644, b"old\n"),
            dir("data/opaque/old-dir", 0o755),
            file("data/opaque/old-dir/x", 0o644, b"x\n"),
            symlink("data/relative", "keep"),
            dir("data/setgid", 0o2775).owned(0, 2000),
            dir("data/swap-dir", 0o755),
            file("data/swap-dir/inside", 0o644, b"inside\n"),
            file("data/swap-file", 0o644, b"file\n"),
            dir("data/volume", 0o755),
            file("data/xattr", 0o644, b"has attributes\n")
                .with_xattr("user.keel", b"value")
                .with_xattr("user.binary", b"\0\xff=\n"),
            dir("usr", 0o755),
            dir("usr/bin", 0o755),
            file("usr/bin/id", 0o4755, program),
        ],
        vec![
            dir("data", 0o755),
            file("data/.wh.dir", 0, b""),
            file("data/.wh.gone", 0, b""),
            file("data/.wh.never-was", 0, b""),
            dir("data/opaque", 0o700),
            file("data/opaque/.wh..wh..opq", 0, b""),
            file("data/opaque/new", 0o644, b"new\n"),
        ],
        vec![
            dir("data", 0o755),
            file("data/swap-dir", 0o644, b"now a file\n"),
            dir("data/swap-file", 0o755),
            file("data/swap-file/inside", 0o644, b"now a directory\n"),
        ],
        long_path,
        vec![
            dir("data", 0o711).at(1_000_000_000, 0),
            dir("data/dir", 0o755),
            file("data/dir/again", 0o644, b"a directory of the same name, and nothing of the old one\n"),
            file("data/gone", 0o644, b"back\n"),
        ],
        // A layer that changes nothing, as `ENV` and `CMD` made them once.
        vec![],
    ]
}

/// The sparse format of GNU tar, which not every other tool reads (umoci does not): an image of its own.
fn sparse_layer() -> Vec<Item> {
    let pieces: [(u64, &[u8]); 3] = [(0, b"begin"), (512 << 10, b"middle"), ((1 << 20) - 4, b"end\n")];
    vec![dir("data", 0o755), sparse("data/sparse", 1 << 20, &pieces)]
}

/// What only root can unpack.
fn device_layer() -> Vec<Item> {
    // struct vfs_cap_data, revision 2 with the effective bit: permitted cap_net_bind_service (10), inheritable none.
    let mut capability = [0; 20];
    capability[..4].copy_from_slice(&0x0200_0001u32.to_le_bytes());
    capability[4..8].copy_from_slice(&(1u32 << 10).to_le_bytes());
    vec![
        dir("data", 0o755),
        Item { device: Some((7, 99)), ..item("data/block", EntryType::Block, 0o660) },
        file("data/capable", 0o755, b"has a capability\n").with_xattr("security.capability", &capability),
        Item { device: Some((1, 3)), ..item("data/character", EntryType::Char, 0o666) },
        item("data/fifo", EntryType::Fifo, 0o622),
    ]
}

// ---- images -------------------------------------------------------------------------------------------------

const CREATED: &str = "2024-01-01T00:00:00Z";
const SECONDS: u64 = 1_704_067_200;

#[derive(Clone)]
struct Image {
    name: &'static str,
    /// The `config` section.
    config: Value,
    /// Base first.
    layers: Vec<Vec<Item>>,
}

impl Image {
    fn config(&self, architecture: &str, tars: &[Vec<u8>]) -> Vec<u8> {
        let history: Vec<Value> =
            tars.iter().map(|_| json!({"created": CREATED, "created_by": "make_fixtures"})).collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        text(&json!({
            "architecture": architecture, "os": "linux", "created": CREATED, "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
        }))
    }

    fn tars(&self) -> Vec<Vec<u8>> {
        self.layers.iter().map(|layer| tar(layer)).collect()
    }

    /// As `docker save` of docker 1.10 to 24 writes it.
    fn docker_archive(&self) -> Vec<u8> {
        let tars = self.tars();
        let config = self.config("amd64", &tars);
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let (mut items, mut members) = (Vec::new(), Vec::new());
        let mut top = String::new();
        for bytes in &tars {
            top = Digest::of(bytes).hex();
            let member = format!("{top}/layer.tar");
            if !members.contains(&member) {
                items.push(dir(&top, 0o755));
                items.push(file(&format!("{top}/VERSION"), 0o644, b"1.0"));
                items.push(file(&member, 0o644, bytes));
            }
            members.push(member);
        }
        items.push(file(&config_name, 0o644, &config));
        let manifest = json!([{"Config": config_name, "RepoTags": [format!("{}:latest", self.name)], "Layers": members}]);
        items.push(file("manifest.json", 0o644, &text(&manifest)));
        items.push(file("repositories", 0o644, &text(&json!({self.name: {"latest": top}}))));
        tar(&items)
    }

    /// As `docker save` before docker 1.10 wrote it: no `manifest.json`, a chain of parents.
    fn old_docker_archive(&self) -> Vec<u8> {
        let (mut items, mut parent) = (Vec::new(), None::<String>);
        let tars = self.tars();
        for (place, bytes) in tars.iter().enumerate() {
            // Version 1 IDs were random; these are made of what they name.
            let seed = format!("{} {} {}", self.name, parent.as_deref().unwrap_or(""), Digest::of(bytes));
            let id = Digest::of(seed.as_bytes()).hex();
            let mut json = json!({"id": id, "created": CREATED, "os": "linux", "architecture": "amd64"});
            if let Some(parent) = &parent {
                json["parent"] = json!(parent);
            }
            if place + 1 == tars.len() {
                json["config"] = self.config.clone();
            }
            items.push(dir(&id, 0o755));
            items.push(file(&format!("{id}/VERSION"), 0o644, b"1.0"));
            items.push(file(&format!("{id}/json"), 0o644, &text(&json)));
            items.push(file(&format!("{id}/layer.tar"), 0o644, bytes));
            parent = Some(id);
        }
        items.push(file("repositories", 0o644, &text(&json!({self.name: {"latest": parent}}))));
        tar(&items)
    }
}

/// An OCI layout with one name for two platforms: amd64 with a gzip and a zstd layer, arm64 with the zstd layer alone (so it
/// has no program and serves to test the choice).
fn layout(image: &Image, greeting: &[Item]) -> Files {
    let mut files = Files::new();
    let mut blob = |media_type: &str, bytes: Vec<u8>| {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
        files.insert(format!("blobs/sha256/{}", digest.hex()).into(), bytes);
        descriptor
    };
    let mut manifest = |architecture: &str, tars: &[Vec<u8>], layers: &[Value]| {
        let config = blob("application/vnd.oci.image.config.v1+json", image.config(architecture, tars));
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let mut descriptor = blob(media_type, text(&manifest));
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    };
    let tars = image.tars();
    let top = tar(greeting);
    let (base, zstd_top) = (gzip(&tars[0]), zstd(&top));
    let describe = |kind: &str, bytes: &[u8]| {
        let media_type = format!("application/vnd.oci.image.layer.v1.tar+{kind}");
        json!({"mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len()})
    };
    let (first, second) = (describe("gzip", &base), describe("zstd", &zstd_top));
    let amd64 = manifest("amd64", &tars, &[first, second.clone()]);
    let arm64 = manifest("arm64", std::slice::from_ref(&top), &[second]);
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [arm64, amd64]});
    let mut entry = blob(media_type, text(&index));
    blob("", base);
    blob("", zstd_top);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]});
    files.insert("index.json".into(), text(&index));
    files.insert("oci-layout".into(), text(&json!({"imageLayoutVersion": "1.0.0"})));
    files
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all that is written")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 19).expect("memory takes all that is written")
}

// ---- tar ----------------------------------------------------------------------------------------------------

/// One entry of a tar.
#[derive(Clone)]
struct Item {
    path: String,
    kind: EntryType,
    mode: u32,
    owner: (u64, u64),
    time: (u64, u32),
    data: Vec<u8>,
    link: String,
    xattrs: Vec<(String, Vec<u8>)>,
    device: Option<(u32, u32)>,
    /// Length, and where the pieces of `data` are.
    sparse: Option<(u64, Vec<(u64, u64)>)>,
}

fn item(path: &str, kind: EntryType, mode: u32) -> Item {
    Item {
        path: path.to_owned(),
        kind,
        mode,
        owner: (0, 0),
        time: (SECONDS, 0),
        data: Vec::new(),
        link: String::new(),
        xattrs: Vec::new(),
        device: None,
        sparse: None,
    }
}

fn dir(path: &str, mode: u32) -> Item {
    item(path, EntryType::Directory, mode)
}

fn file(path: &str, mode: u32, data: &[u8]) -> Item {
    Item { data: data.to_owned(), ..item(path, EntryType::Regular, mode) }
}

fn symlink(path: &str, target: &str) -> Item {
    Item { link: target.to_owned(), ..item(path, EntryType::Symlink, 0o777) }
}

fn hard_link(path: &str, target: &str) -> Item {
    Item { link: target.to_owned(), ..item(path, EntryType::Link, 0o755) }
}

fn sparse(path: &str, length: u64, pieces: &[(u64, &[u8])]) -> Item {
    let map = pieces.iter().map(|(offset, data)| (*offset, data.len() as u64)).collect();
    let data = pieces.iter().flat_map(|(_, data)| data.to_vec()).collect();
    Item { data, sparse: Some((length, map)), ..item(path, EntryType::GNUSparse, 0o644) }
}

impl Item {
    fn owned(self, uid: u64, gid: u64) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    fn at(self, seconds: u64, nanoseconds: u32) -> Self {
        Self { time: (seconds, nanoseconds), ..self }
    }

    fn with_xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.xattrs.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What does not fit a plain header.
    fn extensions(&self) -> Vec<(String, Vec<u8>)> {
        let mut records = Vec::new();
        if self.time.1 > 0 {
            records.push(("mtime".into(), format!("{}.{:09}", self.time.0, self.time.1).into_bytes()));
        }
        for (key, text) in [("path", &self.path), ("linkpath", &self.link)] {
            if text.len() > 100 || !text.is_ascii() {
                records.push((key.into(), text.clone().into_bytes()));
            }
        }
        records
            .extend(self.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
        records
    }

    fn header(&self) -> Header {
        let mut header = if self.sparse.is_some() { Header::new_gnu() } else { Header::new_ustar() };
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.time.0);
        header.set_size(self.data.len() as u64);
        let fits = |text: &str| text.len() <= 100 && text.is_ascii();
        let slash = if self.kind == EntryType::Directory { "/" } else { "" };
        let name =
            if fits(&self.path) { format!("{}{slash}", self.path) } else { "in-extended-header".into() };
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let link = if fits(&self.link) { self.link.as_bytes() } else { b"in-extended-header" };
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        if let Some((major, minor)) = self.device {
            header.set_device_major(major).expect("a ustar header has devices");
            header.set_device_minor(minor).expect("a ustar header has devices");
        }
        if let (Some((length, map)), Some(gnu)) = (&self.sparse, header.as_gnu_mut()) {
            gnu.set_real_size(*length);
            for (place, (offset, length)) in map.iter().enumerate() {
                gnu.sparse[place].set_offset(*offset);
                gnu.sparse[place].set_length(*length);
            }
        }
        header.set_cksum();
        header
    }
}

fn tar(items: &[Item]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |header: &Header, data: &[u8]| {
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    };
    for item in items {
        let mut records = Vec::new();
        for (key, value) in item.extensions() {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let digits = (1..6).find(|digits| (rest + digits).to_string().len() == *digits).unwrap_or(6);
            records.extend_from_slice(format!("{} {key}=", rest + digits).as_bytes());
            records.extend_from_slice(&value);
            records.push(b'\n');
        }
        if !records.is_empty() {
            let mut extension = self::item("PaxHeaders", EntryType::XHeader, 0o644);
            extension.data = records;
            put(&extension.header(), &extension.data);
        }
        put(&item.header(), &item.data);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

// ---- provenance ---------------------------------------------------------------------------------------------

/// The README, its digests filled in: in each table row whose first cell is a path here, the second cell.
fn readme_with_digests(readme: &str, root: &Path, files: &Files) -> Result<String, Box<dyn Error>> {
    let mut lines = Vec::new();
    for line in readme.lines() {
        let mut cells: Vec<String> = line.split('|').map(str::to_owned).collect();
        let path = cells.get(1).map(|cell| cell.trim().trim_matches('`').to_owned()).unwrap_or_default();
        let bytes = match files.get(Path::new(&path)) {
            Some(bytes) => Some(bytes.clone()),
            None if path.starts_with("program/") => Some(std::fs::read(root.join(&path))?),
            None => None,
        };
        if let (Some(bytes), true) = (bytes, cells.len() > 3) {
            cells[2] = format!(" `{}` ", Digest::of(&bytes));
        }
        lines.push(cells.join("|"));
    }
    Ok(lines.join("\n") + "\n")
}
