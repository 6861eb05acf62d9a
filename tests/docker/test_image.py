"""The image as it was built: what is in it, what is not, and what it says of itself."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import titan_recipes
from tests.docker.conftest import DockerEngine
from titan_recipes.launch.image import inspect_image

REPOSITORY = Path(titan_recipes.__file__).parent.parent


def inside(engine: DockerEngine, image: str, *command: str, options: tuple[str, ...] = ()) -> str:
    """What a command in a new container prints."""
    return engine.run("run", "--rm", "--network=none", *options, image, *command).stdout


def normal(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("linter", "file"), [("hadolint", "Dockerfile"), ("shellcheck", "entrypoint")]
)
def test_files_of_the_image_have_nothing_to_lint(linter: str, file: str) -> None:
    if shutil.which(linter) is None:
        pytest.skip(f"{linter} is not installed")
    done = subprocess.run([linter, REPOSITORY / "docker" / file], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_inspect_of_the_image_says_what_was_built(image: str, engine: DockerEngine) -> None:
    facts = inspect_image(image)
    assert facts.version == titan_recipes.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", facts.revision)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+\+00:00", facts.created)
    assert facts.user == "1000:1000"
    assert facts.entrypoint == ("/usr/bin/tini", "--", "/usr/local/bin/titan-entrypoint")
    assert facts.digest == ""  # it was never pushed
    # torch, pyarrow and the compilers make most of it; CUDA's wheels would add 4 GB
    assert 1.0e9 < facts.size_bytes < 2.2e9 or "cpu" not in torch_version(engine, image)


def torch_version(engine: DockerEngine, image: str) -> str:
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return inside(engine, image, "python", "-c", code)


def test_packages_in_the_image_are_those_of_constraints_txt(
    image: str, engine: DockerEngine
) -> None:
    code = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.name: d.version for d in m.distributions()}))"
    )
    found = {
        normal(name): version.partition("+")[0]
        for name, version in json.loads(inside(engine, image, "python", "-c", code)).items()
    }
    assert found.pop("titan-recipes") == titan_recipes.__version__
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line)
    locked = {normal(name): version for name, version in locked.items()}
    assert {n: (v, locked[n]) for n, v in found.items() if n in locked and locked[n] != v} == {}
    assert sorted(found.keys() - locked.keys()) == []
    assert {"torch", "kubernetes", "tensorboard"} <= found.keys()
    assert "pip" not in found


def test_recipes_and_templates_in_the_image_are_those_of_the_checkout(
    image: str, engine: DockerEngine
) -> None:
    listed = json.loads(inside(engine, image, "list", "--json"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["exclude"]
    names = {entry.rpartition("/")[2] for entry in shipped if entry.startswith("!/recipes/")}
    assert {recipe["name"] for recipe in listed} == names
    assert inside(engine, image, "sh", "-c", "ls /opt/venv/lib/python3*/site-packages/*/_data") == (
        "docker\nk8s\nrecipes\nslurm\n"
    )


def test_byte_code_is_in_the_image_and_trusted_as_it_is(image: str, engine: DockerEngine) -> None:
    code = (
        "import importlib.util, pathlib\n"
        "for name in ('titan_recipes.cli', 'titan_recipes.trainer.model.decoder', 'torch.nn'):\n"
        "    spec = importlib.util.find_spec(name)\n"
        "    print(int.from_bytes(pathlib.Path(spec.cached).read_bytes()[4:8], 'little'))"
    )
    assert inside(engine, image, "python", "-c", code).split() == ["1", "1", "1"]  # unchecked hash


def test_compilers_in_the_image_build_what_triton_and_inductor_write(
    image: str, engine: DockerEngine
) -> None:
    options = ("--user=4321:4321", "--read-only", "--tmpfs=/tmp:exec")
    script = (
        "include=$(python -c 'import sysconfig; print(sysconfig.get_path(\"include\"))') && "
        "echo '#include <Python.h>' | gcc -I$include -shared -fPIC -xc -o /tmp/a.so - && "
        "echo '#include <omp.h>\n#include <vector>' | "
        "g++ -fopenmp -shared -fPIC -xc++ -o /tmp/b.so - && "
        "python -c 'import ctypes, getpass; ctypes.CDLL(\"/tmp/b.so\"); print(getpass.getuser())'"
    )
    assert inside(engine, image, "sh", "-c", script, options=options) == "titan\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--version"], f"titan-recipes, version {titan_recipes.__version__}\n"),
        (["python", "-P", "-c", "import os; print(os.getppid())"], "1\n"),  # below tini
        (["bash", "-c", "id -u; id -g; pwd; echo $HOME"], "1000\n1000\n/work\n/tmp\n"),
        (["tensorboard", "--version"], "2.21.0\n"),
    ],
)
def test_command_of_the_image_is_titan_recipes_or_a_program_as_it_is(
    image: str, engine: DockerEngine, command: list[str], said: str
) -> None:
    assert inside(engine, image, *command) == said


def test_user_recipes_mounted_below_work_are_found(
    image: str, engine: DockerEngine, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    inside(
        engine,
        image,
        *("fork", "llama3_debug", "mine"),
        options=(f"--volume={tmp_path}:/work/recipes", "--user=0:0"),
    )
    volume = f"--volume={tmp_path}:/work/recipes:ro"
    listed = json.loads(inside(engine, image, "list", "--json", options=(volume,)))
    assert "mine" in [recipe["name"] for recipe in listed]


FORBIDDEN_FILES = re.compile(
    r"(^|/)(pip\.conf|ca\.crt|\.netrc|\.pypirc|\.git|\.docker|\.ssh)($|/)"
    r"|^(run/secrets|root/\.cache|root/\.config|tmp|dist|build)/."
)


def test_no_layer_holds_a_secret_pip_setting_or_certificate_of_the_build(
    image: str, engine: DockerEngine
) -> None:
    needles = secret_words(engine.folder / "secrets")
    assert needles, "the build had secrets to leave behind"
    history = engine.run("history", "--no-trunc", "--format={{json .}}", image).stdout
    (described,) = json.loads(engine.run("image", "inspect", image).stdout)
    words = f"{history}{json.dumps(described['Config'])}".encode()
    assert [word for word in needles if word in words] == []
    # The engine keeps what each layer adds in a folder: what `docker save` would pack.
    drive = described["GraphDriver"]["Data"]
    layers = [Path(drive["UpperDir"]), *map(Path, drive["LowerDir"].split(":"))]
    assert len(layers) == len(described["RootFS"]["Layers"]) >= 6
    assert any((layer / "opt/venv/bin/titan-recipes").exists() for layer in layers)
    found = [f"{name}: {why}" for layer in layers for name, why in left_behind(layer, needles)]
    assert found == []


def secret_words(secrets: Path) -> list[bytes]:
    """What tells that a secret was left: addresses in pip.conf, lines of certificates in ca.crt."""
    lines = (secrets / "pip.conf").read_text().splitlines()
    words = [word.encode() for line in lines for word in line.split() if "://" in word]
    words += [line.encode() for line in lines if line.startswith("#")]
    if (secrets / "ca.crt").exists():
        public = ca_lines(Path("/usr/share/ca-certificates"))
        lines = (secrets / "ca.crt").read_bytes().splitlines()
        words += [line for line in lines if len(line) == 64 and line not in public][:20]
    return words


def ca_lines(folder: Path) -> set[bytes]:
    """Lines of the certificate authorities that everybody trusts: they are in every base image."""
    return {line for path in folder.rglob("*.crt") for line in path.read_bytes().splitlines()}


def left_behind(layer: Path, needles: list[bytes]) -> Iterator[tuple[str, str]]:
    """(path, why) of the files of a layer that should not be there, by name or by content."""
    for path in layer.rglob("*"):
        name = str(path.relative_to(layer))
        if FORBIDDEN_FILES.search(name):
            yield name, "such a file"
        if path.suffix in (".pyc", ".so") or path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size < 2**20:
            content = path.read_bytes()
            yield from ((name, repr(word)) for word in needles if word in content)
