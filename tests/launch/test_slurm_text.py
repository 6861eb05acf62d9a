"""What SLURM prints, as several versions print it."""

import math

import pytest
from slurm_outputs import (
    ACCOUNTING,
    NODES_22_05,
    NODES_24_11,
    PARTITIONS_22_05,
    PARTITIONS_24_11,
    RESERVATIONS,
)

from titan_recipes.config.slurm_time import limit_seconds, slurm_time
from titan_recipes.launch.slurm_text import (
    gpu_model,
    parse_accounting,
    parse_gres,
    parse_nodes,
    parse_partitions,
    parse_reservations,
)


def test_partitions_of_22_05_are_read() -> None:
    cpu, gpu = parse_partitions(PARTITIONS_22_05).values()
    assert (cpu.name, cpu.is_default, cpu.state, cpu.qos) == ("cpu", True, "UP", "")
    assert (cpu.max_seconds, cpu.default_seconds, cpu.max_nodes) == (math.inf, 600, math.inf)
    assert (cpu.preempt_mode, cpu.grace_seconds) == ("OFF", 0)
    assert cpu.takes_account("anyone")
    assert cpu.takes_qos("any")
    assert (gpu.name, gpu.is_default, gpu.qos, gpu.max_nodes) == ("gpu", False, "part_gpu", 16)
    assert gpu.max_seconds == gpu.default_seconds == 2 * 86400  # DefaultTime=NONE: the longest
    assert (gpu.preempt_mode, gpu.grace_seconds) == ("REQUEUE", 120)
    assert gpu.allowed_accounts == {"team", "physics"}
    assert not gpu.takes_account("guests")
    assert not gpu.takes_qos("short")


def test_partitions_of_24_11_are_read() -> None:
    (hopper,) = parse_partitions(PARTITIONS_24_11).values()
    assert (hopper.name, hopper.state, hopper.max_seconds) == ("hopper", "DOWN", 4 * 3600)
    assert hopper.takes_account("team")
    assert not hopper.takes_account("guests")
    assert not hopper.takes_qos("debug")


def test_nodes_of_22_05_are_read_past_free_text() -> None:
    nodes = parse_nodes(NODES_22_05)
    assert [*nodes] == ["c1", "c2", "g1", "g2", "g3", "old1"]
    c2, g1 = nodes["c2"], nodes["g1"]
    # What an administrator wrote as the reason is no fact.
    assert (c2.gpus, c2.partitions, c2.is_usable) == (0, {"cpu"}, False)
    assert (g1.gpus, g1.gpu_type, g1.cpus, g1.memory_mib) == (8, "h100", 126, 1024000)
    assert (g1.features, g1.partitions) == ({"ib", "sxm"}, {"gpu", "urgent"})
    assert [node.name for node in nodes.values() if not node.is_usable] == ["c2", "g3"]


def test_nodes_of_24_11_are_read() -> None:
    h001, h002 = parse_nodes(NODES_24_11).values()
    assert (h001.gpus, h001.gpu_type) == (8, "nvidia_h100_80gb_hbm3")
    assert h001.is_usable  # powered down: woken for a job
    assert (h002.cpus, h002.state, h002.is_usable) == (192, "IDLE+NOT_RESPONDING", False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(null)", []),
        ("", []),
        ("gpu:2", [("", 2)]),
        ("gpu", [("", 1)]),
        ("gpu:a100:4(S:0,2-3)", [("a100", 4)]),
        ("craynetwork:4,gpu:a100:4", [("a100", 4)]),
        ("gpu:a100_1g.5gb:7(S:0),gpu:a100:3(S:1)", [("a100_1g.5gb", 7), ("a100", 3)]),
        ("gpu:tesla:no_consume:2", [("tesla", 2)]),
        ("gpu:h100:8(IDX:0-7),mps:100", [("h100", 8)]),
    ],
)
def test_gres_gives_type_and_count(text: str, expected: list[tuple[str, int]]) -> None:
    assert parse_gres(text) == expected


@pytest.mark.parametrize(
    ("gpu_type", "model"),
    [
        ("h100", "h100"),
        ("H100", "h100"),
        ("nvidia_h100_80gb_hbm3", "h100"),
        ("nvidia_h100_pcie", "h100-pcie"),
        ("nvidia_a100-sxm4-40gb", "a100-40gb"),
        ("nvidia_a100-sxm4-80gb", "a100"),
        ("nvidia_l40s", "l40s"),
        ("nvidia_h200_1g.18gb", None),
        ("h200_1g.18gb", None),
        ("v100", None),
        ("nvidia_gb200", None),
        ("", None),
    ],
)
def test_gpu_type_gives_the_model_of_our_table(gpu_type: str, model: str | None) -> None:
    assert gpu_model(gpu_type) == model


def test_reservations_are_read_also_where_there_are_none() -> None:
    (lab,) = parse_reservations(RESERVATIONS).values()
    assert (lab.name, lab.nodes, lab.users, lab.accounts) == ("lab", "g1", "root", "")
    assert lab.end == "2026-11-28T13:45:33"
    assert parse_reservations("No reservations in the system\n") == {}


def test_accounting_is_read_default_account_first() -> None:
    found = parse_accounting(**ACCOUNTING)
    assert found.accounts == ["physics", "team"]
    assert found.qos_of("team") == ["normal", "long"]  # the default one first
    assert found.qos_of("physics") == ["normal"]
    assert found.qos == {"normal": math.inf, "long": 7 * 86400, "short": 3600}
    nobody = parse_accounting(users="", associations="", qos="")
    assert (nobody.accounts, nobody.qos_of("")) == ([], [])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("30:15", 1815),
        ("2:00:01", 7201),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("7-00:00:00", 604800),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
        ("", math.inf),
        ("0", 0),
    ],
)
def test_time_limit_is_read_as_slurm_reads_it(text: str, seconds: float) -> None:
    assert limit_seconds(text) == seconds


@pytest.mark.parametrize("text", ["4h", "1:2:3:4", "1-2:3:4:5", "-", "1 day", "1.5"])
def test_time_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time of SLURM's"):
        limit_seconds(text)


@pytest.mark.parametrize("text", ["00:30:00", "1-00:00:00", "12-23:59:59", "UNLIMITED"])
def test_time_limit_is_written_as_it_is_read(text: str) -> None:
    assert slurm_time(limit_seconds(text)) == text
