"""The cluster profile that is written from what SLURM says is there."""

from dataclasses import replace
from pathlib import Path

import pytest
from slurm_outputs import (
    ACCOUNTING,
    PARTITIONS_22_05,
    said,
    site,
)

from titan_recipes.config.cluster import read_cluster
from titan_recipes.errors import BundleError, ConfigError, LaunchError
from titan_recipes.launch import slurm_profile
from titan_recipes.launch.slurm_profile import choose_partition, profile_text, write_profile
from titan_recipes.launch.slurm_site import SlurmSite
from titan_recipes.launch.slurm_text import parse_accounting, parse_nodes, parse_partitions


def test_profile_of_a_mixed_partition_keeps_to_its_gpus(tmp_path: Path) -> None:
    found = site()
    assert choose_partition(found, "cpu").name == "cpu"
    partition = choose_partition(found, None)
    assert partition.name == "gpu"  # the default one has no GPUs
    path = tmp_path / "new" / "lab.toml"
    write_profile(path, profile_text("lab", found, partition, "/shared/me"), force=False)
    made = read_cluster(path)
    assert (made.scheduler, made.outputs) == ("slurm", "/shared/me")
    assert made.slurm == {
        "partition": "gpu",
        "time": "1-00:00:00",
        "constraint": "sxm",
        "account": "physics",
        "qos": "normal",
    }
    have = made.hardware
    assert (have.gpu, have.gpus_per_node, have.cpus, have.memory_gib) == ("h100", 8, 126, 1000.0)
    assert said(made)[0] == []
    text = path.read_text()
    assert "# 3 of 4 nodes of partition gpu: 8 x h100, 126 CPUs, 1000 GiB.\n" in text
    assert '# SLURM says "h100" alone: it may be h100-pcie or h100-nvl.\n' in text
    assert (
        "#   gpu: 3 x (8 x h100, 126 CPUs, 1000 GiB), 1 x (4 x v100, 64 CPUs, 500 GiB), "
        "at most 2 d 00 h, at most 16 node(s) a job\n"
    ) in text
    assert "#   cpu: 2 x (no GPU, 64 CPUs, 251 GiB), any time, the default\n" in text
    assert "# Your accounts: physics, team\n" in text
    assert '# reservation = "lab"\n' in text
    assert [*path.parent.iterdir()] == [path]


def test_profile_asks_for_no_more_time_than_its_qos_gives(tmp_path: Path) -> None:
    found = site()
    lists = ACCOUNTING | {"associations": "team||short,normal|short\n", "users": "team\n"}
    closed = parse_partitions(PARTITIONS_22_05.replace("AllowQos=normal,long", "AllowQos=short"))
    mine = replace(found, partitions=closed, accounting=parse_accounting(**lists))
    path = tmp_path / "lab.toml"
    write_profile(path, profile_text("lab", mine, closed["gpu"], ""), force=False)
    made = read_cluster(path)
    assert (made.slurm["account"], made.slurm["qos"]) == ("team", "short")
    assert made.slurm["time"] == "01:00:00"
    assert said(made, mine)[0] == []
    # The partition's own QOS wins over the job's.
    walls = parse_accounting(**lists | {"qos": "short|01:00:00\npart_gpu|03:00:00\n"})
    text = profile_text("lab", replace(mine, accounting=walls), closed["gpu"], "")
    assert '\ntime = "03:00:00"\n' in text


def test_profile_without_gpus_and_accounting_says_so(tmp_path: Path) -> None:
    found = site(accounting=False)
    path = tmp_path / "lab.toml"
    write_profile(path, profile_text("lab", found, found.partitions["cpu"], ""), force=False)
    made = read_cluster(path)
    assert made.slurm == {"partition": "cpu", "time": "1-00:00:00"}
    assert (made.outputs, made.hardware.gpu, made.hardware.gpus_per_node) == ("", "", 0)
    text = path.read_text()
    assert '# No GPUs: plans with gpu = "cpu" run here.\n' in text
    said = "# SLURM's accounting does not answer: sacctmgr show user: connection refused\n"
    assert said in text


@pytest.mark.parametrize(
    ("gres", "features", "line"),
    [
        ("gpu:nvidia_h100_80gb_hbm3:8", "ib", 'gpu = "h100"\ngpus_per_node = 8'),
        ("gpu:8", "a100_80gb,ib", 'gpu = "a100"\ngpus_per_node = 8'),
        ("gpu:8", "h100,h200", '# gpu = ""\ngpus_per_node = 8'),
        ("gpu:v100:4", "ib", '# gpu = ""\ngpus_per_node = 4'),
    ],
)
def test_gpu_model_is_written_where_slurm_says_it(gres: str, features: str, line: str) -> None:
    node = (
        f"NodeName=a CPUTot=8 Gres={gres} AvailableFeatures={features} RealMemory=9999 Partitions=p"
    )
    found = SlurmSite(
        settings={},
        partitions=parse_partitions("PartitionName=p Default=YES State=UP"),
        nodes=parse_nodes(node),
        reservations={},
        accounting=None,
        no_accounting="none\nhere",
    )
    text = profile_text("lab", found, choose_partition(found, None), "")
    assert f"\n{line}\ncpus = 8\nmemory_gib = 9.7\n" in text
    assert "# SLURM's accounting does not answer: none?here\n" in text  # a comment of one line


def test_partition_that_is_not_there_is_refused() -> None:
    with pytest.raises(LaunchError, match=r'--partition gpus: no such .*; did you mean "gpu"\?'):
        choose_partition(site(), "gpus")


def test_partition_of_others_is_not_chosen() -> None:
    closed = PARTITIONS_22_05.replace("AllowAccounts=team,physics", "AllowAccounts=chemistry")
    other = replace(site(), partitions=parse_partitions(closed))
    assert choose_partition(other, None).name == "cpu"


def test_profile_that_can_not_be_read_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text("# mine\n")
    with pytest.raises(BundleError, match="exists; --force overwrites it"):
        write_profile(path, "", force=False)
    with pytest.raises(ConfigError, match="unknown key"):
        write_profile(path, "partitions = 1\n", force=True)
    assert path.read_text() == "# mine\n"
    assert [*tmp_path.iterdir()] == [path]


def test_profile_goes_where_its_name_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    own = tmp_path / "titan-recipes" / "clusters"
    assert slurm_profile.profile_path("lab") == own / "lab.toml"
    site_wide = tmp_path / "site"
    site_wide.mkdir()
    monkeypatch.setenv("TITAN_RECIPES_CLUSTERS", str(site_wide))
    assert slurm_profile.profile_path("lab") == own / "lab.toml"
    (site_wide / "lab.toml").touch()
    with pytest.raises(BundleError, match=r"site/lab\.toml would be found first; choose another"):
        slurm_profile.profile_path("lab")
    for name in ("a/b", "", "lab.toml", ".."):
        with pytest.raises(BundleError, match="is no profile's name; use -o for a path"):
            slurm_profile.profile_path(name)
