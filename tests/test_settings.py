import shutil
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field
from typer.testing import CliRunner

from steval import settings
from steval.cli.app import app
from steval.errors import ConfigError, UnknownPerturbationError
from steval.settings import Settings, apply_overrides, parse_yaml, read_yaml


class Inner(Settings):
    learning_rate: float = 1.0


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


def test_all_problems_at_once_with_the_nearest_key():
    with pytest.raises(ConfigError) as caught:
        Outer.parse({"name": 3, "inner": {"learning_rat": 1}, "many": [{"learning_rate": "x"}]}, "file.yaml")
    message = str(caught.value)
    assert "file.yaml is not valid" in message
    assert "inner.learning_rat: unknown key; did you mean 'learning_rate'?" in message
    assert "name:" in message and "many.0.learning_rate" in message


def test_overrides_reach_nested_places_and_lists(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: a\nmany:\n  - {learning_rate: 1}\n")
    settings = Outer.load(path, ["inner.learning_rate=0.5", "many.0.learning_rate=2e-3", "name=b"])
    assert (settings.name, settings.inner.learning_rate, settings.many[0].learning_rate) == ("b", 0.5, 2e-3)
    with pytest.raises(ConfigError, match=r"KEY\.SUBKEY=VALUE"):
        apply_overrides({}, ["name"])
    with pytest.raises(ConfigError, match="name is 'a', which has nothing inside"):
        apply_overrides({"name": "a"}, ["name.x=1"])


def test_equal_settings_have_equal_digests():
    assert Outer(name="a").digest() == Outer.parse({"inner": {}, "name": "a"}).digest() != Outer(name="b").digest()


@pytest.mark.parametrize("text", ["- a\n", "a: [", ""], ids=["list", "broken", "empty"])
def test_what_is_no_mapping_is_a_config_error(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        Outer.load(path)


def test_unknown_perturbations_name_the_nearest():
    error = UnknownPerturbationError(["stat1", "ZZZZ"], ["STAT1", "STAT2", "MED12"])
    assert "'stat1': nearest known STAT1, STAT2" in str(error)
    assert "'ZZZZ': nearest known none" in str(error)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10))
LONG = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 200)}]"
ENDLESS = "a: &a [*a]"
DEEP = "a: " + "[" * 5000


@pytest.mark.parametrize("text", [BOMB, MERGES, LONG, ENDLESS])
def test_aliases_are_bounded_before_anything_is_built(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml is refused: with its aliases"):
        read_yaml(path)


@pytest.mark.parametrize(("value", "answer"), [("&a [*a]", "is refused"), ("[", "is not YAML")])
def test_values_of_set_are_held_to_the_same(value, answer):
    with pytest.raises(ConfigError, match=f"--set a=.*{answer}"):
        apply_overrides({}, [f"a={value}"])


def test_aliases_of_the_usual_size_are_values():
    assert parse_yaml("a: &a {k: [1, 2]}\nb: {<<: *a, c: *a}", "c") == {
        "a": {"k": [1, 2]},
        "b": {"k": [1, 2], "c": {"k": [1, 2]}},
    }


@pytest.mark.parametrize(
    "text", [DEEP, "a: [", "a: !!int ''", "a: !!bool x", "a: !!timestamp x", "a: 2024-13-45", "\x00"]
)
def test_what_is_no_yaml_is_said(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml is not"):
        read_yaml(path)


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text("a: [1, 2]")
    monkeypatch.setattr(settings, "MAX_YAML_BYTES", path.stat().st_size)
    assert read_yaml(path) == {"a": [1, 2]}
    path.write_text("a: [1, 22]")
    with pytest.raises(ConfigError, match="larger than 9 bytes"):
        read_yaml(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: 1", encoding="utf-8-sig")
    assert read_yaml(path) == {"a": 1}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("batch", "config.yaml", "--dry-run"), 2),
        (("finetune", "config.yaml", "--run", "run"), 2),
        (("doctor", "config.yaml"), 2),
        (("inspect", "arc"), 3),
        (("convert", "arc", "-o", "out.safetensors"), 3),
    ],
)
def test_every_command_bounds_the_yaml_that_it_is_given(tmp_path, monkeypatch, arguments, code):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(__file__).parent / "data" / "golden" / "arc_run", "arc")
    for place in ("config.yaml", "arc/config.yaml"):
        Path(place).write_text(BOMB)
    result = CliRunner().invoke(app, list(arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert "config.yaml is refused: with its aliases" in " ".join(result.stderr.split())


class Detail(Settings):
    weight: float = 1.0
    name: str = "a"


class One(Settings):
    by: Literal["one"] = "one"
    val: float = 0.1


class Two(Settings):
    by: Literal["two"] = "two"
    path: str = ""


class Whole(Settings):
    inner: Detail = Detail()
    choice: Annotated[One | Two, Field(discriminator="by")] = One()
    size: int = 1


@pytest.mark.parametrize(
    ("text", "overrides", "blamed"),
    [
        ("size: 1", ["inner.name=0"], "--set inner.name=0 is not valid"),
        ("size: 1", ["inner={name: 0}", "size=2"], "--set inner={name: 0} is not valid"),
        ("size: x", ["inner.name=0"], "o.yaml is not valid"),
        ("size: 1", ["sise=2"], "--set sise=2 is not valid"),
        ("choice: {by: one, val: 1}", ["choice.by=two", "size=2"], "--set choice.by=two --set size=2 is not valid"),
    ],
)
def test_an_error_is_said_of_what_it_is_of(tmp_path, text, overrides, blamed):
    path = tmp_path / "o.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Whole.load(path, overrides)
    assert blamed in str(caught.value).splitlines()[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "-inf"])
def test_settings_are_finite(value):
    with pytest.raises(ConfigError, match=r"inner\.weight: .*finite"):
        Whole.parse({"inner": {"weight": value}})


def test_what_is_allowed_is_what_the_meant_kind_has():
    with pytest.raises(ConfigError, match=r"choice\.two\.val: unknown key; allowed: by, path"):
        Whole.parse({"choice": {"by": "two", "val": 0.2}})
