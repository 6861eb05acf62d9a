"""Claiming the next attempt of a run, so that of two node entry points one does."""

import errno
import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path

from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch.record import process_start

CLAIM = "node.json"
CLOCK_SKEW = timedelta(minutes=2)


def claim(layout: RunLayout, number: int) -> int:
    """Make the directory of the next attempt, `number` or the first free one after it.

    It appears at once with the claimant in it, so a directory that a killed process left is told
    from one whose process is about to write the record. Raises LaunchError for the latter.
    """
    here, pid = socket.gethostname(), os.getpid()
    scratch = layout.attempts / f".{here}.{pid}"
    scratch.mkdir(parents=True, exist_ok=True)
    claimant = {"host": here, "pid": pid, "pid_start": process_start(pid)}
    (scratch / CLAIM).write_text(json.dumps(claimant), encoding="utf-8")
    while True:
        folder = layout.attempt(number)
        try:
            scratch.rename(folder)  # atomic, also on NFS; fails where a file is in `folder`
            return number
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if holder := _holder(folder / CLAIM):
            raise LaunchError(f"{folder}: {holder} has just begun this attempt")
        number += 1


def _holder(file: Path) -> str:
    """The live process that claimed an attempt; "" = none does any more."""
    try:
        claimant = json.loads(file.read_text(encoding="utf-8"))
        age = timedelta(seconds=time.time() - file.stat().st_mtime)
    except (FileNotFoundError, ValueError):
        return ""
    if claimant["host"] == socket.gethostname():
        alive = process_start(claimant["pid"]) == claimant["pid_start"]
    else:
        alive = age < CLOCK_SKEW  # the record follows the claim within moments
    return f"process {claimant['pid']} on {claimant['host']}" if alive else ""
