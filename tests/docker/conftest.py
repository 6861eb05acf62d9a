"""A real Docker Engine and the real image on it, for the tests in this folder.

`engine`: a Docker Engine of this test run's own (`DockerEngine`); DOCKER_HOST and PATH are set, so
that `docker`, titan-recipes and torchx all talk to it. Containers see no network but one that the
test makes, "none" or "host". It needs root and Debian's packages, as .ci/run installs them; without
them these tests are skipped by name.

`image`: the name of docker/Dockerfile's image (`localhost/titan-recipes:test`), built by
`titan-recipes image build` on a Debian base that this machine's package mirror gives, with this
machine's pip settings as build secrets.

Both are made once in a test run and shared by its worker processes; the last one out ends them.
While working on a test, DOCKER_TEST_DIR=/tmp/some_dir keeps them for the next test run, with the
image as it was first built; `DOCKER_ENGINE_DIR=/tmp/some_dir/engine docker-engine down` ends it.
"""

import ast
import fcntl
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.parity import parity_job, train_all

HERE = Path(__file__).parent
LAST = ("test_docker_scheduler.py", "test_pod_rehearsal.py", "test_image_runs.py")
"""The files that take half a minute and more, the image's own left out."""
CLIENT = Path("/usr/bin/docker")  # Debian's has BuildKit built in
PROGRAMS = ("dockerd", "containerd", "mmdebstrap")
IMAGE = "localhost/titan-recipes:test"
BASE = "localhost/debian-base:test"
BASE_PACKAGES = (
    *("ca-certificates", "g++", "gcc", "ibverbs-providers", "libc6-dev", "libibverbs1"),
    *("librdmacm1", "python3", "python3-dev", "python3-venv", "tini"),
)
"""What the Dockerfile asks apt for: the build then needs no package mirror."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One file builds the image in its turn; the others come last, so that no process waits for it,
    and the longest of them first."""

    def turn(item: pytest.Item) -> int:
        name = item.path.name
        if item.path.parent != HERE or name == "test_image.py":
            return 0
        return 1 + (LAST.index(name) if name in LAST else len(LAST))

    items.sort(key=turn)


@dataclass(frozen=True, slots=True)
class DockerEngine:
    """The engine of this test run."""

    folder: Path
    """Shared by the worker processes of the run; state of titan-recipes is in it too."""

    def run(
        self, *words: str, check: bool = True, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A docker command: `engine.run("ps", "-a")`."""
        done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=seconds)
        assert not check or done.returncode == 0, f"docker {' '.join(words)}: {done.stderr}"
        return done

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Only one worker process at a time is in here."""
        with (self.folder / f"{what}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def users(self, change: int) -> int:
        """How many worker processes use the engine, after a change; call it `alone`."""
        path = self.folder / "users"
        count = (int(path.read_text()) if path.exists() else 0) + change
        path.write_text(str(count))
        return count

    def tool(self, *words: str) -> None:
        """docker-engine's own: up, stop."""
        environment = os.environ | {"DOCKER_ENGINE_DIR": str(self.folder / "engine")}
        command = [HERE / "docker-engine", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def engine(testrun_uid: str) -> Iterator[DockerEngine]:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    missing += [] if CLIENT.exists() else [str(CLIENT)]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"a Docker Engine needs root and {', '.join(missing) or 'nothing else'}")
    kept = os.environ.get("DOCKER_TEST_DIR")
    folder = Path(kept or f"{tempfile.gettempdir()}/titan-docker-{testrun_uid[:8]}")
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    engine = DockerEngine(folder)
    with engine.alone("engine"):
        if not (folder / "bin/docker").is_symlink():
            (folder / "bin/docker").symlink_to(CLIENT)
        engine.tool("up")
        engine.users(+1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{folder}/engine/docker.sock")
        patch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
        yield engine
    with engine.alone("engine"):
        if engine.users(-1) == 0 and not kept:
            engine.tool("stop")
            # 100,000 files: nobody waits for it.
            remove = ["setsid", "--fork", "rm", "-rf", "--one-file-system", str(folder)]
            subprocess.run(remove, check=True)


@pytest.fixture(scope="session")
def image(engine: DockerEngine) -> str:
    with engine.alone("image"):
        if engine.run("image", "inspect", IMAGE, check=False).returncode:
            build_image(engine)
    return IMAGE


@pytest.fixture(scope="session")
def local_runs(engine: DockerEngine, corpus: Path) -> Callable[[int], Path]:
    """Number of ranks -> directory of the parity job trained by them without a container."""

    def trained(ranks: int) -> Path:
        name = f"local-{ranks}"
        with engine.alone("local"):
            if not (engine.folder / name).exists():
                train_all(engine.folder, {name: parity_job(corpus, ranks=ranks, dp=ranks)})
        return engine.folder / name

    return trained


def build_image(engine: DockerEngine) -> None:
    """What the `image` fixture gives, from nothing; what the build says is in build.log."""
    base = [HERE / "container-base", "--name", BASE, *BASE_PACKAGES]
    environment = {"CONTAINER_BASE_DIR": str(engine.folder / "base")} | os.environ
    subprocess.run(base, env=environment, check=True, timeout=300)
    with pip_secrets(engine.folder / "secrets") as secrets:
        words = ["image", "build", "--tag", IMAGE, "--base-image", BASE, "--network", "host"]
        words += [f"--secret=id={name},src={path}" for name, path in secrets.items()]
        command = [sys.executable, "-m", "titan_recipes.cli", *words]
        environment = os.environ | {"XDG_STATE_HOME": str(engine.folder / "state")}
        log = engine.folder / "build.log"
        with log.open("w") as out:
            done = subprocess.run(command, env=environment, stdout=out, stderr=out, timeout=900)
    assert done.returncode == 0, log.read_text()[-10_000:]


@contextmanager
def pip_secrets(folder: Path) -> Iterator[dict[str, Path]]:
    """Build secrets by which a build installs as this machine's pip does: pip.conf and ca.crt.

    Folders that pip is told to look in are served to the build on the loopback device.
    """
    folder.mkdir(exist_ok=True)
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    told = dict[str, str]()
    for line in sorted(listed, key=lambda line: line.startswith(":env:")):  # these win
        name, _, value = line.partition("=")
        told[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    secrets = {"pip.conf": folder / "pip.conf"}
    if "cert" in told:
        secrets["ca.crt"] = folder / "ca.crt"
        shutil.copyfile(told["cert"], secrets["ca.crt"])
    places = {name: told[name].split() for name in LOOKS_IN if name in told}
    with served([place for listed in places.values() for place in listed]) as addresses:
        lines = ["[global]", "# of this build alone"]
        for name, listed in places.items():
            lines.append(f"{name} = {' '.join(addresses.get(place, place) for place in listed)}")
        secrets["pip.conf"].write_text("\n".join([*lines, ""]))
        yield secrets


LOOKS_IN = ("index-url", "extra-index-url", "find-links")


@contextmanager
def served(places: list[str]) -> Iterator[dict[str, str]]:
    """Place -> address on the loopback device, for the places that are folders of this machine."""
    paths = {
        place: Path(unquote(urlsplit(place).path)).resolve()
        for place in places
        if urlsplit(place).scheme in ("", "file")
    }
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(QuietFiles, directory="/")
    ) as server:
        QuietFiles.allowed = tuple(f"{path.parent}{os.sep}" for path in paths.values())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield {place: f"{address}{path}/" for place, path in paths.items()}
        server.shutdown()


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    """Serves files below some folders: an index's pages name files beside its own folder."""

    allowed: tuple[str, ...] = ()

    def translate_path(self, path: str) -> str:
        file = super().translate_path(path)
        return file if file.startswith(self.allowed) else os.devnull

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest shows what fails."""
