"""Ours beside torchtitan 0.2.2, transformers + accelerate and a bare loop: ratios of tokens/s.

The same model from the same weights on the same tokens, batch and precision, each program in a
process of its own through its own training step (peers.py), in interleaved rounds: A B C D, then
D C B A. A figure is the median of the rounds; a ratio the median of each round's ratio; on CPU also
by the time that the process ran, which other work on the machine disturbs less. The first step's
losses must agree to 1e-3, or the comparison is of different things and exits 1. A program that
can't run is left out by name. The last line is JSON.

    pip install --no-deps --target benchmarks/.peers -r benchmarks/peers.txt
    python benchmarks/versus.py                              # llama3_debug on CPU, bf16
    python benchmarks/versus.py --device cuda --flavor 1b --seq-len 8192 --batch 1 --compile
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from report import add_workload_options, argument_parser, finish, table, workload_of
from stretches import HERE, PeerError, PeerProcess
from workload import LOG_FREQ, Workload

PROGRAMS = ("ours", "torchtitan", "hf", "bare")
FIRST_LOSS_TOLERANCE = 1e-3
GRACE_SECONDS = 20.0
"""After the time is up, for a stretch that is under way."""


class Comparison:
    """The programs of a run, those that fell out, and what was measured of the others."""

    def __init__(
        self,
        workload: Workload,
        programs: list[str],
        *,
        peers: Path,
        folder: Path,
        deadline: float,
    ) -> None:
        """peers: folder with torchtitan and accelerate; its packages are used by no other program.

        deadline: on time.perf_counter; who has not answered GRACE_SECONDS later falls out.
        """
        self.workload, self.deadline = workload, deadline
        self.seconds: dict[str, list[float]] = {}
        self.cpu_seconds: dict[str, list[float]] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self.peak_gib: dict[str, dict[str, float]] = {}
        self.failed: dict[str, str] = {}
        foreign = {"torchtitan", "hf"}
        self.processes = {
            name: PeerProcess(name, workload.to_json(), folder, [peers] if name in foreign else [])
            for name in programs
        }

    def build(self) -> None:
        """Build one after the other, each with its first steps: what it compiles is then warm."""
        for name in list(self.processes):
            began = time.perf_counter()
            if self._ask(name, do="build", untimed_steps=LOG_FREQ, steps=0):
                print(f"{name}: ready after {time.perf_counter() - began:.0f} s", flush=True)

    def round(self, number: int, steps: int) -> None:
        """A stretch of each program, in this round's order."""
        names = list(self.processes)
        # Where memory was given back, the first step takes it again.
        untimed = 1 if self.workload.device == "cuda" else 0
        taken: dict[str, float] = {}
        for name in names if number % 2 else reversed(names):
            if answer := self._ask(name, do="train", untimed_steps=untimed, steps=steps):
                taken[name] = answer["seconds"]
                self.seconds.setdefault(name, []).append(answer["seconds"])
                self.cpu_seconds.setdefault(name, []).append(answer["cpu_seconds"])
        tokens = steps * self.workload.tokens_per_step
        rates = "  ".join(f"{name} {tokens / value:,.0f}" for name, value in taken.items())
        print(f"round {number}: {rates} tokens/s", flush=True)

    def _ask(self, name: str, **command: Any) -> dict[str, Any] | None:
        try:
            left = max(0.0, self.deadline - time.perf_counter())
            answer = self.processes[name].ask(left + GRACE_SECONDS, **command)
        except PeerError as error:
            self.failed[name] = str(error)
            self.processes.pop(name).stop()
            for measured in (self.seconds, self.cpu_seconds, self.answers):
                measured.pop(name, None)
            print(f"{name}: left out: {error}", flush=True)
            return None
        self.answers[name] = answer
        if command["do"] == "train":
            peaks = self.peak_gib.setdefault(name, {})
            for kind, value in answer["peak_gib"].items():
                peaks[kind] = max(value, peaks.get(kind, 0.0))
        return answer

    def stop(self) -> None:
        """End every process."""
        for process in self.processes.values():
            process.stop()

    def figures(self, steps: int) -> dict[str, Any]:
        """Medians and ratios, and whether the programs did the same."""
        tokens = steps * self.workload.tokens_per_step
        programs: dict[str, Any] = {}
        for name, values in self.seconds.items():
            answer = self.answers[name]
            programs[name] = {
                "tokens_per_second": round(statistics.median(tokens / v for v in values), 1),
                "peak_gib": {k: round(v, 3) for k, v in self.peak_gib[name].items()},
                "loss_and_grad_norm": {
                    step: answer["logged"][step] for step in ("1", str(LOG_FREQ))
                },
                "versions": answer["versions"],
                "patches": answer["patches"],
            }
        losses = {name: row["loss_and_grad_norm"]["1"][0] for name, row in programs.items()}
        spread = max(losses.values()) / min(losses.values()) - 1 if losses else 0.0
        return {
            "ratios": ratios(self.seconds),
            # On a CPU that others use too, the time that the process ran itself says more.
            "ratios_by_cpu_time": (
                ratios(self.cpu_seconds) if self.workload.device == "cpu" else {}
            ),
            "first_loss_spread": round(spread, 7),
            "same_math": spread <= FIRST_LOSS_TOLERANCE,
            "rounds": max(map(len, self.seconds.values()), default=0),
            "steps_in_a_stretch": steps,
            "programs": programs,
            "left_out": self.failed,
        }


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """ "ours/<name>" -> how much faster ours is: the median of the rounds' ratios."""
    ours = seconds.get("ours", [])
    return {
        f"ours/{name}": round(
            statistics.median(b / a for a, b in zip(ours, values, strict=True)), 4
        )
        for name, values in seconds.items()
        if name != "ours" and ours
    }


def compare(
    workload: Workload,
    programs: list[str],
    *,
    peers: Path,
    rounds: int,
    steps: int,
    seconds: float,
) -> dict[str, Any]:
    """Run a comparison and print its table; returns its figures.

    seconds: no round begins that would end later, counted from now; the figures tell how many ran.
    """
    deadline = time.perf_counter() + seconds
    job = workload.job()
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(
            workload, programs, peers=peers, folder=Path(folder), deadline=deadline
        )
        try:
            comparison.build()
            longest = 2.0 * len(programs)
            for number in range(1, rounds + 1):
                began = time.perf_counter()
                if began + longest > deadline:
                    print(f"out of time after {number - 1} of {rounds} rounds", flush=True)
                    break
                comparison.round(number, steps)
                longest = 1.2 * (time.perf_counter() - began)
            figures = comparison.figures(steps)
        finally:
            comparison.stop()
    shape = {
        "flavor": workload.name,
        "parameters": job.derived.num_params,
        "seq_len": workload.seq_len,
        "batch": workload.batch,
        "precision": workload.precision,
        "compile": workload.enable_compile,
        "activation_checkpoint": workload.ac,
    }
    return {**shape, **figures}


def lines(figures: dict[str, Any]) -> list[str]:
    """What a comparison found, as a table and what must be said with it."""
    rows: list[list[str]] = []
    by_cpu = bool(figures["ratios_by_cpu_time"])
    for name, row in figures["programs"].items():
        kinds_of_ratio = ("ratios", "ratios_by_cpu_time") if by_cpu else ("ratios",)
        found = [figures[kind].get(f"ours/{name}") for kind in kinds_of_ratio]
        loss, norm = row["loss_and_grad_norm"]["1"]
        later = row["loss_and_grad_norm"][str(LOG_FREQ)][0]
        peaks = " / ".join(f"{value:.2f}" for value in row["peak_gib"].values())
        rate = f"{row['tokens_per_second']:,.0f}"
        shown = ["" if ratio is None else f"{ratio:.3f}" for ratio in found]
        rows.append([name, rate, *shown, peaks, f"{loss:.5f}", f"{norm:.4f}", f"{later:.5f}"])
    kinds = [kind for row in list(figures["programs"].values())[:1] for kind in row["peak_gib"]]
    memory = f"peak GiB ({' / '.join(kinds)})"
    compared = ["ours/it", "by CPU time"] if by_cpu else ["ours/it"]
    heads = ["program", "tokens/s", *compared, memory, "loss 1", "norm 1", f"loss {LOG_FREQ}"]
    shape = (
        f"{figures['flavor']}: {figures['parameters']:,} parameters, "
        f"{figures['batch']} x {figures['seq_len']} tokens, {figures['precision']}, "
        f"compile {'on' if figures['compile'] else 'off'}, "
        f"activation checkpointing {figures['activation_checkpoint']}; "
        f"{figures['rounds']} rounds of {figures['steps_in_a_stretch']} steps"
    )
    said = [shape, *table(heads, rows)]
    for name, row in figures["programs"].items():
        versions = ", ".join(f"{package} {number}" for package, number in row["versions"].items())
        said.append(f"{name}: {versions}; {'patched: ' if row['patches'] else 'unmodified'}")
        said[-1] += "; ".join(row["patches"])
    said += [f"{name}: left out: {why}" for name, why in figures["left_out"].items()]
    agree = "agree" if figures["same_math"] else "DO NOT AGREE"
    spread = figures["first_loss_spread"]
    return [*said, f"first-step losses {agree} to 1e-3: they spread by {spread:.1e}"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `gpu_all.py` shares."""
    parser.add_argument(
        "--peers", type=Path, default=HERE / ".peers", help="folder with the peers' packages"
    )
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (at least 7)")
    parser.add_argument("--steps", type=int, default=LOG_FREQ, help="steps in each stretch")


def main() -> None:
    """Measure, print a table and, last, one line of JSON."""
    parser = argument_parser(__doc__)
    add_workload_options(parser)
    add_options(parser)
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="which, separated by commas")
    parser.add_argument("--minutes", type=float, default=60, help="begin no round after this long")
    arguments = parser.parse_args()
    figures = compare(
        workload_of(arguments),
        arguments.programs.split(","),
        peers=arguments.peers,
        rounds=arguments.rounds,
        steps=arguments.steps,
        seconds=60 * arguments.minutes,
    )
    print("\n".join(lines(figures)))
    finish("versus", figures, arguments.write)
    sys.exit(0 if figures["same_math"] and figures["ratios"] else 1)


if __name__ == "__main__":
    main()
