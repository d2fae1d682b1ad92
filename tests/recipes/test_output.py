"""A run's folder is its own, and a failure leaves nothing behind."""

import pytest

from tinyplm.errors import ConfigError
from tinyplm.recipes.output import free_folder, left_as_found, refuse_taken


def fail_in(output):
    with left_as_found(output):
        output.mkdir(parents=True, exist_ok=True)
        (output / "tokens.bin").touch()
        raise KeyError


def test_a_free_folder_holds_nothing(tmp_path):
    assert free_folder(tmp_path, "gpt2") == tmp_path / "gpt2"
    (tmp_path / "gpt2").mkdir()
    assert free_folder(tmp_path, "gpt2") == tmp_path / "gpt2"
    (tmp_path / "gpt2" / "run.json").touch()
    (tmp_path / "gpt2-2").touch()
    assert free_folder(tmp_path, "gpt2") == tmp_path / "gpt2-3"


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_a_model_from_elsewhere_is_not_written_over(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="already holds a model"):
        refuse_taken(tmp_path)


def test_a_run_that_has_checkpoints_is_not_begun_again(tmp_path):
    (tmp_path / "checkpoint-000010").mkdir()
    with pytest.raises(ConfigError, match="--resume"):
        refuse_taken(tmp_path)


def test_what_is_new_is_removed_after_a_failure(tmp_path):
    with pytest.raises(KeyError):
        fail_in(tmp_path / "runs" / "gpt2")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_emptied_and_stays(tmp_path):
    with pytest.raises(KeyError):
        fail_in(tmp_path)
    assert tmp_path.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_stays(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(KeyError):
        fail_in(tmp_path)
    assert (tmp_path / "thesis.txt").exists()
