"""A model hub on loopback: what the libraries ask of one, and its faults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ID = r"(?P<id>[\w.-]+(?:/[\w.-]+)?)"
FILE = re.compile(rf"/(?:(?P<kind>datasets)/)?{ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
REPOSITORY = rf"/api/(?P<kind>models|datasets)/{ID}"
LIST = re.compile(rf"{REPOSITORY}/(?P<verb>tree|paths-info)/(?P<revision>[^/]+)/?(?P<path>.*)")
INFO = re.compile(rf"{REPOSITORY}(?:/revision/(?P<revision>[^/]+))?")


@dataclass
class Box:
    """The server; a repository of the catalog is written to `root` when it is first asked for."""

    root: Path
    requests: list[str] = field(default_factory=list)
    faults: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self._lock = threading.Lock()
        handler = type("BoxHandler", (Handler,), {"box": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @classmethod
    def start(cls) -> Box:
        """Start a server and point this process, and what it starts, at it."""
        box = cls(Path(tempfile.mkdtemp(prefix="igds-box-")))
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
            del os.environ[name]
        os.environ |= {"HF_ENDPOINT": box.url, "HF_HOME": str(box.root / "home")}
        os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return box

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self.root)

    def folder(self, kind: str, name: str) -> Path | None:
        """The files of a repository; None if there is no such repository."""
        from box.catalog import REPOSITORIES

        with self._lock:
            folder = self.root / kind / name
            if not folder.exists() and (kind, name) in REPOSITORIES:
                folder.mkdir(parents=True)
                REPOSITORIES[kind, name](folder)
            return folder if folder.exists() else None

    @contextmanager
    def fault(self, kind: str, where: str, times: int = 10**9) -> Iterator[None]:
        """Let the next `times` requests whose address holds `where` go wrong.

        Kinds: `missing` (404), `gated` (401), `unavailable` (503), `cut` (the connection ends in
        the middle of a file), `stub` (the file itself ends in the middle).
        """
        self.faults.append(fault := {"kind": kind, "where": where, "times": times})
        try:
            yield
        finally:
            self.faults.remove(fault)

    def strikes(self, address: str, kinds: str) -> str | None:
        """Which of the kinds of fault an address meets now; counted down."""
        for fault in self.faults:
            if fault["kind"] in kinds.split() and fault["where"] in address and fault["times"] > 0:
                fault["times"] -= 1
                return fault["kind"]
        return None


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does: files by range, JSON, errors by X-Error-Code."""

    box: Box
    protocol_version = "HTTP/1.1"
    commit: str | None = None

    def log_message(self, *_):
        """Quiet: tests read `box.requests`."""

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.do_GET()

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.commit = None
        parts = urlsplit(self.path)
        address, query = unquote(parts.path), parse_qs(parts.query)
        self.box.requests.append(f"{self.command} {address} {self.headers.get('Range', '')}".strip())
        fault = self.box.strikes(address, "missing gated unavailable")
        found = FILE.fullmatch(address) or LIST.fullmatch(address) or INFO.fullmatch(address)
        if fault == "unavailable":
            return self.send(503)
        if fault == "gated":
            return self.send(401, error="GatedRepo")
        asked = found.groupdict("") if found else {}
        folder = self.box.folder(asked.get("kind") or "models", asked["id"]) if found else None
        if folder is None or fault == "missing":
            return self.send(404, error="RepoNotFound")
        self.commit = commit(asked["id"], asked["revision"] or "main")
        if self.commit is None:
            return self.send(404, error="RevisionNotFound")
        below, files = folder / asked.get("path", ""), sorted(folder.rglob("*"))
        if found.re is FILE:
            return self.send_file(below, address)
        if asked.get("verb") == "tree":
            if not below.is_dir():
                return self.send(404, error="EntryNotFound")
            deep = query.get("recursive", [""])[0].lower() == "true"
            listed = sorted(below.rglob("*") if deep else below.iterdir())
            return self.send_json([entry(path, folder) for path in listed])
        listed = {path.relative_to(folder).as_posix(): path for path in files}
        if asked.get("verb") == "paths-info":
            wanted = [path for name, path in listed.items() if name in self.wanted_paths()]
            return self.send_json([entry(path, folder) for path in wanted])
        names = [{"rfilename": name} for name, path in listed.items() if path.is_file()]
        about = {"id": asked["id"], "sha": self.commit, "tags": [], "private": False}
        self.send_json(about | {"siblings": names})

    def wanted_paths(self) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.body)["paths"]
        return parse_qs(self.body).get("paths", [])

    def send(self, status: int, body: bytes = b"", error: str = "", cut: int | None = None, **headers: str):
        """One answer; `cut` bytes of the body are sent before the connection ends."""
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": self.commit, **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def send_json(self, content) -> None:
        self.send(200, json.dumps(content).encode(), Content_Type="application/json")

    def send_file(self, path: Path, address: str) -> None:
        if not path.is_file():
            return self.send(404, error="EntryNotFound")
        body = path.read_bytes()
        headers = {"ETag": f'"{etag(path)}"', "Accept_Ranges": "bytes"}
        if self.box.strikes(address, "stub"):
            body = body[: len(body) // 2]
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 206 if start else 200
        if start:
            first, last = int(start[1]), int(start[2] or len(body) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(body)}"
            body = body[first : last + 1]
        if self.command == "GET" and self.box.strikes(address, "cut"):
            return self.send(status, body, cut=len(body) // 2, **headers)
        self.send(status, body, **headers)


def commit(name: str, revision: str) -> str | None:
    """The commit that a revision names: a full hash itself, `main` one of the repository."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    return hashlib.sha1(name.encode()).hexdigest() if revision == "main" else None


def etag(path: Path) -> str:
    return hashlib.sha1(f"{path}{path.stat().st_size}{path.stat().st_mtime_ns}".encode()).hexdigest()


def entry(path: Path, root: Path) -> dict:
    """A file or a folder as the hub lists it; datasets finds nothing without the folders."""
    what = {"path": path.relative_to(root).as_posix(), "oid": etag(path)}
    if path.is_dir():
        return {"type": "directory", **what, "size": 0}
    return {"type": "file", **what, "size": path.stat().st_size}
