"""The mirror of a run directory: from what pods print to logs, rows and attempts, exactly once."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from past_runs import attempt, debug_job, row
from training import column

from titan_recipes.config.layout import ATTEMPT_MARK, METRICS_MARK, RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch.kubernetes_log import UNHEARD, NodeMirror, Position, Reading, ended_pods
from titan_recipes.launch.kubernetes_submission import Submitted
from titan_recipes.launch.record import Attempt, new_record, read_record, write_record

WHERE = Submitted(
    kind="jobset", context="", namespace="ml", name="a", uid="1", number=1, run_dir="/outputs/a"
)
BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """A run that was submitted a moment ago."""
    found = RunLayout(tmp_path / "a")
    found.mirror.mkdir(parents=True)
    record = new_record(debug_job(), name="a", scheduler="kubernetes", handle="", command=())
    write_record(found, record)
    return found


def running(number: int, **changed: Any) -> Attempt:
    begun = {"ended": "", "exit_code": -1, "outcome": "running", "final": False, "step_to": 0}
    return attempt(number, **begun | changed)


def told(one: Attempt) -> str:
    return ATTEMPT_MARK + json.dumps(asdict(one))


def logged(*steps: int) -> list[str]:
    return [METRICS_MARK + json.dumps(row(step)) for step in steps]


def stamped(log: list[tuple[float, str]], since: int = 0) -> list[str]:
    """What the server gives of a log of (seconds after BEGIN, text), as it was written."""
    times = [(BEGIN + timedelta(seconds=seconds), text) for seconds, text in log]
    return [
        f"{when.isoformat(timespec='microseconds')} {text}"
        for when, text in times
        if int(when.timestamp()) >= since
    ]


# --- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(8))
def test_log_read_in_two_parts_gives_every_line_once(cut: int) -> None:
    # Lines of one moment, and one out of order, as stdout and stderr come.
    seconds = [0.0, 0.5, 0.5, 0.5, 2.1, 1.9, 2.2, 9.0]
    log = [(at, f"line {number}") for number, at in enumerate(seconds)]
    position = Position()
    first = [*Reading(position).fresh(stamped(log[:cut]))]
    again = [*Reading(position).fresh(stamped(log, position.since))]
    assert first + again == [text for _, text in log]


def test_log_read_line_by_line_gives_every_line_once() -> None:
    log = [(number / 3, f"line {number}") for number in range(20)]
    position, found = Position(), list[str]()
    for end in range(1, 21):
        found += Reading(position).fresh(stamped(log[:end], position.since))
    assert found == [text for _, text in log]
    assert position.taken < 8  # not the whole log again


def test_following_goes_on_where_a_connection_broke_off() -> None:
    log = [(number / 4, f"line {number}") for number in range(12)]
    position, found = Position(), list[str]()
    for begin, end in ((0, 5), (5, 12)):
        reading = Reading(position)
        shown = stamped(log[:end], position.since)
        for line in shown:  # one chunk each
            found += reading.fresh([line])
        assert len(found) == end, begin
    assert found == [text for _, text in log]


@pytest.mark.parametrize("kept", [0, 2, 5])
def test_log_that_the_kubelet_began_anew_is_read_on_from_what_is_new(kept: int) -> None:
    log = [(number / 4, f"line {number}") for number in range(14)]
    position = Position()
    found = [*Reading(position).fresh(stamped(log[:8]))]
    found += Reading(position).fresh(stamped(log[8 - kept :], position.since))
    assert found == [text for _, text in log]


def test_words_without_a_time_are_neither_read_nor_counted() -> None:
    position = Position()
    reading = Reading(position)
    assert [*reading.fresh(["unable to retrieve container logs", *stamped([(0, "a")])])] == ["a"]
    assert (reading.strange, position.taken) == ("unable to retrieve container logs", 1)


def test_position_is_asked_for_in_whole_seconds() -> None:
    position = Position()
    assert position.moment == ""
    assert [*Reading(position).fresh(stamped([(3.7, "a")]))] == ["a"]
    assert position.moment == "2026-01-02T03:04:07Z"


# --- files ----------------------------------------------------------------------------------------


def test_lines_go_to_the_files_that_they_have_in_a_run_directory(layout: RunLayout) -> None:
    mirror = NodeMirror(layout, 0)
    mirror.add([told(running(1)), "hello", "[rank 1]  two", "[rank 0] one", *logged(1)], WHERE)
    assert layout.node_log(0).read_text().splitlines() == ["hello", *logged(1)]
    assert layout.rank_log(0).read_text() == "one\n"
    assert layout.rank_log(1).read_text() == " two\n"
    assert column(layout.root, "loss") == [row(1)["loss"]]
    record = read_record(layout)
    assert record.attempts == (running(1),)
    assert record.handle == "titan_kubernetes://titan-recipes/ml:a"


def test_rows_past_the_step_that_an_attempt_goes_on_from_are_cut(layout: RunLayout) -> None:
    mirror = NodeMirror(layout, 0)
    mirror.add([told(running(1)), *logged(1, 2, 3, 4, 5, 6, 7)], WHERE)
    mirror.add([told(running(2, step_from=5, step_to=5))], WHERE)
    assert len(column(layout.root, "loss")) == 5
    mirror.add([*logged(4, 5, 6)], WHERE)  # the checkpoint of step 5 was damaged
    assert len(column(layout.root, "loss")) == 6


def test_attempt_that_was_not_heard_to_end_is_closed_by_the_next(layout: RunLayout) -> None:
    mirror = NodeMirror(layout, 0)
    mirror.add([told(running(1))], WHERE)
    mirror.add([told(running(2, step_from=5, step_to=5))], WHERE)
    first, second = read_record(layout).attempts
    assert (first.outcome, first.cause, first.step_to) == ("failed", UNHEARD, 5)
    assert first.ended == second.started
    assert second.outcome == "running"


def test_saved_checkpoint_is_known_before_its_attempt_ends(layout: RunLayout) -> None:
    NodeMirror(layout, 0).add(
        [told(running(1, step_to=0)), "checkpoint: step 10 saved, 5.2 MiB in 0.2 s"], WHERE
    )
    assert read_record(layout).attempts[-1].step_to == 10


def test_end_of_a_run_is_told_after_its_last_words(layout: RunLayout) -> None:
    mirror = NodeMirror(layout, 0)
    mirror.position("uid")
    mirror.add([told(running(1)), told(attempt(1, final=True)), "one more line"], WHERE)
    assert read_record(layout).attempts[-1].outcome == "running"
    NodeMirror(layout, 0).end("uid", WHERE)
    assert read_record(layout).attempts[-1] == attempt(1, final=True)
    assert ended_pods(layout) == {"uid"}


def test_run_that_cancel_closed_is_not_opened_again(layout: RunLayout) -> None:
    closed = attempt(1, outcome="stopped", final=True)
    write_record(layout, replace(read_record(layout), attempts=(closed,)))
    NodeMirror(layout, 0).add([told(running(1))], WHERE)
    assert read_record(layout).attempts == (closed,)


def test_reader_killed_between_two_writes_is_made_undone(layout: RunLayout) -> None:
    NodeMirror(layout, 0).add(["one", "two"], WHERE)
    with layout.node_log(0).open("a") as file:
        file.write("three\nfo")
    NodeMirror(layout, 0).add(["three", "four"], WHERE)
    assert layout.node_log(0).read_text() == "one\ntwo\nthree\nfour\n"


def test_log_that_pods_write_themselves_is_left_alone(layout: RunLayout) -> None:
    layout.logs.mkdir()
    layout.node_log(0).write_text("theirs\n")
    with pytest.raises(LaunchError, match="is written by somebody else too"):
        NodeMirror(layout, 0).add(["ours"], WHERE)
    NodeMirror(layout, 0)
    assert layout.node_log(0).read_text() == "theirs\n"


@pytest.mark.parametrize("line", ['@attempt {"number": 1, "sta', "@attempt 7", "@metrics {", "@"])
def test_torn_line_for_programs_is_passed_over(layout: RunLayout, line: str) -> None:
    NodeMirror(layout, 0).add([line, *logged(1)], WHERE)
    assert read_record(layout).attempts == ()
    assert len(column(layout.root, "loss")) == 1


def test_other_nodes_write_neither_rows_nor_attempts(layout: RunLayout) -> None:
    NodeMirror(layout, 1).add(["hello", "[rank 2] x", told(running(1)), *logged(1)], WHERE)
    assert layout.node_log(1).read_text().splitlines() == ["hello", *logged(1)]
    assert layout.rank_log(2).read_text() == "x\n"
    assert read_record(layout).attempts == ()
    assert not layout.metrics.exists()
