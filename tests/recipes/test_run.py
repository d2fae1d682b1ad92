"""Settings of a run: read, checked, and refused in words."""

import dataclasses
import math

import pytest

from tinyplm.errors import CheckpointError, ConfigError, MissingFileError
from tinyplm.recipes.run import Run, from_settings, read_saved, read_toml


def test_saved_settings_are_read_as_they_were(tmp_path):
    run = Run(steps=7, lr=1e-2, data="본문.txt", min_lr=None)
    (tmp_path / "run.json").write_text(run.as_json(), encoding="utf-8")
    assert read_saved(tmp_path) == run


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(MissingFileError, match=r"no run\.json"):
        read_saved(tmp_path)
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        read_saved(tmp_path)


def test_toml_takes_dashes_and_paths_that_count_from_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('hidden-size = 64\ndata = "a.txt"\nlr = 1\n', encoding="utf-8")
    settings = read_toml(path)
    assert settings == {"hidden_size": 64, "data": str(tmp_path / "a.txt"), "lr": 1}
    assert from_settings(settings).lr == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("name", ["lr", "min_lr", "weight_decay", "clip"])
def test_rates_are_finite_and_not_negative(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        Run(**{name: value})


@pytest.mark.parametrize("name", ["dropout", "beta_1", "beta_2"])
@pytest.mark.parametrize("value", [math.nan, 1.0, -0.1])
def test_shares_are_at_least_zero_and_below_one(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        Run(**{name: value})


@pytest.mark.parametrize("name", ["steps", "batch", "layers", "heads", "positions", "accumulate"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "4"])
def test_counts_are_whole_and_at_least_one(name, value):
    with pytest.raises(ConfigError, match=f"{name} is"):
        Run(**{name: value})


def test_the_lowest_rate_is_not_above_the_peak():
    with pytest.raises(ConfigError, match="above the peak"):
        Run(lr=1e-3, min_lr=1e-2)


def test_a_run_has_a_precision_of_those_there_are(tmp_path):
    run = Run(precision="bfloat16")
    (tmp_path / "run.json").write_text(run.as_json(), encoding="utf-8")
    assert read_saved(tmp_path).precision == "bfloat16"
    assert Run().precision == "float32"
    with pytest.raises(ConfigError, match=r"No precision 'bfloat61'\. Did you mean 'bfloat16'"):
        Run(precision="bfloat61")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ConfigError, match=r"here: no setting 'layrs'\. Did you mean 'layers'\?"):
        from_settings({"layrs": 4}, "here")
    with pytest.raises(ConfigError, match=r"No model 'gtp2'\. Did you mean 'gpt2'\?"):
        Run(model="gtp2")


def test_the_rate_rises_to_the_peak_and_falls_to_the_floor():
    run = Run(steps=100, lr=1.0, warmup=10)
    rates = [run.rate(step) for step in range(100)]
    assert max(rates) == run.rate(10) == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10])
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)


def test_every_setting_is_documented():
    for field in dataclasses.fields(Run):
        assert f"        {field.name}: " in Run.__doc__
