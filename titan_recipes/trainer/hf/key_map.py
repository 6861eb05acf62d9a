"""Our tensor names <-> Hugging Face's, and how a tensor of one is made of the other's.

The decoder itself says what tensors there are: it is built on the meta device, which costs no
memory, and each of its names is looked up in the family's table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from titan_recipes.config.schema import Model
from titan_recipes.trainer.hf.families import ARCHITECTURES, Stored
from titan_recipes.trainer.model.decoder import Decoder

_IN_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Part:
    """A Hugging Face tensor, or every n-th column of one, as ours or as one expert of ours.

    ours, or ours[expert], is hf[..., first::step], its last two dims swapped where `transposed`,
    its rows then taken in the order `rows`.
    """

    name: str
    expert: int | None = None
    first: int = 0
    step: int = 1
    transposed: bool = False
    rows: tuple[int, ...] | None = None

    def stored_shape(self, ours: Sequence[int]) -> tuple[int, ...]:
        """The Hugging Face tensor's shape, from that of our whole tensor."""
        shape = list(ours if self.expert is None else ours[1:])
        if self.transposed:
            shape[-2:] = shape[:-3:-1]
        shape[-1] *= self.step
        return tuple(shape)

    def put(self, ours: Tensor, stored: Tensor) -> None:
        """Write our whole tensor into its place in the Hugging Face one."""
        piece = ours if self.expert is None else ours[self.expert]
        if self.rows is not None:
            piece = piece[torch.tensor(self.rows).argsort()]
        if self.transposed:
            piece = piece.transpose(-1, -2)
        stored[..., self.first :: self.step].copy_(piece)


KeyMap = dict[str, tuple[Part, ...]]
"""Our name -> its parts; () = Hugging Face has no such tensor, and ours is zero."""


def our_shapes(sizes: Model) -> dict[str, torch.Size]:
    """Name and shape of every tensor that a checkpoint of this model holds."""
    with torch.device("meta"):
        return {name: value.shape for name, value in Decoder(sizes, 1).state_dict().items()}


def key_map(sizes: Model) -> KeyMap:
    """The parts of every tensor of ours; a tied output is its embedding's matrix."""
    return {name: _parts(sizes, name, shape) for name, shape in our_shapes(sizes).items()}


def stored_shapes(sizes: Model) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a Hugging Face checkpoint of this model."""
    shapes = our_shapes(sizes)
    return {
        part.name: part.stored_shape(shapes[name])
        for name, parts in key_map(sizes).items()
        for part in parts
    }


def _parts(sizes: Model, name: str, shape: torch.Size) -> tuple[Part, ...]:
    if name == "output.weight" and sizes.tie_embeddings:
        name = "tok_embeddings.weight"
    table = ARCHITECTURES[sizes.family].tensors
    in_layer = _IN_LAYER.fullmatch(name)
    below = in_layer[2] if in_layer else name
    if below in table:
        stored, kind = table[below], ""
    else:
        module, _, kind = below.rpartition(".")
        assert module in table, f"no Hugging Face name for {name}"
        stored = table[module]
    if stored is None:
        return ()
    stored = Stored(stored) if isinstance(stored, str) else stored
    prefix = f"model.layers.{in_layer[1]}." if in_layer else "model."
    full = "lm_head" if stored.name == "lm_head" else prefix + stored.name
    full += f".{kind}" if kind else ""
    rows = None if stored.rows is None else stored.rows(sizes)
    if "{expert}" not in full:
        return (Part(full, None, stored.first, stored.step, stored.transposed, rows),)
    return tuple(Part(full.format(expert=expert), expert) for expert in range(shape[0]))
