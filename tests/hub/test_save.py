"""Saving: whoever looks, and whenever, finds one whole model or is told that there is none."""

import json
import os
import stat
import time

import ml_dtypes
import numpy as np
import pytest

from tinyplm.errors import CheckpointError, MissingFileError, NonFiniteError
from tinyplm.hub.folder import read_folder
from tinyplm.hub.save import as_json, save_folder


def model(number, shards):
    """Settings, weights and shard size of one recognisable model."""
    arrays = {name: np.full(8, number, "float32") for name in "abc"}
    config = {"config.json": as_json({"number": number}), "other.json": as_json({"n": number})}
    return config, arrays, 1000 if shards == 1 else 40


def save(folder, number, shards=1, *, settings=None):
    files, arrays, size = model(number, shards)
    save_folder(
        folder, files if settings is None else model(settings, 1)[0], arrays, shard_bytes=size
    )


def number_in(folder):
    """The settings and weights found by a reader."""
    read = read_folder(folder)
    values = {float(value) for entry in read.tensors.values() for value in entry.read()}
    assert set(read.tensors) == {"a", "b", "c"}
    assert len(values) == 1, "weights of two models"
    return read.config["number"], values.pop()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_holds_what_was_saved_and_nothing_else(tmp_path, shards):
    save(tmp_path / "new" / "model", 1, shards)
    assert number_in(tmp_path / "new" / "model") == (1, 1)
    names = sorted(path.name for path in (tmp_path / "new" / "model").iterdir())
    weights = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
        + ["model.safetensors.index.json"]
    )
    assert names == ["config.json", *weights, "other.json"]


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("settings", [1, 2])
def test_saving_again_replaces_everything(tmp_path, before, after, settings):
    (tmp_path / "mine.txt").write_text("stays", encoding="utf-8")
    save(tmp_path, 1, before)
    count = len(list(tmp_path.iterdir()))
    save(tmp_path, 2, after, settings=settings)
    save(tmp_path, 3, before, settings=settings)
    assert number_in(tmp_path) == (settings, 3)
    assert len(list(tmp_path.iterdir())) == count
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "stays"


class KilledError(BaseException):
    """Stands for the end of the process."""


def kill_after(monkeypatch, steps):
    """From the given step on, no change of the disk happens any more."""
    count = 0

    def guarded(function):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count > steps:
                raise KilledError
            return function(*arguments, **keywords)

        return call

    for name in ("replace", "unlink", "rename", "fsync"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("settings", [1, 2])
def test_a_kill_at_any_moment_leaves_one_model_or_a_refusal(tmp_path, before, after, settings):
    seen = set()
    for steps in range(60):
        folder = tmp_path / str(steps)
        save(folder, 1, before)
        with pytest.MonkeyPatch.context() as patch:
            kill_after(patch, steps)
            try:
                save(folder, 2, after, settings=settings)
                finished = True
            except KilledError:
                finished = False
        if (folder / "config.json").exists():
            found = number_in(folder)
        else:
            found = None
            with pytest.raises(MissingFileError, match="A save into this folder was interrupted"):
                read_folder(folder)
        assert found in {(1, 1), (settings, 2), None}
        if settings == 1:
            assert found is not None, "with the same settings there is always a model"
        seen.add(found)
        save(folder, 3, after, settings=settings)  # and saving again heals it
        assert number_in(folder) == (settings, 3)
        assert not list(folder.glob("*.previous"))
        if finished:
            break
    assert finished
    assert seen >= {(1, 1), (settings, 2)}


@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("settings", [1, 2])
def test_an_error_at_any_rename_leaves_the_old_or_the_new(tmp_path, before, after, settings):
    for steps in range(30):
        folder = tmp_path / str(steps)
        save(folder, 1, before)
        count = 0
        replace = os.replace

        def failing(source, target, steps=steps, replace=replace):
            nonlocal count
            count += 1
            if count == steps + 1:
                raise PermissionError(13, "Permission denied")
            return replace(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", failing)
            try:
                save(folder, 2, after, settings=settings)
                break
            except CheckpointError as error:
                text = str(error)
        assert "Permission denied" in text
        assert not list(folder.glob(".*"))
        if (folder / "config.json").exists():
            assert number_in(folder) == (1, 1)
        else:  # the very last rename failed, with the new weights in place
            assert (folder / "config.json.previous").exists()
    else:
        raise AssertionError("never finished")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_never_replace_good_ones(tmp_path, bad):
    save(tmp_path, 1)
    files, arrays, _ = model(2, 1)
    arrays["b"][3] = bad
    with pytest.raises(NonFiniteError, match="b has values that are NaN or infinite"):
        save_folder(tmp_path, files, arrays, shard_bytes=1000)
    assert number_in(tmp_path) == (1, 1)
    assert len(list(tmp_path.iterdir())) == 3


def test_values_too_large_for_the_dtype_are_refused(tmp_path):
    files, arrays, _ = model(1e6, 1)
    with pytest.raises(NonFiniteError, match=r"a has values up to 1e\+06, too large for float16"):
        save_folder(tmp_path, files, arrays, dtype=np.dtype("float16"), shard_bytes=1000)
    assert not list(tmp_path.iterdir())


def test_the_dtype_of_the_file_can_be_chosen(tmp_path):
    files, arrays, _ = model(1.5, 1)
    dtype = np.dtype(ml_dtypes.bfloat16)
    save_folder(tmp_path, files, arrays, dtype=dtype, shard_bytes=40)
    assert {entry.dtype for entry in read_folder(tmp_path).tensors.values()} == {dtype}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"] == {"total_size": 48}
    assert number_in(tmp_path) == (1.5, 1.5)


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_get_the_permissions_of_any_new_file(tmp_path, mask):
    previous = os.umask(mask)
    try:
        save(tmp_path, 1)
        (tmp_path / "plain").touch()
    finally:
        os.umask(previous)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~mask}


def test_a_link_in_the_folder_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "precious").write_text("stays", encoding="utf-8")
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "precious")
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "precious")
    save(tmp_path / "model", 1)
    assert number_in(tmp_path / "model") == (1, 1)
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "stays"


def test_an_old_index_cannot_name_files_elsewhere_for_removal(tmp_path):
    folder = tmp_path / "model"
    save(folder, 1, 3)
    (tmp_path / "precious.safetensors").write_bytes(b"stays")
    text = json.dumps({"weight_map": {"a": "../precious.safetensors", "b": "config.json"}})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    save(folder, 2)
    assert (tmp_path / "precious.safetensors").exists()
    assert number_in(folder) == (2, 2)


def test_leftovers_of_a_killed_save_are_removed_after_a_day(tmp_path):
    save(tmp_path, 1)
    for name, age in (("old", 2), ("young", 0)):
        left = tmp_path / f".model.safetensors.{name}.saving"
        left.touch()
        os.utime(left, (time.time() - age * 86_400,) * 2)
    save(tmp_path, 2)
    assert [path.name for path in tmp_path.glob(".*")] == [".model.safetensors.young.saving"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "model").write_text("text", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a file; give a folder"):
        save(tmp_path / "model", 1)
    with pytest.raises(CheckpointError, match="could not be saved"):
        save(tmp_path / "model" / "deeper", 1)
