"""Asking SLURM: `ask` runs one of its commands, `ask_site` all that describe the cluster."""

import os
import pwd
import subprocess
from collections.abc import Mapping, Sequence

from titan_recipes.errors import LaunchError
from titan_recipes.launch.slurm_site import Accounting, SlurmSite
from titan_recipes.launch.slurm_text import (
    parse_accounting,
    parse_config,
    parse_nodes,
    parse_partitions,
    parse_reservations,
)

TIMEOUT_SECONDS = 60
"""A controller under load answers late; one that is down makes its clients give up before."""


def ask(*command: str) -> str:
    """What a SLURM command prints. Raises LaunchError where there is no SLURM or it refuses."""
    done = run(*command)
    if done.returncode != 0:
        said = " / ".join((done.stderr + done.stdout).split("\n")).strip(" /")
        raise LaunchError(f"{_short(command)}: {said or f'exit {done.returncode}'}")
    return done.stdout


def run(*command: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a SLURM command. Raises LaunchError where it is not installed or does not answer."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            env={**os.environ, "LC_ALL": "C"} if env is None else env,
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
