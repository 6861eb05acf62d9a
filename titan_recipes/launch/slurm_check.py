"""What of a cluster profile does not fit the cluster as SLURM reports it.

Problems stop jobs or let them wait for ever (SLURM takes a job above its partition's limits where
EnforcePartLimits=NO, and never starts it); notes are worth knowing. The last word has
`sbatch --test-only` with the profile's options: it knows the plugins and limits that are not
compared here.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from titan_recipes.config.cluster import Cluster
from titan_recipes.config.hardware import NO_GPU
from titan_recipes.config.load import did_you_mean, show
from titan_recipes.config.slurm_time import limit_seconds, slurm_time
from titan_recipes.errors import LaunchError, Problem
from titan_recipes.launch.site_report import Finding, Report, report_of
from titan_recipes.launch.slurm_ask import hostnames
from titan_recipes.launch.slurm_site import Accounting, Node, Partition, SlurmSite
from titan_recipes.launch.slurm_text import gpu_model
from titan_recipes.launch.slurm_trial import file_findings, trial
from titan_recipes.launch.text import duration
from titan_recipes.render.sbatch import LEFT_OF_MEMORY, MIB

SHORT_KILL_WAIT_SECONDS = 60
"""What a checkpoint of a large model may well need."""
SHOWN = 10
"""Names that a line lists at most."""


def check(where: str, cluster: Cluster, site: SlurmSite) -> Report:
    """Compare a profile with its cluster, then have sbatch plan a job. where: the profile's name.

    Raises LaunchError where SLURM does not answer.
    """
    findings = [*Comparison(where, cluster, site).findings(), *file_findings(where, cluster)]
    said, refusal = trial(where, cluster)
    findings += [(True, problem) for problem in refusal]
    return report_of(f"{site.name} (SLURM {site.version})", findings, said)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A profile against a site. expand: a host list's nodes, which SLURM knows best."""

    where: str
    cluster: Cluster
    site: SlurmSite
    expand: Callable[[str], list[str]] = hostnames

    def findings(self) -> list[Finding]:
        """Everything that is compared without asking SLURM to plan a job."""
        if self.option("clusters"):
            got = f"{self.option('clusters')}: options and hardware are not compared"
            cure = "ask on a login node of that cluster; sbatch --test-only is asked all the same"
            return [self._note("slurm.clusters", got, cure)]
        return [
            *self._partitions(),
            *self._time(),
            *self._accounts(),
            *self._placement(),
            *self._hardware(),
            *self._settings(),
        ]

    def option(self, name: str) -> str:
        """An sbatch option of the profile; "" = not set."""
        value = self.cluster.slurm.get(name, "")
        return "" if isinstance(value, bool) else str(value)

    def _problem(self, what: str, got: str, cure: str) -> Finding:
        return True, Problem(self.where, what, got, cure)

    def _note(self, what: str, got: str, cure: str) -> Finding:
        return False, Problem(self.where, what, got, cure)

    # --- options ----------------------------------------------------------------------------------

    @property
    def partitions(self) -> list[Partition]:
        """The partitions that jobs go to and that exist."""
        known = self.site.partitions
        if not (asked := self.option("partition")):
            return [partition for partition in known.values() if partition.is_default]
        return [known[name] for name in asked.split(",") if name in known]

    def _partitions(self) -> Iterator[Finding]:
        known = self.site.partitions
        asked = self.option("partition")
        for name in asked.split(",") if asked else ():
            if name not in known:
                cure = did_you_mean(name, known) or f"SLURM has {_some(known)}"
                yield self._problem("slurm.partition", f"got {show(name)}", cure)
        if not asked and not self.partitions:
            cure = f"SLURM has no default partition; use one of {_some(known)}"
            yield self._problem("slurm.partition", "not set", cure)
        for partition in self.partitions:
            if partition.state != "UP":
                got = f"{partition.name} is {partition.state}"
                yield self._note("slurm.partition", got, "jobs wait or are refused until it is UP")
            if partition.max_nodes != math.inf:
                got = f"{partition.name} gives a job at most {int(partition.max_nodes)} node(s)"
                yield self._note("slurm.partition", got, "choose plans that need no more")

    def _time(self) -> Iterator[Finding]:
        asked = self.option("time")
        try:
            # 0 is sbatch's word for "no limit".
            seconds = limit_seconds(asked) or math.inf
        except ValueError:
            got = f"got {show(asked)}"
            yield self._problem("slurm.time", got, 'use "D-HH:MM:SS", "HH:MM:SS" or minutes')
            return
        if not self.partitions:
            return
        if not asked:
            first = self.partitions[0]
            if first.default_seconds != math.inf:
                got = f"not set: jobs get {first.name}'s {duration(first.default_seconds)}"
                longest = slurm_time(first.max_seconds)
                cure = f"a run requeues itself until it is done; up to {longest} can be asked for"
                yield self._note("slurm.time", got, cure)
            return
        longest = max(partition.max_seconds for partition in self.partitions)
        if seconds > longest:
            names = ",".join(partition.name for partition in self.partitions)
            got = f"got {show(asked)}, above the MaxTime of {names}"
            yield self._problem("slurm.time", got, f'use at most "{slurm_time(longest)}"')
            return
        qos = self._qos()
        wall, name = max(self.site.max_wall(partition, qos) for partition in self.partitions)
        if seconds > wall:
            got = f"got {show(asked)}, above the MaxWall of qos {name}"
            yield self._problem("slurm.time", got, f'use at most "{slurm_time(wall)}"')

    def _account(self) -> str:
        default = self.site.accounting.default_account if self.site.accounting else ""
        return self.option("account") or default

    def _qos(self) -> str:
        """The QOS that jobs run in, as far as it is known."""
        if asked := self.option("qos"):
            return asked
        accounting = self.site.accounting
        allowed = accounting.qos_of(self._account()) if accounting else []
        return allowed[0] if allowed else ""

    def _accounts(self) -> Iterator[Finding]:
        accounting, asked = self.site.accounting, [*filter(self.option, ("account", "qos"))]
        if accounting is None:
            for name in asked:
                got = f"{show(self.option(name))} can't be checked: {self.site.no_accounting}"
                cure = "sbatch --test-only has the last word"
                yield self._note(f"slurm.{name}", got, cure)
            return
        say = self._problem if self.site.enforces("associations") else self._not_enforced
        account = self._account()
        if "account" in asked and account not in accounting.accounts:
            cure = (
                did_you_mean(account, accounting.accounts) or f"yours: {_some(accounting.accounts)}"
            )
            yield say("slurm.account", f"got {show(account)}", cure)
        elif account:
            mine = accounting.accounts
            yield from self._not_taken("account", account, mine, Partition.takes_account, say)
        yield from self._qos_findings(accounting, account)

    def _qos_findings(self, accounting: Accounting, account: str) -> Iterator[Finding]:
        asked, mine = self.option("qos"), accounting.qos_of(account)
        say = self._problem if self.site.enforces("qos") else self._not_enforced
        if asked and asked not in accounting.qos:
            cure = did_you_mean(asked, mine) or f"yours: {_some(mine)}"
            yield say("slurm.qos", f"got {show(asked)}", cure)
        elif asked and account in accounting.accounts and asked not in mine:
            got = f"got {show(asked)}, which account {account} does not have"
            yield say("slurm.qos", got, f"yours: {_some(mine)}")
        elif asked:
            yield from self._not_taken("qos", asked, mine, Partition.takes_qos, say)

    def _not_taken(
        self,
        option: str,
        name: str,
        mine: Iterable[str],
        takes: Callable[[Partition, str], bool],
        say: Callable[[str, str, str], Finding],
    ) -> Iterator[Finding]:
        """Partitions that do not take the job's account or QOS. mine: what else the user has."""
        for partition in self.partitions:
            if not takes(partition, name):
                got = f"{partition.name} does not take {option} {name}"
                cure = f"it takes {_some(other for other in mine if takes(partition, other))}"
                yield say(f"slurm.{option}", got, cure)

    def _not_enforced(self, what: str, got: str, cure: str) -> Finding:
        return self._note(what, f"{got}, which SLURM does not enforce here", cure)

    # --- placement --------------------------------------------------------------------------------

    @property
    def in_partitions(self) -> list[Node]:
        """The nodes of the partitions that jobs go to."""
        names = {partition.name for partition in self.partitions}
        return [node for node in self.site.nodes.values() if node.partitions & names]

    def _listed(self, option: str) -> set[str]:
        """The nodes that an option names. Raises LaunchError where it is no list of hosts."""
        text = self.option(option)
        return set(self.expand(text)) if text and "/" not in text else set()

    def eligible(self) -> list[Node]:
        """The nodes that jobs can get, as far as the options say it in a simple way."""
        nodes = self.in_partitions
        try:
            excluded = self._listed("exclude")
        except LaunchError:
            excluded = set[str]()
        nodes = [node for node in nodes if node.name not in excluded]
        return [node for node in nodes if _satisfies(node, self.option("constraint"))]

    def _placement(self) -> Iterator[Finding]:
        yield from self._reservation()
        nodes = self.in_partitions
        known = sorted({feature for node in nodes for feature in node.features})
        words = _features(self.option("constraint")) if nodes else []
        unknown = [word for word in words if word not in known]
        for word in unknown:
            cure = did_you_mean(word, known) or f"its nodes have {_some(known)}"
            yield self._problem("slurm.constraint", f"no node has the feature {show(word)}", cure)
        names = {node.name for node in nodes}
        for option in ("nodelist", "exclude"):
            try:
                listed = self._listed(option)
            except LaunchError:
                got = f"got {show(self.option(option))}, no list of hosts"
                yield self._problem(f"slurm.{option}", got, 'write it as "node[1-3],node7"')
                continue
            if missing := sorted(listed - self.site.nodes.keys()):
                got = f"SLURM knows no {_some(missing)}"
                yield self._problem(f"slurm.{option}", got, f"its nodes are {_some(sorted(names))}")
            elif option == "nodelist" and nodes and (outside := sorted(listed - names)):
                got = f"not in the partition: {_some(outside)}"
                yield self._problem("slurm.nodelist", got, f"its nodes are {_some(sorted(names))}")
            elif option == "nodelist" and len(listed) > 1:
                got = f"every job gets all {len(listed)}"
                yield self._note("slurm.nodelist", got, "plans with fewer nodes are refused")
        if nodes and not unknown and not self.eligible():
            got = "no node of the partition is left by constraint and exclude"
            yield self._problem("slurm", got, "remove one of them")

    def _reservation(self) -> Iterator[Finding]:
        known = self.site.reservations
        for name in filter(None, self.option("reservation").split(",")):
            if name in known:
                got = f"{name} is from {known[name].start} to {known[name].end}"
                cure = "jobs of a run that outlives it wait: remove it then"
                yield self._note("slurm.reservation", got, cure)
            else:
                cure = did_you_mean(name, known) or f"SLURM has {_some(known)}"
                yield self._problem("slurm.reservation", f"got {show(name)}", cure)

    # --- hardware ---------------------------------------------------------------------------------

    def _hardware(self) -> Iterator[Finding]:
        nodes, have = self.eligible(), self.cluster.hardware
        if not nodes:
            return
        asked_mib = have.memory_gib * MIB * LEFT_OF_MEMORY
        gpus = 0 if have.gpu == NO_GPU else have.gpus_per_node
        yield from self._fact("gpus_per_node", gpus, {node.name: node.gpus for node in nodes})
        yield from self._fact("cpus", have.cpus, {node.name: node.cpus for node in nodes})
        memory = {node.name: node.memory_mib for node in nodes}
        if asked_mib > min(memory.values()):
            yield from self._too_much(
                "memory_gib",
                f"{have.memory_gib:g}",
                [name for name, mib in memory.items() if mib < asked_mib],
                f"{math.floor(min(memory.values()) / MIB * 10) / 10:g}",
                len(nodes),
            )
        models = {model for node in nodes if (model := gpu_model(node.gpu_type))}
        if have.gpu not in ("", NO_GPU) and models:
            # A site's "a100" may be any of its variants.
            fitting = {model for model in models if f"{have.gpu}-".startswith(f"{model}-")}
            if not fitting:
                got = f'"{have.gpu}", but SLURM has {_some(sorted(models))}'
                yield self._problem("hardware.gpu", got, f'write "{min(models)}"')
            elif len(models) > 1:
                got = f"the partition has {_some(sorted(models))}"
                cure = "choose the machines by slurm.constraint or slurm.nodelist"
                yield self._problem("hardware.gpu", got, cure)
        if bad := sorted(node.name for node in nodes if not node.is_usable):
            got = f"{len(bad)} of {len(nodes)} can't be used now: {_some(bad)}"
            yield self._note("nodes", got, "scontrol show node says why")

    def _fact(self, key: str, ours: int, theirs: dict[str, int]) -> Iterator[Finding]:
        """A number of [hardware] against each node's."""
        least = min(theirs.values())
        if ours > least:
            short = [name for name, number in theirs.items() if number < ours]
            yield from self._too_much(key, str(ours), short, str(least), len(theirs))
        elif ours and ours < least:
            got = f"{ours}, but every node has {least} or more"
            yield self._note(f"hardware.{key}", got, "what is above it is never asked for")

    def _too_much(
        self, key: str, ours: str, short: Sequence[str], least: str, of: int
    ) -> Iterator[Finding]:
        """More than some nodes have: a problem where it is more than any has."""
        what = f"hardware.{key}"
        if len(short) == of:
            yield self._problem(what, f"{ours} > what SLURM gives", f"write {least}")
        else:
            got = f"{ours}, which {len(short)} of {of} nodes do not have: {_some(short)}"
            yield self._note(what, got, "jobs of whole nodes run on the others only")

    # --- settings ---------------------------------------------------------------------------------

    def _settings(self) -> Iterator[Finding]:
        """How SLURM treats jobs that it stops."""
        if self.site.settings.get("JobRequeue") == "0":
            got = "0: jobs are not requeued unless they ask for it"
            yield self._note("JobRequeue", got, "ours ask for it, with --requeue")
        wait = self.site.seconds("KillWait")
        if wait is not None and wait < SHORT_KILL_WAIT_SECONDS:
            got = f"{wait} s from SIGTERM to SIGKILL"
            cure = "stop runs with `titan-recipes cancel`, which waits for the checkpoint"
            yield self._note("KillWait", got, cure)
        preempts = self.site.settings.get("PreemptType", "preempt/none") != "preempt/none"
        warned = "preempt_send_user_signal" in self.site.settings.get("SlurmctldParameters", "")
        for partition in self.partitions:
            mode = partition.preempt_mode
            if not preempts or mode in ("OFF", "SUSPEND", "GANG"):
                continue
            grace = partition.grace_seconds
            if not grace:
                got = f"{partition.name} has {mode} and GraceTime 0: a preempted job is not warned"
                cure = "it goes on from its newest checkpoint: keep checkpoint.interval short"
            elif not warned:
                got = f"{partition.name} has {mode}, GraceTime {grace} s, no user signal"
                cure = "its steps get SIGTERM at once; a checkpoint has to be done in GraceTime"
            else:
                got = f"{partition.name} has {mode}, GraceTime {grace} s with the user signal"
                cure = "a preempted run saves a checkpoint if it takes less than that"
            yield self._note("preemption", got, cure)


# --- small questions ------------------------------------------------------------------------------


def _features(constraint: str) -> list[str]:
    """The features that a constraint names: "[rack1*2&rack2*4]|ib" -> rack1, rack2, ib."""
    words = re.split(r"[&|,\[\]()]", constraint)
    return [name for word in words if (name := re.sub(r"\*\d+$", "", word.strip().lstrip("!")))]


def _satisfies(node: Node, constraint: str) -> bool:
    """Whether a node has the features; a constraint that is more than a list is not looked at."""
    if re.search(r"[\[\]()*!]", constraint) or (
        "|" in constraint and re.search("[&,]", constraint)
    ):
        return True
    words = _features(constraint)
    return (any if "|" in constraint else all)(word in node.features for word in words)


def _some(names: Iterable[str]) -> str:
    """Names in a line: all of a few, else the first of them and how many there are."""
    listed = [*names]
    shown = ", ".join(listed[:SHOWN]) or "none"
    return shown if len(listed) <= SHOWN else f"{shown} and {len(listed) - SHOWN} more"
