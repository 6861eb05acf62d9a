"""What SLURM prints, read: pure functions from the text of a command to its facts.

They read `scontrol --oneliner` and `sacctmgr --parsable2`, whose keys are the same from SLURM 20.11
to 24.11, and leave out what they do not know; the commands' JSON differs from version to version.
"""

import math
import re
from collections.abc import Iterator

from titan_recipes.config.hardware import GPUS, find_gpu
from titan_recipes.config.slurm_time import UNSET, limit_seconds
from titan_recipes.launch.slurm_site import Accounting, Association, Node, Partition, Reservation

KEY = re.compile(r"(?:^|(?<=\s))([A-Za-z][A-Za-z_:/]*)=")


def parse_records(text: str) -> Iterator[dict[str, str]]:
    """Each line of `scontrol --oneliner`: Key=Value pairs, whose values may hold spaces.

    The first of two equal keys counts: free text (Reason=, Comment=) comes last.
    """
    for line in text.splitlines():
        if not (keys := list(KEY.finditer(line))):
            continue
        ends = [*(key.start() for key in keys[1:]), len(line)]
        record = dict[str, str]()
        for key, end in zip(keys, ends, strict=True):
            record.setdefault(key[1], line[key.end() : end].strip())
        yield record


def parse_config(text: str) -> dict[str, str]:
    """`scontrol show config`: lines of "Key = value"."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def parse_partitions(text: str) -> dict[str, Partition]:
    """`scontrol show partition --oneliner`."""
    found = dict[str, Partition]()
    for record in parse_records(text):
        if not (name := record.get("PartitionName")):
            continue
        most = limit_seconds(record.get("MaxTime", ""))
        default = record.get("DefaultTime", "")
        max_nodes = record.get("MaxNodes", "")
        found[name] = Partition(
            name=name,
            is_default=record.get("Default") == "YES",
            state=record.get("State", "UP"),
            max_seconds=most,
            default_seconds=most if default in UNSET else limit_seconds(default),
            max_nodes=int(max_nodes) if max_nodes.isdigit() else math.inf,
            qos=_value(record.get("QoS", "")),
            allowed_accounts=_allowed(record.get("AllowAccounts", "ALL")),
            denied_accounts=frozenset(_words(record.get("DenyAccounts", ""))),
            allowed_qos=_allowed(record.get("AllowQos", "ALL")),
            denied_qos=frozenset(_words(record.get("DenyQos", ""))),
            preempt_mode=record.get("PreemptMode", "OFF"),
            grace_seconds=_number(record.get("GraceTime", "")),
        )
    return found


def parse_nodes(text: str) -> dict[str, Node]:
    """`scontrol show node --oneliner`."""
    found = dict[str, Node]()
    for record in parse_records(text):
        if not (name := record.get("NodeName")):
            continue
        gpus = parse_gres(record.get("Gres", ""))
        types = {kind for kind, _ in gpus}
        features = record.get("AvailableFeatures") or record.get("Features", "")
        found[name] = Node(
            name=name,
            gpus=sum(count for _, count in gpus),
            gpu_type=types.pop() if len(types) == 1 else "",
            cpus=_number(record.get("CPUEfctv") or record.get("CPUTot", "")),
            memory_mib=_number(record.get("RealMemory", ""))
            - _number(record.get("MemSpecLimit", "")),
            features=frozenset(_words(features)),
            partitions=frozenset(_words(record.get("Partitions", ""))),
            state=record.get("State", ""),
        )
    return found


def parse_gres(text: str) -> list[tuple[str, int]]:
    """(type, count) of each gpu GRES: "gpu:a100:4(S:0-1),shard:8" -> [("a100", 4)]."""
    found = list[tuple[str, int]]()
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = item.strip().split(":")
        if name != "gpu":
            continue
        rest = [word for word in rest if word != "no_consume"]
        count = rest.pop() if rest and rest[-1].isdigit() else "1"
        found.append((":".join(rest), int(count)))
    return found


def parse_reservations(text: str) -> dict[str, Reservation]:
    """`scontrol show reservation --oneliner`; where there are none it prints a sentence."""
    return {
        record["ReservationName"]: Reservation(
            name=record["ReservationName"],
            nodes=_value(record.get("Nodes", "")),
            users=_value(record.get("Users", "")),
            accounts=_value(record.get("Accounts", "")),
            start=record.get("StartTime", ""),
            end=record.get("EndTime", ""),
        )
        for record in parse_records(text)
        if "ReservationName" in record
    }


def parse_accounting(*, users: str, associations: str, qos: str) -> Accounting:
    """sacctmgr's user (defaultaccount), associations (account, partition, qos, defaultqos) and qos
    (name, maxwall), each with --noheader --parsable2."""
    mine = [line.split("|") for line in associations.splitlines() if line.count("|") >= 3]
    limits = [line.split("|") for line in qos.splitlines() if "|" in line]
    return Accounting(
        default_account=users.strip().partition("\n")[0],
        associations=tuple(
            Association(
                account=account,
                partition=partition,
                qos=tuple(_words(names)),
                default_qos=default,
            )
            for account, partition, names, default, *_ in mine
        ),
        qos={name: limit_seconds(limit) for name, limit, *_ in limits},
    )


def gpu_model(gpu_type: str) -> str | None:
    """Our hardware table's name for a GRES type, or None.

    A site writes its own ("h100") or takes the device's (AutoDetect: "nvidia_h100_80gb_hbm3"). A
    slice of a GPU (MIG: "a100_1g.5gb") is none of them.
    """
    words = gpu_type.lower().replace("_", " ")
    if re.search(r"\b\d+g\.\d+gb\b", words):
        return None
    return words if words in GPUS else find_gpu(words)


def _value(text: str) -> str:
    return "" if text in UNSET else text


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word not in UNSET]


def _allowed(text: str) -> frozenset[str] | None:
    return None if text in ("ALL", *UNSET) else frozenset(_words(text))


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
