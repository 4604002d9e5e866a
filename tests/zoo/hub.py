"""A hub in miniature: what huggingface_hub asks of its endpoint, answered from files made here."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from safetensors.torch import save

from simhpc.zoo.timm_import import timm

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def repository(timm_name: str) -> str:
    return f"timm/{timm_name}"


def weights_of(timm_name: str, seed: int = 0) -> bytes:
    """A checkpoint as timm publishes it, with weights from a seed."""
    import torch

    torch.manual_seed(seed)
    return save(timm.create_model(timm_name, pretrained=False).state_dict())


class Hub:
    """Attributes:
    files: content by `repository/name`.
    sent: what is sent in place of a file, under the checksum and size of the file.
    requests: `METHOD repository/name`, in order.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.sent: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[Hub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                where, _, rest = self.path.lstrip("/").partition("/resolve/")
                name = f"{where}/{rest.partition('/')[2]}"
                hub.requests.append(f"{self.command} {name}")
                if name not in hub.files:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content, body = hub.files[name], hub.sent.get(name, hub.files[name])
                digest = hashlib.sha256(content).hexdigest()
                first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
                self.send_response(206 if first else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Linked-Etag", f'"{digest}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("ETag", f'"{digest}"')
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(body) - first))
                self.end_headers()
                if with_body:
                    self.wfile.write(body[first:])

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def lay_out(cache: Path, timm_name: str, content: bytes) -> Path:
    """A file in the hub's cache as huggingface_hub leaves it there; returns its blob."""
    folder = cache / f"models--{repository(timm_name).replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    for each in (snapshot, blob.parent, folder / "refs"):
        each.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    blob.write_bytes(content)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{blob.name}")
    return blob
