"""Batches read ahead by a thread, so that a slow disk or a stream does not hold up the step.

With each batch comes the state of the data behind it: what is saved is where the trainer is, not
where the thread is.
"""

import queue
import threading
from typing import Any

import torch

from titan_recipes.config.job import Job
from titan_recipes.trainer.data.loader import Batch, TrainingData


def read_ahead(data: TrainingData, job: Job, device: torch.device) -> TrainingData:
    """The data with a thread before it, as data.read_ahead says."""
    depth = job.data.read_ahead
    return ReadAhead(data, depth, device) if depth else data


class ReadAhead:
    """Training data whose next `depth` batches are there already, in pinned memory for a GPU."""

    def __init__(self, data: TrainingData, depth: int, device: torch.device) -> None:
        self._data, self._depth, self._device = data, depth, device
        self._state = data.state_dict()
        self._queue: queue.Queue[tuple[Batch, dict[str, Any]] | BaseException]
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def next_batch(self) -> Batch:
        """The next micro-batch; raises what the data raised."""
        if self._thread is None:
            self._closing.clear()
            self._queue = queue.Queue(self._depth)
            self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)
            self._thread.start()
        found = self._queue.get()
        if isinstance(found, BaseException):
            self._end_thread()
            raise found
        batch, self._state = found
        return batch

    def _read(self) -> None:
        pin = self._device.type == "cuda"
        if pin:
            torch.cuda.set_device(self._device)  # each thread's own; begins as GPU 0
        while not self._closing.is_set():
            try:
                batch = self._data.next_batch()
                self._queue.put((batch.pinned() if pin else batch, self._data.state_dict()))
            except BaseException as error:  # told where it is waited for
                self._queue.put(error)
                return

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._end_thread()
        self._data.load_state_dict(state)
        self._state = self._data.state_dict()

    def close(self) -> None:
        self._end_thread()
        self._data.close()

    def _end_thread(self) -> None:
        """Afterwards the data is ahead of `state_dict`."""
        if self._thread is None:
            return
        self._closing.set()
        while self._thread.is_alive():
            try:  # it may wait for room
                self._queue.get(timeout=0.01)
            except queue.Empty:
                continue
        self._thread = None
