"""A small server on the loopback that answers as the hub does, and a script that loads from it.

The script (`python hub_server.py ADDRESS`) runs in a process of its own: huggingface_hub reads its address when it is
imported. It prints one JSON object: case -> what came of it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Repository:
    """Commits by name of a branch, tag or their own hash, each a folder of files; `status` answers every request."""

    commits: dict[str, tuple[str, Path]] = field(default_factory=dict)
    status: int = 200
    error: str = ""
    cut: str = ""


def handler(repositories: dict[str, Repository]) -> type[BaseHTTPRequestHandler]:
    """Requests of `/{owner}/{name}/resolve/{revision}/{file}` and of the API's list of files."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """No log."""

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def refuse(self, status: int, code: str) -> None:
            text = json.dumps({"error": code}).encode()
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(text)

        def answer(self, *, body: bool) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            listing = parts[:2] == ["api", "models"]
            parts = parts[2:] if listing else parts
            repository = repositories.get("/".join(parts[:2]), Repository(status=404, error="RepoNotFound"))
            revision = parts[3] if len(parts) > 3 else "main"
            commit, folder = repository.commits.get(revision, ("", Path()))
            file = folder / "/".join(parts[4:])
            if repository.status != 200:
                self.refuse(repository.status, repository.error)
            elif not commit:
                self.refuse(404, "RevisionNotFound")
            elif listing:
                files = [{"rfilename": p.name} for p in folder.iterdir()]
                self.give(json.dumps({"id": "/".join(parts[:2]), "sha": commit, "siblings": files}).encode())
            elif not file.is_file():
                self.refuse(404, "EntryNotFound")
            else:
                self.give(file.read_bytes(), commit=commit, cut=repository.cut == file.name, body=body)

        def give(self, content: bytes, *, commit: str = "", cut: bool = False, body: bool = True) -> None:
            start = 0
            wanted = self.headers.get("Range")
            if wanted and wanted.startswith("bytes="):
                start = int(wanted.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if not body:
                return
            if cut:
                self.wfile.write(content[start : start + max(1, (len(content) - start) // 2)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(content[start:])

    return Handler


@contextmanager
def serving(repositories: dict[str, Repository]) -> Iterator[str]:
    """The server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(repositories))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def main(cases: dict[str, dict[str, str]]) -> None:
    """Load each case and print what came of it."""
    from huggingface_hub import constants

    import interp

    outcomes: dict[str, object] = {}
    for name, options in cases.items():
        constants.HF_HUB_OFFLINE = name.startswith("offline")
        try:
            model = interp.load(options.pop("id"), **options)
            logits = model.run([[5, 6, 7]]).logits
            outcomes[name] = {
                "commit": model.info.commit,
                "logit": float(logits[0, -1, 3]),
                "text": model.tokenizer is not None,
            }
        except Exception as error:  # what comes out is what the test looks at
            outcomes[name] = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(f"{json.dumps(outcomes)}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
