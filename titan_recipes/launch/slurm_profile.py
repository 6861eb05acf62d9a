"""A cluster profile written from what SLURM says is there.

One partition and the machines that most of it consists of are chosen; comments say why, and what
else there is. The text is read back before it takes the place of anything.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from titan_recipes.config.cluster import profile_folders, read_cluster
from titan_recipes.config.hardware import GPUS
from titan_recipes.config.load import did_you_mean
from titan_recipes.config.slurm_time import slurm_time
from titan_recipes.errors import BundleError, LaunchError
from titan_recipes.launch.slurm_site import Accounting, Node, Partition, SlurmSite
from titan_recipes.launch.slurm_text import gpu_model
from titan_recipes.launch.text import duration
from titan_recipes.render.sbatch import MIB

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LONGEST_SECONDS = 24 * 3600
"""Time asked for where SLURM would give more: shorter jobs start earlier, and runs go on."""


def profile_path(name: str) -> Path:
    """Where a profile of that name goes. Raises BundleError where it would not be found there."""
    if not NAME.fullmatch(name) or name.endswith(".toml"):
        raise BundleError(f"cluster init: {name!r} is no profile's name; use -o for a path")
    if not (folders := profile_folders()):
        raise BundleError("cluster init: no folder for profiles (HOME is not set); use -o FILE")
    *earlier, own = folders
    for folder in earlier:
        if (folder / f"{name}.toml").exists():
            got = f"{folder / name}.toml would be found first"
            raise BundleError(f"cluster init: {got}; choose another name or -o FILE")
    return own / f"{name}.toml"


def check_free(path: Path, *, force: bool) -> None:
    """Raises BundleError where a profile is there and may not be overwritten."""
    if path.exists() and not force:
        raise BundleError(f"{path}: exists; --force overwrites it")


def write_profile(path: Path, text: str, *, force: bool) -> None:
    """Write a profile once it can be read. Raises BundleError, ConfigError."""
    check_free(path, force=force)
    scratch = path.with_name(f".{path.stem}.{os.getpid()}.toml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        read_cluster(scratch)
        scratch.replace(path)
    except OSError as error:
        raise BundleError(f"{path}: can't be written: {error.strerror}; use -o FILE") from error
    finally:
        if path.parent.is_dir():
            scratch.unlink(missing_ok=True)


# --- choices --------------------------------------------------------------------------------------


def choose_partition(site: SlurmSite, asked: str | None) -> Partition:
    """The one asked for; else, of those open to the user, the default one if it has GPUs, or the
    one with the most. Raises LaunchError where there is none."""
    known = site.partitions
    if asked is not None:
        if asked not in known:
            hint = did_you_mean(asked, known) or f"SLURM has {', '.join(known) or 'none'}"
            raise LaunchError(f"--partition {asked}: no such partition; {hint}")
        return known[asked]
    if not known:
        raise LaunchError("SLURM shows no partition; ask its administrators for access to one")
    accounting = site.accounting
    accounts = accounting.accounts if accounting and site.enforces("associations") else []
    is_open = [
        partition
        for partition in known.values()
        if partition.state == "UP"
        and (not accounts or any(partition.takes_account(account) for account in accounts))
    ] or [*known.values()]

    def preference(partition: Partition) -> tuple[bool, bool, int]:
        gpus = sum(node.gpus for node in site.nodes_of(partition.name))
        return partition.is_default and gpus > 0, gpus > 0, gpus or partition.is_default

    return max(is_open, key=preference)


def choose_machines(nodes: Sequence[Node]) -> list[Node]:
    """Of a partition's nodes those of one kind, by GPUs and their type: the most GPUs in all."""
    kinds = dict[tuple[int, str], list[Node]]()
    for node in nodes:
        kinds.setdefault(node.shape, []).append(node)
    return max(
        kinds.values(),
        key=lambda kind: (sum(node.gpus for node in kind), len(kind)),
        default=list[Node](),
    )


def telling_feature(chosen: Sequence[Node], others: Sequence[Node]) -> str:
    """A feature that all the chosen nodes have and no other; "" = there is none."""
    common = frozenset[str].intersection(*(node.features for node in chosen))
    return min(common - {name for node in others for name in node.features}, default="")


# --- text -----------------------------------------------------------------------------------------


def profile_text(name: str, site: SlurmSite, partition: Partition, outputs: str) -> str:
    """The profile, with comments. outputs: "" = left to be filled in."""
    nodes = site.nodes_of(partition.name)
    chosen = choose_machines(nodes)
    lines = [
        *_comment(f"{site.name or 'SLURM'} (SLURM {site.version}), as SLURM described it."),
        *_comment(f"Edit it; `titan-recipes cluster check {name}` says what does not fit."),
        _set("scheduler", "slurm"),
        "",
        *_comment("Run directories: a folder that all nodes see under the same path."),
        _set("outputs", outputs) if outputs else '# outputs = "/shared/me/runs"  # else ./outputs',
        "",
        *_comment("Shell lines that each job runs first."),
        '# setup = ["module load cuda"]',
        "",
        "[hardware]",
        *_hardware(partition, nodes, chosen),
        "",
        "[slurm]",
        *_comment("sbatch's own options by their long names: true = a flag."),
        *_partition(site, partition),
        *_time(site, partition),
        *_machines(nodes, chosen),
        *_accounting(site, partition),
        *_reservations(site),
        "",
        *_comment("Further tables: [env], [container], [mounts], [secrets], [preflight]."),
    ]
    return "\n".join(lines) + "\n"


def _hardware(partition: Partition, nodes: list[Node], chosen: list[Node]) -> Iterator[str]:
    if not chosen:
        yield from _comment(f"Partition {partition.name} has no nodes that SLURM shows.")
        return
    count = f"{len(chosen)} of {len(nodes)} nodes" if len(chosen) < len(nodes) else "All nodes"
    yield from _comment(f"{count} of partition {partition.name}: {_kind(chosen[0])}.")
    yield from _gpu(chosen)
    if chosen[0].gpus:
        yield _set("gpus_per_node", chosen[0].gpus)
    yield _set("cpus", min(node.cpus for node in chosen))
    memory = min(node.memory_mib for node in chosen)
    yield _set("memory_gib", math.floor(memory / MIB * 10) / 10)
    yield '# interconnect = ""  # for people'


def _gpu(chosen: list[Node]) -> Iterator[str]:
    """The model, by the type of the GPUs, else by a feature that all the machines have."""
    if not (gpus := chosen[0].gpus):
        yield from _comment('No GPUs: plans with gpu = "cpu" run here.')
        return
    said = chosen[0].gpu_type
    model = gpu_model(said)
    if model is None:
        features = frozenset[str].intersection(*(node.features for node in chosen))
        named = {found: word for word in sorted(features) if (found := gpu_model(word))}
        if len(named) == 1:
            model, said = named.popitem()
    if model is None:
        got = f'the type "{said}" is not one of ours' if said else "it gives no type"
        yield from _comment(f"SLURM does not say which model the {gpus} GPUs are ({got}). Known:")
        yield from _comment(", ".join(GPUS))
        yield '# gpu = ""'
        return
    yield _set("gpu", model)
    variants = [name for name in GPUS if name.startswith(f"{model}-")]
    if variants and said.lower() == model:
        yield from _comment(f'SLURM says "{said}" alone: it may be {" or ".join(variants)}.')


def _partition(site: SlurmSite, chosen: Partition) -> Iterator[str]:
    yield from _comment("Partitions:")
    for partition in site.partitions.values():
        yield from _comment(f"  {_described(site, partition)}")
    yield _set("partition", chosen.name)


def _described(site: SlurmSite, partition: Partition) -> str:
    nodes = site.nodes_of(partition.name)
    kinds = Counter(_kind(node) for node in nodes)
    facts = [f"{count} x ({kind})" for kind, count in kinds.most_common()] or ["no nodes"]
    most = partition.max_seconds
    facts.append("any time" if most == math.inf else f"at most {duration(most)}")
    if partition.max_nodes != math.inf:
        facts.append(f"at most {int(partition.max_nodes)} node(s) a job")
    if partition.is_default:
        facts.append("the default")
    if partition.state != "UP":
        facts.append(partition.state)
    return f"{partition.name}: {', '.join(facts)}"


def _kind(node: Node) -> str:
    gpus = f"{node.gpus} x {node.gpu_type or 'gpu'}" if node.gpus else "no GPU"
    return f"{gpus}, {node.cpus} CPUs, {node.memory_mib / MIB:.0f} GiB"


def _time(site: SlurmSite, partition: Partition) -> Iterator[str]:
    qos = ""
    if site.accounting and (account := _account(site.accounting, partition)):
        qos = next(iter(_usable_qos(site.accounting, account, partition)), "")
    wall, _ = site.max_wall(partition, qos)
    most, default = min(partition.max_seconds, wall), partition.default_seconds
    told = "no limit" if default == math.inf else duration(default)
    longest = "as long as it likes" if most == math.inf else f"at most {duration(most)}"
    yield from _comment(f"A job may run {longest}; without a time it gets {told}.")
    yield from _comment("Shorter jobs start earlier; a run saves, requeues and goes on by itself.")
    yield _set("time", slurm_time(min(most, LONGEST_SECONDS)))


def _machines(nodes: list[Node], chosen: list[Node]) -> Iterator[str]:
    """What keeps jobs on the chosen machines where the partition has others."""
    names = {node.name for node in chosen}
    others = [node for node in nodes if node.name not in names]
    if others:
        kinds = "; ".join(sorted({_kind(node) for node in others}))
        yield from _comment(f"The partition also has {len(others)} other node(s): {kinds}.")
        if feature := telling_feature(chosen, others):
            yield _set("constraint", feature)
        else:
            yield from _comment("No feature tells them apart: jobs may get the others, unless")
            yield '# exclude = ""  # names them'
    if features := sorted({feature for node in chosen for feature in node.features}):
        yield from _comment(f"Features for constraint: {_listed(features)}")


def _accounting(site: SlurmSite, partition: Partition) -> Iterator[str]:
    accounting = site.accounting
    if accounting is None:
        yield from _comment(f"SLURM's accounting does not answer: {site.no_accounting}")
        yield '# account = ""'
        yield '# qos = ""'
        return
    if not accounting.accounts:
        yield from _comment("SLURM's accounting knows no account of yours.")
        return
    account = _account(accounting, partition)
    yield from _comment(f"Your accounts: {_listed(accounting.accounts)}")
    yield _set("account", account)
    yield from _qos(accounting, account, partition)


def _account(accounting: Accounting, partition: Partition) -> str:
    """The user's first account that the partition takes; "" = the user has none."""
    mine = accounting.accounts
    return next((name for name in mine if partition.takes_account(name)), "".join(mine[:1]))


def _usable_qos(accounting: Accounting, account: str, partition: Partition) -> list[str]:
    return [name for name in accounting.qos_of(account) if partition.takes_qos(name)]


def _qos(accounting: Accounting, account: str, partition: Partition) -> Iterator[str]:
    mine = accounting.qos_of(account)
    if not mine:
        return
    limits = [
        name if (most := accounting.qos.get(name, math.inf)) == math.inf
        else f"{name} (at most {duration(most)})"
        for name in mine
    ]  # fmt: skip
    usable = _usable_qos(accounting, account, partition)
    yield from _comment(f"QOS of {account}: {_listed(limits)}")
    # Where the partition takes some alone, the account's default may not be one of them.
    if usable and (partition.allowed_qos is not None or usable[0] != mine[0]):
        yield _set("qos", usable[0])
    else:
        yield f"# {_set('qos', mine[0])}"


def _reservations(site: SlurmSite) -> Iterator[str]:
    for item in site.reservations.values():
        who = ", ".join(part for part in (item.users, item.accounts) if part) or "everyone"
        yield from _comment(f"Reserved for {who}, {item.nodes}, {item.start} to {item.end}:")
        yield f"# {_set('reservation', item.name)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _set(key: str, value: Any) -> str:
    """A line of TOML."""
    return tomli_w.dumps({key: value}).strip()


def _comment(text: str) -> Iterator[str]:
    """A text of SLURM's in a comment: no character in it ends the line."""
    yield "# " + "".join(char if char.isprintable() else "?" for char in text)
