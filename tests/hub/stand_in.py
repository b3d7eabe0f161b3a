"""A Hub on this machine: what huggingface_hub, transformers and datasets ask of one over HTTP, from memory.

Repositories of models and data sets with branches, commits, private ones, and large files by the LFS protocol. Written
after the requests that huggingface_hub really makes; the connection can be told to break.
"""

import base64
import hashlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

import yaml

LARGE = (".safetensors", ".parquet", ".png", ".bin")
TOKEN = "hf_stand_in"


@dataclass(frozen=True)
class Commit:
    """What a repository holds from here on: path -> content."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """The commits, the earliest first, and where each branch stands."""

    private: bool
    commits: list[Commit]
    branches: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)


class HubStandIn(http.server.ThreadingHTTPServer):
    """`breaks` names requests whose connection breaks halfway: "upload", "commit"; with a number, so often."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}  # by "models/me/x" or "datasets/me/x"
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.breaks: dict[str, int] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self) -> dict[str, str]:
        """For a process that is to take this for the Hub; the Xet protocol has no stand-in."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.route("GET")

    def do_HEAD(self) -> None:
        self.route("HEAD")

    def do_POST(self) -> None:
        self.route("POST")

    def do_PUT(self) -> None:
        self.route("PUT")

    def route(self, method: str) -> None:
        url = urllib.parse.urlparse(self.path)
        path = urllib.parse.unquote(url.path)
        self.server.asked.append(f"{method} {path}")
        broken = next((kind for kind in self.server.breaks if self.is_of(kind, method, path)), None)
        if broken is not None and self.server.breaks[broken] > 0:
            self.server.breaks[broken] -= 1
            return self.break_off()
        body = self.body()
        for pattern, answer in ROUTES:
            found = re.fullmatch(pattern, f"{method.replace('HEAD', 'GET')} {path}")
            if found:
                return answer(self, body, urllib.parse.parse_qs(url.query), *found.groups())
        return self.answer({"error": f"the stand-in has no {method} {path}"}, status=404)

    @staticmethod
    def is_of(kind: str, method: str, path: str) -> bool:
        return path.startswith("/large/") if kind == "upload" else method == "POST" and f"/{kind}/" in path

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def break_off(self) -> None:
        self.rfile.read1(1000)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: str, status: int = 404) -> None:
        self.answer({"error": code}, status=status, headers={"X-Error-Code": code})

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, kind: str, name: str) -> Repository | None:
        """A private one is not there for whoever has no token."""
        found = self.server.repositories.get(f"{kind}/{name}")
        if found is None or (found.private and not self.known):
            self.refuse("RepoNotFound", 404 if self.known else 401)
            return None
        return found

    def commit_at(self, kind: str, name: str, revision: str) -> Commit | None:
        repository = self.repository(kind, name)
        if repository is None:
            return None
        commit = repository.at(revision)
        if commit is None:
            self.refuse("RevisionNotFound")
        return commit


def break_connections(hub: Handler, body: bytes, query: dict) -> None:
    hub.server.breaks = json.loads(body)
    hub.answer({})


def who_am_i(hub: Handler, body: bytes, query: dict) -> None:
    hub.answer(
        {"name": "me", "type": "user", "orgs": []} if hub.known else {"error": "no token"},
        status=200 if hub.known else 401,
    )


def create(hub: Handler, body: bytes, query: dict) -> None:
    if not hub.known:
        return hub.answer({"error": "Invalid username or password."}, status=401)
    asked = json.loads(body)
    kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or 'me'}/{asked['name']}"
    url = {"url": f"{hub.server.url}/{'' if kind == 'models' else f'{kind}/'}{name}", "id": name}
    if f"{kind}/{name}" in hub.server.repositories:
        return hub.answer(url | {"error": "You already created this repo"}, status=409)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    first = Commit(oid_of(f"{kind}/{name}"), "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
    hub.server.repositories[f"{kind}/{name}"] = Repository(private, [first], {"main": first.oid})
    return hub.answer(url)


def about(hub: Handler, body: bytes, query: dict, kind: str, name: str, revision: str | None = None) -> None:
    commit = hub.commit_at(kind, name, revision or "main")
    if commit is not None:
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        private = hub.server.repositories[f"{kind}/{name}"].private
        hub.answer({"id": name, "sha": commit.oid, "private": private, "tags": [], "siblings": siblings})


def references(hub: Handler, body: bytes, query: dict, kind: str, name: str) -> None:
    repository = hub.repository(kind, name)
    if repository is not None:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": oid}
            for branch, oid in repository.branches.items()
        ]
        hub.answer({"branches": branches, "tags": [], "converts": []})


def branch(hub: Handler, body: bytes, query: dict, kind: str, name: str, new: str) -> None:
    repository = hub.repository(kind, name)
    if repository is None:
        return None
    if new in repository.branches:
        return hub.answer({"error": "Reference already exists"}, status=409)
    repository.branches[new] = repository.branches["main"]
    return hub.answer({})


def tree(
    hub: Handler, body: bytes, query: dict, kind: str, name: str, revision: str, below: str | None = None
) -> None:
    commit = hub.commit_at(kind, name, revision)
    if commit is None:
        return None
    start = f"{below.strip('/')}/" if below and below.strip("/") else ""
    inside = [path for path in sorted(commit.files) if path.startswith(start)]
    if start and not inside:
        return hub.refuse("EntryNotFound")
    folders = sorted({"/".join(path.split("/")[:depth]) for path in inside for depth in range(1, path.count("/") + 1)})
    entries = [entry(commit, path) for path in [*folders, *inside] if f"{path}/" != start and path.startswith(start)]
    if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        entries = [each for each in entries if "/" not in each["path"][len(start) :]]
    return hub.answer(entries)


def paths_info(hub: Handler, body: bytes, query: dict, kind: str, name: str, revision: str) -> None:
    commit = hub.commit_at(kind, name, revision)
    if commit is not None:
        asked = json.loads(body)["paths"] if body.startswith(b"{") else urllib.parse.parse_qs(body.decode())["paths"]
        hub.answer([found for path in asked if (found := entry(commit, path.strip("/"))) is not None])


def entry(commit: Commit, path: str) -> dict | None:
    if path in commit.files:
        content = commit.files[path]
        found = {"type": "file", "path": path, "size": len(content), "oid": blob_oid(content)}
        if path.endswith(LARGE):
            found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found
    if any(each.startswith(f"{path}/") for each in commit.files):
        return {"type": "directory", "path": path, "oid": oid_of(path)}
    return None


def resolve(hub: Handler, body: bytes, query: dict, kind: str | None, name: str, revision: str, path: str) -> None:
    commit = hub.commit_at((kind or "models/").strip("/"), name, revision)
    if commit is None:
        return None
    if path not in commit.files:
        return hub.refuse("EntryNotFound")
    content = commit.files[path]
    etag = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else blob_oid(content)
    return hub.answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "none"})


def validate(hub: Handler, body: bytes, query: dict) -> None:
    """Of what the Hub's validation does, that which can be known here."""
    content = json.loads(body)["content"]
    parts = content.split("---\n", 2)
    errors = []
    try:
        metadata = yaml.safe_load(parts[1]) if content.startswith("---\n") else {}
        for name, kind in {
            "tags": list,
            "datasets": list,
            "widget": list,
            "license": str,
            "pipeline_tag": str,
        }.items():
            if name in metadata and not isinstance(metadata[name], kind):
                errors.append({"message": f'"{name}" must be a {kind.__name__}'})
    except (yaml.YAMLError, IndexError) as error:
        errors.append({"message": f"no YAML: {error}"})
    hub.answer({"errors": errors, "warnings": []}, status=400 if errors else 200)


def preupload(hub: Handler, body: bytes, query: dict, kind: str, name: str, revision: str) -> None:
    commit = hub.commit_at(kind, name, revision)
    if commit is None:
        return
    told = []
    for file in json.loads(body)["files"]:
        there = commit.files.get(file["path"])
        large = file["path"].endswith(LARGE)
        oid = None if there is None else hashlib.sha256(there).hexdigest() if large else blob_oid(there)
        mode = "lfs" if large else "regular"
        told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    hub.answer({"files": told, "commitOid": commit.oid})


def batch(hub: Handler, body: bytes, query: dict, kind: str | None, name: str) -> None:
    if hub.repository((kind or "models/").strip("/"), name) is None:
        return
    objects = []
    for large in json.loads(body)["objects"]:
        upload = {"actions": {"upload": {"href": f"{hub.server.url}/large/{large['oid']}"}}}
        objects.append(large | ({} if large["oid"] in hub.server.large else upload))
    hub.answer({"transfer": "basic", "objects": objects})


def put_large(hub: Handler, body: bytes, query: dict, oid: str) -> None:
    if hashlib.sha256(body).hexdigest() != oid:
        return hub.answer({"error": "checksum"}, status=400)
    hub.server.large[oid] = body
    return hub.answer({})


def commit(hub: Handler, body: bytes, query: dict, kind: str, name: str, revision: str) -> None:
    repository = hub.repository(kind, name)
    if repository is None:
        return None
    before = repository.at(revision)
    if before is None or not hub.known:
        return hub.refuse("RevisionNotFound")
    files, message = dict(before.files), ""
    for line in body.splitlines():
        key, value = (part := json.loads(line))["key"], part["value"]
        match key:
            case "header":
                message = value["summary"]
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                if value["oid"] not in hub.server.large:
                    return hub.answer({"error": f"{value['path']} was never uploaded"}, status=400)
                files[value["path"]] = hub.server.large[value["oid"]]
            case "deletedFile" | "deletedEntry":
                del files[value["path"]]
            case _:
                return hub.answer({"error": f"unknown operation {key}"}, status=400)
    new = Commit(oid_of(f"{before.oid}{message}{len(repository.commits)}"), message, files)
    repository.commits.append(new)
    repository.branches[revision] = new.oid
    return hub.answer(
        {"commitUrl": f"{hub.server.url}/{name}/commit/{new.oid}", "commitOid": new.oid, "success": True}
    )


def oid_of(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def blob_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


REPO = r"/api/(models|datasets)/([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"POST /stand-in/breaks", break_connections),
    (r"GET /api/whoami-v2", who_am_i),
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", validate),
    (rf"GET {REPO}", about),
    (rf"GET {REPO}/revision/([^/]+)", about),
    (rf"GET {REPO}/refs", references),
    (rf"POST {REPO}/branch/([^/]+)", branch),
    (rf"GET {REPO}/tree/([^/]+)(/.*)?", tree),
    (rf"POST {REPO}/paths-info/([^/]+)", paths_info),
    (rf"POST {REPO}/preupload/([^/]+)", preupload),
    (rf"POST {REPO}/commit/([^/]+)", commit),
    (r"GET /(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", resolve),
    (r"POST /(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", batch),
    (r"PUT /large/(\w+)", put_large),
]
