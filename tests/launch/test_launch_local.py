"""`titan_local` through torchx's Runner, and `launch`: what is written, what is refused."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from live_runs import until
from past_runs import attempt, debug_job, make_run, running
from torchx.runner import Runner
from torchx.schedulers import get_scheduler_factories
from torchx.specs import AppDef, AppDryRunInfo, AppState, AppStatus
from training import small_job

from titan_recipes.config.data_root import data_root
from titan_recipes.config.job import Job, read_job
from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import EXIT_USER, BundleError, ConfigError, LaunchError
from titan_recipes.launch.machine import check_trainer, fit, num_gpus
from titan_recipes.launch.record import known_outputs, read_record
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.submit import launch, preview
from titan_recipes.launch.titan_local import app_id, create_scheduler, find_run_dir
from titan_recipes.launch.torchrun import end_orphans, orphans
from titan_recipes.render import render

WAIT_FOR_STOP = """
import pathlib, sys, time
root = pathlib.Path(sys.argv[1]).parent
print("a line for people", flush=True)
while not (root / "STOP").exists():
    time.sleep(0.02)
(root / "REQUEUE").touch()
"""


def app_of(job: Job, outputs: Path, *args: str) -> AppDef:
    """The AppDef of a job's component, with more arguments for the node entry point."""
    names: dict[str, Callable[..., AppDef]] = {}
    exec(render(job, name="run", outputs=str(outputs))["component.py"], names)
    app = names["train"]()
    app.roles[0].args += args
    return app


@pytest.fixture
def runner() -> Runner:
    return Runner("session", {"titan_local": create_scheduler})


def torchx(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """torchx's command line, which knows our scheduler by its entry point."""
    command = [str(Path(sys.executable).parent / "torchx"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=180)


def test_titan_local_run_is_followed_and_stopped_by_another_process(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(WAIT_FOR_STOP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outputs = tmp_path / "outputs"
    layout = RunLayout(outputs / "run")
    app = app_of(debug_job("plan.gpus_per_node=1"), outputs, "--trainer-module", "worker")
    request: AppDryRunInfo[object] = runner.dryrun(app, "titan_local", workspace="")
    assert f"run directory  {layout.root}\n" in str(request)
    assert not outputs.exists()

    handle = runner.schedule(request)
    assert handle == f"titan_local://session/{app_id(layout.root)}"
    lines = iter(runner.log_lines(handle, "trainer", should_tail=True))
    assert next(lines) == "a line for people\n"  # while it runs
    record = read_record(layout)
    assert (record.handle, record.scheduler) == (handle, "titan_local")
    node = record.attempts[0].pid
    assert os.getsid(node) == node  # no terminal's Ctrl-C or hangup reaches it

    status = torchx("status", handle, cwd=tmp_path)
    assert "RUNNING" in status.stdout + status.stderr
    torchx("cancel", handle, cwd=tmp_path)
    assert list(lines) == []
    ended: AppStatus | None = runner.wait(handle, wait_interval=0.1)
    assert ended is not None
    assert (ended.state, ended.msg) == (AppState.CANCELLED, "asked to stop")
    (listed,) = runner.list("titan_local")
    assert (listed.app_id, listed.state) == (app_id(layout.root), AppState.CANCELLED)
    assert read_record(layout).attempts[0].outcome == "stopped"


def test_titan_local_when_the_run_began_before_refuses_to_start_it_again(
    runner: Runner, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "outputs", "run", attempt())
    app = app_of(debug_job(), tmp_path / "outputs")
    request: AppDryRunInfo[object] = runner.dryrun(app, "titan_local", workspace="")
    with pytest.raises(LaunchError, match=r"outputs/run: exists already; .*titan-recipes resume"):
        runner.schedule(request)
    assert len(read_record(run.layout).attempts) == 1


@contextmanager
def another_user() -> Iterator[None]:
    """As nobody, who may signal none of our processes and write none of our files."""
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_s_run_is_named_not_looped_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        monkeypatch.setenv("XDG_STATE_HOME", place)
        run = make_run(Path(place), "theirs", running())
        rank = [sys.executable, "-c", "input()", str(run.layout.job), "--attempt", "1"]
        with subprocess.Popen(rank, stdin=subprocess.PIPE) as process:
            until(lambda: orphans(run.layout) == [process.pid], "the rank")
            with another_user(), pytest.raises(LaunchError, match=f"process {process.pid} of anot"):
                end_orphans(run.layout)
            with another_user(), pytest.raises(LaunchError, match="theirs: not yours to stop"):
                create_scheduler("s")._cancel_existing(app_id(run.layout.root))
            assert process.poll() is None
            end_orphans(run.layout)
            assert process.wait() == -signal.SIGKILL


def test_app_id_leads_back_to_the_directory_and_only_to_it(tmp_path: Path) -> None:
    run = tmp_path / "a-b.c" / "run-1.x"
    run.mkdir(parents=True)
    assert find_run_dir(app_id(run)) is None  # a folder nobody launched into
    from titan_recipes.launch.record import remember_outputs

    remember_outputs(tmp_path / "elsewhere")
    remember_outputs(run.parent)
    assert find_run_dir(app_id(run)) == run
    assert find_run_dir("run-1.x-00000000") is None
    assert find_run_dir("") is None
    assert create_scheduler("s").describe("run-1.x-00000000") is None


def test_titan_local_when_the_component_needs_more_nodes_or_is_not_ours_refuses(
    runner: Runner, tmp_path: Path
) -> None:
    app = app_of(debug_job(), tmp_path)
    app.roles[0].num_replicas = 2
    with pytest.raises(LaunchError, match=r"plan\.nodes = 2, but titan_local has one"):
        runner.dryrun(app, "titan_local", workspace="")
    app.roles[0].args = ["echo"]
    with pytest.raises(LaunchError, match="only components that titan-recipes rendered"):
        runner.dryrun(app, "titan_local", workspace="")


def test_torchx_keeps_its_own_schedulers_beside_ours() -> None:
    assert {"titan_local", "local_cwd", "local_docker", "slurm", "kubernetes"} <= set(
        get_scheduler_factories()
    )


def test_component_run_by_stock_torchx_trains_to_the_end(corpus: Path, tmp_path: Path) -> None:
    job = small_job(corpus, "training.steps=2", "lr_scheduler.warmup_steps=1")
    (tmp_path / "component.py").write_text(render(job)["component.py"])
    dry = torchx("run", "--dryrun", "-s", "local_cwd", "component.py:train", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    words = ["run", "-s", "local_cwd", "component.py:train", "--name", "stock"]
    done = torchx(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    layout = RunLayout(tmp_path / "outputs" / "stock")
    record = read_record(layout)
    assert (record.scheduler, record.name) == ("local_cwd", "stock")
    assert record.attempts[0].outcome == "done"
    assert "step 2/2" in layout.node_log(0).read_text()
    assert "step 2/2" in done.stderr  # torchx's own following shows the lines, too


def test_launch_writes_the_run_and_records_how_it_ends(corpus: Path, tmp_path: Path) -> None:
    garbage = tmp_path / "tokenizer.model"
    garbage.write_text("not a tokenizer\n")
    job = small_job(corpus, f"model.tokenizer_path='{garbage}'")
    command = ["titan-recipes", "launch", "llama3_debug"]
    started = launch(job, outputs=tmp_path / "outputs", command=command)
    layout = started.layout
    assert layout.root.parent == tmp_path / "outputs"
    assert layout.root.name.startswith("llama3_debug-20")
    assert known_outputs() == [tmp_path / "outputs"]
    until(lambda: run_status(layout).state.is_final, "the run's end")
    record = read_record(layout)
    assert record.command == tuple(command)
    assert (record.name, record.scheduler, record.handle) == (
        (layout.root.name, "local", started.handle)
    )
    assert read_job(layout.job) == job
    assert read_record(layout).attempts[0].exit_code == EXIT_USER
    status = run_status(layout)
    assert status.state is RunState.FAILED
    assert status.cause.startswith(f"{garbage}: assets.tokenizer: no tokenizer of a known format")
    errors = [line for line in layout.node_log(0).read_text().splitlines() if line]
    assert errors == [f"error: {status.cause}"]
    assert "Traceback" not in layout.rank_log(0).read_text()
    again = render(job, name=layout.root.name, outputs=str(layout.root.parent))
    assert layout.component.read_text() == again["component.py"]


def test_launch_when_it_cannot_be_refuses_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without SLURM's commands
    job, outputs = debug_job(), tmp_path / "outputs"
    (outputs / "taken").mkdir(parents=True)
    for name, scheduler, words in [
        ("taken", "local", "exists already; choose another --name"),
        ("Upper", "local", "not a run name"),
        ("-x", "local", "not a run name"),
        ("a/b", "local", "not a run name"),
        ("x" * 64, "local", "not a run name"),
        ("x", "podman", "--scheduler podman: not supported yet; use one of: local, slurm"),
        ("x", "slurm", "there is no sbatch on this machine's PATH; run this on a login node"),
    ]:
        with pytest.raises(LaunchError, match=words):
            launch(job, outputs=outputs, command=[], name=name, scheduler=scheduler)
    nodes = replace(job, plan=replace(job.plan, nodes=2))
    with pytest.raises(ConfigError, match="needs 2 machines, --scheduler local has this one"):
        launch(nodes, outputs=outputs, command=[])
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(LaunchError, match=r"can't be made: .*see --outputs"):
        launch(job, outputs=file, command=[])
    assert [path.name for path in outputs.iterdir()] == ["taken"]
    assert not any((outputs / "taken").iterdir())
    assert known_outputs() == []


def test_launch_when_the_bundle_s_template_is_no_component_leaves_the_name_free(
    tmp_path: Path,
) -> None:
    templates = tmp_path / "mine" / "templates"
    templates.mkdir(parents=True)
    job = debug_job()
    tokenizer = data_root() / "recipes" / "llama3_debug" / "tokenizer.model"
    (templates.parent / "tokenizer.model").symlink_to(tokenizer)
    job = replace(job, origin=replace(job.origin, bundle=str(templates.parent)))
    for text, words in {"def train(:": "not Python", "x = 1": "torchx can't use what"}.items():
        (templates / "component.py.j2").write_text(text)
        with pytest.raises(BundleError, match=rf"component\.py\.j2.*{words}"):
            launch(job, outputs=tmp_path / "outputs", command=[], name="one")
        assert not (tmp_path / "outputs" / "one").exists()


@pytest.mark.parametrize("folder", ["a\nb", "a\x1b[1m", "a\udcff"])
def test_launch_when_outputs_hold_control_characters_refuses(tmp_path: Path, folder: str) -> None:
    with pytest.raises(LaunchError, match=r"--outputs .*holds control characters"):
        launch(debug_job(), outputs=tmp_path / folder, command=[])
    assert list(tmp_path.iterdir()) == []


def test_preview_is_what_launch_writes_and_looks_at_no_gpu(tmp_path: Path) -> None:
    job = debug_job()
    needs_gpus = replace(job, plan=replace(job.plan, gpu="h100", nodes=64))
    assert sorted(preview(needs_gpus, outputs="outputs")) == ["component.py", "job.toml"]
    with pytest.raises(LaunchError, match="not a run name"):
        preview(job, outputs="outputs", name="Upper")


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine with that many GPUs, as nvidia-smi lists them."""

    def put(count: int) -> None:
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.parent.mkdir(exist_ok=True)
        lines = "\n".join(f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-{n})" for n in range(count))
        smi.write_text(
            textwrap.dedent(
                """\
                #!/bin/sh
                [ "$*" = "-L" ] || exit 64
                cat <<'END'
                """
            )
            + f"{lines}\nEND\n"
        )
        smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return put


def test_num_gpus_counts_those_visible(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(4)
    assert num_gpus() == 4
    for visible, count in {"": 0, "-1": 0, "2": 1, "0,3": 2, "0,1,2,3,4,5": 4}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert num_gpus() == count, visible


def test_fit_when_the_plan_takes_any_gpu_caps_the_ranks(gpus: Callable[[int], None]) -> None:
    job = debug_job("plan.gpu='any'", "plan.gpus_per_node=2")
    for present, ranks, note in [(2, 2, ""), (8, 2, ""), (0, 2, ""), (1, 1, "1 GPU(s) here: ")]:
        gpus(present)
        fitted, said = fit(job)
        assert (fitted.plan.gpus_per_node, fitted.derived.world_size) == (ranks, ranks)
        assert said.startswith(note)
        assert bool(said) == bool(note)
        assert fitted.derived.tokens_per_step == job.derived.tokens_per_step
        assert fitted.origin == job.origin
        assert not said or said.endswith(f"still {job.derived.tokens_per_step:,} tokens per step")


def test_fit_when_named_gpus_are_missing_refuses(gpus: Callable[[int], None]) -> None:
    job = debug_job()
    job = replace(job, plan=replace(job.plan, gpu="h100", gpus_per_node=8))
    gpus(2)
    with pytest.raises(ConfigError, match=r"has 2; .* --set plan.gpus_per_node=2, choose") as few:
        fit(job)
    assert "plan.gpu=cpu" not in str(few.value)
    gpus(8)
    assert fit(job) == (job, "")


def test_check_trainer_when_torch_is_missing_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_trainer()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LaunchError, match=r"needs torch, .*; pip install .*\[trainer\]'"):
        check_trainer()
