"""What SLURM says of a site: partitions, nodes, reservations, settings, accounts.

`ask` runs one SLURM command; every `parse_*` is a pure function of what such a command printed.
They read `scontrol --oneliner` and `sacctmgr --parsable2`, whose keys are the same from SLURM 20.11
to 24.11, and leave out what they do not know; the commands' JSON differs from version to version.
"""

import math
import os
import pwd
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from titan_recipes.config.hardware import GPUS, find_gpu
from titan_recipes.errors import LaunchError

TIMEOUT_SECONDS = 60
"""A controller under load answers late; one that is down makes its clients give up before."""
UNSET = ("", "(null)", "N/A", "NONE", "None", "n/a")
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


# --- asking ---------------------------------------------------------------------------------------


def ask(*command: str) -> str:
    """What a SLURM command prints. Raises LaunchError where there is no SLURM or it refuses."""
    done = run(*command)
    if done.returncode != 0:
        said = " / ".join((done.stderr + done.stdout).split("\n")).strip(" /")
        raise LaunchError(f"{_short(command)}: {said or f'exit {done.returncode}'}")
    return done.stdout


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command. Raises LaunchError where it is not installed or does not answer."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        got = f"there is no {command[0]} on this machine's PATH"
        raise LaunchError(f"SLURM: {got}; run this on a login node of the cluster") from error
    except subprocess.TimeoutExpired as error:
        got = f"no answer within {TIMEOUT_SECONDS} s"
        raise LaunchError(f"{_short(command)}: {got}; is slurmctld up?") from error


def _short(command: Sequence[str]) -> str:
    """Its first words: "scontrol show node"."""
    return " ".join([word for word in command if not word.startswith("-")][:3])


def ask_site() -> SlurmSite:
    """Ask SLURM what is there. Raises LaunchError where there is no SLURM or it does not answer."""
    settings = parse_config(ask("scontrol", "show", "config"))
    accounting, why = None, ""
    try:
        accounting = _ask_accounting(user_name())
    except LaunchError as error:
        why = str(error)
    return SlurmSite(
        settings=settings,
        partitions=parse_partitions(ask("scontrol", "show", "partition", "--oneliner")),
        nodes=parse_nodes(ask("scontrol", "show", "node", "--oneliner")),
        reservations=parse_reservations(ask("scontrol", "show", "reservation", "--oneliner")),
        accounting=accounting,
        no_accounting=why,
    )


def user_name() -> str:
    """Who SLURM takes this process for."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _ask_accounting(user: str) -> Accounting:
    sacctmgr = ("sacctmgr", "--noheader", "--parsable2", "show")
    return parse_accounting(
        users=ask(*sacctmgr, "user", user, "format=defaultaccount"),
        associations=ask(
            *sacctmgr, "associations", f"user={user}", "format=account,partition,qos,defaultqos"
        ),
        qos=ask(*sacctmgr, "qos", "format=name,maxwall"),
    )


def hostnames(host_list: str) -> list[str]:
    """The nodes of "node[1-3],gpu07". Raises LaunchError where it is no list of hosts."""
    names = ask("scontrol", "show", "hostnames", host_list).split()
    if not names:
        raise LaunchError(f"{host_list!r}: not a list of hosts")
    return names


# --- parsing --------------------------------------------------------------------------------------

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


def limit_seconds(text: str) -> float:
    """A time limit as SLURM prints or takes it, in seconds; without one: infinite.

    "90" is minutes; "30:00" minutes and seconds; "2:00:00"; "1-12" days and hours; "1-12:30:00".
    Raises ValueError for anything else.
    """
    if text in UNSET or text.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return math.inf
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"{text!r} is not a time of SLURM's")
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:  # from the hours on
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:
        hours, minutes, seconds = ((0, *parts, 0), (0, *parts), tuple(parts))[len(parts) - 1]
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def slurm_time(seconds: float) -> str:
    """A time limit as SLURM takes it: "1-00:00:00", "04:00:00", "UNLIMITED"."""
    if seconds == math.inf:
        return "UNLIMITED"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02d}:{minutes:02d}:{rest:02d}"


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
