"""Four ranks that load Hugging Face weights sharded: `torchrun hf_program.py FOLDER...`.

Each folder is named after its family. Every rank compares each tensor, gathered, with a plain load.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.trainer.hf_models import SIZES
from tests.training import leave_group
from titan_recipes.config.schema import Model
from titan_recipes.trainer.hf.load import load_into
from titan_recipes.trainer.model.decoder import Decoder
from titan_recipes.trainer.state import model_state


def compare(name: str, loaded: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert loaded.keys() == plain.keys(), name
    for key, value in loaded.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        assert torch.equal(full, plain[key]), (name, key)


def spread(sizes: Model, mesh: dist.DeviceMesh) -> dict[str, Tensor]:
    """Tensors split in every way that a 2 x 2 mesh allows, one way after the other."""
    ways = [
        (Shard(0), Shard(0)),
        (Shard(0), Shard(1)),
        (Shard(1), Shard(0)),
        (Replicate(), Shard(0)),
    ]
    ways += [(Shard(1), Replicate()), (Shard(2), Shard(0)), (Shard(0), Shard(2))]
    state: dict[str, Tensor] = {}
    for number, (key, value) in enumerate(Decoder(sizes, 1).state_dict().items()):
        fitting = [w for w in ways if all(p.is_replicate() or p.dim < value.dim() for p in w)]
        placements = fitting[number % len(fitting)]
        state[key] = distribute_tensor(torch.full_like(value, -1), mesh, placements)
    return state


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    for folder in map(Path, sys.argv[1:]):
        sizes = SIZES[folder.name]
        plain = Decoder(sizes, 1).state_dict()
        load_into(plain, sizes, folder)
        state = spread(sizes, mesh)
        load_into(state, sizes, folder)
        compare(folder.name, state, plain)

        model = Decoder(sizes, 1)
        for layer in model.layers.values():
            fully_shard(layer)
        fully_shard(model)
        sharded = model_state([model])
        load_into(sharded, sizes, folder)
        compare(folder.name, sharded, plain)
        assert any(isinstance(value, DTensor) for value in sharded.values())

        stage = {key: torch.empty_like(value) for key, value in plain.items() if "s.1." in key}
        load_into(stage, sizes, folder)
        compare(folder.name, stage, {key: plain[key] for key in stage})
    if dist.get_rank() == 0:
        print("all equal")
    leave_group()


if __name__ == "__main__":
    main()
