"""How fast the launcher answers, beside what its imports cost anyway.

Times whole commands, interleaved: `python -c "import click, pydantic, jinja2"`, `titan-recipes
list` and `titan-recipes launch llama3_8b --dry-run`. The aim: `list` within 2x of the imports, the
dry run within 5x. The last line is JSON.

    python benchmarks/launcher_speed.py [--rounds 9]
"""

import statistics
import subprocess
import sys
import tempfile
import time

from report import argument_parser, finish

COMMANDS = {
    "imports": [sys.executable, "-c", "import click, pydantic, jinja2"],
    "list": [sys.executable, "-m", "titan_recipes.cli", "list"],
    "dry_run": [sys.executable, "-m", "titan_recipes.cli", "launch", "llama3_8b", "--dry-run"],
}
AIMS = {"list": 2.0, "dry_run": 5.0}


def seconds(command: list[str], directory: str) -> float:
    """Wall time of a command that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print a table and, last, one line of JSON."""
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="times each command is run")
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as directory:
        for round_number in range(arguments.rounds + 1):
            for name, command in COMMANDS.items():
                taken = seconds(command, directory)
                # The first round fills the disk cache and writes the bytecode.
                if round_number:
                    times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times["imports"], strict=True))
        for name in AIMS
    }
    print(f"{'command':<10}{'median s':>10}{'ratio':>8}{'aim':>6}")
    print(f"{'imports':<10}{medians['imports']:>10.3f}")
    for name, aim in AIMS.items():
        print(f"{name:<10}{medians[name]:>10.3f}{ratios[name]:>8.2f}{aim:>6.1f}")
    figures = {
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "rounds": arguments.rounds,
    }
    finish("launcher_speed", figures, arguments.write)


if __name__ == "__main__":
    main()
