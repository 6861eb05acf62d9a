"""A pipeline schedule of the user's own, read from a CSV file.

One row a rank, one cell an action, in the order in which the rank does them, as
torch.distributed.pipelining writes them: `2F0` is the forward of stage 2 for microbatch 0, `B` the
backward, `I` and `W` the backward for inputs and for weights apart, `(1F3;0B1)OVERLAP_F_B` two at
once; an empty cell waits. torch adds the communication.
"""

import csv
import re
from pathlib import Path

from titan_recipes.config.stages import CSV
from titan_recipes.errors import ConfigError, Problem

_ONE = r"\d+[FBIW]\d+"
_CELL = re.compile(rf"{_ONE}|\({_ONE}(;{_ONE})+\)OVERLAP_F_B")
_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")
_FORM = "write actions as 2F0, 2B0, 2I0, 2W0 or (1F3;0B1)OVERLAP_F_B"

# (stage, F | B | I | W, microbatch)
Action = tuple[int, str, int]


def read_schedule_csv(
    path: Path, *, ranks: int, stages: int, microbatches: int
) -> list[tuple[int, ...]]:
    """The stages of each rank, in order.

    Raises ConfigError where a row or an action is missing or twice, a stage is on two ranks, or
    the ranks would wait for each other for ever.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _refused(f"{path} can't be read: {error}", "give a path that the ranks see") from None
    cells = [cell for row in rows for cell in row if cell]
    for cell in cells:
        if not _CELL.fullmatch(cell):
            raise _refused(f'{path} has "{cell}"', _FORM)
    if len(rows) != ranks:
        raise _refused(f"{path} has {len(rows)} rows", f"write one for each of the {ranks} ranks")
    orders = [_actions(row) for row in rows]
    _check_complete(orders, path, stages, microbatches)
    _check_ends(orders, path, stages)
    return [tuple(sorted({stage for stage, _, _ in order})) for order in orders]


def _actions(row: list[str]) -> list[Action]:
    found = _ACTION.findall(" ".join(row))
    return [(int(stage), kind, int(microbatch)) for stage, kind, microbatch in found]


def _check_complete(orders: list[list[Action]], path: Path, stages: int, microbatches: int) -> None:
    every = [action for order in orders for action in order]
    for stage, kind, microbatch in every:
        if stage >= stages or microbatch >= microbatches:
            got = f"{path} has {stage}{kind}{microbatch}"
            cure = f"the job has stages 0 to {stages - 1}, microbatches 0 to {microbatches - 1}"
            raise _refused(got, cure)
    for stage in range(stages):
        ranks = [rank for rank, order in enumerate(orders) if stage in {a[0] for a in order}]
        if len(ranks) != 1:
            raise _refused(f"{path} has stage {stage} on ranks {ranks}", "put it on one rank")
        for microbatch in range(microbatches):
            kinds = sorted(kind for s, kind, m in every if (s, m) == (stage, microbatch))
            if kinds not in (["B", "F"], ["F", "I", "W"]):
                got = f"{path} has {''.join(kinds) or 'nothing'} for stage {stage}"
                cure = "give each microbatch a forward F and a backward B, or I and W"
                raise _refused(f"{got}, microbatch {microbatch}", cure)


def _check_ends(orders: list[list[Action]], path: Path, stages: int) -> None:
    """Walk through the schedule, each rank as far as it gets, until all are through."""
    done: set[Action] = set()
    at = [0] * len(orders)
    moved = True
    while moved:
        moved = False
        for rank, order in enumerate(orders):
            while at[rank] < len(order) and _is_ready(order[at[rank]], done, stages):
                done.add(order[at[rank]])
                at[rank] += 1
                moved = True
    stuck = [order[step] for step, order in zip(at, orders, strict=True) if step < len(order)]
    if stuck:
        names = ", ".join(f"{stage}{kind}{microbatch}" for stage, kind, microbatch in stuck)
        cure = "order each rank's actions so that what they need comes before"
        raise _refused(f"{path} gets stuck at {names}", cure)


def _is_ready(action: Action, done: set[Action], stages: int) -> bool:
    """Whether all that an action needs is done: the neighbour's result and its own forward."""
    stage, kind, microbatch = action
    if kind == "F":
        return stage == 0 or (stage - 1, "F", microbatch) in done
    if kind == "W":
        return (stage, "I", microbatch) in done
    after = {(stage + 1, "B", microbatch), (stage + 1, "I", microbatch)}
    has_grads = stage == stages - 1 or bool(after & done)
    return has_grads and (stage, "F", microbatch) in done


def _refused(got: str, cure: str) -> ConfigError:
    return ConfigError([Problem("job.toml", CSV, got, cure)])
