"""A program in a process of its own that trains stretches of steps when told to.

The process answers over a pipe, one line of JSON for each line of JSON; what it prints goes to a
log file. Between stretches it stands still. On a GPU it gives back the memory of its weights and
optimizer state meanwhile (their numbers too: a stretch begins with new random weights, which take
as long to train as old ones), so that programs that each fill the card can take turns.
"""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class PeerError(Exception):
    """A program that ended or never answered; the message says why, with the end of its log."""


class PeerProcess:
    """The parent's end: a program that is starting, ready, or gone."""

    def __init__(self, name: str, workload: str, folder: Path, path: list[Path]) -> None:
        """workload: as Workload.to_json writes it. path: folders that it imports from, first."""
        self.name, self.log = name, folder / f"{name}.log"
        scratch = folder / name
        scratch.mkdir(parents=True)
        commands, self._commands = os.pipe()
        answers, child_answers = os.pipe()
        places = [*map(str, path), str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
        ends = [str(commands), str(child_answers)]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "stretches.py"), name, workload, str(scratch), *ends],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(commands, child_answers),
                env=environment,
            )
        os.close(commands)
        os.close(child_answers)
        self._answers = os.fdopen(answers, "r")

    def ask(self, seconds: float, **command: Any) -> dict[str, Any]:
        """The answer to a command. Raises PeerError if there is none, or none so soon."""
        try:
            os.write(self._commands, (json.dumps(command) + "\n").encode())
            ready, _, _ = select.select([self._answers], [], [], max(seconds, 1.0))
            if not ready:
                raise PeerError(f"no answer after {seconds:.0f} s")
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            raise PeerError(f"exit {status}: {last_words(self.log.read_text(errors='replace'))}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        self._answers.close()


def last_words(log: str) -> str:
    """The last line of a log that says something: of a traceback, the error."""
    errors = [line for line in log.splitlines() if "Error" in line or "error:" in line]
    lines = errors or [line for line in log.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"


# --- the process's own side ---------------------------------------------------------------------


def serve(name: str, workload_json: str, folder: str, commands: int, answers: int) -> None:
    """Answer commands until the pipe closes: build, train (steps, untimed steps first)."""
    import torch
    from peers import Bare, HuggingFace, Ours, Peer
    from torchtitan_peer import TorchTitan
    from workload import Workload, free_storages, peak_gib, refill, restart_peak, synchronize

    programs: dict[str, type[Peer]] = {
        "ours": Ours,
        "bare": Bare,
        "torchtitan": TorchTitan,
        "hf": HuggingFace,
    }
    workload = Workload.from_json(workload_json)
    job = workload.job()
    device = torch.device("cpu") if workload.device == "cpu" else torch.device("cuda", 0)
    if device.type == "cpu":
        torch.set_num_threads(1)
    peer: Peer | None = None
    freed: list[tuple[torch.Tensor, int]] = []
    with os.fdopen(commands, "r") as lines, os.fdopen(answers, "w") as replies:
        for line in lines:
            command = json.loads(line)
            if command["do"] == "build":
                peer = programs[name](workload, job, device, Path(folder))
                if device.type == "cuda":
                    torch.cuda.empty_cache()
            assert peer is not None
            refill(freed, {id(parameter) for parameter in peer.model().parameters()})
            peer.train(command["untimed_steps"])
            synchronize(device)
            restart_peak(device)
            start, start_cpu = time.perf_counter(), time.process_time()
            peaks: list[dict[str, float]] = []
            for _ in range(command["steps"]):
                peer.train(1)
                # A step that is logged begins a new peak, at ours and at torchtitan's.
                peaks.append(peak_gib(device))
            synchronize(device)
            peaks.append(peak_gib(device))
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
            if isinstance(peer, Ours):
                peer.read_log()
            answer = {
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                "peak_gib": {kind: max(peak[kind] for peak in peaks) for kind in peaks[0]},
                "logged": peer.logged,
                "patches": peer.patches,
                "versions": peer.versions,
            }
            freed = []
            if device.type == "cuda":
                peer.model().zero_grad()  # Not every program ends a step with it.
                freed = free_storages(peer.large_tensors())
            replies.write(json.dumps(answer) + "\n")
            replies.flush()
    os._exit(0)  # A group of one rank needs no goodbye.


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
