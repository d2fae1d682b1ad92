"""A model is found in the folder of a run, finished or not, in a checkpoint, and in a model folder."""

import shutil

import numpy as np
import pytest

from tinyplm.errors import MissingFileError
from tinyplm.recipes.pretrain import Finished, pretrain
from tinyplm.recipes.run import Run
from tinyplm.recipes.trained import open_trained


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("the cat sat on the mat. " * 30, encoding="utf-8")
    run = Run(
        data=str(folder / "text.txt"),
        tokenizer="chars",
        layers=1,
        heads=2,
        hidden_size=8,
        positions=8,
        batch=2,
        steps=4,
        checkpoint_every=2,
        output=str(folder / "run"),
    )
    assert isinstance(list(pretrain(run))[-1], Finished)
    return folder / "run"


def weights(trained):
    return trained.model.head.weight.array


def test_the_last_checkpoint_is_the_model_that_was_saved(run_folder):
    finished, last = open_trained(run_folder), open_trained(run_folder / "checkpoint-000004")
    assert finished.unfinished is None
    assert last.unfinished is None
    assert np.array_equal(weights(finished), weights(last))
    assert finished.tokenizer.fingerprint == last.tokenizer.fingerprint


def test_an_earlier_checkpoint_says_how_far_it_is(run_folder):
    assert open_trained(run_folder / "checkpoint-000002").unfinished == "step 2 of 4"


def test_an_interrupted_run_gives_its_newest_checkpoint(run_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "config.json").unlink()
    shutil.rmtree(folder / "checkpoint-000004")
    found = open_trained(folder)
    assert found.unfinished == "step 2 of 4"
    earlier = open_trained(run_folder / "checkpoint-000002")
    assert np.array_equal(weights(found), weights(earlier))


def test_a_run_without_a_checkpoint_says_how_to_go_on(run_folder, tmp_path):
    shutil.copy(run_folder / "run.json", tmp_path)
    with pytest.raises(MissingFileError, match="--resume"):
        open_trained(tmp_path)


def test_a_folder_that_holds_nothing_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"no config\.json"):
        open_trained(tmp_path)
