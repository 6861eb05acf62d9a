"""A folder of safetensors, as Hugging Face publishes weights: what is in it, and slices of it.

Only headers are read when it is opened; a tensor's bytes are read when a slice of it is asked for,
and only those bytes.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from titan_recipes.config.schema import Model
from titan_recipes.errors import CheckpointError, ConfigError, Problem
from titan_recipes.trainer.hf.config import check_config
from titan_recipes.trainer.hf.key_map import Part, key_map, our_shapes, stored_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""The types read; anything else is a quantized format."""

_DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")
_LAYER = re.compile(r"model\.layers\.(\d+)\..+")
_SHOWN = 40


class ModelWeights:
    """The tensors of a model of ours in a folder's safetensors files, by our names."""

    def __init__(self, folder: Path, sizes: Model) -> None:
        """Read all headers. Raises ConfigError for a folder without such files or a config.json of
        another model, and CheckpointError for missing or torn files and for wrong, missing or
        surplus tensors; each names all there are."""
        check_config(folder, sizes)
        self._folder, self._sizes = folder, sizes
        self._stored = _open_files(folder)
        self.ignored = self._check()
        """Names of stored tensors that no model of ours has a use for."""
        self._parts = key_map(sizes)
        self.shapes = {name: tuple(shape) for name, shape in our_shapes(sizes).items()}

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor, as `read` gives it."""
        parts = self._parts[name]
        return self._stored_dtype(parts[0]) if parts else torch.float32

    def read(self, name: str, where: Sequence[slice] | None = None) -> Tensor:
        """A tensor, or a slice of it; where: start and stop in each dim.

        It is zeros where theirs has none, and experts that are stored one by one are stacked.
        """
        where = where or [slice(0, size) for size in self.shapes[name]]
        parts = self._parts[name]
        if not parts:
            return torch.zeros([part_slice.stop - part_slice.start for part_slice in where])
        if parts[0].expert is None:
            return self._read_part(parts[0], where)
        return torch.stack([self._read_part(part, where[1:]) for part in parts[where[0]]])

    def load(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Whole tensors."""
        return {name: self.read(name) for name in names}

    def _stored_dtype(self, part: Part) -> torch.dtype:
        return DTYPES[self._stored[part.name].get_dtype()]

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._stored[name].get_shape())

    def _read_part(self, part: Part, where: Sequence[slice]) -> Tensor:
        """A slice of our tensor (or of one expert of it), put together from the stored one.

        where: the slice in each dim of ours, start and stop given.
        """
        sizes = [part_slice.stop - part_slice.start for part_slice in where]
        if 0 in sizes:
            return torch.empty(sizes, dtype=self._stored_dtype(part))
        wanted = list(where)
        rows: Tensor | None = None
        if part.rows is not None:
            rows = torch.tensor(part.rows[wanted[0]])
            first, last = int(rows.min()), int(rows.max())
            wanted[0], rows = slice(first, last + 1), rows - first
        if part.transposed:
            wanted[-2:] = wanted[:-3:-1]
        if part.step > 1:
            wanted[-1] = slice(wanted[-1].start * part.step, wanted[-1].stop * part.step)
        try:
            tensor: Tensor = self._stored[part.name][tuple(wanted)]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._folder}: {part.name}: can't be read: {error}") from error
        tensor = tensor[..., part.first :: part.step]
        if part.transposed:
            tensor = tensor.transpose(-1, -2)
        return tensor if rows is None else tensor[rows]

    def _check(self) -> list[str]:
        """Compare with what the model has; returns what there is and is not wanted, by name.

        Raises CheckpointError that names every missing, surplus and misshapen tensor at once.
        """
        sizes = self._sizes
        wanted = stored_shapes(sizes)
        problems: list[str] = []
        ignored: list[str] = []
        for name in sorted({*wanted, *self._stored}, key=_natural):
            if name not in self._stored:
                problems.append(f"{name}: missing; wanted {wanted[name]}")
            elif name not in wanted:
                if self._is_ignored(name):
                    ignored.append(name)
                else:
                    problems.append(self._surplus(name))
            elif self._stored[name].get_dtype() not in DTYPES:
                got = self._stored[name].get_dtype()
                problems.append(f"{name}: of type {got}; wanted one of {', '.join(DTYPES)}")
            elif self._shape(name) != wanted[name]:
                problems.append(f"{name}: shape {self._shape(name)}; wanted {wanted[name]}")
        if problems:
            shown = problems[:_SHOWN]
            if len(problems) > _SHOWN:
                shown.append(f"and {len(problems) - _SHOWN:,} more")
            head = f"{self._folder} does not hold this {sizes.family} model"
            raise CheckpointError(f"{head}:\n  " + "\n  ".join(shown))
        return ignored

    def _is_ignored(self, name: str) -> bool:
        """Whether a surplus tensor is one that ours makes itself, or of layers we don't train."""
        if _DERIVED.fullmatch(name):
            return True
        layer = _LAYER.fullmatch(name)
        if self._sizes.family == "deepseek_v3" and layer and int(layer[1]) >= self._sizes.n_layers:
            return True  # multi-token prediction, which the library leaves out, too
        return name == "lm_head.weight" and self._sizes.tie_embeddings and self._is_tied()

    def _is_tied(self) -> bool:
        embedding = self._stored.get("model.embed_tokens.weight")
        output = self._stored["lm_head.weight"]
        if embedding is None or embedding.get_shape() != output.get_shape():
            return False
        rows = output.get_shape()[0]
        starts = range(0, rows, 4096)  # both matrices whole would be gigabytes
        return all(torch.equal(embedding[i : i + 4096], output[i : i + 4096]) for i in starts)

    def _surplus(self, name: str) -> str:
        text = f"{name}: shape {self._shape(name)}; the model has no such tensor"
        if name == "lm_head.weight" and self._sizes.tie_embeddings:
            return f"{text}: tie_embeddings is true, and it differs from model.embed_tokens.weight"
        if name.endswith(("_scale_inv", "_blocks", "_scales")):
            return f"{text}: quantized weights; convert them to bfloat16 first"
        return text


def _open_files(folder: Path) -> dict[str, Any]:
    """Stored name -> the slices of a tensor, in all the files of a folder."""
    tensors: dict[str, Any] = {}
    problems: list[str] = []
    for file in _files(folder):
        try:
            opened: Any = safe_open(folder / file, framework="pt")
            tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            problems.append(f"{file}: can't be read: {error}")
    if problems:
        raise CheckpointError(f"{folder}:\n  " + "\n  ".join(problems))
    return tensors


def _files(folder: Path) -> list[str]:
    """The safetensors files of a folder: those that its index names, or the single one."""
    if not folder.is_dir():
        raise ConfigError([Problem(str(folder), "", "no such directory")])
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            return sorted(set(index["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX}: can't be read ({error!r})") from error
    if (folder / SINGLE).is_file():
        return [SINGLE]
    there = sorted(path.name for path in folder.iterdir())
    got = f"neither {INDEX} nor {SINGLE}; there is: {', '.join(there[:8]) or 'nothing'}"
    cure = "`titan-recipes assets pull RECIPE` fetches published weights"
    raise ConfigError([Problem(str(folder), "", got, cure)])


def _natural(name: str) -> list[Any]:
    """A sort key that puts layer 2 before layer 10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
