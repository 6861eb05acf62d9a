"""What `cluster check` finds, whatever the scheduler."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from titan_recipes.errors import Problem

Finding = tuple[bool, Problem]
"""Whether it fails the check, and its line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A profile against its cluster."""

    site: str
    """The cluster and its version."""
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]
    said: str
    """What the cluster says of a job with the profile's options; "" = it refuses one."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "fits": not self.problems,
            "site": self.site,
            "problems": [_line(problem) for problem in self.problems],
            "notes": [_line(note) for note in self.notes],
            "said": self.said,
        }


def report_of(site: str, findings: Iterable[Finding], said: str) -> Report:
    """The findings, problems and notes apart."""
    found = [*findings]
    return Report(
        site=site,
        problems=tuple(line for is_problem, line in found if is_problem),
        notes=tuple(line for is_problem, line in found if not is_problem),
        said=said,
    )


def _line(line: Problem) -> dict[str, str]:
    return {"what": line.what, "got": line.got, "cure": line.cure}
