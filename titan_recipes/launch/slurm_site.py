"""A SLURM site as data: its partitions, nodes, reservations, settings and what a user may use."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

NOT_USABLE = {
    "DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILED", "FAILING", "INVAL", "INVALID_REG",
    "MAINT", "NOT_RESPONDING", "UNKNOWN",
}  # fmt: skip
"""Words of a node's state that keep jobs away from it; a node that sleeps is woken for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A compute node."""

    name: str
    gpus: int
    gpu_type: str
    """The type of its gpu GRES; "" = none given, or several."""
    cpus: int
    """CPUs that jobs can have: hardware threads, where SLURM counts those."""
    memory_mib: int
    """Memory that jobs can have."""
    features: frozenset[str]
    partitions: frozenset[str]
    state: str

    @property
    def is_usable(self) -> bool:
        """Whether jobs can start on it, now or once others have left it."""
        words = {word.rstrip("~#!%$@^-") for word in self.state.split("+")}
        return not words & NOT_USABLE and "*" not in self.state

    @property
    def shape(self) -> tuple[int, str]:
        """What tells kinds of machines apart: GPUs and their type."""
        return self.gpus, self.gpu_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition and its limits. Of accounts and QOS: who may use it; None = everyone."""

    name: str
    is_default: bool
    state: str
    max_seconds: float
    default_seconds: float
    """Time limit of a job that asks for none."""
    max_nodes: float
    qos: str
    allowed_accounts: frozenset[str] | None
    denied_accounts: frozenset[str]
    allowed_qos: frozenset[str] | None
    denied_qos: frozenset[str]
    preempt_mode: str
    grace_seconds: int
    """Between the warning of a preemption and its end."""

    def takes_account(self, account: str) -> bool:
        return _takes(account, self.allowed_accounts, self.denied_accounts)

    def takes_qos(self, qos: str) -> bool:
        return _takes(qos, self.allowed_qos, self.denied_qos)


def _takes(name: str, allowed: frozenset[str] | None, denied: frozenset[str]) -> bool:
    return name not in denied and (allowed is None or name in allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """A reservation. users, accounts: who may use it, as SLURM prints it; "" = not limited so."""

    name: str
    nodes: str
    users: str
    accounts: str
    start: str
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """What a user may use: an account, in one partition ("" = in all), with some QOS."""

    account: str
    partition: str
    qos: tuple[str, ...]
    default_qos: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounting:
    """What slurmdbd says of this user. qos: name -> its longest time in seconds."""

    default_account: str
    associations: tuple[Association, ...]
    qos: Mapping[str, float]

    @property
    def accounts(self) -> list[str]:
        """The user's accounts, the default one first."""
        named = dict.fromkeys(item.account for item in self.associations)
        return sorted(named, key=lambda account: account != self.default_account)

    def qos_of(self, account: str) -> list[str]:
        """What the user may ask for in an account, the default one first."""
        mine = [item for item in self.associations if item.account == account]
        names = dict.fromkeys(name for item in mine for name in (item.default_qos, *item.qos))
        return [name for name in names if name]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSite:
    """One cluster as SLURM reports it."""

    settings: Mapping[str, str]
    """`scontrol show config`, as printed."""
    partitions: Mapping[str, Partition]
    nodes: Mapping[str, Node]
    reservations: Mapping[str, Reservation]
    accounting: Accounting | None
    no_accounting: str = ""
    """Why `accounting` is None."""

    @property
    def name(self) -> str:
        return self.settings.get("ClusterName", "")

    @property
    def version(self) -> str:
        return self.settings.get("SLURM_VERSION", "")

    def enforces(self, what: str) -> bool:
        """Whether AccountingStorageEnforce holds a word: associations, limits, qos, ..."""
        return what in self.settings.get("AccountingStorageEnforce", "").lower().split(",")

    def seconds(self, setting: str) -> int | None:
        """A setting such as "30 sec"; None where it is missing."""
        found = re.match(r"\d+", self.settings.get(setting, ""))
        return int(found[0]) if found else None

    def max_wall(self, partition: Partition, qos: str) -> tuple[float, str]:
        """(the longest time that a job's QOS allows it, which QOS that is).

        The partition's own QOS wins over the job's, but for OverPartQOS, which is not looked at.
        """
        if self.accounting is None or not self.enforces("limits"):
            return math.inf, ""
        walls = [(self.accounting.qos.get(name, math.inf), name) for name in (partition.qos, qos)]
        return next((wall for wall in walls if wall[0] != math.inf), (math.inf, ""))

    def nodes_of(self, partition: str) -> list[Node]:
        return [node for node in self.nodes.values() if partition in node.partitions]
