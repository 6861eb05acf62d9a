"""The image's record and the engine's answers; tests/docker builds and runs a real image.

The engines here are small programs that know the few commands they should be asked, and refuse
all others.
"""

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from titan_recipes.errors import LaunchError
from titan_recipes.launch import image as images
from titan_recipes.launch.image import (
    DEFAULT_IMAGE,
    build_context,
    build_image,
    by_digest,
    find_engine,
    image_reference,
    inspect_image,
    local_image,
    pulled_image,
    push_image,
)

ID = f"sha256:{'a1' * 32}"
NAME = "registry.example.com:5000/me/titan-recipes"
DIGEST = f"{NAME}@sha256:{'d2' * 32}"
PUSHED = "f4" * 32
INSPECTED = {
    "Id": ID.removeprefix("sha256:"),  # as Podman has it
    "RepoDigests": [f"mirror.example.com/titan-recipes@sha256:{'e3' * 32}", DIGEST],
    "Created": "2026-01-02T03:04:05Z",
    "Size": 1234,
    "Config": {
        "User": "1000:1000",
        "Entrypoint": ["/usr/bin/tini", "--"],
        "Labels": {"org.opencontainers.image.version": "0.1.0"},
    },
}
ENGINE = """#!/bin/sh
echo "$@" >>{log}
case "$1 $2" in
  'version ') exit {version} ;;
  build\\ *)
    for word; do case $word in --iidfile=*) echo {id} >"${{word#--iidfile=}}" ;; esac; done
    exit {build} ;;
  push\\ --digestfile=*) printf sha256:{pushed} >"${{2#--digestfile=}}" ;;
  push\\ *) exit 0 ;;
  'image inspect') test "$3" != missing && cat {inspected} ;;
  *) echo "what is $1 $2?" >&2; exit 64 ;;
esac
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine named docker that answers; the file of the commands that it was given."""
    return install(tmp_path, monkeypatch, "docker")


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, version: int = 0, build: int = 0
) -> Path:
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    log, inspected = folder / f"{name}.log", folder / "inspected.json"
    inspected.write_text(json.dumps([INSPECTED]))
    path = programs / name
    path.write_text(
        ENGINE.format(
            log=log, version=version, id=ID, build=build, inspected=inspected, pushed=PUSHED
        )
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    log.touch()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return log


@pytest.mark.parametrize(
    ("image", "pulled", "expected"),
    [
        ("r.example/a/x:1", "r.example/a/x@sha256:0", "r.example/a/x:1@sha256:0"),
        ("r.example:5000/x", "r.example:5000/x@sha256:0", "r.example:5000/x@sha256:0"),
        ("x:1", "docker-pullable://docker.io/library/x@sha256:0", "x:1@sha256:0"),
        ("a/x:1", "docker.io/a/x@sha256:0", "a/x:1@sha256:0"),
        ("r.example/x:1", "mirror.example/x@sha256:0", ""),
        ("r.example/x:1", "sha256:0", ""),
        ("r.example/x:1", "", ""),
    ],
)
def test_pulled_image_has_the_digest_of_the_very_repository(
    image: str, pulled: str, expected: str
) -> None:
    assert pulled_image(image, pulled) == expected


def test_by_digest_leaves_out_the_tag_alone() -> None:
    assert by_digest("r.example:5000/x:1@sha256:0") == "r.example:5000/x@sha256:0"
    assert by_digest("r.example:5000/x@sha256:0") == "r.example:5000/x@sha256:0"
    assert by_digest("r.example:5000/x:1") == "r.example:5000/x:1"


def test_image_reference_of_an_image_that_was_never_built_is_its_tag() -> None:
    assert image_reference(DEFAULT_IMAGE) == DEFAULT_IMAGE
    assert local_image(DEFAULT_IMAGE) == DEFAULT_IMAGE
    assert image_reference(DIGEST) == DIGEST


def test_image_after_a_build_is_its_id_here_and_its_tag_elsewhere(asked: Path) -> None:
    built = build_image(DEFAULT_IMAGE, secrets=["id=pip.conf,src=/x"], base_image="debian:12")
    assert built.id == ID
    assert local_image(DEFAULT_IMAGE) == ID
    assert image_reference(DEFAULT_IMAGE) == DEFAULT_IMAGE
    command = asked.read_text().splitlines()[-1].split()
    assert command[0] == "build"
    assert {f"--tag={DEFAULT_IMAGE}", "--secret=id=pip.conf,src=/x"} <= set(command)
    assert "--build-arg=BASE_IMAGE=debian:12" in command
    assert f"--build-arg=REVISION={built.revision}" in command


def test_image_after_a_push_is_its_repo_digest_until_it_is_built_again(asked: Path) -> None:
    tag = f"{NAME}:0.1"
    assert build_image(tag, push=True).digest == DIGEST
    assert image_reference(tag) == DIGEST
    assert local_image(tag) == ID
    assert f"push {tag}" in asked.read_text().splitlines()
    build_image(tag)
    assert image_reference(tag) == tag


def test_image_pushed_by_podman_is_what_the_push_said_not_its_local_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "podman")
    build_image(f"{NAME}:0.1", engine="podman", push=True)
    assert image_reference(f"{NAME}:0.1") == f"{NAME}@sha256:{PUSHED}"


def test_image_without_a_tag_is_the_latest(asked: Path) -> None:
    build_image(NAME, push=True)
    assert image_reference(f"{NAME}:latest") == DIGEST
    assert image_reference(f"{NAME}:0.1") == f"{NAME}:0.1"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a:b": 1}', '{"a:b": {"other": ""}}', "\x00"])
def test_image_reference_with_a_record_that_is_none_is_the_tag(asked: Path, text: str) -> None:
    build_image("a:b")
    record = Path(os.environ["XDG_STATE_HOME"]) / "titan-recipes/images.json"
    assert "a:b" in record.read_text()
    record.write_text(text)
    assert local_image("a:b") == image_reference("a:b") == "a:b"


def test_find_engine_takes_the_first_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "docker", version=1)
    install(tmp_path, monkeypatch, "podman")
    assert find_engine() == "podman"
    install(tmp_path, monkeypatch, "docker")
    assert find_engine() == "docker"
    assert find_engine("podman") == "podman"


def test_find_engine_without_one_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match=r"^docker or podman: not found in PATH; install"):
        find_engine()


def test_find_engine_whose_daemon_is_not_reachable_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "docker", version=1)
    with pytest.raises(LaunchError) as raised:
        find_engine("docker")
    assert str(raised.value) == (
        "docker: does not answer: it says nothing; start it, or set DOCKER_HOST"
    )


def test_build_image_that_fails_says_so_and_records_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "docker", build=17)
    with pytest.raises(LaunchError, match=r"^docker build failed.*\(exit code 17\)$"):
        build_image("a:b")
    assert local_image("a:b") == "a:b"


def test_inspect_image_says_what_the_engine_says(asked: Path) -> None:
    facts = inspect_image(f"{NAME}:0.1")
    assert (facts.id, facts.digest) == (ID, DIGEST)
    assert (facts.version, facts.revision) == ("0.1.0", "")
    assert (facts.created, facts.size_bytes) == ("2026-01-02T03:04:05Z", 1234)
    assert (facts.user, facts.entrypoint) == ("1000:1000", ("/usr/bin/tini", "--"))


def test_inspect_image_that_is_not_there_says_how_to_build_it(asked: Path) -> None:
    with pytest.raises(LaunchError) as raised:
        inspect_image("missing")
    assert str(raised.value) == (
        "missing: docker has no such image; build it with `titan-recipes image build`, "
        "or `docker pull missing`"
    )


def test_push_image_that_a_registry_keeps_under_no_digest_is_an_error(asked: Path) -> None:
    with pytest.raises(LaunchError, match=r"^other:1: pushed, but docker knows no digest of it$"):
        push_image("other:1")


def test_build_context_of_an_installed_package_asks_for_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (build_context() / "docker/Dockerfile").is_file()
    with pytest.raises(LaunchError, match="no docker/Dockerfile in it; give a checkout"):
        build_context(tmp_path)
    monkeypatch.setattr(images, "data_root", lambda: tmp_path)
    with pytest.raises(LaunchError, match=r"installed package, no checkout.*give --context DIR"):
        build_context()


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        (
            "https://user:secret@git.example.com:8443/me/it.git",
            "https://git.example.com:8443/me/it.git",
        ),
        ("https://git.example.com/me/it", "https://git.example.com/me/it"),
        ("git@git.example.com:me/it.git", ""),
        ("/srv/git/it", ""),
    ],
)
def test_source_label_is_the_remotes_url_without_its_password(
    asked: Path, tmp_path: Path, remote: str, source: str
) -> None:
    context = tmp_path / "checkout"
    for name in ("docker/Dockerfile", "pyproject.toml", "constraints.txt"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).touch()
    (context / "titan_recipes").mkdir()
    (context / "titan_recipes/__init__.py").write_text('__version__ = "9.8.7"\n')
    subprocess.run(["git", "init", "--quiet", context], check=True)
    subprocess.run(["git", "-C", context, "remote", "add", "origin", remote], check=True)
    build_image("a:b", context=context)
    command = asked.read_text().splitlines()[-1].split()
    assert f"--build-arg=SOURCE={source}" in command
    assert "--build-arg=VERSION=9.8.7" in command
