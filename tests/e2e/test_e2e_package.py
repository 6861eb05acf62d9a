"""What is installed: the wheel against the checkout, and what the launcher imports."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from training import SMALL

CHECKOUT = Path(__file__).resolve().parents[2]
TORCH_HALF = ("torch", "numpy", "datasets", "tiktoken", "tokenizers", "titan_recipes.trainer")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """titan-recipes of a fresh virtual environment that holds the wheel.

    It is built, by way of the sdist, from a copy of the checkout with a fork in its recipes/. What
    the wheel depends on comes from this environment, by path, behind the wheel's own files.
    """
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns(".venv", ".git", "__pycache__", "outputs", "dist", "build")
    shutil.copytree(CHECKOUT, source, ignore=skip, symlinks=True)
    shutil.copytree(source / "recipes" / "llama3_8b", source / "recipes" / "llama3_8b_fork")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*build, str(source)], check=True, capture_output=True, text=True)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    wheel = next(folder.glob("*.whl"))
    target = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run([*install, "--quiet", "--no-index", str(wheel)], check=True)
    here = sysconfig.get_path("purelib")
    Path(target, "dependencies.pth").write_text(f"{here}\n")
    return folder / "venv" / "bin" / "titan-recipes"


def output(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_lists_and_shows_what_the_checkout_does(installed: Path, tmp_path: Path) -> None:
    ours = [sys.executable, "-m", "titan_recipes.cli"]
    listed = json.loads(output(installed, "list", "--json", cwd=tmp_path))
    digests = json.loads((CHECKOUT / "tests" / "recipes" / "digests.json").read_text())
    # Those we maintain, all of them, and not the fork beside them.
    assert {entry["name"] for entry in listed} == {name.partition("@")[0] for name in digests}
    assert output(installed, "list", cwd=tmp_path) == output(*ours, "list", cwd=tmp_path)
    for entry in listed:
        shown, expected = (
            output(*program, "show", entry["name"], cwd=tmp_path).splitlines()
            for program in ([installed], ours)
        )
        differing = [pair for pair in zip(shown, expected, strict=True) if pair[0] != pair[1]]
        assert [line.split()[0] for line, _ in differing] == ["path"]


def test_wheel_holds_packages_recipes_and_nothing_at_the_top(installed: Path) -> None:
    python = installed.with_name("python")
    code = "import importlib.metadata as m; print(*m.files('titan-recipes'), sep='\\n')"
    files = output(python, "-c", code, cwd=installed.parent).splitlines()
    tops = {file.split("/")[0] for file in files} - {".."}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"titan_recipes"}
    assert "titan_recipes/_data/recipes/llama3_8b/plans/h100x8.toml" in files
    assert not [file for file in files if "test" in file]
    code = "from titan_recipes.config.data_root import install_command as c; print(c('trainer'))"
    assert output(python, "-c", code, cwd=installed.parent) == (
        "pip install 'titan-recipes[trainer]'\n"
    )


def test_wheel_launches_llama3_debug(installed: Path, tmp_path: Path, corpus: Path) -> None:
    data = ("training.dataset='text'", f"training.dataset_path='{corpus}'", "training.steps=3")
    sets = [part for setting in (*SMALL, *data) for part in ("--set", setting)]
    sets += ["--set", "plan.gpu='cpu'", "--name", "wheel"]
    text = output(installed, "launch", "llama3_debug", "--plan", "cpu1", *sets, cwd=tmp_path)
    assert "step 3/3" in text
    assert (tmp_path / "outputs" / "wheel" / "checkpoints" / "step-00000003").is_dir()


@pytest.mark.parametrize("command", [["list"], ["launch", "llama3_8b", "--dry-run"]])
def test_launcher_never_imports_the_torch_half(command: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom titan_recipes.cli import main\n"
        f"try:\n    main({command!r})\nfinally:\n"
        f"    print([m for m in {TORCH_HALF!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines()[-1] == "[]", done.stderr
    assert "llama3_8b" in done.stdout
    assert os.listdir(tmp_path) in ([], ["state"])
