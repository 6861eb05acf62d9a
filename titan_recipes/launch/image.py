"""The container image: building it, looking at it, and the reference that runs and jobs pin.

docker/Dockerfile is built with Docker or Podman, whichever is there. What was built, and under
which digest a registry keeps it, is in `images.json` in the user's state folder: a dry run pins an
image by asking no engine and no registry.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from titan_recipes import __version__
from titan_recipes.config.data_root import data_root
from titan_recipes.config.home import user_folder
from titan_recipes.config.layout import replace_file
from titan_recipes.errors import LaunchError
from titan_recipes.launch.record import git_revision, now

DEFAULT_IMAGE = f"titan-recipes:{__version__}"
ENGINES = ("docker", "podman")
DOCKERFILE = Path("docker/Dockerfile")
ASK_SECONDS = 30.0
LABEL = "org.opencontainers.image."


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """What is known of a tag that was built or pushed here."""

    id: str
    """Image ID, `sha256:...`: names it for the engine that built it."""
    digest: str = ""
    """Repo digest, `name@sha256:...`: names it for every machine; "" = not pushed since built."""
    revision: str = ""
    """Commit that it was built from, "-dirty" where that was changed; "" = unknown."""
    created: str = ""
    """ISO 8601, UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What an engine says of an image; "" = it does not say."""

    image: str
    id: str
    digest: str
    version: str
    revision: str
    created: str
    source: str
    user: str
    entrypoint: tuple[str, ...]
    size_bytes: int


def image_reference(image: str) -> str:
    """What run.json and rendered jobs pin: `name@sha256:...` where it is recorded, else the tag."""
    built = _recorded().get(_full_tag(image))
    return built.digest if built and built.digest else image


def by_digest(image: str) -> str:
    """`name@sha256:...` of `name:tag@sha256:...`, which not every runtime takes; else as it is."""
    name, at, digest = image.partition("@")
    return f"{_untagged(name)}@{digest}" if at else image


def pulled_image(image: str, pulled: str) -> str:
    """`name:tag@sha256:...`: the image that was asked for, by the digest that it was pulled under.

    pulled: what a pod's status calls it. "" where that tells no digest of this very name: the image
    was never in a registry, or came from a mirror.
    """
    name, _, digest = pulled.rpartition("://")[2].partition("@")
    is_same = _full_name(_untagged(image)) == _full_name(name)
    return f"{image}@{digest}" if is_same and digest.startswith("sha256:") else ""


def _untagged(image: str) -> str:
    name, _, tag = image.rpartition(":")
    return name if name and "/" not in tag else image  # before a slash it is a registry's port


def _full_name(name: str) -> str:
    """A repository with the registry that engines take where it names none."""
    host, slash, _ = name.partition("/")
    if slash and (host == "localhost" or "." in host or ":" in host):
        return name
    return f"docker.io/{name if slash else f'library/{name}'}"


def local_image(image: str) -> str:
    """The image ID where this machine's engine built the tag, else the tag.

    An engine runs an ID as it is; torchx's docker scheduler would pull a tag from a registry first.
    """
    built = _recorded().get(_full_tag(image))
    return built.id if built else image


def _full_tag(image: str) -> str:
    """The tag with `:latest` where it names none, as engines read it."""
    return f"{image}:latest" if "@" not in image and _untagged(image) == image else image


def _recorded() -> dict[str, BuiltImage]:
    """Every tag built here; what can't be read counts as none: images are then named by tag."""
    path = _record_path()
    try:
        text = path.read_text(encoding="utf-8") if path else "{}"
        return {tag: BuiltImage(**facts) for tag, facts in json.loads(text).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _record(tag: str, built: BuiltImage) -> None:
    """Keep what is known of a tag. Raises LaunchError where it can't be written."""
    path = _record_path()
    if path is None:  # no home, as in a container
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            flock(lock, LOCK_EX)  # two builds at once: neither loses the other's tag
            images = {**_recorded(), _full_tag(tag): built}
            replace_file(path, json.dumps({k: asdict(v) for k, v in images.items()}, indent=2))
    except OSError as error:
        cure = "give container.image by its digest instead"
        raise LaunchError(f"{path}: can't be written: {error.strerror}; {cure}") from error


def _record_path() -> Path | None:
    state = user_folder("XDG_STATE_HOME", ".local/state")
    return state / "titan-recipes" / "images.json" if state else None


def find_engine(wanted: str = "") -> str:
    """The engine to use, `docker` before `podman`, as one that answers.

    wanted: one of ENGINES, "" = any. Raises LaunchError where there is none, or none answers.
    """
    there = [name for name in ([wanted] if wanted else ENGINES) if shutil.which(name)]
    if not there:
        what = wanted or " or ".join(ENGINES)
        raise LaunchError(f"{what}: not found in PATH; install it, or go where it is")
    silent: list[str] = []
    for name in there:
        done = _ask(name, "version")
        if done.returncode == 0:
            return name
        silent.append(f"{name}: does not answer: {_last_line(done.stderr)}")
    cure = "start it, or set DOCKER_HOST" if "docker" in there else "see `podman info`"
    raise LaunchError(f"{'; '.join(silent)}; {cure}")


def _ask(engine: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What an engine answers. Raises LaunchError where it does not within ASK_SECONDS."""
    try:
        return subprocess.run(
            [engine, *words], capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{engine} {words[0]}: no answer in {ASK_SECONDS:.0f} s") from error


def _last_line(text: str) -> str:
    """An engine's reason, without the question that Docker ends it with."""
    lines = text.strip().removesuffix(". Is the docker daemon running?").splitlines()
    return lines[-1].strip() if lines else "it says nothing"


def build_context(folder: Path | None = None) -> Path:
    """The folder that the image is built from: the checkout.

    Raises LaunchError for an installed package, which holds the Dockerfile but not the project.
    """
    root = folder or data_root()
    needed = (DOCKERFILE, Path("pyproject.toml"), Path("constraints.txt"))
    missing = [str(name) for name in needed if not (root / name).is_file()]
    if not missing:
        return root
    if folder:
        raise LaunchError(f"{folder}: no {missing[0]} in it; give a checkout of titan-recipes")
    cure = f"give --context DIR, a checkout or the unpacked source package of {__version__}"
    raise LaunchError(f"this titan-recipes is an installed package, no checkout to build; {cure}")


def build_image(
    tag: str = DEFAULT_IMAGE,
    *,
    engine: str = "",
    context: Path | None = None,
    base_image: str = "",
    build_args: Sequence[str] = (),
    secrets: Sequence[str] = (),
    network: str = "",
    push: bool = False,
) -> BuiltImage:
    """Build, tag and record the image, the engine's own progress on the screen; push it if asked.

    base_image: "" = the Dockerfile's; build_args: `NAME=VALUE`; secrets: `id=NAME,src=FILE`;
    network: of the build's commands, "" = the engine's choice. Raises LaunchError.
    """
    root = build_context(context)
    engine = find_engine(engine)
    revision, created = git_revision(root), now()
    arguments = {
        "VERSION": _version(root),
        "REVISION": revision,
        "CREATED": created,
        "SOURCE": _source(root),
    }
    if base_image:
        arguments["BASE_IMAGE"] = base_image
    command = [engine, "build", f"--file={root / DOCKERFILE}", f"--tag={tag}"]
    command += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    command += [f"--build-arg={argument}" for argument in build_args]
    command += [f"--secret={secret}" for secret in secrets]
    command += [f"--network={network}"] if network else []
    with tempfile.TemporaryDirectory(prefix="titan-image-") as folder:
        id_file = Path(folder) / "image_id"
        _show([*command, f"--iidfile={id_file}", str(root)], "build failed; its words are above")
        image_id = _sha(id_file.read_text(encoding="utf-8").strip())
    built = BuiltImage(id=image_id, revision=revision, created=created)
    _record(tag, built)
    return push_image(tag, engine=engine) if push else built


def push_image(tag: str, *, engine: str = "") -> BuiltImage:
    """Push a tag and record the digest that its registry keeps it under. Raises LaunchError."""
    engine = find_engine(engine)
    failure = "push failed; its words are above"
    if engine == "podman":  # its image has a digest of its own, before layers are compressed
        with tempfile.TemporaryDirectory(prefix="titan-image-") as folder:
            file = Path(folder) / "digest"
            _show([engine, "push", f"--digestfile={file}", tag], failure)
            digest = f"{_name_of(tag)}@{file.read_text(encoding='utf-8').strip()}"
        facts = inspect_image(tag, engine=engine)
    else:
        _show([engine, "push", tag], failure)
        facts = inspect_image(tag, engine=engine)
        digest = facts.digest
    if not digest:
        raise LaunchError(f"{tag}: pushed, but {engine} knows no digest of it")
    built = BuiltImage(id=facts.id, digest=digest, revision=facts.revision, created=facts.created)
    _record(tag, built)
    return built


def inspect_image(image: str = DEFAULT_IMAGE, *, engine: str = "") -> ImageFacts:
    """What the engine says of an image that it holds. Raises LaunchError where it holds none."""
    engine = find_engine(engine)
    done = _ask(engine, "image", "inspect", image)
    if done.returncode != 0:
        cure = f"build it with `titan-recipes image build`, or `{engine} pull {image}`"
        raise LaunchError(f"{image}: {engine} has no such image; {cure}")
    found: dict[str, Any] = json.loads(done.stdout)[0]
    config: dict[str, Any] = found.get("Config") or {}
    labels: dict[str, str] = config.get("Labels") or {}
    return ImageFacts(
        image=image,
        id=_sha(found["Id"]),
        digest=_digest_of(image, found.get("RepoDigests") or []),
        version=labels.get(f"{LABEL}version", ""),
        revision=labels.get(f"{LABEL}revision", ""),
        created=labels.get(f"{LABEL}created") or found.get("Created") or "",
        source=labels.get(f"{LABEL}source", ""),
        user=config.get("User") or "",
        entrypoint=tuple(cast(list[str], config.get("Entrypoint") or [])),
        size_bytes=int(found["Size"]),
    )


def _digest_of(image: str, digests: Sequence[str]) -> str:
    """The digest under the image's own name: an image may have been pushed under several."""
    name = _name_of(image)
    return next((digest for digest in digests if digest.partition("@")[0] == name), "")


def _name_of(image: str) -> str:
    """The image's name without tag and digest."""
    return _full_tag(image.partition("@")[0]).rpartition(":")[0]


def _sha(image_id: str) -> str:
    """An image ID as Docker writes it: Podman leaves `sha256:` out."""
    return image_id if image_id.startswith("sha256:") else f"sha256:{image_id}"


def _show(command: Sequence[str], failure: str) -> None:
    """Run an engine's command on this terminal. Raises LaunchError where it fails."""
    environment: Mapping[str, str] = {**os.environ, "DOCKER_BUILDKIT": "1"}
    if code := subprocess.run(command, env=environment, check=False).returncode:
        raise LaunchError(f"{command[0]} {failure} (exit code {code})")


def _version(root: Path) -> str:
    """The version of the project in a folder: __init__.py's, the one that its wheel gets."""
    text = (root / "titan_recipes/__init__.py").read_text(encoding="utf-8")
    return text.partition('__version__ = "')[2].partition('"')[0]


def _source(root: Path) -> str:
    """Where the project's source is published, without a password; "" = nowhere that has a URL."""
    words = ["git", "-C", str(root), "config", "--get", "remote.origin.url"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    url = urlsplit(done.stdout.strip())
    if url.scheme not in ("http", "https") or not url.hostname:
        return ""
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{url.hostname}{port}{url.path}"
