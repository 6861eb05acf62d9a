"""The form on disk, and the verbs that look at it."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from titan_recipes.trainer.checkpoint.__main__ import main
from titan_recipes.trainer.checkpoint.commit import (
    FileRecord,
    Manifest,
    commit,
    find_checkpoints,
    keep_newest,
    list_checkpoints,
    remove_leftovers,
    scratch_path,
    verify_checkpoint,
)


def make(folder: Path, step: int, *, model_only: bool = False) -> Path:
    """A committed checkpoint of two small files."""
    scratch = scratch_path(folder, step)
    scratch.mkdir(parents=True)
    files: dict[str, FileRecord] = {}
    for name, content in (("__0_0.distcp", b"shard" * 100), (".metadata", b"index")):
        (scratch / name).write_bytes(content)
        files[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    manifest = Manifest(
        step=step,
        world_size=2,
        model_only=model_only,
        titan_recipes="0.1.0",
        torch="2.13.0",
        created="2026-01-02T03:04:05+00:00",
        files=files,
    )
    return commit(scratch, manifest)


def flip_byte(path: Path) -> None:
    file = path / "__0_0.distcp"
    file.write_bytes(b"S" + file.read_bytes()[1:])


def truncate(path: Path) -> None:
    file = path / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])


def lose_shard(path: Path) -> None:
    (path / "__0_0.distcp").unlink()


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def tear_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:40])


def add_file(path: Path) -> None:
    (path / "__9_0.distcp").write_bytes(b"")


def raise_format(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 2'))


def rename(path: Path) -> None:
    path.rename(path.with_name("step-00000030"))


DAMAGE = [
    (flip_byte, "__0_0.distcp: content differs from its sha256"),
    (truncate, "__0_0.distcp: 499 bytes instead of 500"),
    (lose_shard, "__0_0.distcp: missing"),
    (lose_manifest, "manifest.json: missing"),
    (tear_manifest, "manifest.json: can't be read (Unterminated string"),
    (add_file, "__9_0.distcp: not in manifest.json"),
    (raise_format, "manifest.json: format 2, this titan-recipes reads 1"),
    (rename, "manifest.json: of step 20, in step-00000030"),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGE)
def test_verify_when_damaged_names_the_file_and_the_one_before_is_newest(
    tmp_path: Path, damage, problem: str
) -> None:
    before, path = make(tmp_path, 10), make(tmp_path, 20)
    assert verify_checkpoint(path) == []
    damage(path)
    newest, older = list_checkpoints(tmp_path)
    found = verify_checkpoint(newest.path)
    assert len(found) == 1
    assert found[0].startswith(problem)
    assert older.path == before
    assert verify_checkpoint(before) == []


def test_list_when_leftovers_and_strangers_are_there_has_only_checkpoints(tmp_path: Path) -> None:
    for step in (9, 100_000_000, 10):
        make(tmp_path, step)
    scratch_path(tmp_path, 11).mkdir()
    (tmp_path / "step-0000001x").mkdir()
    (tmp_path / "step-00000012").write_text("a file")
    assert [c.step for c in list_checkpoints(tmp_path)] == [100_000_000, 10, 9]
    assert list_checkpoints(tmp_path / "nowhere") == []
    assert remove_leftovers(tmp_path) == [".step-00000011.saving"]
    assert remove_leftovers(tmp_path) == []


def test_commit_when_the_step_exists_replaces_it(tmp_path: Path) -> None:
    old = make(tmp_path, 10)
    flip_byte(old)
    assert make(tmp_path, 10, model_only=True) == old
    assert verify_checkpoint(old) == []
    assert json.loads((old / "manifest.json").read_text())["model_only"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


@pytest.mark.parametrize(("count", "left"), [(0, [4, 3, 2, 1]), (1, [4]), (3, [4, 3, 2])])
def test_keep_newest_when_more_removes_the_oldest(
    tmp_path: Path, count: int, left: list[int]
) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    keep_newest(tmp_path, count)
    assert [c.step for c in list_checkpoints(tmp_path)] == left
    assert len(list(tmp_path.iterdir())) == len(left)


def test_find_when_run_folder_or_checkpoint_finds_the_same(tmp_path: Path) -> None:
    path = make(tmp_path / "saved", 10)
    (tmp_path / "job.toml").write_text('[checkpoint]\nfolder = "saved"\n')
    for directory in (tmp_path, tmp_path / "saved", path):
        assert [c.path for c in find_checkpoints(directory)] == [path]
    copy = path.rename(tmp_path / "exported")
    assert [(c.step, c.path) for c in find_checkpoints(copy)] == [(10, copy)]


def test_verbs_when_one_is_bad_name_it_and_exit_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    make(folder, 10), make(folder, 20, model_only=True)
    assert main(["verify", str(tmp_path)]) == 0
    flip_byte(folder / "step-00000010")
    capsys.readouterr()

    assert main(["list", str(tmp_path)]) == 0  # looks at sizes only
    assert capsys.readouterr().out.splitlines() == [
        "    STEP        SIZE  RANKS  DATE                       STATE",
        "      20     0.0 MiB      2  2026-01-02T03:04:05+00:00  ok, weights only",
        "      10     0.0 MiB      2  2026-01-02T03:04:05+00:00  ok",
    ]
    assert main(["verify", str(tmp_path)]) == 3
    assert capsys.readouterr().out.splitlines()[2:] == [
        "      10     0.0 MiB      2  2026-01-02T03:04:05+00:00  BAD",
        "          __0_0.distcp: content differs from its sha256",
    ]
    lose_manifest(folder / "step-00000020")
    assert main(["verify", "--json", str(folder)]) == 3
    rows = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["bytes"], row["valid"]) for row in rows] == [
        (20, None, False),
        (10, 505, False),
    ]
    assert rows[0]["problems"] == ["manifest.json: missing"]


def test_verbs_when_there_are_none_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no checkpoints here\n"


def test_verbs_import_no_torch(tmp_path: Path) -> None:
    make(tmp_path, 10)
    code = (
        "import sys; from titan_recipes.trainer.checkpoint.__main__ import main; "
        f"assert main(['verify', {str(tmp_path)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
