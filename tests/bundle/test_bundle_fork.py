"""Forks: copied once, compared with and upgraded from their origin, offline."""

import shutil
from pathlib import Path

import pytest

from titan_recipes.bundle import fork as forks
from titan_recipes.bundle.bundle import Bundle
from titan_recipes.bundle.find import find_bundle
from titan_recipes.errors import BundleError, ConfigError


def edit(bundle: Bundle, file: str, old: str, new: str) -> None:
    path = bundle.path / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_fork_copies_everything_and_renames_the_recipe(workplace: Path):
    origin = find_bundle("llama3_8b")
    made = forks.fork(origin, "mine")
    assert made.path == workplace / "recipes" / "mine"
    assert made.files() == origin.files()
    text = (made.path / "recipe.toml").read_text()
    assert text == (origin.path / "recipe.toml").read_text().replace('"llama3_8b"', '"mine"')
    record = forks.forked_from(made)
    assert (record.name, record.version, record.source) == ("llama3_8b", origin.version, "")
    assert record.digest == origin.digest()
    assert made.layers()[0].data["recipe"]["name"] == "mine"


def test_fork_when_target_exists_overwrites_nothing(tiny: Bundle, workplace: Path):
    before = tiny.digest()
    with pytest.raises(BundleError) as caught:
        forks.fork(find_bundle("llama3_8b"), "tiny")
    expected = f"{workplace}/recipes/tiny exists; choose another name, or remove it first"
    assert str(caught.value) == expected
    assert tiny.digest() == before
    assert [path.name for path in (workplace / "recipes").iterdir()] == ["tiny"]


def test_fork_when_name_is_none_a_recipe_can_have_says_so(workplace: Path):
    with pytest.raises(BundleError) as caught:
        forks.fork(find_bundle("llama3_8b"), "my recipe@2")
    expected = '"my recipe@2" is no recipe name; use letters, digits, "_", "-", "."'
    assert str(caught.value) == expected


def test_diff_lists_keys_then_text(tiny: Bundle, workplace: Path):
    made = forks.fork(tiny, str(workplace / "elsewhere" / "mine"))
    edit(made, "train.toml", "seq_len = 512\nsteps", "seq_len = 64\nsteps")
    changes, text = forks.compare(made)
    assert [str(change) for change in changes] == ["train.toml: training.seq_len: 512 -> 64"]
    assert "--- tiny@0.1.0/train.toml\n+++ mine/train.toml\n" in text
    assert "\n-seq_len = 512\n+seq_len = 64\n" in text


def test_upgrade_when_origin_moved_takes_its_changes_and_keeps_mine(tiny: Bundle):
    made = forks.fork(tiny, "mine")
    edit(made, "train.toml", "[optimizer]", "# why not\n[optimizer]")
    edit(made, "train.toml", "lr = 2e-3", "lr = 5e-3")
    edit(made, "recipe.toml", 'version = "0.1.0"', 'version = "7.0.0"')
    edit(tiny, "train.toml", "warmup_steps = 20", "warmup_steps = 30")
    edit(tiny, "recipe.toml", 'version = "0.1.0"', 'version = "0.2.0"')
    (tiny.path / "plans" / "cpu4.toml").write_text("[plan]\ngpus_per_node = 4\n")

    proposed = forks.upgrade(made, dry_run=True)
    assert not proposed.written
    assert made.plans() == ["cpu1", "cpu2"]
    result = forks.upgrade(made)
    assert result.written
    assert (result.before, result.after) == ("0.1.0", "0.2.0")
    assert [str(change) for change in result.merged.taken] == [
        "plans/cpu4.toml: (none) -> 25 bytes",
        "train.toml: lr_scheduler.warmup_steps: 20 -> 30",
    ]
    text = (made.path / "train.toml").read_text()
    assert "# why not\n[optimizer]\nlr = 5e-3\n" in text
    assert "warmup_steps = 30" in text
    assert made.plans() == ["cpu1", "cpu2", "cpu4"]
    assert made.version == "7.0.0"
    assert forks.forked_from(made).digest == tiny.digest()
    again = forks.upgrade(made)
    assert (again.written, again.merged.taken) == (False, [])


def test_upgrade_when_both_changed_writes_nothing_until_told(tiny: Bundle):
    made = forks.fork(tiny, "mine")
    edit(made, "train.toml", "lr = 2e-3", "lr = 5e-3")
    edit(tiny, "train.toml", "lr = 2e-3", "lr = 1e-3")
    edit(tiny, "train.toml", "warmup_steps = 20", "warmup_steps = 30")
    before = made.digest()
    result = forks.upgrade(made)
    assert [str(conflict) for conflict in result.merged.conflicts] == [
        "train.toml: optimizer.lr: mine 0.005, origin 0.001 (was 0.002)"
    ]
    assert not result.written
    assert made.digest() == before
    assert forks.upgrade(made, prefer="mine").written
    assert "lr = 5e-3" in (made.path / "train.toml").read_text()
    assert "warmup_steps = 30" in (made.path / "train.toml").read_text()


def test_upgrade_when_cut_short_before_its_base_moved_finishes_the_next_time(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch
):
    made = forks.fork(tiny, "mine")
    edit(tiny, "train.toml", "warmup_steps = 20", "warmup_steps = 30")

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forks, "_replace_origin", power_cut)
        with pytest.raises(KeyboardInterrupt):
            forks.upgrade(made)
    result = forks.upgrade(made)
    assert result.written
    assert result.merged.conflicts == []
    assert forks.forked_from(made).digest == tiny.digest()


def test_upgrade_when_there_is_no_origin_says_why(tiny: Bundle, workplace: Path):
    with pytest.raises(BundleError) as caught:
        forks.upgrade(tiny)
    assert str(caught.value) == (
        "recipes/tiny: not a fork, it has no .origin/origin.toml; "
        "`titan-recipes fork tiny NEW_NAME` makes one"
    )
    made = forks.fork(tiny, "mine")
    shutil.rmtree(tiny.path)
    assert forks.compare(made)[0] == []
    with pytest.raises(BundleError) as caught:
        forks.upgrade(made)
    assert str(caught.value) == (
        f'the origin "tiny" is gone from {workplace}/recipes/tiny; the fork works alone'
    )


def test_diff_when_the_kept_origin_was_edited_refuses_it(tiny: Bundle):
    made = forks.fork(tiny, "mine")
    (made.path / ".origin" / "files" / "train.toml").write_text("")
    with pytest.raises(BundleError) as caught:
        forks.compare(made)
    assert str(caught.value) == (
        "recipes/mine/.origin/files: not the origin as it was forked; "
        "fork the origin again and copy your changes over"
    )


@pytest.mark.parametrize("text", ["recipe = 3\n", "[[recipe]]\nname = 'tiny'\n"])
def test_fork_when_recipe_is_no_table_says_so(tiny: Bundle, workplace: Path, text: str):
    (tiny.path / "recipe.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        forks.fork(tiny, "mine")
    assert str(caught.value) == (
        "recipes/tiny/recipe.toml: recipe: not a table; write it as [recipe]"
    )
    assert [path.name for path in (workplace / "recipes").iterdir()] == ["tiny"]


def test_fork_when_target_has_no_home_or_no_room_says_so(tiny: Bundle, workplace: Path):
    with pytest.raises(BundleError) as caught:
        forks.fork(tiny, "~no such user/x")
    assert str(caught.value) == "~no such user/x: no such home directory; write the path in full"
    with pytest.raises(BundleError, match="can't be written: File name too long"):
        forks.fork(tiny, "a" * 300)
    (workplace / "recipes" / "link").symlink_to("link")
    with pytest.raises(BundleError, match="link exists; choose another name"):
        forks.fork(tiny, "link")


def test_upgrade_when_origin_removed_rope_scaling_removes_it(tiny: Bundle):
    with (tiny.path / "model.toml").open("a") as file:
        file.write("\n[model.rope_scaling]\nfactor = 32.0\n")
    made = forks.fork(tiny, "mine")
    assert made.resolve().job.model.rope_scaling is not None
    edit(made, "model.toml", "n_layers = 6", "n_layers = 4")
    edit(tiny, "model.toml", "\n[model.rope_scaling]\nfactor = 32.0\n", "")
    assert forks.upgrade(made).written
    model = made.resolve().job.model
    assert (model.n_layers, model.rope_scaling) == (4, None)
