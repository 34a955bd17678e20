import pytest

from steval.errors import ConfigError, UnknownPerturbationError
from steval.settings import Settings, apply_overrides


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
    with pytest.raises(ConfigError, match="no such place"):
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
