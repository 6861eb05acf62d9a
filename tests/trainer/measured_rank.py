"""One real rank, measured as a simulated one is: `torchrun measured_rank.py ROOT NAME...`.

A case is ROOT/NAME/job.toml; rank r leaves ROOT/NAME/measured-<r>.json.
"""

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from titan_recipes.config.job import read_job
from titan_recipes.config.layout import RunLayout
from titan_recipes.trainer.data.loader import Batch, TrainingData, open_training_data
from titan_recipes.trainer.data.prepare import ensure_prepared
from titan_recipes.trainer.parallel.mesh import join_world
from titan_recipes.trainer.simulate.measure import Measured, measurable, measure


@dataclass
class Copied:
    """Real batches, as new tensors: a loader's own are made where no tracker sees them."""

    data: TrainingData

    def next_batch(self) -> Batch:
        batch = self.data.next_batch()
        assert batch.documents_BS is None
        return Batch(batch.tokens_BS.clone(), batch.labels_BS.clone())


def as_plain(measured: Measured) -> dict[str, object]:
    """What two measurements of a rank are compared by."""
    return {
        "start": measured.start.size,
        "steady": measured.steady.size,
        "parts": measured.steady.parts,
        "collectives": {f"{k.op} {k.axis}": list(t) for k, t in measured.collectives.items()},
    }


def main(root: Path, names: list[str]) -> None:
    for name in names:
        layout = RunLayout(root / name)
        job = measurable(read_job(layout.job))
        prepared = ensure_prepared(job)
        world = join_world(job, layout.root)
        mine = {"dp_rank": world.dp_rank, "dp_degree": job.dp_degree}
        data = Copied(open_training_data(job, **mine, prepared=prepared))
        measured = measure(job, layout, world, data, lambda line: None)
        (root / name / f"measured-{world.rank}.json").write_text(json.dumps(as_plain(measured)))
        gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
