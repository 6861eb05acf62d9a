"""The learning rate past the end of its schedule."""

from pathlib import Path

import pytest
from training import small_job

from titan_recipes.trainer.optimizer import lr_factor


@pytest.mark.parametrize(
    ("decay_ratio", "expected"),
    [
        ("0.0", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("0.5", [0.5, 1.0, 0.7, 0.4, 0.1, 0.1, 0.1]),
    ],
)
def test_lr_past_the_schedule_stays_at_the_peak_or_the_floor(
    corpus: Path, decay_ratio: str, expected: list[float]
) -> None:
    job = small_job(
        corpus,
        "training.steps=7",
        "lr_scheduler.total_steps=4",
        "lr_scheduler.warmup_steps=2",
        f"lr_scheduler.decay_ratio={decay_ratio}",
        "lr_scheduler.decay_type='linear'",
        "lr_scheduler.min_lr_factor=0.1",
    )
    assert [lr_factor(step, job) for step in range(1, 8)] == pytest.approx(expected)
