"""The log of one node, which people read: what its entry point and rank 0 say."""

import os
import sys
import threading
from pathlib import Path


class NodeLog:
    """logs/node-<n>.log, which people read, and this process's stdout where that is not it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        try:
            same = os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(self._file.fileno()))
        except (OSError, ValueError):  # no stdout, or none with a file below it
            same = True
        self._echo = not same
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        """Append one line, newline included."""
        with self._lock:
            self._file.write(line)
            self._print(line)

    def _print(self, line: bytes) -> None:
        if self._echo:
            try:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
            except OSError:  # who read it is gone; the run goes on
                self._echo = False

    def tell(self, text: str) -> None:
        """Print one line that is for who sees no file of the run."""
        with self._lock:
            self._print(f"{text}\n".encode())

    def say(self, text: str) -> None:
        """Append text."""
        for line in text.splitlines():
            self.write(f"{line}\n".encode())
