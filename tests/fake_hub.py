"""A Hugging Face hub on loopback, as far as pushing and loading a model ask for it.

with FakeHub() as hub:
    hub.url                              for HF_ENDPOINT
    hub.repos["me/demo"].files           {"config.json": b"..."}
"""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse


@dataclass
class Repo:
    private: bool
    full: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(
            repr(sorted((n, hashlib.sha1(b).digest()) for n, b in self.files.items())).encode()
        ).hexdigest()


class FakeHub(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *arguments: object) -> None: ...

    def answer(self, data: Any = None, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match unquote(urlparse(self.path).path).strip("/").split("/"):
            case ["api", "repos", "create"]:
                self.create(json.loads(body))
            case [*_, "info", "lfs", "objects", "batch"]:
                self.batch(json.loads(body)["objects"])
            case ["lfs", name]:
                self.server.uploads[name] = body
                self.answer()
            case ["api", "models", owner, name, *rest] if repo := self.server.repos.get(f"{owner}/{name}"):
                self.repo(f"{owner}/{name}", repo, rest, body)
            case [owner, name, "resolve", _, *path] if repo := self.server.repos.get(f"{owner}/{name}"):
                data = repo.files.get("/".join(path))
                if data is None:
                    self.answer(status=404, X_Error_Code="EntryNotFound")
                else:
                    etag = f'"{hashlib.sha256(data).hexdigest()}"'
                    self.answer(data, kind="application/octet-stream", ETag=etag, X_Repo_Commit=repo.sha)
            case ["api", "validate-yaml"]:
                self.answer({"errors": [], "warnings": []})
            case _:
                self.answer({"error": "Repository Not Found"}, 404, X_Error_Code="RepoNotFound")

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        new = name not in self.server.repos
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.server.repos.setdefault(name, Repo(private))
        self.answer({"url": f"{self.server.url}/{name}", "id": name}, 200 if new else 409)

    def batch(self, objects: list[dict[str, Any]]) -> None:
        uploads = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}", "header": {}}}}
            for one in objects
        ]
        self.answer({"transfer": "basic", "objects": uploads}, kind="application/vnd.git-lfs+json")

    def repo(self, name: str, repo: Repo, rest: list[str], body: bytes) -> None:
        match rest:
            case ["preupload", _]:
                paths = [one["path"] for one in json.loads(body)["files"]]
                modes = [
                    (path, "lfs" if path.endswith((".safetensors", ".parquet")) else "regular") for path in paths
                ]
                self.answer({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
            case ["commit", _] if repo.full:
                self.answer(status=403, X_Error_Message="Private repository storage limit reached")
            case ["commit", _]:
                self.commit(repo, [json.loads(line) for line in body.splitlines() if line])
                sha = repo.sha
                self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})
            case ["tree", *_]:
                files = repo.files.items()
                self.answer(
                    [
                        {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                        for n, b in files
                    ]
                )
            case _:
                siblings = [{"rfilename": file} for file in sorted(repo.files)]
                self.answer({"id": name, "sha": repo.sha, "private": repo.private, "tags": [], "siblings": siblings})

    def commit(self, repo: Repo, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    repo.commits.append(value["summary"])
                case "file":
                    repo.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repo.files[value["path"]] = self.server.uploads[value["oid"]]
                case "deletedFile":
                    del repo.files[value["path"]]
