"""A registry of images on this machine, which has one small image, or refuses it."""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import secrets
import tarfile
import threading
from collections.abc import Iterator


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def make_layer() -> bytes:
    """Return a tar with one file, which no engine can have already."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(f"nothing-of-triton-{secrets.token_hex(4)}"))
    return stream.getvalue()


def make_image() -> tuple[bytes, dict[str, bytes]]:
    """Return a manifest, and what it names by digest."""
    layer = make_layer()
    packed = gzip.compress(layer)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        }
    ).encode()
    docker = "application/vnd.docker"
    entries = [
        (config, f"{docker}.container.image.v1+json"),
        (packed, f"{docker}.image.rootfs.diff.tar.gzip"),
    ]
    described = [
        {"mediaType": kind, "size": len(data), "digest": digest(data)}
        for data, kind in entries
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{docker}.distribution.manifest.v2+json",
        "config": described[0],
        "layers": [described[1]],
    }
    return json.dumps(manifest).encode(), {digest(data): data for data, _ in entries}


class Registry(http.server.BaseHTTPRequestHandler):
    """`tritonserver:here` is there, `secret:…` needs a login, all else is unknown."""

    manifest, blobs = make_image()

    def do_GET(self) -> None:
        if "/secret/" in self.path:
            self.answer(401, b'{"errors": [{"code": "UNAUTHORIZED"}]}')
        elif self.path == "/v2/":
            self.answer(200, b"{}")
        elif "/manifests/here" in self.path or digest(self.manifest) in self.path:
            kind = json.loads(self.manifest)["mediaType"]
            self.answer(200, self.manifest, kind)
        elif self.path.rpartition("/")[2] in self.blobs:
            self.answer(200, self.blobs[self.path.rpartition("/")[2]])
        else:
            self.answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Content-Digest", digest(body))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def registry() -> Iterator[str]:
    """Run the registry; yield its address, as an image's name begins."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_port}"
        running.shutdown()
