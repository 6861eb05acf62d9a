"""A real run on two pods, disturbed in the middle, trains what an undisturbed one does."""

from pathlib import Path

import pytest
from training import column

from tests.kubernetes.pod_cluster import PodCluster
from tests.kubernetes.pod_runs import Place, attempts, call, wait_for, wait_for_end
from tests.parity import parity_job, train_all
from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.kubernetes_mirror import mirrored
from titan_recipes.launch.state import run_status

STEPS, SAVED_STEP = 12, 3
SETTINGS = (
    f"training.steps={STEPS}",
    "checkpoint.enable=true",
    f"checkpoint.interval={SAVED_STEP}",
    "plan.nodes=2",
)


@pytest.mark.slow
def test_two_pods_of_which_one_is_killed_train_as_if_undisturbed(
    place: Place, pods: PodCluster, corpus: Path, tmp_path: Path
) -> None:
    job = parity_job(corpus, *SETTINGS, ranks=1, dp=2)
    train_all(tmp_path, {"undisturbed": job})

    words = [word for setting in job.origin.overrides for word in ("--set", setting)]
    launched = call(
        "launch", "llama3_debug", *words, "--cluster", place.profile, "--name", "a",
        "--outputs", place.outputs, "--detach",
    )  # fmt: skip
    assert launched.exit_code == 0, launched.output
    layout = RunLayout(place.outputs / "a")

    with mirrored(layout):  # as somebody does who follows it
        wait_for(lambda: reached(layout) > SAVED_STEP, layout)
        pods.kill(1)
        wait_for_end(layout)

    killed, resumed = attempts(layout)
    assert killed.outcome in ("failed", "stopped")  # whichever node 0 hears of first
    assert killed.step_to >= SAVED_STEP
    assert (resumed.step_from, resumed.step_to) == (killed.step_to, STEPS)
    for name in ("loss", "grad_norm", "lr"):
        expected = column(tmp_path / "undisturbed", name)
        assert len(expected) == STEPS
        assert column(layout.root, name) == expected
        assert column(place.volume / "a", name) == expected
    for rank in (0, 1):
        shown = call("logs", layout.root, "--rank", rank)
        raw = (place.volume / "a/logs" / f"rank-{rank}.log").read_text().splitlines()
        assert shown.exit_code == 0, shown.output
        assert {*shown.output.splitlines()} <= {*raw}
    assert call("logs", layout.root, "--node", 1).exit_code == 0


def reached(layout: RunLayout) -> int:
    """The last step that this machine has seen, once it has asked."""
    run_status(layout)
    return len(layout.metrics.read_text().splitlines()) if layout.metrics.exists() else 0
