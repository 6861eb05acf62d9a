"""`image build` and `image inspect` as typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from titan_recipes import __version__

ENGINE = f"""#!/bin/sh
case "$1 $2" in
  'version ') exit 0 ;;
  'image inspect') test "$3" = titan-recipes:{__version__} && cat "$0.json" ;;
  *) exit 64 ;;
esac
"""


def image(path: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "titan_recipes.cli", "image", *words]
    return subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60
    )


def engine(folder: Path) -> str:
    """A PATH with an engine that holds one image."""
    program = folder / "podman"
    program.write_text(ENGINE)
    program.chmod(0o755)
    labels = {"org.opencontainers.image.revision": "abc-dirty"}
    config = {"User": "1000:1000", "Entrypoint": ["/usr/bin/tini", "--"], "Labels": labels}
    found = {"Id": "f" * 64, "RepoDigests": [], "Size": 2**31, "Created": "now", "Config": config}
    (folder / "podman.json").write_text(json.dumps([found]))
    return f"{folder}:/usr/bin:/bin"


def test_image_inspect_shows_the_default_image(tmp_path: Path) -> None:
    path = engine(tmp_path)
    done = image(path, "inspect", "--engine", "podman")
    assert done.stdout.splitlines() == [
        f"image       titan-recipes:{__version__}",
        "version     unknown",
        "revision    abc-dirty",
        "created     now",
        "source      unknown",
        "size        2 GiB",
        f"id          sha256:{'f' * 64}",
        "digest      none: not pushed",
        "user        1000:1000",
        "entrypoint  /usr/bin/tini --",
    ]
    facts = json.loads(image(path, "inspect", "--engine", "podman", "--json").stdout)
    assert (facts["size_bytes"], facts["digest"]) == (2**31, "")


def test_image_commands_without_an_engine_exit_2_with_one_line(tmp_path: Path) -> None:
    for words in (["build"], ["inspect"], ["build", "--engine", "podman"]):
        done = image(str(tmp_path), *words)
        what = "podman" if "podman" in words else "docker or podman"
        assert done.returncode == 2
        assert done.stderr == (f"error: {what}: not found in PATH; install it, or go where it is\n")


def test_image_build_of_a_folder_that_is_no_checkout_exits_2(tmp_path: Path) -> None:
    done = image(engine(tmp_path), "build", "--context", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}: no docker/Dockerfile in it; give a checkout of titan-recipes\n"
    )
