"""`cluster init` and `cluster check` against a real SLURM: what it says there is, and what fits."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from click.testing import CliRunner, Result

from titan_recipes.cli import main
from titan_recipes.config.cluster import find_cluster, read_cluster

if TYPE_CHECKING:
    from conftest import SlurmCluster

PROFILE: dict[str, Any] = {
    "scheduler": "slurm",
    "hardware": {"gpus_per_node": 2, "cpus": 4, "memory_gib": 8.0},
    "slurm": {"partition": "batch", "time": "01:00:00"},
}


def call(*args: str) -> Result:
    """The command's result; a bug keeps its traceback."""
    result = CliRunner().invoke(main, args)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def check(tmp_path: Path, *, hardware: dict[str, Any] | None = None, **options: Any) -> Result:
    """`cluster check` of a profile that fits but for what is given."""
    path = tmp_path / "lab.toml"
    profile = PROFILE | {
        "outputs": str(tmp_path),
        "hardware": PROFILE["hardware"] | (hardware or {}),
        "slurm": PROFILE["slurm"] | options,
    }
    path.write_text(tomli_w.dumps(profile))
    return call("cluster", "check", str(path))


@pytest.fixture
def short(slurm: "SlurmCluster", tmp_path: Path) -> Iterator[str]:
    """A partition of two nodes and half an hour."""
    limits = ("nodes=node[1-2]", "maxtime=30", "defaulttime=10", "maxnodes=1")
    slurm.run("scontrol", "create", "partition=short", *limits)
    yield "short"
    slurm.run("scontrol", "delete", "partition=short")


def test_init_writes_a_profile_that_fits(slurm: "SlurmCluster", tmp_path: Path) -> None:
    made = call("cluster", "init", "lab", "--outputs", str(tmp_path))
    path = tmp_path / "config/titan-recipes/clusters/lab.toml"
    assert (made.exit_code, made.stderr) == (0, "")
    assert made.output == (
        f"wrote {path}: partition batch of test\n"
        "next: read it, then `titan-recipes cluster check lab`\n"
    )
    name, profile = find_cluster("lab")
    have = profile.hardware
    assert (name, profile.scheduler, profile.outputs) == ("lab", "slurm", str(tmp_path))
    assert (have.gpu, have.gpus_per_node, have.cpus, have.memory_gib) == ("", 2, 4, 8.0)
    assert profile.slurm == {"partition": "batch", "time": "1-00:00:00"}
    text = path.read_text()
    assert "#   urgent: 4 x (2 x gpu, 4 CPUs, 8 GiB), any time\n" in text
    assert "# SLURM's accounting does not answer: sacctmgr " in text
    found = call("cluster", "check", "lab")
    assert (found.exit_code, found.stderr) == (0, "")
    *notes, last = found.output.splitlines()
    assert last.startswith("lab: fits test (SLURM ")
    assert last.endswith(" in partition batch")
    assert [note.split(": ")[2] for note in notes] == ["KillWait", "preemption"]


def test_init_without_a_name_writes_the_profile_that_launches_take(
    slurm: "SlurmCluster", tmp_path: Path
) -> None:
    assert call("cluster", "init", "--partition", "urgent").exit_code == 0
    name, profile = find_cluster(None)
    assert (name, profile.slurm["partition"]) == ("default", "urgent")


def test_init_keeps_to_the_limits_of_a_partition(
    slurm: "SlurmCluster", tmp_path: Path, short: str
) -> None:
    path = tmp_path / "new" / "short.toml"
    assert call("cluster", "init", "-o", str(path), "--partition", short).exit_code == 0
    assert read_cluster(path).slurm == {"partition": "short", "time": "00:30:00"}
    text = path.read_text()
    assert "# All nodes of partition short: 2 x gpu, 4 CPUs, 8 GiB.\n" in text
    assert "# A job may run at most 30 min 00 s; without a time it gets 10 min 00 s.\n" in text


def test_init_overwrites_only_by_force(slurm: "SlurmCluster", tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_text("# mine\n")
    refused = call("cluster", "init", "-o", str(path))
    assert (refused.exit_code, refused.output) == (
        2,
        f"error: {path}: exists; --force overwrites it\n",
    )
    assert path.read_text() == "# mine\n"
    assert call("cluster", "init", "-o", str(path), "--force").exit_code == 0
    assert read_cluster(path).scheduler == "slurm"


def test_init_of_a_partition_that_is_not_there_writes_nothing(
    slurm: "SlurmCluster", tmp_path: Path
) -> None:
    path = tmp_path / "lab.toml"
    refused = call("cluster", "init", "-o", str(path), "--partition", "batsh")
    assert refused.exit_code == 2
    assert refused.output == (
        'error: --partition batsh: no such partition; did you mean "batch"?\n'
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "problem", "sbatch"),
    [
        (
            {"partition": "batsh"},
            'slurm.partition: got "batsh"; did you mean "batch"?',
            "error: invalid partition specified: batsh",
        ),
        (
            {"constraint": "nvlink"},
            'slurm.constraint: no node has the feature "nvlink"; its nodes have none',
            "allocation failure: Invalid feature specification",
        ),
        (
            {"nodelist": "node[3-5]"},
            "slurm.nodelist: SLURM knows no node5; its nodes are node1, node2, node3, node4",
            "allocation failure: Invalid node name specified",
        ),
        (
            {"exclude": "node[4-5]"},
            "slurm.exclude: SLURM knows no node5; its nodes are node1, node2, node3, node4",
            "allocation failure: Invalid node name specified",
        ),
        (
            {"exclude": "node[1-4]"},
            "slurm: no node of the partition is left by constraint and exclude",
            "allocation failure: Requested node configuration is not available",
        ),
        (
            {"exclude": "node[3-1]"},
            'slurm.exclude: got "node[3-1]", no list of hosts; write it as "node[1-3],node7"',
            "allocation failure: Invalid node name specified",
        ),
        (
            {"reservation": "monday"},
            'slurm.reservation: got "monday"; SLURM has none',
            "allocation failure: Requested reservation is invalid",
        ),
        (
            {"hardware": {"gpus_per_node": 4}},
            "hardware.gpus_per_node: 4 > what SLURM gives; write 2",
            "allocation failure: Requested node configuration is not available",
        ),
        (
            {"hardware": {"cpus": 8}},
            "hardware.cpus: 8 > what SLURM gives; write 4",
            "allocation failure: Requested node configuration is not available",
        ),
        (
            {"hardware": {"memory_gib": 16.0}},
            "hardware.memory_gib: 16 > what SLURM gives; write 8",
            "allocation failure: Requested node configuration is not available",
        ),
    ],
)
def test_check_says_what_does_not_fit_as_sbatch_does(
    slurm: "SlurmCluster", tmp_path: Path, options: dict[str, Any], problem: str, sbatch: str
) -> None:
    found = check(tmp_path, **options)
    assert found.exit_code == 2
    first, last = found.stderr.splitlines()
    assert first.startswith(f"error: lab: {problem}")
    assert last.startswith(f"error: lab: sbatch --test-only: {sbatch}")
    assert "; try: sbatch --test-only --ntasks-per-node=1 --requeue " in last
    assert "fits" not in found.stdout


def test_check_knows_the_limits_of_a_partition(
    slurm: "SlurmCluster", tmp_path: Path, short: str
) -> None:
    found = check(tmp_path, partition=short, time="00:31:00")
    assert found.exit_code == 2
    line = 'error: lab: slurm.time: got "00:31:00", above the MaxTime of short'
    assert f'{line}; use at most "00:30:00"\n' in found.stderr
    fits = check(tmp_path, partition=short, time=False)
    assert (fits.exit_code, fits.stderr) == (0, "")
    assert "note: lab: slurm.partition: short gives a job at most 1 node(s); " in fits.stdout
    assert "note: lab: slurm.time: not set: jobs get short's 10 min 00 s; " in fits.stdout
    outside = check(tmp_path, partition=short, time=30, nodelist="node3")
    assert "slurm.nodelist: not in the partition: node3; " in outside.stderr


def test_check_knows_features_and_reservations(slurm: "SlurmCluster", tmp_path: Path) -> None:
    features = ("availablefeatures=nvl,rack4", "activefeatures=nvl,rack4")
    when = ("starttime=now+9days", "duration=60", "users=root", "nodes=node4")
    slurm.run("scontrol", "update", "nodename=node4", *features)
    slurm.run("scontrol", "create", "reservation", "reservationname=monday", *when)
    try:
        fits = check(tmp_path, constraint="nvl&rack4")
        assert (fits.exit_code, fits.stderr) == (0, "")
        assert " on nodes node4 in partition batch\n" in fits.stdout
        wrong = check(tmp_path, constraint="nvk", reservation="mondy")
        assert 'the feature "nvk"; did you mean "nvl"?\n' in wrong.stderr
        assert 'slurm.reservation: got "mondy"; did you mean "monday"?\n' in wrong.stderr
        made = call("cluster", "init", "-o", str(tmp_path / "made.toml"))
        assert made.exit_code == 0
        assert '# reservation = "monday"\n' in (tmp_path / "made.toml").read_text()
    finally:
        slurm.run("scontrol", "delete", "reservationname=monday")
        slurm.run("scontrol", "update", "nodename=node4", "availablefeatures=", "activefeatures=")


def test_check_leaves_the_last_word_to_sbatch(slurm: "SlurmCluster", tmp_path: Path) -> None:
    before = slurm.run("scontrol", "show", "jobs", "--oneliner", check=False).stdout
    found = check(tmp_path, licenses="matlab")
    assert found.exit_code == 2
    (line,) = found.stderr.splitlines()
    said = "sbatch --test-only: allocation failure: Invalid license specification"
    assert line.startswith(f"error: lab: {said}; try: sbatch --test-only ")
    after = slurm.run("scontrol", "show", "jobs", "--oneliner", check=False).stdout
    assert [*map(job_id, after.splitlines())] == [*map(job_id, before.splitlines())]


def job_id(line: str) -> str:
    return line.partition(" ")[0]


def test_check_of_an_account_without_accounting_notes_it(
    slurm: "SlurmCluster", tmp_path: Path
) -> None:
    found = check(tmp_path, account="physics")
    assert (found.exit_code, found.stderr) == (0, "")
    assert 'note: lab: slurm.account: "physics" can\'t be checked: sacctmgr ' in found.stdout


def test_check_as_json_says_the_same(slurm: "SlurmCluster", tmp_path: Path) -> None:
    check(tmp_path, partition="batsh")
    found = call("cluster", "check", str(tmp_path / "lab.toml"), "--json")
    assert (found.exit_code, found.stderr) == (2, "")
    report = json.loads(found.stdout)
    assert (report["fits"], report["said"]) == (False, "")
    assert report["problems"][0] == {
        "what": "slurm.partition",
        "got": 'got "batsh"',
        "cure": 'did you mean "batch"?',
    }
    check(tmp_path)
    found = call("cluster", "check", str(tmp_path / "lab.toml"), "--json")
    report = json.loads(found.stdout)
    assert (found.exit_code, report["fits"], report["problems"]) == (0, True, [])
    assert report["said"].endswith(" in partition batch")


def test_controller_that_does_not_answer_is_one_error(
    slurm: "SlurmCluster", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # the real clients, outside the cluster's network
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none.conf"))
    (tmp_path / "none.conf").write_text("ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\n")
    found = call("cluster", "init")
    assert found.exit_code == 2
    assert found.stderr.startswith("error: scontrol show config: ")
    assert found.stderr.count("\n") == 1
