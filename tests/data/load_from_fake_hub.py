"""Serves a folder as the data set `me/shoes` of a Hub, and loads these attributes of it from there. Run by tests."""

import hashlib
import http.server
import json
import os
import sys
import threading
import urllib.parse
from pathlib import Path

COMMIT = "a" * 40
folder, attributes = Path(sys.argv[1]), sys.argv[2:]
files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
requested: list[str] = []


def entry(path: str) -> dict:
    if path in files:
        return {"type": "file", "path": path, "size": files[path].stat().st_size, "oid": "b" * 40}
    return {"type": "directory", "path": path, "oid": "c" * 40}


class FakeHub(http.server.BaseHTTPRequestHandler):
    """The few answers that `load_dataset` needs."""

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else urllib.parse.parse_qs(body)["paths"]
        known = [path for path in asked if path in files or (folder / path).is_dir()]
        self.answer(json.dumps([entry(path) for path in known]).encode())

    def do_GET(self) -> None:
        url = urllib.parse.urlparse(self.path)
        requested.append(url.path)
        if url.path.startswith("/api/datasets/me/shoes/tree/"):
            _, _, below = url.path.partition("/tree/")[2].partition("/")
            recursive = "recursive=true" in url.query.lower()
            place = folder / below
            found = [str(path.relative_to(folder)) for path in (place.rglob("*") if recursive else place.glob("*"))]
            if found:
                return self.answer(json.dumps([entry(path) for path in found]).encode())
        elif url.path.startswith("/api/datasets/me/shoes"):
            about = {"id": "me/shoes", "sha": COMMIT, "tags": [], "siblings": [{"rfilename": file} for file in files]}
            return self.answer(json.dumps(about).encode())
        elif url.path.startswith("/datasets/me/shoes/resolve/"):
            file = url.path.partition("/resolve/")[2].partition("/")[2]
            if file in files:
                content = files[file].read_bytes()
                etag = hashlib.sha1(content).hexdigest()
                return self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        error = "EntryNotFound" if "me/shoes" in url.path else "RepoNotFound"
        return self.answer(b"", {"X-Error-Code": error}, status=404)

    do_HEAD = do_GET


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"  # read when huggingface_hub is imported

from cca_hf.data.loading import load_attribute_dataset  # noqa: E402

data = load_attribute_dataset("me/shoes", attributes)
print(", ".join(f"{split} {len(data[split])}" for split in data.splits))
print(data.attributes)
try:
    load_attribute_dataset("me/boots", ["colour"])
except FileNotFoundError as error:
    print(f"FileNotFoundError: {error}".splitlines()[0])
load_attribute_dataset("me/shoes", ["colour"], revision="v2")
print("revision v2 asked for" if any("/v2" in path for path in requested) else "revision ignored")
print({split: str(own) for split, own in data.coverage.items()})
