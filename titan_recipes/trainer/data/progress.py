"""Progress of a tokenization, on stderr: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_SECONDS = 10.0


class Progress:
    """Counts bytes of text read and tokens made; a context manager."""

    def __init__(self, name: str, *, num_bytes: int) -> None:
        self._name = name
        self._total = num_bytes
        self._bytes = 0
        self._tokens = 0
        self._start = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("tokenizing {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=num_bytes, text="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if kind is None:
            print(f"tokenized {self._name}: {self._text()}", file=sys.stderr)

    def add(self, num_bytes: int, num_tokens: int) -> None:
        """Count what was done since the last call."""
        self.update(self._bytes + num_bytes, self._tokens + num_tokens)

    def update(self, num_bytes: int, num_tokens: int) -> None:
        """Set what was done in all, and show it."""
        self._bytes, self._tokens = num_bytes, num_tokens
        self._bar.update(self._task, completed=num_bytes, text=self._text())
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            print(f"tokenizing {self._name}: {self._text()}{self._left(now)}", file=sys.stderr)

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        return (
            f"{self._bytes / 1e6:,.1f} of {self._total / 1e6:,.1f} MB, {self._tokens / 1e6:,.2f} M"
            f" tokens, {self._tokens / seconds / 1e6:.2f} M tokens/s"
        )

    def _left(self, now: float) -> str:
        if not self._bytes:
            return ""
        seconds = (self._total - self._bytes) * (now - self._start) / self._bytes
        return f", {seconds:,.0f} s left"
