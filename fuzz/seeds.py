#!/usr/bin/env python3
"""Writes first inputs for the fuzz targets, made by other people's programs where there are some: GNU tar, Python's
tarfile, gzip, zstd, gpg, and the images of fixtures/.

    fuzz/seeds.py DIR      makes DIR/<target>/<name>; needs tar, gzip, zstd and gpg

They are only where a fuzzer begins: what it makes of them is kept in fixtures/fuzz/.
"""
import base64
import gzip
import hashlib
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(sys.argv[1])
INPUT_BYTES_MAX = 24 << 10


def write(target, name, data):
    if isinstance(data, str):
        data = data.encode()
    if len(data) > INPUT_BYTES_MAX:
        return
    directory = OUT / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name.replace("/", "_")).write_bytes(data)


def zstd(data, *options):
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout


# ---- tar ------------------------------------------------------------------------------------------------------


def member(name, kind=tarfile.REGTYPE, data=b"", link="", pax=None, **more):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mtime = kind, len(data), link, 1_000_000
    info.pax_headers = pax or {}
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def tar(members, form, **more):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, **more) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()[: -(len(out.getvalue()) % 10240 or 10240)] or out.getvalue()


def trimmed(data):
    """Without the record padding, but for one end mark."""
    end = len(data.rstrip(b"\0"))
    return data[: (end + 511) // 512 * 512] + bytes(1024)


def tars():
    small = [member("a", data=b"x" * 700), member("d/", tarfile.DIRTYPE, mode=0o755), member("d/b", data=b"y")]
    links = [member("f", data=b"1"), member("l", tarfile.SYMTYPE, link="f"), member("h", tarfile.LNKTYPE, link="f")]
    special = [
        member("c", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("b", tarfile.BLKTYPE, devmajor=259, devminor=70000),
        member("p", tarfile.FIFOTYPE),
    ]
    long = [member("long/" * 40 + "x", data=b"z"), member("s", tarfile.SYMTYPE, link="target/" * 30 + "y")]
    large = [member("big-owner", uid=1 << 40, gid=1 << 33), member("old", mtime=-1.5), member("late", mtime=1 << 40)]
    attributes = [
        member("x", pax={"SCHILY.xattr.user.one": "1", "SCHILY.xattr.user.two": "a=b"}),
        member("nano", pax={"mtime": "1700000000.123456789"}),
        member("both", data=b"12345", pax={"path": "other/name", "size": "5"}),
        member("empty", data=b"", pax={"path": "", "comment": "nothing"}),
    ]
    whiteouts = [member(name) for name in ("d/.wh.a", ".wh..wh..opq", ".wh..wh.plnk", ".wh.", "d/.wh..wh..opq")]
    hostile = [member(name, data=b"!") for name in ("../up", "/etc/passwd", "a/../../b", "./././x", "a//b")]
    for name, form in (("ustar", tarfile.USTAR_FORMAT), ("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        for kind, members in (
            ("small", small),
            ("links", links),
            ("special", special),
            ("long", long),
            ("large", large),
            ("attributes", attributes),
            ("whiteouts", whiteouts),
            ("hostile", hostile),
        ):
            try:
                yield f"{kind}-{name}", trimmed(tar(members, form))
            except ValueError:
                pass  # what ustar cannot say
    yield "global", trimmed(tar(small, tarfile.PAX_FORMAT, pax_headers={"comment": "of all"}))
    yield "global-path", trimmed(tar(small, tarfile.PAX_FORMAT, pax_headers={"path": "of-all"}))
    yield "no-end", trimmed(tar(small, tarfile.USTAR_FORMAT))[:-1024]
    yield "nothing", bytes(1024)
    yield "empty", b""


def gnu_tars():
    """Sparse files in every way GNU tar writes them."""
    with tempfile.TemporaryDirectory() as directory:
        base = pathlib.Path(directory)
        with open(base / "sparse", "wb") as file:
            for at in range(8):
                file.seek(at * 65536)
                file.write(b"data%d" % at)
            file.truncate(1 << 20)
        with open(base / "hole", "wb") as file:
            file.truncate(1 << 20)
        (base / "plain").write_bytes(b"p" * 513)
        common = ["tar", "-C", directory, "--sort=name", "--mtime=@1000000", "--owner=0", "--group=0", "-c"]
        for name, options in (
            ("gnu", ["--format=gnu"]),
            ("0.0", ["--format=pax", "--sparse-version=0.0"]),
            ("0.1", ["--format=pax", "--sparse-version=0.1"]),
            ("1.0", ["--format=pax", "--sparse-version=1.0"]),
        ):
            for files in (["sparse"], ["hole", "plain"]):
                out = subprocess.run([*common, "-S", *options, *files], stdout=subprocess.PIPE, check=True).stdout
                # Blocks of the file system are 4 KiB each: only the maps matter.
                yield f"sparse-{name}-{files[0]}", trimmed(out)
        for form in ("v7", "oldgnu", "gnu", "ustar", "pax"):
            out = subprocess.run([*common, f"--format={form}", "plain"], stdout=subprocess.PIPE, check=True).stdout
            yield f"gnu-tar-{form}", trimmed(out)


def all_tars():
    found = dict(tars()) | dict(gnu_tars())
    for name, data in found.items():
        write("tar", name, data)
        write("archive", "raw-" + name, b"r\x1e" + data)
        write("layers", "raw-" + name, b"\xff" + data)
    return found


# ---- streams --------------------------------------------------------------------------------------------------


def streams(found):
    texts = {"empty": b"", "short": b"keel", "zeros": bytes(100_000), "tar": found["small-pax"]}
    texts["noise"] = hashlib.shake_256(b"noise").digest(3000)
    texts["text"] = " ".join(str(number) for number in range(1500)).encode()
    for name, text in texts.items():
        for level in (0, 1, 9):
            write("blob", f"gzip-{name}-{level}", gzip.compress(text, level, mtime=0))
        write("blob", f"zstd-{name}", zstd(text))
        write("blob", f"zstd-19-{name}", zstd(text, "-19", "--no-check"))
        write("blob", f"plain-{name}", text[:2000])
        write("layers", f"gzip-{name}", b"\xff" + gzip.compress(text, 6, mtime=0))
    one, two = gzip.compress(b"one", mtime=0), gzip.compress(b"two" * 100, mtime=0)
    write("blob", "members", one + two + gzip.compress(b"", mtime=0))
    write("blob", "member-and-zeros", one + bytes(512))
    write("blob", "member-cut", two[:-3])
    named = bytearray(one)
    named[3] = 0x1F  # FTEXT, FHCRC, FEXTRA, FNAME, FCOMMENT
    write("blob", "member-with-all-fields", bytes(named[:10]) + b"\x04\0abcd" + b"name\0comment\0\0\0" + one[10:])
    skippable = b"\x5a\x2a\x4d\x18\x03\0\0\0xyz"
    write("blob", "frames", skippable + zstd(b"one") + skippable + zstd(b"two", "--no-check"))
    write("blob", "frame-of-unknown-length", subprocess.run(["zstd", "-q", "-c", "--no-content-size"], input=b"k" * 999, stdout=subprocess.PIPE, check=True).stdout)
    write("blob", "long-window", zstd(bytes(3000), "--ultra", "-22", "--long=27"))


# ---- documents ------------------------------------------------------------------------------------------------

DIGESTS = ["sha256:" + hashlib.sha256(text).hexdigest() for text in (b"", b"a", b"b")]
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
DOCKER = "application/vnd.docker."


def descriptor(media_type, digest=0, size=3, **more):
    return {"mediaType": media_type, "digest": DIGESTS[digest], "size": size, **more}


def manifests():
    layers = [descriptor(LAYER_TYPE + suffix, at) for at, suffix in enumerate(("", "+gzip", "+zstd"))]
    image = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": descriptor(CONFIG_TYPE), "layers": layers}
    yield "image", image
    yield "image-bare", {"config": descriptor(CONFIG_TYPE), "layers": layers[:1]}
    yield "image-null", {**image, "layers": None, "annotations": None}
    docker = {
        "schemaVersion": 2,
        "mediaType": DOCKER + "distribution.manifest.v2+json",
        "config": descriptor(DOCKER + "container.image.v1+json"),
        "layers": [descriptor(DOCKER + "image.rootfs.diff.tar.gzip", 1)],
    }
    yield "docker", docker
    yield "artifact", {**image, "artifactType": "application/x-sbom"}
    platforms = [("linux", "amd64", None), ("linux", "arm", "v7"), ("linux", "arm64", "v8"), ("unknown", "unknown", None)]
    entries = []
    for number, (os, architecture, variant) in enumerate(platforms):
        platform = {"os": os, "architecture": architecture} | ({"variant": variant} if variant else {})
        entries.append(descriptor(MANIFEST_TYPE, number % 3, platform=platform, annotations={"a": "b"}))
    yield "index", {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
    yield "index-nested", {"schemaVersion": 2, "manifests": [descriptor(INDEX_TYPE), descriptor(MANIFEST_TYPE)]}
    yield "list", {"schemaVersion": 2, "mediaType": DOCKER + "distribution.manifest.list.v2+json", "manifests": entries}
    yield "both", {**image, "manifests": entries}
    yield "schema1-short", {"schemaVersion": 1, "fsLayers": [{"blobSum": DIGESTS[0]}], "history": []}
    yield "schema1", schema1(3)
    yield "schema1-empty", schema1(4, throwaway=True)
    yield "schema1-ring", schema1(2, base="2")


def schema1(count, base="", **newest):
    """A manifest of schema 1: entries with the IDs 1, 2, ..., each on the one after it."""
    history = []
    for number in range(1, count + 1):
        parent = base if number == count else str(number + 1)
        entry = {"id": str(number) * 64, "parent": parent * 64} if parent else {"id": str(number) * 64}
        if number == 1:
            entry |= {"os": "linux", "architecture": "arm", "config": {"Cmd": ["a"], "Env": ["A=b"], "User": "1"}} | newest
        history.append({"v1Compatibility": json.dumps(entry)})
    layers = [{"blobSum": DIGESTS[at % 3]} for at in range(count)]
    return {"schemaVersion": 1, "name": "a", "tag": "b", "architecture": "amd64", "fsLayers": layers, "history": history}


def signed(document, length=0, tail="}", times=1):
    """The text of a document with signatures before its last bracket; `length` is added to that of what is signed."""
    head = json.dumps(document)[:-1]
    code = lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    header = {"formatLength": len(head) + length, "formatTail": code(tail)}
    signatures = [{"protected": code(json.dumps(header))}] * times
    return head + ',"signatures":' + json.dumps(signatures) + "}"


def configs():
    yield "scratch", {"rootfs": {"type": "layers", "diff_ids": []}, "config": {}}
    yield "full", {
        "os": "linux",
        "architecture": "arm",
        "variant": "v7",
        "rootfs": {"type": "layers", "diff_ids": DIGESTS},
        "config": {
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": "echo",
            "Env": ["PATH=/bin:/usr/bin", "EMPTY=", "BAD", "=x", "A=b=c"],
            "WorkingDir": "/srv",
            "User": "1000:1000",
            "StopSignal": "SIGTERM",
            "Labels": {"a": "b", "none": None},
        },
        "history": [{"created_by": "x", "empty_layer": True}],
    }
    yield "null", {"os": None, "rootfs": None, "config": {"Entrypoint": None, "Cmd": [], "Env": None, "Labels": None}}
    yield "windows", {"os": "windows", "architecture": "amd64", "rootfs": {"type": "layers+base", "diff_ids": DIGESTS}}


def documents():
    written = {name: json.dumps(document) for name, document in configs()}
    for name, text in written.items():
        write("config", name, text)
    for name, document in manifests():
        text = json.dumps(document)
        write("manifest", name, text)
        write("manifest", name + "-and-config", text + "\f" + written["full"])
        # What is of two formats, one of them nearly.
        for key in ("manifests", "layers", "fsLayers", "config"):
            if key not in document:
                write("manifest", f"{name}-{key}-null", json.dumps(document | {key: None}))
                write("manifest", f"{name}-{key}-none", json.dumps(document | {key: []}))
    twice = [("schema1", schema1(2)), ("schema1-twice", schema1(1) | {"fsLayers": [{"blobSum": DIGESTS[0]}] * 2})]
    twice[1][1]["history"] *= 2
    for name, document in twice:
        write("manifest", name + "-signed", signed(document))
        write("manifest", name + "-signed-by-two", signed(document, times=2))
        write("manifest", name + "-signed-beyond", signed(document, length=10**6))
        write("manifest", name + "-signed-tail", signed(document, tail=',"manifests":[]}'))
        write("manifest", name + "-signed-shorter", signed(document, length=-2, tail="}]}"))
    for target in ("manifest", "config"):
        write(target, "deep", "[" * 500)
        write(target, "deep-field", '{"x":' * 200)
        write(target, "escapes", r'{"config":{"User":"\u0000\ud83d\ude00","Cmd":"\ud800"}}')


# ---- archives -------------------------------------------------------------------------------------------------


def archives():
    def parts(form, *members):
        return "\x1e".join([form, *("\n".join(part) for part in members)])

    config = '{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:@0"]},"config":{"Cmd":["x"]}}'
    new = ('[{"Config":"@1.json","RepoTags":["app:1","localhost/b:latest"],"Layers":["l/layer.tar"]}]', config)
    docker = [("l/layer.tar", "layer"), ("@1.json", config), ("manifest.json", new[0])]
    # A name is filled in from earlier members, and a config's own digest is not one of those.
    docker[1] = ("c.json", config)
    docker[2] = ("manifest.json", new[0].replace("@1.json", "c.json"))
    write("archive", "docker", parts("d", *docker))
    write("archive", "docker-named", parts("dapp:1", *docker))
    write("archive", "docker-local", parts("db", *docker))
    linked = [("x", "layer"), ("l/layer.tar", "->../x"), ("h", "=>x"), *docker[1:]]
    write("archive", "docker-links", parts("d", *linked))
    write("archive", "docker-cycle", parts("d", ("l/layer.tar", "->layer.tar"), *docker[1:]))
    old = [
        ("b/layer.tar", "base"),
        ("b/json", '{"id":"b"}'),
        ("t/layer.tar", "=>b/layer.tar"),
        ("t/json", '{"id":"t","parent":"b","os":"linux","config":{"Env":["A=b"]}}'),
        ("repositories", '{"app":{"latest":"t","1":"b"}}'),
    ]
    write("archive", "old", parts("dapp", *old))
    write("archive", "old-by-id", parts("d", *old[:4]))
    write("archive", "old-cycle", parts("d", ("b/layer.tar", "x"), ("b/json", '{"parent":"b"}'), *old[4:]))
    layer = '{"mediaType":"%s","digest":"sha256:@1","size":#1}' % LAYER_TYPE
    oci = [
        ("oci-layout", '{"imageLayoutVersion":"1.0.0"}'),
        ("@", "layer"),
        ("@", config.replace("@0", "@1")),
        ("@", '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"%s","digest":"sha256:@2","size":#2},"layers":[%s]}' % (MANIFEST_TYPE, CONFIG_TYPE, layer)),
        (
            "index.json",
            '{"schemaVersion":2,"manifests":[{"mediaType":"%s","digest":"sha256:@3","size":#3,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"org.opencontainers.image.ref.name":"latest","io.containerd.image.name":"docker.io/library/app:latest"}}]}'
            % MANIFEST_TYPE,
        ),
    ]
    nested = oci[:4] + [
        ("@", '{"schemaVersion":2,"mediaType":"%s","manifests":[{"mediaType":"%s","digest":"sha256:@3","size":#3}]}' % (INDEX_TYPE, MANIFEST_TYPE)),
        ("index.json", '{"schemaVersion":2,"manifests":[{"mediaType":"%s","digest":"sha256:@4","size":#4}]}' % INDEX_TYPE),
    ]
    for form, name in (("o", "oci-archive"), ("l", "oci-layout")):
        for asked in ("", "latest", "app", "1"):
            write("archive", f"{name}-{asked}", parts(form + asked, *oci))
        write("archive", f"{name}-nested", parts(form, *nested))
    write("archive", "docker-and-oci", parts("d", *oci, ("manifest.json", '[{"Config":"blobs/sha256/@2","RepoTags":null,"Layers":["blobs/sha256/@1"]}]')))
    small = trimmed(tar([member("manifest.json", data=b"[]")], tarfile.USTAR_FORMAT))
    write("archive", "raw-gzip", b"r\x1e" + gzip.compress(small, mtime=0))
    write("archive", "raw-zstd", b"r\x1e" + zstd(small))
    write("archive", "raw-xz", b"r\x1e\xfd7zXZ\0")


# ---- texts ----------------------------------------------------------------------------------------------------


def texts():
    references = [
        "alpine", "alpine:3.20", "library/alpine", "docker.io/library/alpine:latest", "localhost/app", "127.0.0.1:5000/app:1",
        "[::1]:5000/x", "quay.io/a/b__c/d-e--f.g:T_1.-x", "app@" + DIGESTS[0], "h.io:443/a:t@" + DIGESTS[0],
        "sha512:" + "0f" * 64, "docker:busybox", "docker://busybox:1", "docker-archive:/a/b.tar:app:1", "oci:/layout:latest",
        "oci-archive:a.tar", "appc:example.com/app:1.0,os=linux", "aci:/a.aci", "dir:/x", "linux/arm/v7", "linux/x86_64",
        "https://registry.local:5000/v2/", "http://registry", "c1", "a" * 242, "a" * 255, "a.b/" + "c" * 250, "[fe80::1%25eth0]/x",
    ]
    for number, text in enumerate(references):
        write("reference", f"{number:02}", text)
    challenges = [
        'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull"',
        'BEARER Realm="https://quay.io/v2/auth" , SERVICE="quay.io"',
        'Bearer realm="r",scope="repository:a/b:pull,push",error="insufficient_scope"',
        r'BASIC realm="Sonatype \"Nexus\" Repository"',
        "Bearer realm=https://r.io/token?a=b,service=r.io",
        'Negotiate abc==, Basic realm="x", Bearer realm="y", service=z',
        'Digest realm="a", nonce="b\\\\", qop=auth', "Basic", ",,,", '"', "Bearer realm=\"open", "realm=x",
        "https://cdn.io/b?sig=1#top", "//cdn.io/b", "/storage/b", "b2", "?again", "HTTP://cdn.io:80/b", "ftp://h/x", "https://u:p@h/x",
        "http://[::1]:80/", "https://h:/x", "/a:b/c",
    ]
    for number, text in enumerate(challenges):
        write("challenge", f"{number:02}", text)
    hosts = [
        'server = "https://registry-1.docker.io"\n[host."https://m:5000"]\n  capabilities = ["pull", "resolve"]\n',
        '[host."http://z"]\n[host."http://a/p"]\noverride_path = true\n[host."http://a/p".header]\nx-a = ["1", "2"]\n',
        'ca = "a.pem"\nclient = [["c.pem", "c.key"], "d.pem"]\nskip_verify = true\ndial_timeout = "1m1.5s"\n',
        'server = ""\nhost = { "r.io" = { ca = ["a", "/b"], client = "c" }, "r.io:5000/v2/" = {} }\n',
        '[host."[::1]:80/../a//./v2"]\ncapabilities = []\nunheard = 1\n', 'server = "ftp://x"', "server = \"https://u:p@x\"",
        "foobar.com, .barbaz.net, *.star.org:80, 192.168.1.2:81, 10.0.0.0/30, [2001:db8::2]:443, 2002:db8::/64, *",
        "p.io:3128", "[::1]/x?y#z", "a%20b@p.io", "%zz@p", ":0",
    ]
    for number, text in enumerate(hosts):
        write("hosts", f"{number:02}", text)
    configs = [
        '{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNzd29yZA=="}}}',
        '{"auths":{"r.io/team/app":{"username":"u","password":"p:q"},"r.io":{"identitytoken":"0123456789abcdef"}}}',
        '{"auths":{"r.io:5000":{"auth":"MDAwMDo=","identitytoken":"t","registrytoken":"b"}},"credsStore":"pass"}',
        '{"credHelpers":{"docker.io":"hub","1.dkr.ecr.eu-west-1.amazonaws.com":"ecr-login"},"credsStore":"secretservice"}',
        '{"https://index.docker.io/v1/":{"auth":"dTpw","email":"x@y.z"},"r.io":{"auth":"dTpwAAAA"}}',
        '{"auths":{"registry-1.docker.io/v2/":{},"http://h//x/":{"password":"p"}},"HttpHeaders":{"X":"y"}}',
        '{"auths":{"r.io":{"auth":"no base64"}}}', '{"auths":[]}', "{}", "[1]", "hush", '{"auths":{"":{"password":"p"}}}',
    ]
    for number, text in enumerate(configs):
        write("docker_config", f"{number:02}", text)
    tag = "<meta name='ac-discovery' content='e.com https://s.test/{os}/{arch}/{name}-{version}.{ext}'>"
    pages = [
        f"<!DOCTYPE html>\n<html><head><title>x</title>{tag}</head><body>{tag}</body></html>",
        f"{tag}<meta content=\"e.com/a https&#58;//k.test/keys&amp;x\" data-x NAME=AC-DISCOVERY-PUBKEYS />",
        f"<!-- {tag} --><script>var x = '{tag}'</script><style>{tag}</style><template>{tag}</template>{tag}",
        f"<textarea>{tag}</textarea><noscript>{tag}</noscript><x a=\"{tag}\"><![CDATA[{tag}]]><!--{tag}",
        "<meta name=ac-discovery content=a><meta name=ac-discovery content='a b c'><meta name=ac-discovery>",
        "https://{name}-{version}-{os}-{arch}.{ext}\ne.com/a:1.2,os=linux,arch=amd64\nhttps://s.test:8443/acis/",
        "http://s.test/{name,version}/{flavour}.{ext}?x={arch}\na.b/c:1%2F..%2F2,os=..,arch=x%25,flavour=?#@\nfile:///srv/a%20b",
        "hdfs://s.test/{+name}{?os}.{ext}\ne.com\n/srv/acis/",
        "https://{version}:80/{ext}\n[::1]/a\nhttp://[::1]:80",
        "<meta name='ac-discovery' content='e.com https://s.test/{os}/{arch}/#{name}-{version}/.{ext}'>",
    ]
    for number, text in enumerate(pages):
        write("discovery", f"{number:02}", text)
    paths = [
        "a/b", "./a//b/./c/", "/etc/passwd", "..", "a/../b", "...", ".wh.a", "d/.wh..hidden", ".wh..wh..opq", ".wh..wh.plnk",
        ".wh.", ".wh..", ".wh...", ".wh.../x", "a/.wh.b/c", ".wh..wh.", ".wh..wh..wh.x", ".", "", "///", "a\0b", "\xff",
    ]
    for number, text in enumerate(paths):
        write("whiteout", f"{number:02}", text.encode("latin-1"))


# ---- appc -----------------------------------------------------------------------------------------------------


def appc_manifests():
    """Manifests of Appc images, whole and wrong in one place each, and quantities."""
    least = {"acKind": "ImageManifest", "acVersion": "0.8.11", "name": "example.com/app"}
    app = {"exec": ["/a"], "user": "0", "group": "/usr/bin/ping"}
    pairs = lambda *of: [{"name": name, "value": value} for name, value in of]
    whole = least | {
        "labels": pairs(("version", "1.0.0"), ("os", "linux"), ("arch", "amd64")),
        "annotations": pairs(("created", "2014-10-27T19:32:27.67Z"), ("homepage", "https://example.com")),
        "dependencies": [{"imageName": "base", "imageID": "sha512-" + "0f" * 64, "size": 7,
                          "labels": pairs(("os", "linux"), ("env", "a,b%"))}],
        "pathWhitelist": ["/a", "/b/c/"],
        "app": app | {
            "supplementaryGids": [400], "workingDirectory": "/w",
            "eventHandlers": [{"name": "pre-start", "exec": ["/p"]}, {"name": "post-stop", "exec": ["/q", "x"]}],
            "environment": pairs(("A_1", "b=c")), "userLabels": {"A": "b"}, "userAnnotations": {"": "\u00e9"},
            "mountPoints": [{"name": "work", "path": "/var/work", "readOnly": True}],
            "ports": [{"name": "ftp", "protocol": "tcp", "port": 20000, "count": 1000, "socketActivated": True}],
        },
    }
    isolators = [
        ("resource/cpu", {"request": "250m", "limit": 0.5}), ("resource/memory", {"limit": "1.5Gi"}),
        ("resource/block-bandwidth", {"default": True, "limit": "2M"}), ("resource/block-iops", {"default": True}),
        ("resource/network-bandwidth", {"default": True, "limit": "12e6"}), ("os/linux/no-new-privileges", True),
        ("os/linux/capabilities-retain-set", {"set": ["CAP_KILL"]}), ("os/linux/oom-score-adj", -1000),
        ("os/linux/capabilities-remove-set", {"set": ["CAP_MKNOD"]}), ("os/linux/cpu-shares", 2),
        ("os/linux/seccomp-retain-set", {"set": ["@appc.io/all"], "errno": "EPERM"}),
        ("os/linux/seccomp-remove-set", {"set": ["reboot"]}), ("os/unix/sysctl", {"net.core.somaxconn": "1"}),
        ("os/linux/selinux-context", {"user": "u", "role": "r", "type": "t", "level": "s0:c1"}),
        ("os/linux/apparmor-profile", {"profile": "p"}), ("example.com/own", None),
    ]
    found = [whole, least, least | {"acVersion": "0.5.1-rc.1+b"}, least | {"acVersion": "1.0.0"}, {}, [least]]
    found += [least | {"app": app | {"isolators": [{"name": name, "value": value}]}} for name, value in isolators]
    found += [least | {"app": app | {"isolators": [{"name": name, "value": None} for name, _ in isolators]}}]
    found += [least | {key: value} for key, value in [
        ("name", "A"), ("labels", pairs(("name", "x"))), ("labels", pairs(("arch", "amd64"))), ("app", {}),
        ("labels", pairs(("os", "linux"), ("os", "linux"))), ("pathWhitelist", ["a"]), ("dependencies", [{}]),
        ("annotations", pairs(("created", "now"))), ("dependencies", [{"imageName": "a", "imageID": "sha512-0"}]),
    ]]
    for number, document in enumerate(found):
        write("appc_manifest", f"{number:02}", json.dumps(document))
    write("appc_manifest", "twice", '{"acKind":"ImageManifest","acVersion":"0.8.11","name":"a","name":"b"}')
    for number, text in enumerate(["0", "-1.5Gi", "0.1n", "9223372036854775807", "1e-30", "8Ei", ".5E", "1e+3", "1.G", "--1"]):
        write("appc_manifest", f"quantity-{number}", text)


# ---- scripts --------------------------------------------------------------------------------------------------


def scripts():
    """Bytes for `layers`: how, then entries (kind, path, detail ...), 0x1f between layers. See src/fuzzing/layers.rs."""
    for number in range(24):
        noise = hashlib.shake_256(b"script%d" % number).digest(60 + 20 * number)
        write("layers", f"noise-{number:02}", bytes([number % 64]) + noise)
    file, directory, symlink, link = 0, 5, 7, 10
    lower = bytes([0, directory, 0, 4, 0, file, 1, 4, 5, 1, symlink, 0, 6, 0, 7, link, 0, 7, 0, 3])
    upper = bytes([2, file, 0, 14, 0, file, 1, 4, 12, 0, file, 1, 6, 5, 2, symlink, 0, 7, 0, 8, file, 1, 7, 5, 3, directory, 0, 16, 0])
    write("layers", "stack", lower + b"\x1f" + upper)
    write("layers", "stack-up", upper + b"\x1f" + lower + b"\x1f" + upper)


def acis():
    """Bytes for `aci`: how, how many paths are listed, those, then entries (kind, path and top, detail ...). See src/fuzzing/aci.rs."""
    for number in range(48):
        noise = hashlib.shake_256(b"aci%d" % number).digest(40 + 10 * number)
        write("aci", f"noise-{number:02}", bytes([number * 5 % 256, number % 4]) + noise)
    file, directory, symlink, link = 0, 5, 7, 10
    tree = bytes([directory, 0, 4, 0, 0, file, 1, 4, 5, 0, 1, file, 0, 0, 0, 1, link, 0, 1, 0, 0, 0, 0, link, 0, 2, 0, 0, 1, 0])
    marks = bytes([file, 0, 12, 0, 0, file, 0, 16, 0, 0, directory, 0, 15, 0, 0])
    for how in range(0, 256, 11):
        write("aci", f"tree-{how:02x}", bytes([how, 0]) + tree)
        write("aci", f"listed-{how:02x}", bytes([how, 2, 0, 3]) + tree)
    write("aci", "marks", bytes([0, 0]) + tree + marks)
    write("aci", "marks-as-image", bytes([0x83, 0]) + marks + tree)
    for top in range(16):
        write("aci", f"top-{top:02}", bytes([0, 0]) + tree + bytes([file, 0, 3, 0xf0 + top, 0]))
        write("aci", f"link-{top:02}", bytes([0, 1, 1]) + tree + bytes([link, 0, 3, 0, 0, 0, 0xf0 + top]))
    write("aci", "symlinks", bytes([0, 0]) + bytes([symlink, 0, 7, 0, 1, 0, 1, 0, file, 1, 7, 5, 0, 1]) + tree)


def deflated():
    """For `inflate`: streams as `blob` has them, what deflate says of some bytes at every level, and scripts of blocks."""
    for path in sorted((OUT / "blob").glob("*")):
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            write("inflate", f"stream-{path.name}", b"\0" + data)
    words = b"".join(b"layer %d of %d; " % (number, number * number) for number in range(300))
    for level in (0, 1, 6, 9):
        for strategy in (0, 2, 3, 4):
            packer = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
            write("inflate", f"deflated-{level}-{strategy}", b"\1" + packer.compress(words) + packer.flush())
    for number in range(64):
        noise = hashlib.shake_256(b"blocks%d" % number).digest(20 + 12 * number)
        # Members that are right, so that what is in them is all that can be wrong.
        write("inflate", f"script-{number:02}", b"\2\0\0" + bytes([number % 8 | 8]) + noise)


def signatures():
    """For `signature`: what the target holds itself, and keys and signatures of gpg, in armour and without."""
    held = ROOT / "src/provider/appc/trust/fuzzing"

    def both(name, text, kind):
        body = text.split("\n\n", 1)[1].split("\n=", 1)[0].split("\n-", 1)[0]
        write("signature", name, kind + text)
        write("signature", f"{name}-packets", kind.upper().encode() + base64.b64decode(body))

    both("held-key", (held / "key.asc").read_text(), "k")
    both("held-signature", (held / "signature.asc").read_text(), "s")
    with tempfile.TemporaryDirectory(prefix="kg", dir="/tmp") as home:
        def gpg(*options, **more):
            command = ["gpg", "--homedir", home, "--batch", "--yes", "--quiet", "--no-tty", "--pinentry-mode", "loopback"]
            command += ["--passphrase", "", "--armor", *options]
            return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, **more).stdout

        for kind in ("ed25519", "rsa2048", "dsa1024", "nistp256", "secp256k1", "brainpoolP256r1"):
            gpg("--quick-gen-key", kind, kind, "sign", "1y")
            both(f"{kind}-key", gpg("--export", kind), "k")
            both(f"{kind}-signature", gpg("-u", kind, "--detach-sign", input="an archive"), "s")
        listed = gpg("--with-colons", "--list-keys", "ed25519")
        fingerprint = next(line for line in listed.splitlines() if line.startswith("fpr:")).split(":")[9]
        for kind, usage in (("rsa2048", "sign"), ("ed25519", "sign"), ("cv25519", "encr")):
            gpg("--quick-add-key", fingerprint, kind, usage, "2y")
        gpg("--quick-add-uid", fingerprint, "second")
        both("subkeys", gpg("--export", "ed25519"), "k")
        gpg("--quick-revoke-uid", fingerprint, "second")
        revocation = pathlib.Path(home, "openpgp-revocs.d", f"{fingerprint}.rev")
        gpg("--import", input=revocation.read_text().replace(":-----BEGIN", "-----BEGIN"))
        both("revoked", gpg("--export", "ed25519"), "k")
        both("two-keys", gpg("--export", "nistp256", "rsa2048"), "k")
        both("two-signatures", gpg("-u", "nistp256", "-u", "rsa2048", "--detach-sign", input="an archive"), "s")
        both("text", gpg("-u", "nistp256", "--textmode", "--detach-sign", input="an archive"), "s")
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)


found = all_tars()
streams(found)
deflated()
documents()
archives()
texts()
appc_manifests()
scripts()
acis()
signatures()
