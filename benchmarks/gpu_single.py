"""Our trainer on one GPU: Llama 3 flavors in bf16, compiled, and in float8.

Each row is a process of its own with clean memory, whose fault costs that row alone: it is then
named in the table. Rows come in order of worth and stop when the time is up; what was left out is
named too. First the card's own bf16 matmul ceiling is measured, which shares are of. Model FLOPs
are PaLM's (6 per matmul parameter and token, attention without its causal half), MFU is of the data
sheet's bf16 peak, also where the row computes in float8. The last line is JSON.

    python benchmarks/gpu_single.py --minutes 8.5
    python benchmarks/gpu_single.py --device cpu --rows "debug eager 512,debug compile 512"
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import argument_parser, finish, table
from stretches import HERE, last_words
from workload import GIB, LOG_FREQ, Workload

from titan_recipes.config.hardware import peak_tflops
from titan_recipes.errors import TitanRecipesError

FLOAT8 = "model.converters=['float8']"
RECIPE = "quantize.linear.float8.recipe_name"
_FLOAT8_ON_CPU = (
    "quantize.linear.float8.emulate=true",
    "quantize.linear.float8.skip_small=false",
)
VARIANTS: dict[str, tuple[bool, tuple[str, ...]]] = {
    "eager": (False, ()),
    "compile": (True, ()),
    "whole-logits": (True, ("training.loss_chunk_tokens=0",)),
    "liger": (True, ("training.loss_kernel='liger'",)),
    "tensorwise": (True, (FLOAT8, f"{RECIPE}='tensorwise'")),
    "rowwise": (True, (FLOAT8, f"{RECIPE}='rowwise'")),
}
"""What a row adds to bf16: whether it is compiled, and settings."""

MEMORY: dict[str, tuple[str, ...]] = {
    "8b": ("optimizer.state_dtype='8bit'",),
    "8b-offload": ("optimizer.enable_cpu_offload=true",),
}
"""Settings without which a flavor's optimizer state does not fit on one card."""

FLAVORS = {"8b-layers": ("8b", 8), "8b-offload": ("8b", 16)}
"""A row's flavor -> recipe and layers, where that is not the name. Eight layers of the 8B model fit
on a card of 80 GB with fp32 optimizer state: its shapes, without what makes the whole fit. Of all
32 the offloaded state would take 126 GiB of host memory, of 16 half."""

_BF16, _FLOAT8 = ("compile", "eager"), ("tensorwise", "rowwise")
ROWS = (
    *(f"{flavor} compile 8192" for flavor in ("1b", "3b")),
    *(f"8b-layers {variant} 8192" for variant in ("compile", "tensorwise", "rowwise")),
    *(f"1b {variant} 8192" for variant in ("whole-logits", "liger")),
    *(f"{flavor} tensorwise 8192" for flavor in ("3b", "1b")),
    *(f"8b {variant} 8192" for variant in ("compile", "tensorwise")),
    *(f"{flavor} eager 8192" for flavor in ("1b", "3b")),
    *(f"{flavor} rowwise 8192" for flavor in ("3b", "1b")),
    "8b-offload compile 8192",
    *(f"{flavor} {variant} 2048" for variant in _BF16 for flavor in ("1b", "3b")),
    *(f"{flavor} {variant} 2048" for variant in _FLOAT8 for flavor in ("1b", "3b")),
    *(f"8b {variant} {length}" for variant in ("rowwise", "eager") for length in (8192, 2048)),
)
"""In order of worth. "flavor variant sequence-length"; 8,192 tokens a step in each."""

TOKENS_PER_STEP = 8192
ROW_SECONDS = 6.0
_AC = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a name, and what is trained."""

    name: str
    workload: Workload

    @classmethod
    def named(cls, name: str, device: str) -> "Row":
        """The row that a name of ROWS asks for."""
        flavor, variant, length = name.split()
        recipe, n_layers = FLAVORS.get(flavor, (flavor, -1))
        enable_compile, settings = VARIANTS[variant]
        if device == "cpu" and FLOAT8 in settings:
            settings = (*settings, *_FLOAT8_ON_CPU)
        return cls(
            name,
            Workload(
                flavor=recipe,
                n_layers=n_layers,
                seq_len=int(length),
                batch=max(1, TOKENS_PER_STEP // int(length)) if device == "cuda" else 2,
                enable_compile=enable_compile,
                device=device,
                settings=(*settings, *MEMORY.get(flavor, ())),
            ),
        )


def least_checkpointing(workload: Workload, memory_gib: float) -> str:
    """The mode of activation checkpointing to try first: the least that is likely to fit.

    An estimate that only chooses where to begin; a row that runs out of memory takes the next.
    """
    job = workload.job()
    model, tokens = job.model, workload.tokens_per_step
    joined = " ".join(workload.settings)
    # Weights and gradients in fp32, then the two moments.
    state = job.derived.num_params * (10 if "8bit" in joined else 8 if "offload" in joined else 16)
    kept = 2 * (12 * model.dim + 5 * model.ffn_dim)  # Bytes a token and layer, in bf16.
    shares = {"none": 1.0, "selective": 0.5, "full": 0.05}
    for mode in _AC:
        activations = tokens * model.n_layers * kept * shares[mode]
        logits = tokens * model.vocab_size * 6
        if state + activations + logits < memory_gib * GIB:
            return mode
    return _AC[-1]


def measure(workload: Workload, seconds: float) -> dict[str, Any]:
    """Train a row in this process: rates and memory of its steps once they are warm.

    seconds: steps are timed for at least so long.
    """
    import torch
    from peers import Ours
    from workload import peak_gib, quiet, restart_peak, synchronize

    device = torch.device(workload.device, 0) if workload.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    job = workload.job()
    with tempfile.TemporaryDirectory() as folder, quiet():
        began = time.perf_counter()
        ours = Ours(workload, job, device, Path(folder))
        ours.train(LOG_FREQ)
        synchronize(device)
        ready = time.perf_counter() - began
        times: list[float] = []
        while sum(times) < seconds or len(times) < 2:
            # Whole rounds of logging, so that each has its share of it.
            start = time.perf_counter()
            ours.train(LOG_FREQ)
            synchronize(device)
            times.append(time.perf_counter() - start)
        restart_peak(device)
        ours.train(LOG_FREQ - 1)  # A step that is logged begins a new peak.
        synchronize(device)
        peak = peak_gib(device)
        ours.train(1)
        ours.read_log()
    rate = LOG_FREQ * workload.tokens_per_step / sorted(times)[len(times) // 2]
    return {
        "tokens_per_second": rate,
        "tflops": rate * job.derived.flops_per_token / 1e12,
        "parameters": job.derived.num_params,
        "peak_gib": peak,
        "seconds_to_first_steps": round(ready, 1),
        "steps": LOG_FREQ * len(times),
        "last_loss": ours.logged[max(ours.logged)][0],
    }


def ceiling_here(device_type: str) -> dict[str, float]:
    """The matmul ceiling, measured in this process."""
    import torch
    from ceiling import matmul_ceiling

    if device_type == "cuda":
        cuda: Any = torch.cuda
        properties = cuda.get_device_properties(0)
        memory, name = properties.total_memory / GIB, properties.name
        found = matmul_ceiling(torch.device("cuda", 0))
        return {**found, "memory_gib": memory, "peak": peak_tflops(name) or 0.0}
    torch.set_num_threads(1)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return {**matmul_ceiling(torch.device("cpu"), 0.1), "memory_gib": memory, "peak": 0.0}


def in_process(*options: str, timeout: float) -> dict[str, Any]:
    """What this file prints as JSON when called with other options. {"fault": why} if it fails."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    }
    environment.pop("OMP_NUM_THREADS", None)  # An offloaded update takes every core.
    command = [sys.executable, str(Path(__file__).resolve()), *options]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"fault": f"out of time after {timeout:.0f} s"}
    if done.returncode:
        return {"fault": last_words(done.stdout + done.stderr)}
    return json.loads(done.stdout.splitlines()[-1])


def run_row(row: Row, memory_gib: float, deadline: float, seconds: float) -> dict[str, Any]:
    """Measure a row with the least activation checkpointing that fits; {"fault": why} if none."""
    try:
        first = least_checkpointing(row.workload, memory_gib)
    except TitanRecipesError as error:
        return {"fault": str(error).splitlines()[0]}
    result: dict[str, Any] = {"fault": "out of time"}
    for mode in _AC[_AC.index(first) :]:
        left = deadline - time.perf_counter()
        if left < 10:
            break
        text = row.workload.changed(ac=mode).to_json()
        result = {
            "ac": mode,
            **in_process("--measure", text, "--row-seconds", str(seconds), timeout=left),
        }
        if "out of memory" not in result.get("fault", "").lower():
            break
    return result


def run_rows(
    names: list[str],
    device: str,
    minutes: float,
    ceiling: dict[str, Any],
    seconds: float = ROW_SECONDS,
) -> dict[str, Any]:
    """Measure the rows while there is time; prints each as it is done.

    ceiling: as `ceiling_here` found it; {"fault": why} measures nothing.
    """
    deadline = time.perf_counter() + 60 * minutes
    if "fault" in ceiling:
        return {"ceiling": ceiling, "rows": [], "left_out": {}}
    print(f"bf16 matmul ceiling: {ceiling['best']:,.1f} TFLOP/s", flush=True)
    measured: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    longest = 20.0
    for name in names:
        began = time.perf_counter()
        if deadline - began < longest:
            left_out[name] = "no time was left"
            continue
        row = Row.named(name, device)
        result = run_row(row, ceiling["memory_gib"], deadline, seconds)
        if "fault" in result:
            left_out[name] = result["fault"]
            print(f"{name}: left out: {result['fault']}", flush=True)
            continue
        longest = max(longest, 0.8 * (time.perf_counter() - began))
        result["share_of_ceiling"] = result["tflops"] / ceiling["best"]
        result["mfu"] = result["tflops"] / ceiling["peak"] if ceiling["peak"] else None
        shape = {"row": name, "seq_len": row.workload.seq_len, "batch": row.workload.batch}
        measured.append({**shape, **result})
        rate, share = result["tokens_per_second"], result["share_of_ceiling"]
        print(f"{name}: {rate:,.0f} tokens/s, {share:.3f} of the ceiling", flush=True)
    return {"ceiling": ceiling, "rows": measured, "left_out": left_out}


def lines(figures: dict[str, Any]) -> list[str]:
    """The table, and the rows that are missing from it with why."""
    rates = ("tokens/s", "TFLOP/s", "MFU", "of ceiling")
    heads = ["row", "batch", "AC", *rates, "peak GiB", "s to ready"]
    rows = [
        [
            row["row"],
            str(row["batch"]),
            row["ac"],
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tflops']:,.2f}",
            "" if row["mfu"] is None else f"{row['mfu']:.3f}",
            f"{row['share_of_ceiling']:.3f}",
            " / ".join(f"{value:.2f}" for value in row["peak_gib"].values()),
            f"{row['seconds_to_first_steps']:.0f}",
        ]
        for row in figures["rows"]
    ]
    ceiling = figures["ceiling"]
    if "fault" in ceiling:
        return [f"the matmul ceiling could not be measured: {ceiling['fault']}"]
    said = [f"bf16 matmul ceiling, measured: {ceiling['best']:,.1f} TFLOP/s"]
    by_name = {row["row"]: row for row in figures["rows"]}
    for name, row in by_name.items():
        flavor, variant, length = name.split()
        base = by_name.get(f"{flavor} compile {length}")
        if base is None or variant == "compile":
            continue
        rate = row["tokens_per_second"] / base["tokens_per_second"]
        memory = max(row["peak_gib"].values()) / max(base["peak_gib"].values())
        said.append(f"{name}: {rate:.3f} x the tokens/s and {memory:.3f} x the memory of compile")
    missing = [f"{name}: left out: {why}" for name, why in figures["left_out"].items()]
    return [*table(heads, rows), *said, *missing]


def main() -> None:
    """Measure, print a table and, last, one line of JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--rows", default=",".join(ROWS), help="which, separated by commas")
    parser.add_argument("--minutes", type=float, default=8.5, help="time for all of it")
    parser.add_argument("--row-seconds", type=float, default=ROW_SECONDS, help="timed for each row")
    parser.add_argument("--measure", help="(itself) one row, as JSON")
    parser.add_argument("--ceiling", help="(itself) the matmul ceiling of a device")
    arguments = parser.parse_args()
    if arguments.measure:
        workload = Workload.from_json(arguments.measure)
        print(json.dumps(measure(workload, arguments.row_seconds)))
        return
    if arguments.ceiling:
        print(json.dumps(ceiling_here(arguments.ceiling)))
        return
    ceiling = in_process("--ceiling", arguments.device, timeout=120)
    figures = run_rows(
        arguments.rows.split(","),
        arguments.device,
        arguments.minutes,
        ceiling,
        arguments.row_seconds,
    )
    print("\n".join(lines(figures)))
    finish("gpu_single", figures, arguments.write)
    sys.exit(0 if figures["rows"] else 1)


if __name__ == "__main__":
    main()
