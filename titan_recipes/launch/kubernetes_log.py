"""What a pod prints, as the files of a run directory: logs/, metrics.jsonl, run.json.

Of a run whose directory only its pods see this machine keeps a mirror of that shape, so that
whatever reads a run directory reads it. Where a pod's log was last read to is kept beside it, with
the files' sizes: a reader that was killed between two writes is made undone, and no line is lost or
doubled, whoever reads next.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from titan_recipes.config.layout import ATTEMPT_MARK, METRICS_MARK, RunLayout, replace_file
from titan_recipes.errors import LaunchError
from titan_recipes.launch.attempts import EXIT_FAILED, measured
from titan_recipes.launch.image import by_digest
from titan_recipes.launch.kubernetes_submission import Submitted
from titan_recipes.launch.logs import metrics_of
from titan_recipes.launch.record import Attempt, read_record, write_record
from titan_recipes.launch.rows import last_row, read_rows

RANK_LINE = re.compile(r"\[rank (\d+)\] ?(.*)", re.DOTALL)
SAVED_LINE = re.compile(r"checkpoint: step (\d+) saved, ")
"""What the trainer says once a checkpoint is committed."""
TOLD_LINE = re.compile(f"{METRICS_MARK}|{SAVED_LINE.pattern}")
"""Lines for people that tell a program something too."""
NOT_OURS = "is written by somebody else too"
UNHEARD = "lost: what its pod said last was not read"
OVERLAP_SECONDS = 1
"""Between stdout and stderr a log's times are not quite in order."""


@dataclass(slots=True)
class Position:
    """How far the log of one pod was read.

    The server gives the lines from a second on, in the order of the log; those that were read are
    the first `taken` of them, also where several lines have the same time.
    """

    since: int = 0
    """Seconds after 1970; 0 = from the beginning."""
    taken: int = 0
    latest: float = 0.0
    """The newest time of a line that was read, in seconds after 1970: what comes after it is new,
    also where the kubelet began a new file since, as it does every 10 MiB."""
    ended: bool = False
    """Nothing is left to be read."""
    failures: int = 0
    """How often it could not be read after the pod had ended."""

    @property
    def moment(self) -> str:
        """`since` as the server takes it."""
        return datetime.fromtimestamp(self.since, UTC).strftime("%FT%TZ") if self.since else ""


class Reading:
    """One answer of the server, from a position on."""

    def __init__(self, position: Position) -> None:
        self._position = position
        self._skip = position.taken
        self._moments = list[float]()  # of every line of this answer
        self.strange = ""
        """The kubelet's own words, which have no time: it could not read the log."""

    def fresh(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines not read before, without their times; the position moves past them."""
        for line in lines:
            stamp, _, text = line.partition(" ")
            moment = _moment(stamp)
            if moment is None:
                self.strange = line
                continue
            if moment > self._position.latest:
                self._skip = min(self._skip, len(self._moments))
            self._moments.append(moment)
            if len(self._moments) > self._skip:
                yield text
        if self._moments and len(self._moments) >= self._skip:
            self._advance()

    def _advance(self) -> None:
        since = max(self._position.since, int(self._moments[-1]) - OVERLAP_SECONDS)
        self._position.latest = max(self._position.latest, *self._moments)
        self._moments = [moment for moment in self._moments if moment >= since]
        self._skip = self._position.taken = len(self._moments)
        self._position.since = since


def _moment(stamp: str) -> float | None:
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        return None


@dataclass(slots=True)
class _Saved:
    """mirror/node-<k>.json."""

    pods: dict[str, Position] = field(default_factory=dict[str, Position])
    """By uid."""
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    """File in logs/ -> its bytes."""
    final: dict[str, Any] | None = None
    """The attempt that ends the run, until the log that says so is read to its end: after it come
    the last words."""


class NodeMirror:
    """What one node's pods printed, one after the other; only one process may have it at a time."""

    def __init__(self, layout: RunLayout, node: int) -> None:
        self.layout, self.node = layout, node
        self._file = layout.mirror / f"node-{node}.json"
        self._saved = _read(self._file)
        self._image = ""
        for name, size in self._saved.sizes.items():
            path = layout.logs / name
            if path.exists() and path.stat().st_size > size:
                with path.open("r+b") as file:
                    file.truncate(size)

    def position(self, uid: str) -> Position:
        """Of a pod's log."""
        return self._saved.pods.setdefault(uid, Position())

    def add(self, lines: Iterable[str], where: Submitted) -> None:
        """Write down lines of a pod of a submission, in the order they were printed.

        Raises LaunchError where somebody else writes the same files.
        """
        texts: dict[str, list[str]] = {f"node-{self.node}.log": []}
        told: list[str] = []
        for line in lines:
            if line.startswith(ATTEMPT_MARK):
                told.append(line)
            elif found := RANK_LINE.fullmatch(line):
                texts.setdefault(f"rank-{found[1]}.log", []).append(found[2])
            else:
                texts[f"node-{self.node}.log"].append(line)
                told += [line] if TOLD_LINE.match(line) else []
        self._claim()
        for name, those in texts.items():
            self._append(name, those)
        if self.node == 0:  # after the logs: who sees the end of a run has seen its last words
            for line in told:
                self._hear(line, where)
        self._save()

    def end(self, uid: str, where: Submitted) -> None:
        """A pod's log is read to its end, or is gone."""
        self._saved.pods[uid] = Position(ended=True)
        if final := self._saved.final:
            self._saved.final = None
            record_attempt(self.layout, Attempt(**final), where)
        self._save()

    def see_image(self, image: str) -> None:
        """Write down the image that node 0 runs, by its digest; "" = unknown."""
        if image == self._image or self.node:
            return
        self._image = image
        record = read_record(self.layout)
        if image not in (record.image, by_digest(record.image)):
            write_record(self.layout, replace(record, image=image))

    def fail(self, uid: str) -> int:
        """The log of a pod that has ended could not be read; how often that was so."""
        position = self.position(uid)
        position.failures += 1
        self._save()
        return position.failures

    def end_all_but(self, uids: set[str], where: Submitted) -> None:
        """Of pods that are gone nothing more comes."""
        for uid, position in [*self._saved.pods.items()]:
            if uid not in uids and not position.ended:
                self.end(uid, where)

    def _hear(self, line: str, where: Submitted) -> None:
        """A line for programs."""
        if row := metrics_of(line):
            _add_row(self.layout, row, line.removeprefix(METRICS_MARK))
        if saved := SAVED_LINE.match(line):
            _record_checkpoint(self.layout, int(saved[1]), where)
        if not line.startswith(ATTEMPT_MARK):
            return
        try:
            attempt = Attempt(**json.loads(line.removeprefix(ATTEMPT_MARK)))
        except (ValueError, TypeError):  # torn by a kill
            return
        if attempt.final:
            self._saved.final = asdict(attempt)
        else:
            record_attempt(self.layout, attempt, where)

    def _claim(self) -> None:
        """Before the first line: from here on the node's log is the mirror's, and no pod's."""
        log = self.layout.node_log(self.node)
        if log.name not in self._saved.sizes:
            if log.exists():
                raise LaunchError(f"{log}: {NOT_OURS}")
            self.layout.logs.mkdir(exist_ok=True)
            self._saved.sizes[log.name] = 0
            self._save()
            log.touch()  # also of a node that says nothing

    def _append(self, name: str, lines: list[str]) -> None:
        if not lines:
            return
        path = self.layout.logs / name
        with path.open("ab") as file:
            if file.tell() != self._saved.sizes.get(name, 0):
                raise LaunchError(f"{path}: {NOT_OURS}")
            file.write("".join(f"{line}\n" for line in lines).encode())
            self._saved.sizes[name] = file.tell()

    def _save(self) -> None:
        replace_file(self._file, json.dumps(asdict(self._saved)))


def ended_pods(layout: RunLayout, node: int = 0) -> set[str]:
    """The pods, by uid, whose logs are read to their end."""
    saved = _read(layout.mirror / f"node-{node}.json")
    return {uid for uid, position in saved.pods.items() if position.ended}


def _read(file: Path) -> _Saved:
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return _Saved()
    pods = {uid: Position(**position) for uid, position in data.pop("pods").items()}
    return _Saved(pods=pods, **data)


def record_attempt(layout: RunLayout, attempt: Attempt, where: Submitted) -> None:
    """Write down how an attempt stands; what `cancel` has closed stays closed."""
    record = read_record(layout)
    known = {one.number: one for one in record.attempts}
    there = known.get(attempt.number)
    if there == attempt or (there and there.final and not attempt.final):
        return
    if there is None:
        _cut_rows(layout, attempt.step_from + 1)
    for one in record.attempts:
        if one.outcome == "running" and one.number < attempt.number:
            lost = replace(one, outcome="failed", exit_code=EXIT_FAILED, cause=UNHEARD)
            reached = max(one.step_to, attempt.step_from)
            record = record.with_attempt(replace(lost, ended=attempt.started, step_to=reached))
    record = replace(record, handle=where.handle).with_attempt(attempt)
    if attempt.ended:
        rows = [row for row in read_rows(layout.metrics) if row["step"] > attempt.step_from]
        record = replace(record, measured=measured(rows) or record.measured)
    write_record(layout, record)


def _record_checkpoint(layout: RunLayout, step: int, where: Submitted) -> None:
    """Write down that the attempt that runs has saved one."""
    record = read_record(layout)
    last = record.attempts[-1] if record.attempts else None
    if last and last.outcome == "running" and record.handle == where.handle:
        record_attempt(layout, replace(last, step_to=max(step, last.step_to)), where)


def _add_row(layout: RunLayout, row: dict[str, Any], text: str) -> None:
    """Append a logged step to metrics.jsonl, past which there is none yet."""
    step = row.get("step")
    if isinstance(step, int):
        _cut_rows(layout, step)
        with layout.metrics.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def _cut_rows(layout: RunLayout, first: int) -> None:
    """Remove the rows from a step on: the run went back to a checkpoint before it."""
    if last_row(layout.metrics).get("step", 0) < first:
        return
    kept = [row for row in read_rows(layout.metrics) if row["step"] < first]
    replace_file(layout.metrics, "".join(f"{json.dumps(row)}\n" for row in kept))
