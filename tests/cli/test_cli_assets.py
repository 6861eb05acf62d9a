"""`assets pull` against a repository served on loopback, by the hub's own client."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "meta-llama/Llama-3.1-8B"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"a": 1}',
    "original/tokenizer.model": b"aGk= 0\n",
    "original/consolidated.00.pth": b"other format",
    "model.safetensors": b"weights" * 100,
    "README.md": b"# a model",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP interface as a download uses; refuses anything else."""

    status: ClassVar[int] = 200
    error_code: ClassVar[str] = ""

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        if self.status != 200:
            self.reply(b"{}", status=self.status, **{"X-Error-Code": self.error_code})
        elif path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
            self.reply(json.dumps(info).encode())
        elif path == f"/api/models/{REPO}/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{number:040x}"}
                for number, (name, content) in enumerate(FILES.items())
            ]
            self.reply(json.dumps(tree).encode())
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            name = path.partition(f"/{COMMIT}/")[2]
            etag = f'"{list(FILES).index(name):040x}"'
            self.reply(FILES[name], ETag=etag, **{"X-Repo-Commit": COMMIT})
        else:
            self.reply(b"unexpected", status=418)

    def reply(self, content: bytes, *, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    served = type("Served", (Hub,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), served)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def pull(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command, whose hub client reads its settings when it is imported."""
    command = [sys.executable, "-m", "titan_recipes.cli", "assets", "pull", *arguments]
    environment = {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hf")}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def listed(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if path.parts[0] != ".cache"}


def test_pull_puts_the_tokenizer_where_the_recipe_looks_for_it(hub: type[Hub], tmp_path: Path):
    done = pull(tmp_path, "llama3_8b", "--tokenizer-only")
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / ".cache/titan-recipes/llama3"
    assert done.stdout == f"3 files of {REPO}, 0.0 MB, in {folder}\n"
    assert listed(folder) == {"config.json", "tokenizer.json", "original/tokenizer.model"}
    assert (folder / "original/tokenizer.model").read_bytes() == b"aGk= 0\n"


def test_pull_into_a_folder_fetches_weights_too_but_no_second_format(
    hub: type[Hub], tmp_path: Path
):
    done = pull(tmp_path, "llama3_8b", "-o", str(tmp_path / "models"))
    assert (done.returncode, done.stderr) == (0, "")
    assert listed(tmp_path / "models") == FILES.keys() - {
        "README.md",
        "original/consolidated.00.pth",
    }
    assert (tmp_path / "models/model.safetensors").read_bytes() == b"weights" * 100
    assert f"--set 'assets.tokenizer=\"{tmp_path / 'models'}\"'" in done.stdout


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "GatedRepo", f"error: {REPO} is gated, and this account has no access; accept"),
        (404, "RepoNotFound", f"has no repository {REPO}; check assets.hf_repo"),
        (500, "", f"error: {REPO} can't be fetched from http://127.0.0.1"),
    ],
)
def test_pull_that_is_refused_says_why_and_exits_2(
    hub: type[Hub], tmp_path: Path, status: int, code: str, said: str
):
    hub.status, hub.error_code = status, code
    done = pull(tmp_path, "llama3_8b", "--tokenizer-only")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / ".cache").exists()


def test_pull_without_a_network_exits_2_even_where_the_folder_holds_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "old").touch()
    done = pull(tmp_path, "llama3_8b", "-o", str(tmp_path / "models"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{REPO} can't be fetched from http://127.0.0.1:{port}: " in done.stderr
    assert "fetch it on a machine that has a network" in done.stderr


def test_pull_of_a_recipe_without_a_repository_says_so(tmp_path: Path):
    done = pull(tmp_path, "llama3_debug")
    assert done.returncode == 2
    assert "assets.hf_repo: not set; llama3_debug comes with its tokenizer" in done.stderr
