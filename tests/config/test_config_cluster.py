"""Cluster profiles: where they are looked for, and what one may hold."""

import pwd
from pathlib import Path

import pytest

from titan_recipes.config.cluster import Cluster, check_time, find_cluster, read_cluster
from titan_recipes.config.home import expanded, user_folder
from titan_recipes.config.load import show
from titan_recipes.errors import BundleError, ConfigError


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uid without a passwd entry, and no variables that say where its home is."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "TITAN_RECIPES_CLUSTERS"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_: object) -> None:
        raise KeyError("no such uid")

    monkeypatch.setattr(pwd, "getpwuid", nobody)


def test_home_when_there_is_none_gives_no_folder(
    homeless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert user_folder("XDG_STATE_HOME", ".local/state") is None
    assert expanded("~/x") == Path("~/x")
    assert find_cluster(None)[0] == ""
    with pytest.raises(BundleError, match="no cluster profile 'a' in any folder"):
        find_cluster("a")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert user_folder("XDG_STATE_HOME", ".local/state") == Path("/state")
    monkeypatch.setenv("HOME", "/h")
    assert user_folder("XDG_CONFIG_HOME", ".config") == Path("/h/.config")


def test_cluster_when_its_name_is_empty_says_so() -> None:
    with pytest.raises(BundleError, match="--cluster: empty; give a profile's name or path"):
        find_cluster("")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("'A B' = '1'", "env.A B: not the name of an environment variable; use letters, digits"),
        ("9A = '1'", "env.9A: not the name of an environment variable; use letters, digits"),
        ("HF_TOKEN = 'x'", "env.HF_TOKEN: a secret in a profile would be written into job.toml"),
        ("WANDB_API_KEY = 'x'", "env.WANDB_API_KEY: a secret in a profile would be written"),
        ("MY_SECRET_2 = 'x'", "env.MY_SECRET_2: a secret in a profile would be written"),
        ("db_password = 'x'", "env.db_password: a secret in a profile would be written"),
        ('A = "1\\n2"', 'env.A: got "1\\n2"; must be one line without NUL'),
        ('A = "\\u0000"', 'env.A: got "\\u0000"; must be one line without NUL'),
    ],
)
def test_env_that_no_profile_should_hold_is_refused(
    tmp_path: Path, line: str, problem: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"[env]\nNCCL_IB_HCA = 'a,b'\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_cluster(file)
    assert str(caught.value).startswith(f"{file}: {problem}")
    assert "\n" not in str(caught.value)


def test_env_of_ordinary_names_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[env]\nNCCL_IB_HCA = 'a,b'\nTOKENIZERS_PARALLELISM = 'false'\n_K = ''\n")
    assert read_cluster(file).env == {
        "NCCL_IB_HCA": "a,b",
        "TOKENIZERS_PARALLELISM": "false",
        "_K": "",
    }


@pytest.mark.parametrize("time", ['"4h"', '"1:2:3:4"', '"soon"', "-5"])
def test_time_limit_that_slurm_could_not_read_is_refused(tmp_path: Path, time: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'scheduler = "slurm"\n[slurm]\ntime = {time}\n')
    with pytest.raises(ConfigError) as caught:
        read_cluster(file)
    assert str(caught.value).startswith(f"{file}: slurm.time: got {time}; ")


@pytest.mark.parametrize(
    ("time", "seconds", "refused"),
    [
        ("6:00", 300, True),  # minutes and seconds: all of it to save in
        ("6:01", 300, False),
        (6, 300, True),  # minutes
        ("1-00", 86400, True),
        (0, 86400, False),  # no limit
        (False, 300, False),  # left out: the partition's
    ],
)
def test_time_limit_that_leaves_no_time_to_train_is_refused(
    time: str | int | bool, seconds: int, refused: bool
) -> None:
    problems = check_time(seconds, Cluster(scheduler="slurm", slurm={"time": time}), "train.toml")
    assert [str(problem) for problem in problems] == refused * [
        f"train.toml: fault_tolerance.grace_seconds: {seconds} s, which slurm.time = "
        f"{show(time)} leaves no time to train beside; "
        "ask for more time, or for fewer seconds to save in"
    ]
