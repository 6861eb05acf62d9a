"""One real rank, measured as a simulated one is: `torchrun measured_rank.py ROOT NAME...`.

A case is ROOT/NAME/job.toml; rank r leaves ROOT/NAME/measured-<r>.json, like `simulate --json`.
"""

import json
import sys
from pathlib import Path

from training import forget_job, leave_group

from titan_recipes.config.job import read_job
from titan_recipes.config.layout import RunLayout
from titan_recipes.trainer.data.loader import open_training_data
from titan_recipes.trainer.data.prepare import ensure_prepared
from titan_recipes.trainer.parallel.mesh import join_world
from titan_recipes.trainer.simulate.measure import measurable, measure
from titan_recipes.trainer.simulate.report import RankReport, as_json, place_of


def main(root: Path, names: list[str]) -> None:
    for name in names:
        layout = RunLayout(root / name)
        job = measurable(read_job(layout.job))
        prepared = ensure_prepared(job)
        world = join_world(job, layout.root)
        data = open_training_data(
            job, dp_rank=world.dp_rank, dp_degree=job.dp_degree, prepared=prepared
        )
        measured = measure(job, layout, world, data, lambda line: None)
        report = RankReport(world.rank, place_of(world), measured, 0)
        path = root / name / f"measured-{world.rank}.json"
        path.write_text(json.dumps(as_json(job, [report])))
        forget_job()
    leave_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
