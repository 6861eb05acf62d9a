"""The exception tree.

    TitanRecipesError            anything a user can cause and cure; the CLI prints it and exits 2
      ConfigError                one or more Problems in TOML, in --set, or in their arithmetic
      BundleError                a recipe, plan or cluster profile that can't be found or written
      LaunchError                a run that can't be started, found, stopped or resumed
      FaultError                 exit 3: data, checkpoint or numerics that need a person
        DataError                a token shard or source file that is missing, torn or corrupt
        CheckpointError          no checkpoint that can be loaded
        NumericsError            loss or gradient norm not finite, several steps in a row

Anything outside this tree is a bug of ours and keeps its traceback. Exit codes are the run
contract between ranks, node entry point and schedulers: `EXIT_DONE` ends a run, `EXIT_USER` and
`EXIT_FAULT` are never retried, everything else is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_USER = 2
EXIT_FAULT = 3


class TitanRecipesError(Exception):
    """Something the user can cure. `exit_code` is what a process that ends with it returns."""

    exit_code = EXIT_USER


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in the configuration.

    where: the file (or "--set"); what: the dotted key, "" for the whole file; got: what is wrong
    with it, with the value; cure: what to write instead, "" where there is no better advice.
    """

    where: str
    what: str
    got: str
    cure: str = ""

    def __str__(self) -> str:
        head = ": ".join(part for part in (self.where, self.what, self.got) if part)
        return f"{head}; {self.cure}" if self.cure else head


class ConfigError(TitanRecipesError):
    """Every problem found, together; `str()` has one per line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        assert self.problems, "a ConfigError needs at least one problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[Problem, ...]]]:
        # Between processes an exception is rebuilt from `args`, which hold the text.
        return type(self), (self.problems,)


class BundleError(TitanRecipesError):
    """A recipe, plan or cluster profile that can't be found, read or written."""


class LaunchError(TitanRecipesError):
    """A run that can't be started, found, stopped or resumed."""


class FaultError(TitanRecipesError):
    """A fault that no retry mends; a person has to look."""

    exit_code = EXIT_FAULT


class DataError(FaultError):
    """A token shard or source file that is missing, torn or corrupt."""


class CheckpointError(FaultError):
    """No checkpoint that can be loaded."""


class NumericsError(FaultError):
    """Loss or gradient norm not finite, several steps in a row."""
