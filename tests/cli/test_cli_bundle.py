"""The command line's shell, and its commands on recipes: what they print and how they exit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from titan_recipes import __version__
from titan_recipes.bundle.find import find_bundle
from titan_recipes.cli import COMMANDS, main
from titan_recipes.config.data_root import data_root


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TITAN_RECIPES_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments, prog_name="titan-recipes")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_every_command_has_help_with_an_example():
    for name in COMMANDS:
        result = run(name, "--help")
        assert result.exit_code == 0, name
        if name not in ("data", "checkpoint", "cluster", "image"):
            assert f"titan-recipes {name}" in result.stdout.partition("Example")[2], name


def test_version_and_module_are_the_same_program():
    command = [sys.executable, "-m", "titan_recipes.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"titan-recipes, version {__version__}\n"


def test_unknown_command_exits_2_and_guesses():
    result = run("lunch")
    assert result.exit_code == 2
    assert 'Error: no command "lunch"; did you mean "launch"?' in result.stderr
    result = run("frobnicate")
    assert 'Error: no command "frobnicate"; see --help for those there are' in result.stderr


def test_unknown_option_is_a_usage_error():
    result = run("list", "--jsn")
    assert result.exit_code == 2
    assert "No such option" in result.stderr


def test_user_error_prints_one_line_and_exits_2():
    result = run("show", "llama3_9b")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        f'error: no recipe "llama3_9b" in recipes, {data_root()}/recipes; '
        'did you mean "llama3_8b"?\n'
    )


def test_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    import titan_recipes.cli.recipes as recipes

    def bug() -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(recipes, "list_bundles", bug)
    with pytest.raises(ZeroDivisionError, match="ours"):
        run("list")


def test_list_prints_a_plain_table_when_piped():
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["RECIPE", "VERSION", "PLANS", "SUMMARY"]
    names = [line.split()[0] for line in lines[1:]]
    assert set(names) == {path.name for path in (data_root() / "recipes").iterdir()}
    assert names.index("llama3_8b") < names.index("llama3_70b") < names.index("llama3_debug")
    assert all(ord(character) < 128 for line in lines for character in line)


def test_list_by_tag_as_json():
    listed = json.loads(run("list", "--tag", "demo", "--json").stdout)
    assert [(entry["name"], entry["plans"]) for entry in listed] == [
        ("llama3_debug", ["cpu1", "cpu2"])
    ]
    assert listed[0]["path"] == str(data_root() / "recipes" / "llama3_debug")
    assert json.loads(run("list", "--tag", "none", "--json").stdout) == []


def test_list_imports_no_schema_no_pydantic_no_torchx_no_rich():
    code = (
        "import sys, titan_recipes.cli as c; c.main(['list'], standalone_mode=False); "
        "print(sorted({'pydantic', 'torchx', 'rich', 'jinja2', 'torch', 'tomlkit', 'packaging', "
        "'titan_recipes.config.schema'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_show_prints_facts_and_plans():
    text = run("show", "llama3_8b").stdout
    assert "parameters  8,030,261,248\n" in text
    assert f"digest      {find_bundle('llama3_8b').digest()}\n" in text
    rows = {line.split("  ")[0]: line for line in text.partition("PLAN ")[2].splitlines()[1:]}
    assert list(rows) == ["h100x8 (default)", "h100x128", "h200x8"]
    assert "1 x 8 h100" in rows["h100x8 (default)"]
    assert "1 x 64 x 8" in rows["h100x8 (default)"]
    assert "4,194,304" in rows["h100x8 (default)"]


def test_show_resolved_says_where_each_value_is_from():
    arguments = ("show", "llama3_debug", "--plan", "cpu1", "--resolved", "--json")
    values = json.loads(run(*arguments, "--set", "training.steps=7").stdout)
    assert values["training.steps"] == {"value": 7, "from": "--set"}
    assert values["model.dim"]["value"] == 256
    assert values["model.dim"]["from"] == str(data_root() / "recipes/llama3_debug/model.toml")
    assert values["plan.gpus_per_node"]["from"].endswith("plans/cpu1.toml")
    assert values["optimizer.beta1"] == {"value": 0.9, "from": "default"}
    assert values["derived.world_size"] == {"value": 1, "from": "derived"}
    plain = run("show", "llama3_debug", "--resolved").stdout
    assert plain.splitlines()[0].split() == ["KEY", "VALUE", "FROM"]


def test_validate_prints_the_arithmetic_of_every_plan():
    text = run("validate", "llama3_8b").stdout
    assert "llama3_8b h100x8: valid\n  world size = 1 nodes x 8 h100 = 8\n" in text
    assert (
        "  global batch = 1 sequences x 64 accumulation steps x 8 ranks = 512\n"
        "  tokens per step = 512 x 8,192 = 4,194,304\n"
    ) in text
    assert "llama3_8b h200x8: valid\n" in text
    assert run("validate", "llama3_8b", "--plan", "h200x8").stdout.count(": valid\n") == 1


def test_validate_when_several_things_are_wrong_names_each_once(workplace: Path):
    assert run("fork", "llama3_8b", "mine").exit_code == 0
    folder = workplace / "recipes" / "mine"
    with (folder / "train.toml").open("a") as file:
        file.write("\n[metrics]\nlog_frq = 5\n")
    for name in ("h100x128", "h200x8"):
        plan = folder / "plans" / f"{name}.toml"
        plan.write_text(plan.read_text().replace("gpus_per_node = 8", 'gpus_per_node = "8"'))
    result = run("validate", "mine")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        'error: recipes/mine/train.toml: metrics.log_frq: unknown key; did you mean "log_freq"?',
        'error: recipes/mine/plans/h100x128.toml: plan.gpus_per_node: got "8"; must be an integer',
        'error: recipes/mine/plans/h200x8.toml: plan.gpus_per_node: got "8"; must be an integer',
    ]


def test_validate_notes_what_is_dormant():
    text = run(
        "validate", "llama3_debug", "--plan", "cpu1", "--set", "compile.backend=eager"
    ).stdout
    assert "note: --set: compile.backend has no effect: compile.enable is false\n" in text


def test_fork_diff_upgrade_by_hand(workplace: Path):
    origin = workplace / "origin" / "base"
    done = run("fork", "llama3_8b", "./origin/base")
    assert done.stdout == (
        "forked llama3_8b to origin/base\n"
        "next: edit it, then `titan-recipes validate ./origin/base`\n"
    )
    run("fork", "./origin/base", "mine")
    mine = workplace / "recipes" / "mine" / "train.toml"
    mine.write_text(mine.read_text().replace("seq_len = 8192", "seq_len = 4096"))
    assert run("diff", "mine", "--keys").stdout == ("train.toml: training.seq_len: 8192 -> 4096\n")
    theirs = origin / "train.toml"
    theirs.write_text(theirs.read_text().replace("lr = 3e-4", "lr = 1e-4"))
    assert run("upgrade", "mine", "--dry-run").stdout == (
        "would take train.toml: optimizer.lr: 0.0003 -> 0.0001\n"
    )
    result = run("upgrade", "mine")
    assert result.stdout.splitlines()[:2] == [
        "took train.toml: optimizer.lr: 0.0003 -> 0.0001",
        "recipes/mine follows base@0.1.0 (was 0.1.0)",
    ]
    assert run("upgrade", "mine").stdout == "recipes/mine is up to date with base@0.1.0\n"
    theirs.write_text(theirs.read_text().replace("seq_len = 8192", "seq_len = 2048"))
    result = run("upgrade", "mine")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: both sides changed:\n"
        "  train.toml: training.seq_len: mine 4096, origin 2048 (was 8192)\n"
        "settle each in your files, or choose with --prefer mine|origin; nothing was written\n"
    )
    assert run("upgrade", "mine", "--prefer", "origin").exit_code == 0
    assert "seq_len = 2048" in mine.read_text()


def test_import_prints_each_key_and_the_next_step(workplace: Path):
    (workplace / "debug.toml").write_text(
        '[model]\nflavor = "8B"\n[training]\ndataset = "c4"\n[parallelism]\nx = 1\n'
    )
    result = run("import", "debug.toml")
    assert result.exit_code == 0
    assert "parallelism.x               unknown     left out; " in result.stdout
    assert result.stdout.endswith(
        "\nmade recipes/debug\nnext: `titan-recipes validate recipes/debug`\n"
    )
    assert run("validate", "debug").exit_code == 0


def test_import_when_a_key_is_not_supported_yet_says_so(workplace: Path):
    (workplace / "tp.toml").write_text(
        '[training]\ndataset = "c4"\n[parallelism]\nexpert_tensor_parallel_degree = 2\n'
    )
    result = run("import", "tp.toml", "-o", "made")
    assert result.exit_code == 0
    assert result.stdout.endswith(
        "it does not validate yet:\n"
        "  made/tp/plans/imported.toml: parallelism.expert_tensor_parallel_degree: "
        "2 is not supported yet; use 1\n"
    )


def test_schema_prints_json():
    assert list(json.loads(run("schema", "--section", "plan").stdout)["properties"]) == ["plan"]


def test_trainer_verb_when_the_extra_is_missing_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
):
    import titan_recipes.cli.trainer_verbs as verbs

    monkeypatch.setattr(verbs.importlib.util, "find_spec", lambda name: None)
    result = run("data", "prepare", "llama3_debug")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: this needs numpy, pyarrow, tiktoken, not installed here; "
        f"pip install -e '{data_root()}[trainer]'\n"
    )


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_checkpoint_verbs_run_the_trainers(verb: str, workplace: Path):
    command = [sys.executable, "-m", "titan_recipes.cli", "checkpoint", verb, str(workplace)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {workplace}: no checkpoints here\n"


def test_render_writes_what_a_dry_run_prints_and_overwrites_nothing(workplace: Path):
    arguments = ("llama3_debug", "--plan", "cpu1", "--set", "metrics.log_freq=7", "--name", "a")
    result = run("render", *arguments, "-o", "made/here")
    assert result.stdout == "wrote made/here/job.toml\nwrote made/here/component.py\n"
    folder = workplace / "made" / "here"
    files = {path.name: path.read_text() for path in folder.iterdir()}
    assert sorted(files) == ["component.py", "job.toml"]
    assert "\nlog_freq = 7\n" in files["job.toml"]
    printed = "\n".join(f"# ---- {name}\n{files[name]}" for name in ("job.toml", "component.py"))
    assert run("launch", *arguments, "--dry-run").stdout == f"{printed}\n"

    (folder / "job.toml").unlink()
    (folder / "component.py").write_text("mine")
    result = run("render", *arguments, "-o", "made/here")
    assert result.exit_code == 2
    assert result.stderr == ("error: made/here: has component.py already; choose another folder\n")
    assert [path.name for path in folder.iterdir()] == ["component.py"]
    result = run("render", *arguments, "-o", "made/here/component.py")
    assert result.stderr.startswith("error: made/here/component.py: can't be written: ")


def test_render_takes_the_cluster_profile(workplace: Path):
    (workplace / "c.toml").write_text('outputs = "/shared"\n[env]\nA = "b c"\n')
    assert run("render", "llama3_debug", "--cluster", "./c.toml", "-o", "out").exit_code == 0
    assert '[env]\nA = "b c"\n' in (workplace / "out" / "job.toml").read_text()
    assert "/shared" in (workplace / "out" / "component.py").read_text()
    result = run("render", "llama3_debug", "--scheduler", "kubernetes", "-o", "pods")
    assert result.exit_code == 0, result.stderr
    assert {path.name for path in (workplace / "pods").iterdir()} == {
        "component.py",
        "job.toml",
        "job.yaml",
    }
    assert run("render", "llama3_debug", "--scheduler", "slurm", "-o", "other").exit_code == 0
    script = (workplace / "other" / "train.sbatch").read_text()
    assert f"run_dir={workplace}/outputs/llama3_debug-" in script


def test_working_directory_that_is_gone_is_an_error(workplace: Path):
    gone = workplace / "gone"
    gone.mkdir()
    code = (
        "import os, titan_recipes.cli as c; os.chdir('gone'); os.rmdir('../gone'); c.main(['list'])"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the working directory is gone; cd to one that exists\n"
