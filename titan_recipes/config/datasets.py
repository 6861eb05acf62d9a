"""The datasets by name, and what each needs: checked on the laptop, read by the trainer.

Every dataset but c4_test has a held-out part, `NAME_validation`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from titan_recipes.config.load import did_you_mean
from titan_recipes.config.schema import Config
from titan_recipes.errors import Problem

VALIDATION = "_validation"
DATASETS: dict[str, str] = {
    "stdlib": "",
    "text": "it needs a file, a directory or a glob of jsonl, parquet or txt",
    "chat": "it needs a file, a directory or a glob of jsonl or parquet",
    "c4": "",
    "c4_test": "its file is not part of titan-recipes: get tests/assets/c4_test from torchtitan's "
    "repository and name it here",
    "hub": 'it needs a repository, such as "owner/name", or a directory that `datasets` wrote',
}
"""Name -> what its path must be; "" = it has a place of its own."""
STREAMED = ("c4", "hub")
"""The datasets that data.streaming works with."""

CHAT = "chat"
"""The dataset whose rows are conversations."""

WhereOf = Callable[[str], str]


def names() -> list[str]:
    """Every name that training.dataset, validation.dataset and data.sources take."""
    return [*DATASETS, *(f"{name}{VALIDATION}" for name in DATASETS if name != "c4_test")]


def is_chat(dataset: str) -> bool:
    """Whether a dataset's rows are conversations."""
    return dataset.removesuffix(VALIDATION) == CHAT


def dataset_problem(dataset: str, path: str, key: str, where: str) -> Problem | None:
    """What is wrong with a dataset and its path, before anything is looked at.

    key: the section that names them: "training", "validation" or "data.sources.0".
    """
    if dataset not in names():
        cure = did_you_mean(dataset, names()) or f"one of {', '.join(names())}"
        return Problem(where, f"{key}.dataset", f'no dataset "{dataset}"', cure)
    need = DATASETS[dataset.removesuffix(VALIDATION)]
    if need and not path:
        path_key = f"{key}.path" if key.startswith("data.sources") else f"{key}.dataset_path"
        return Problem(where, path_key, f'not set, for dataset "{dataset}"', need)
    return None


@dataclass(frozen=True, slots=True)
class Asked:
    """One dataset that a config reads; key: "training", "validation" or "data.sources.0"."""

    dataset: str
    path: str
    key: str

    @property
    def is_chat(self) -> bool:
        """Whether its rows are conversations."""
        return is_chat(self.dataset)

    @property
    def path_key(self) -> str:
        """The dotted key that names its path."""
        return f"{self.key}.path" if self.key.startswith("data.") else f"{self.key}.dataset_path"


def asked_datasets(config: Config) -> list[Asked]:
    """Every dataset that a config reads: those it trains on, then the one it validates on."""
    training, validation = config.training, config.validation
    asked = [
        Asked(s.dataset, s.path, f"data.sources.{i}") for i, s in enumerate(config.data.sources)
    ]
    if not asked:
        asked = [Asked(training.dataset, training.dataset_path, "training")]
    if validation.enable:
        asked.append(Asked(validation.dataset, validation.dataset_path, "validation"))
    return asked


def dataset_problems(config: Config, where_of: WhereOf) -> Iterator[Problem]:
    """What is wrong with the datasets that a config reads."""
    training, data = config.training, config.data
    for asked in asked_datasets(config):
        dataset, path, key = asked.dataset, asked.path, asked.key
        set_by = "data.sources" if key.startswith("data.") else f"{key}.dataset"
        if problem := dataset_problem(dataset, path, key, where_of(set_by)):
            yield problem
    if data.streaming and not data.sources and training.dataset not in STREAMED:
        got = f'does not work with dataset "{training.dataset}"'
        cure = f"stream {' or '.join(STREAMED)}, or set it to false"
        yield Problem(where_of("data.streaming"), "data.streaming", got, cure)
