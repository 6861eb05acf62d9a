"""What of a cluster profile does not fit a cluster as SLURM describes it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from slurm_outputs import (
    ACCOUNTING,
    NODES_22_05,
    NODES_24_11,
    PARTITIONS_24_11,
    expand,
    profile,
    said,
    site,
)

from titan_recipes.cli import main
from titan_recipes.config.cluster import Cluster
from titan_recipes.config.load import read_section
from titan_recipes.launch.slurm_check import Comparison
from titan_recipes.launch.slurm_text import parse_accounting, parse_nodes, parse_partitions
from titan_recipes.launch.slurm_trial import file_findings, trial_command


def test_profile_that_fits_has_no_findings() -> None:
    assert said(profile()) == ([], [])


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"partition": "gpus"}, 'slurm.partition: got "gpus"; did you mean "gpu"?'),
        ({"partition": "x"}, 'slurm.partition: got "x"; SLURM has cpu, gpu'),
        (
            {"time": "3-00:00:00"},
            'slurm.time: got "3-00:00:00", above the MaxTime of gpu; use at most "2-00:00:00"',
        ),
        ({"time": 0}, 'slurm.time: got "0", above the MaxTime of gpu; use at most "2-00:00:00"'),
        (
            {"time": 2881},
            'slurm.time: got "2881", above the MaxTime of gpu; use at most "2-00:00:00"',
        ),
        ({"time": "4h"}, 'slurm.time: got "4h"; use "D-HH:MM:SS", "HH:MM:SS" or minutes'),
        ({"account": "tean"}, 'slurm.account: got "tean"; did you mean "team"?'),
        ({"account": "x"}, 'slurm.account: got "x"; yours: physics, team'),
        ({"qos": "lonk"}, 'slurm.qos: got "lonk"; did you mean "long"?'),
        (
            {"qos": "short", "time": 30},
            'slurm.qos: got "short", which account team does not have; yours: normal, long',
        ),
        ({"reservation": "lap"}, 'slurm.reservation: got "lap"; did you mean "lab"?'),
        (
            {"constraint": "sxm&nvl"},
            'slurm.constraint: no node has the feature "nvl"; its nodes have ib, sxm',
        ),
        (
            {"constraint": "[ib*2&rack9*2]"},
            'slurm.constraint: no node has the feature "rack9"; its nodes have ib, sxm',
        ),
        (
            {"nodelist": "g1,g9"},
            "slurm.nodelist: SLURM knows no g9; its nodes are g1, g2, g3, old1",
        ),
        (
            {"nodelist": "c1"},
            "slurm.nodelist: not in the partition: c1; its nodes are g1, g2, g3, old1",
        ),
        ({"exclude": "g9"}, "slurm.exclude: SLURM knows no g9; its nodes are g1, g2, g3, old1"),
        (
            {"exclude": "g[1"},
            'slurm.exclude: got "g[1", no list of hosts; write it as "node[1-3],node7"',
        ),
        (
            {"exclude": "g1,g2,g3"},
            "slurm: no node of the partition is left by constraint and exclude; remove one of them",
        ),
    ],
)
def test_option_that_does_not_fit_is_a_problem(option: dict[str, Any], problem: str) -> None:
    assert said(profile(option))[0] == [problem]


def test_qos_limit_is_a_problem_where_limits_are_enforced() -> None:
    short = {"account": "", "qos": "short", "time": "02:00:00"}
    line = 'slurm.time: got "02:00:00", above the MaxWall of qos short; use at most "01:00:00"'
    assert line in said(profile(short))[0]
    assert (
        line not in said(profile(short), site({"AccountingStorageEnforce": "associations,qos"}))[0]
    )


def test_qos_that_the_partition_does_not_take_is_a_problem() -> None:
    mine = parse_accounting(**ACCOUNTING | {"associations": "team||short|short\n"})
    closed = replace(site(), accounting=mine)
    (problem,), _ = said(profile({"qos": "short", "time": 30}), closed)
    assert problem == "slurm.qos: gpu does not take qos short; it takes none"


def test_account_that_is_not_enforced_is_a_note() -> None:
    problems, notes = said(profile({"account": "x"}), site({"AccountingStorageEnforce": "none"}))
    assert problems == []
    assert notes == [
        'slurm.account: got "x", which SLURM does not enforce here; yours: physics, team'
    ]


def test_account_without_accounting_is_a_note() -> None:
    problems, notes = said(profile(), site(accounting=False))
    assert problems == []
    assert notes == [
        'slurm.account: "team" can\'t be checked: sacctmgr show user: connection refused; '
        "sbatch --test-only has the last word"
    ]


@pytest.mark.parametrize(
    ("hardware", "problem"),
    [
        ({"gpus_per_node": 16}, "hardware.gpus_per_node: 16 > what SLURM gives; write 8"),
        ({"cpus": 128}, "hardware.cpus: 128 > what SLURM gives; write 126"),
        ({"memory_gib": 1100.0}, "hardware.memory_gib: 1100 > what SLURM gives; write 1000"),
        ({"gpu": "h200"}, 'hardware.gpu: "h200", but SLURM has h100; write "h100"'),
    ],
)
def test_hardware_above_the_nodes_is_a_problem(hardware: dict[str, Any], problem: str) -> None:
    assert said(profile(**hardware))[0] == [problem]


@pytest.mark.parametrize(
    "hardware",
    [
        {"gpu": "h100-pcie"},
        {"gpu": ""},
        {"gpu": "cpu", "gpus_per_node": 64},
        {"memory_gib": 1050.0},
    ],
)
def test_hardware_that_may_well_be_so_is_no_problem(hardware: dict[str, Any]) -> None:
    assert said(profile(**hardware))[0] == []


def test_hardware_below_the_nodes_is_a_note() -> None:
    problems, notes = said(profile(gpus_per_node=4))
    assert problems == []
    assert notes == [
        "hardware.gpus_per_node: 4, but every node has 8 or more; "
        "what is above it is never asked for"
    ]


def test_partition_of_several_machines_is_noted() -> None:
    problems, notes = said(profile({"constraint": ""}))
    assert problems == []
    only = "jobs of whole nodes run on the others only"
    assert notes == [
        f"hardware.gpus_per_node: 8, which 1 of 4 nodes do not have: old1; {only}",
        f"hardware.cpus: 126, which 1 of 4 nodes do not have: old1; {only}",
        f"hardware.memory_gib: 1000, which 1 of 4 nodes do not have: old1; {only}",
    ]


def test_settings_worth_knowing_are_notes() -> None:
    def noted(**settings: str) -> dict[str, str]:
        findings = Comparison("lab", profile(), site(settings), expand).findings()
        assert not any(bad for bad, _ in findings)
        return {line.what: line.got for _, line in findings}

    found = noted()
    assert found["JobRequeue"] == "0: jobs are not requeued unless they ask for it"
    assert found["KillWait"] == "30 s from SIGTERM to SIGKILL"
    assert found["preemption"] == "gpu has REQUEUE, GraceTime 120 s with the user signal"
    assert found["nodes"] == "1 of 3 can't be used now: g3"
    assert noted(SlurmctldParameters="")["preemption"].endswith("GraceTime 120 s, no user signal")
    quiet = noted(JobRequeue="1", KillWait="300 sec", PreemptType="preempt/none")
    assert [*quiet] == ["slurm.partition", "nodes"]


def test_time_that_is_not_set_names_the_partitions_default() -> None:
    _, notes = said(profile({"partition": "cpu", "time": "", "constraint": ""}, gpu="cpu"))
    assert notes[0].startswith("slurm.time: not set: jobs get cpu's 10 min 00 s; ")


def test_reservation_notes_when_it_ends() -> None:
    problems, notes = said(profile({"reservation": "lab"}))
    assert problems == []
    assert notes == [
        "slurm.reservation: lab is from 2026-11-21T12:45:33 to 2026-11-28T13:45:33; "
        "jobs of a run that outlives it wait: remove it then"
    ]


def test_files_that_are_not_there_are_problems(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cluster = read_section(
        Cluster,
        {
            "outputs": f"{tmp_path}/runs of me",
            "setup": [
                "module load cuda",
                f"source {tmp_path}/file",
                f". '{tmp_path}/env.sh' --quiet",
                'source "$HOME/env.sh"',
                "source 'open",
            ],
            "container": {"runtime": "apptainer", "image": f"{tmp_path}/image.sif"},
            "mounts": {f"{tmp_path}/data": "/data", f"{tmp_path}": "/work"},
        },
        "lab",
    )
    lines = [(bad, str(line)) for bad, line in file_findings("lab", cluster)]
    runs = f"{tmp_path}/runs of me"
    assert lines == [
        (True, f"lab: outputs: {runs} is not a folder; mkdir -p '{runs}'"),
        (True, f"lab: setup: {tmp_path}/env.sh is not a file; correct or remove its line"),
        (
            True,
            f"lab: container.image: {tmp_path}/image.sif is not there; "
            "build or pull it, or correct the path",
        ),
        (
            False,
            f"lab: mounts: {tmp_path}/data is not on this machine; every node has to have it",
        ),
    ]


@pytest.mark.parametrize(
    ("runtime", "image"),
    [("apptainer", "docker://x/y"), ("pyxis", "nvcr.io#nvidia/pytorch"), ("docker", "/no/file")],
)
def test_image_that_is_no_file_is_not_looked_for(tmp_path: Path, runtime: str, image: str) -> None:
    data = {"outputs": str(tmp_path), "container": {"runtime": runtime, "image": image}}
    assert [*file_findings("lab", read_section(Cluster, data, "lab"))] == []


def test_trial_asks_for_a_node_as_the_profile_describes_it() -> None:
    cluster = profile({"constraint": "", "comment": "a b", "exclusive": False, "hold": True})
    assert trial_command(cluster) == [
        "sbatch",
        "--test-only",
        "--ntasks-per-node=1",
        "--requeue",
        "--nodes=1",
        "--gpus-per-node=8",
        "--cpus-per-task=126",
        "--mem=972800M",
        "--partition=gpu",
        "--account=team",
        "--time=04:00:00",
        "--comment=a b",
        "--hold",
        "--wrap=true",
    ]
    whole = trial_command(profile({"exclusive": True, "nodelist": "g1,g2"}))
    assert not any(word.startswith(("--mem", "--cpus", "--nodes")) for word in whole)


@pytest.mark.parametrize("command", [("init",), ("check", "lab")])
def test_machine_without_slurm_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TITAN_RECIPES_CLUSTERS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "lab.toml").write_text('scheduler = "slurm"\n')
    done = CliRunner().invoke(main, ["cluster", *command])
    assert (done.exit_code, done.output) == (
        2,
        "error: SLURM: there is no scontrol on this machine's PATH; "
        "run this on a login node of the cluster\n",
    )
    assert [path.name for path in tmp_path.rglob("*.toml")] == ["lab.toml"]


def test_check_of_a_profile_without_slurm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TITAN_RECIPES_CLUSTERS", str(tmp_path))
    none = CliRunner().invoke(main, ["cluster", "check"])
    assert (
        none.output == "error: no profile named `default`; name one, or `cluster init` writes it\n"
    )
    (tmp_path / "default.toml").write_text("")
    local = CliRunner().invoke(main, ["cluster", "check"])
    assert (
        local.output
        == 'error: default: scheduler: "local"; only "slurm" and "kubernetes" can be checked\n'
    )
    assert (none.exit_code, local.exit_code) == (2, 2)


def test_partition_that_is_down_is_a_note() -> None:
    found = replace(
        site(), partitions=parse_partitions(PARTITIONS_24_11), nodes=parse_nodes(NODES_24_11)
    )
    options = {"partition": "hopper", "constraint": ""}
    problems, notes = said(profile(options, cpus=192, memory_gib=1953.0), found)
    assert problems == []
    assert notes == [
        "slurm.partition: hopper is DOWN; jobs wait or are refused until it is UP",
    ]


def test_partition_of_two_models_is_a_problem() -> None:
    nodes = parse_nodes(NODES_22_05.replace("gpu:v100:4", "gpu:a100:8"))
    found = replace(site(), nodes=nodes)
    got = "hardware.gpu: the partition has a100, h100"
    cure = "choose the machines by slurm.constraint or slurm.nodelist"
    assert said(profile({"constraint": "ib"}), found)[0] == [f"{got}; {cure}"]
    assert said(profile({"constraint": "sxm"}), found)[0] == []


def test_nodelist_of_several_nodes_is_noted() -> None:
    problems, notes = said(profile({"nodelist": "g1,g2"}))
    assert problems == []
    assert notes == ["slurm.nodelist: every job gets all 2; plans with fewer nodes are refused"]
    assert said(profile({"nodelist": "g1"})) == ([], [])


def test_options_for_another_cluster_are_not_compared() -> None:
    problems, (note,) = said(profile({"clusters": "other", "partition": "x"}, gpus_per_node=99))
    assert problems == []
    assert note.startswith("slurm.clusters: other: options and hardware are not compared; ")
