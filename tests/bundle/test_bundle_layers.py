"""The digest of a bundle, the layers it makes, and what is wrong with its files."""

import hashlib
from pathlib import Path

import pytest

from titan_recipes.bundle.bundle import Bundle
from titan_recipes.errors import ConfigError


def problems(bundle: Bundle, plan: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        bundle.layers(plan)
    return [str(problem) for problem in caught.value.problems]


def edit(bundle: Bundle, file: str, old: str, new: str) -> None:
    path = bundle.path / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_layers_when_all_is_well_are_the_four_files_in_order(tiny: Bundle):
    layers = tiny.layers()
    names = ["recipe.toml", "model.toml", "train.toml", "plans/cpu2.toml"]
    assert [layer.where for layer in layers] == [f"recipes/tiny/{name}" for name in names]
    assert layers[1].data["model"]["dim"] == 256
    assert layers[3].data["plan"]["gpus_per_node"] == 2
    assert tiny.layers("cpu1")[3].data["plan"]["gpus_per_node"] == 1


def test_digest_is_sha256_over_sorted_names_and_contents(tmp_path: Path, write):
    folder = write(tmp_path / "x", {"b": "two", "a/z": "", "B": "three"})
    expected = b"B\x005\x00three" + b"a/z\x000\x00" + b"b\x003\x00two"
    assert Bundle(folder).digest() == hashlib.sha256(expected).hexdigest()


def test_digest_when_leftovers_appear_stays_and_when_a_template_does_changes(tiny: Bundle, write):
    before = tiny.digest()
    names = (".git/x", ".hidden", "__pycache__/a.pyc", "train.toml~", "#x#", "a.swp", "a.bak")
    write(tiny.path, dict.fromkeys(names, "x"))
    assert tiny.digest() == before
    write(tiny.path, {"templates/component.py.j2": "x"})
    assert tiny.digest() != before


def test_layers_when_section_is_in_wrong_file_names_its_home(tiny: Bundle):
    edit(tiny, "recipe.toml", "[assets]", "[optimizer]\nlr = 1.0\n[assets]")
    edit(tiny, "train.toml", "[optimizer]", "[plan]\nnodes = 1\n[optimizer]")
    edit(tiny, "model.toml", "[model]", "[assets]\ntokenizer = 'x'\n[model]")
    edit(tiny, "plans/cpu2.toml", "[training]", "[model]\ndim = 8\nconverters = []\n[training]")
    assert problems(tiny) == [
        "recipes/tiny/recipe.toml: optimizer: does not belong here; move it to train.toml",
        "recipes/tiny/model.toml: assets: does not belong here; move it to recipe.toml",
        "recipes/tiny/train.toml: plan: does not belong here; move it to plans/<plan>.toml",
        "recipes/tiny/plans/cpu2.toml: model.dim: not in a plan; move it to model.toml",
    ]


def test_layers_when_files_are_bad_reports_all_of_them(tiny: Bundle, write):
    (tiny.path / "model.toml").unlink()
    (tiny.path / "train.toml").write_bytes(b"[training]\n# \xff\n")
    write(tiny.path, {"plans/cpu2.toml": "[plan\n", "setup.py": "", "trian.toml": ""})
    assert problems(tiny) == [
        "recipes/tiny/setup.py: Python in a bundle; remove it: a bundle is data only",
        'recipes/tiny/trian.toml: not a file of a bundle; did you mean "train.toml"?',
        "recipes/tiny/model.toml: no such file",
        "recipes/tiny/train.toml: not UTF-8: byte 0xff at position 13; save the file as UTF-8",
        "recipes/tiny/plans/cpu2.toml: not TOML: Expected ']' at the end of a table declaration "
        "(at line 1, column 6)",
    ]


def test_layers_when_plan_is_unknown_names_those_there_are(tiny: Bundle):
    assert problems(tiny, "cpu3") == [
        'recipes/tiny/plans: no plan "cpu3"; did you mean "cpu2"?',
    ]
    assert problems(tiny, "tpu_v5e") == [
        'recipes/tiny/plans: no plan "tpu_v5e"; plans there: cpu1, cpu2',
    ]
    edit(tiny, "recipe.toml", '"cpu2"', '"gone"')
    assert problems(tiny) == [
        'recipes/tiny/recipe.toml: recipe.default_plan: no plan "gone"; plans there: cpu1, cpu2',
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'name = "tiny"',
            'name = "big"',
            'recipe.name: "big", but the directory is "tiny"; write name = "tiny", or rename one',
        ),
        (
            'version = "0.1.0"',
            'version = "1.0"',
            'recipe.version: got "1.0"; write MAJOR.MINOR.PATCH, like "1.2.0"',
        ),
        (
            'requires = ">=0.1"',
            'requires = ">=99"',
            'recipe.requires: ">=99", but this is titan-recipes 0.1.0; pip install '
            '"titan-recipes>=99", or take another version of the recipe',
        ),
        (
            'requires = ">=0.1"',
            'requires = "new"',
            'recipe.requires: got "new"; write a version specifier, like ">=0.1,<1"',
        ),
    ],
)
def test_layers_when_identity_does_not_fit_says_how_to_mend_it(
    tiny: Bundle, old: str, new: str, expected: str
):
    edit(tiny, "recipe.toml", old, new)
    assert problems(tiny) == [f"recipes/tiny/recipe.toml: {expected}"]


def test_layers_when_a_section_is_unknown_leaves_it_to_the_schema(tiny: Bundle):
    edit(tiny, "train.toml", "[optimizer]", "[optimiser]")
    assert "optimiser" in tiny.layers()[2].data


def test_plans_are_sorted_by_number(tiny: Bundle, write):
    write(tiny.path, {f"plans/h100x{n}.toml": "" for n in (128, 8, 64)})
    assert tiny.plans() == ["cpu1", "cpu2", "h100x8", "h100x64", "h100x128"]


@pytest.mark.parametrize("name", ["_tiny", "ti ny", "t\u00efny"])
def test_name_that_no_run_could_have_is_refused(tiny: Bundle, name: str):
    edit(tiny, "recipe.toml", 'name = "tiny"', f'name = "{name}"')
    renamed = Bundle(tiny.path.rename(tiny.path.with_name(name)))
    with pytest.raises(ConfigError) as caught:
        renamed.layers()
    assert str(caught.value) == (
        f'recipes/{name}/recipe.toml: recipe.name: got "{name}"; '
        'use letters, digits, "_", "-", "."; a letter or digit first'
    )
