"""Model folders: which files are read, and which names lead out of them."""

import json
import os
import socket
import zipfile

import numpy as np
import pytest

from tinyplm.errors import CheckpointError, MissingFileError
from tinyplm.hub.folder import read_folder
from tinyplm.hub.regular_file import inside
from tinyplm.hub.safetensors_file import write_safetensors

CONFIG = '{"model_type": "gpt2"}'
ARRAYS = {"a": np.arange(3, dtype="float32"), "b": np.ones((2, 2), "float32")}


def write(path, arrays):
    with open(path, "wb") as stream:
        write_safetensors(stream, arrays)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(CONFIG, encoding="utf-8")
    write(made / "model.safetensors", ARRAYS)
    return made


@pytest.fixture
def sharded(folder):
    (folder / "model.safetensors").unlink()
    write(folder / "one.safetensors", {"a": ARRAYS["a"]})
    write(folder / "two.safetensors", {"b": ARRAYS["b"]})
    index(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    return folder


def index(folder, weight_map):
    text = json.dumps({"metadata": {"total_size": 28}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def test_a_folder_is_read_without_a_socket(folder, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    read = read_folder(str(folder))
    assert read.config == {"model_type": "gpt2"}
    assert set(read.tensors) == set(ARRAYS)
    for name, entry in read.tensors.items():
        assert entry.file.name == "model.safetensors"
        np.testing.assert_array_equal(entry.read(), ARRAYS[name])


def test_shards_are_joined(sharded):
    read = read_folder(sharded)
    assert {name: entry.file.name for name, entry in read.tensors.items()} == {
        "a": "one.safetensors",
        "b": "two.safetensors",
    }
    np.testing.assert_array_equal(read.tensors["b"].read(), ARRAYS["b"])


def test_one_file_is_preferred_to_shards_and_safetensors_to_old_files(folder):
    write(folder / "other.safetensors", {"c": ARRAYS["a"]})
    index(folder, {"c": "other.safetensors"})
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert set(read_folder(folder).tensors) == {"a", "b"}
    (folder / "model.safetensors").unlink()
    assert set(read_folder(folder).tensors) == {"c"}


def test_a_missing_folder_is_explained(folder, tmp_path):
    with pytest.raises(MissingFileError, match=r"Did you mean .*model"):
        read_folder(tmp_path / "modle")
    with pytest.raises(MissingFileError, match="hf download openai-community/gpt2"):
        read_folder("openai-community/gpt2")
    with pytest.raises(MissingFileError, match="There is no folder"):
        read_folder(tmp_path / "no" / "such" / "folder" / "at-all")
    with pytest.raises(CheckpointError, match=r"is a file. Give the folder"):
        read_folder(folder / "config.json")


def test_a_folder_without_config_or_weights_is_explained(folder):
    (folder / "model.safetensors").unlink()
    (folder / "tf_model.h5").write_bytes(b"")
    with pytest.raises(MissingFileError, match=r"no weights: .*holds: config.json, tf_model.h5"):
        read_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"no config.json.*holds: tf_model.h5"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ("3", "expected a JSON object"),
        ("null", "expected a JSON object"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        ('{"layer_norm_epsilon": NaN}', "NaN is not a JSON number"),
        ('{"layer_norm_epsilon": -Infinity}', "-Infinity is not a JSON number"),
        ('{"layer_norm_epsilon": 1e400}', "1e400 is not a JSON number"),
        ('{"n_layer": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ("\ufeff{}", "not valid JSON"),
        ("{}\0", "not valid JSON"),
    ],
)
def test_a_config_that_is_no_plain_object_is_refused(folder, text, reason):
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason):
        read_folder(folder)


def test_a_config_of_unreasonable_size_is_refused_unread(folder):
    with open(folder / "config.json", "wb") as stream:
        stream.truncate(10**10)  # a hole: takes no place on disk
    with pytest.raises(CheckpointError, match="has 10,000,000,000 bytes; at most 16,000,000"):
        read_folder(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", "", "a\0b"),
        *("..\\secret.safetensors", "C:\\secret", "C:secret", "one.safetensors:stream", "./one"),
        *("//host/share", "one.safetensors/", "\\\\host\\share"),
    ],
)
def test_shard_names_that_are_no_plain_names_are_refused(sharded, name):
    write(sharded.parent / "secret.safetensors", {"a": ARRAYS["a"]})
    index(sharded, {"a": name, "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match="Only plain file names inside the folder are read"):
        read_folder(sharded)


@pytest.mark.parametrize("value", [1, None, ["one.safetensors"], {"a": "b"}, True])
def test_shard_names_that_are_no_texts_are_refused(sharded, value):
    index(sharded, {"a": value})
    with pytest.raises(CheckpointError, match="the file of 'a' must be a text"):
        read_folder(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {}, "a", 3])
def test_an_index_without_a_map_is_refused(sharded, weight_map):
    index(sharded, weight_map)
    with pytest.raises(CheckpointError, match="expected weight_map"):
        read_folder(sharded)


def test_a_shard_that_is_missing_is_named(sharded):
    (sharded / "two.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"has no file 'two.safetensors'.*interrupted"):
        read_folder(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded):
    index(sharded, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"'two.safetensors' holds c, but it does not"):
        read_folder(sharded)


def test_shards_that_are_folders_devices_or_pipes_are_refused_at_once(sharded):
    index(sharded, {"a": "thing"})
    (sharded / "thing").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        read_folder(sharded)
    (sharded / "thing").rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(sharded / "thing")
        with pytest.raises(CheckpointError, match="a device, a pipe or a socket"):
            read_folder(sharded)
        (sharded / "thing").unlink()
    if os.path.exists("/dev/zero"):
        (sharded / "thing").symlink_to("/dev/zero")
        with pytest.raises(CheckpointError, match=r"is a link to .*zero, outside the folder"):
            read_folder(sharded)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"],
)
def test_links_out_of_the_folder_are_refused_for_every_file(folder, name):
    outside = folder.parent / "outside"
    (folder / "model.safetensors").replace(outside)
    if name == "config.json":
        write(folder / "model.safetensors", ARRAYS)
        (folder / name).replace(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match="outside the folder; refused"):
        read_folder(folder)


def test_links_inside_the_folder_are_followed(folder):
    (folder / "model.safetensors").replace(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    assert set(read_folder(folder).tensors) == {"a", "b"}


def test_a_folder_that_is_itself_a_link_is_read(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    assert set(read_folder(tmp_path / "latest").tensors) == {"a", "b"}


def test_links_that_go_round_or_nowhere_are_refused(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises((CheckpointError, MissingFileError)):
        read_folder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("nothing")
    with pytest.raises(MissingFileError, match="a link to a file that is gone"):
        read_folder(folder)


def test_the_layout_of_the_hub_cache_is_read(folder, tmp_path):
    cache = tmp_path / "models--x--y"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors")):
        (folder / name).replace(cache / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert set(read_folder(snapshot).tensors) == {"a", "b"}
    (snapshot / "config.json").unlink()
    (cache / "refs").write_text(CONFIG, encoding="utf-8")
    (snapshot / "config.json").symlink_to("../../refs")
    with pytest.raises(CheckpointError, match="outside the folder"):
        read_folder(snapshot)


def test_old_files_in_shards_are_read_through_their_index(folder):
    (folder / "model.safetensors").unlink()
    text = json.dumps({"weight_map": {"a": "../x.bin"}})
    (folder / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="Only plain file names"):
        read_folder(folder)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {"a": "x.bin"}}), encoding="utf-8"
    )
    with zipfile.ZipFile(folder / "x.bin", "w") as archive:
        archive.writestr("x/data.pkl", b"cos\nsystem\n.")
    with pytest.raises(CheckpointError, match=r"x.bin asks to import 'os.system'; refused"):
        read_folder(folder)


def test_a_plain_name_is_found(folder):
    assert inside(folder, "config.json") == (folder / "config.json").resolve()
