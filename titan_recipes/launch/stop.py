"""The stop file, as the node entry point sees it: when to stop, and when to kill.

Who wants a run to stop makes the file appear; what it holds says whether there is time to save.
"""

import signal
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from titan_recipes.config.layout import RunLayout

KILL_WORD = "now"
"""What the stop file holds after `cancel --now`; in every other case there is time to save."""
KILLED = "killed by cancel --now"
CANCEL_WORD = "cancel"
"""What it holds after `cancel`: no scheduler is to start the run again by itself."""


def stop_word(layout: RunLayout) -> str:
    """What the stop file holds; "" = nothing, or there is none."""
    try:
        return layout.stop.read_text(encoding="utf-8")
    except OSError:
        return ""


def is_persons(layout: RunLayout) -> bool:
    """Whether a person asked the run to stop, and not the end of a time limit."""
    return stop_word(layout) in (CANCEL_WORD, KILL_WORD)


def moment(file: Path) -> int | None:
    """When a file was last written, in ns; None where there is none."""
    with suppress(FileNotFoundError):
        return file.stat().st_mtime_ns
    return None


class StopRequest:
    """Whether the run is to stop, and whether its time to save is over."""

    def __init__(self, layout: RunLayout) -> None:
        """From here on a signal is noticed: the first process of a container loses it otherwise."""
        self._layout, self._file = layout, layout.stop
        self._num_signals = 0
        self._is_armed = False
        self._deadline = float("inf")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def arm(self) -> None:
        """From here on a signal makes the stop file, one that came before too: an older stop, which
        belongs to the past, has been dealt with."""
        self._is_armed = True
        if self._num_signals:
            self._file.touch()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        if self._is_armed:
            self._file.touch()

    @property
    def is_made(self) -> bool:
        return self._file.exists()

    @property
    def moment(self) -> int | None:
        """When the stop file was last touched, in ns; None where there is none."""
        return moment(self._file)

    def overdue(self, grace_seconds: float) -> str:
        """Why the ranks are to be killed now; "" = they are not."""
        if self._num_signals > 1:
            if stop_word(self._layout) == KILL_WORD:
                return KILLED
            return "killed by a second signal before it had saved"
        if self._deadline == float("inf") and self.is_made:
            self._deadline = time.monotonic() + grace_seconds
        if time.monotonic() > self._deadline:
            return f"killed: not stopped {grace_seconds:g} s after it was asked to"
        return ""

    @property
    def is_persons(self) -> bool:
        """Whether a person asked for it, and not the end of a time limit."""
        return is_persons(self._layout)
