"""SLURM's lists of hosts: their short form, and the file of those that failed a preflight."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout, replace_file

PART = re.compile(r"(?:[^,\[\]]|\[[^\]]*\])+")
BRACKET = re.compile(r"\[([^\]]*)\]")


def expand(hostlist: str) -> list[str]:
    """The hosts in order: "node[1-3,07],login" is node1, node2, node3, node07, login."""
    return [name for part in PART.findall(hostlist) for name in _names(part)]


def _names(part: str) -> Iterator[str]:
    bracket = BRACKET.search(part)
    if bracket is None:
        yield part
        return
    for item in bracket[1].split(","):
        first, _, last = item.partition("-")
        for number in range(int(first), int(last or first) + 1):
            middle = f"{number:0{len(first)}d}"
            yield from _names(part[: bracket.start()] + middle + part[bracket.end() :])


def exclude_option(hosts: Sequence[str]) -> str:
    """sbatch's option, and srun's."""
    return f"--exclude={','.join(hosts)}"


def write_exclude(layout: RunLayout, job: Job, hosts: Sequence[str]) -> None:
    """Leave EXCLUDE: these hosts, those of earlier attempts, and the cluster profile's own.

    What scontrol sets takes the place of what sbatch was given.
    """
    before = [str(job.site.slurm.get("exclude") or "")]
    with suppress(FileNotFoundError):
        before.append(layout.exclude.read_text(encoding="utf-8"))
    known = [host for text in before for host in expand(text.strip())]
    replace_file(layout.exclude, ",".join(dict.fromkeys([*known, *hosts])) + "\n")
