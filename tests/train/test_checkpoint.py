import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyplm.errors import CheckpointError, ConfigError, DtypeError, TinyplmWarning
from tinyplm.train import checkpoint
from tinyplm.train.checkpoint import load, load_latest, replace_file, save

# --- comparing, bit for bit --------------------------------------------------------------------


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def holds(found, arrays, state):
    return same(found.arrays, arrays) and same(found.state, state)


def content(step):
    """What the checkpoint of a step holds in these tests: different for every step."""
    rng = np.random.default_rng(step)
    arrays = {
        "model": {
            "가중치": rng.normal(size=(3, 5)).astype(np.float32),
            "half": rng.normal(size=7).astype(ml_dtypes.bfloat16),
        },
        "optimizer": {"moment": rng.normal(size=(3, 5)), "count": np.array(step)},
    }
    return arrays, {"generator": rng.bit_generator.state, "step": step, "scale": float("inf")}


def put(folder, step, *, salt=0, **options):
    arrays, state = content(step + salt)
    return save(
        folder,
        step,
        arrays=arrays,
        state=state,
        also=lambda path: replace_file(path / "config.json", b"{}" + b" " * (step + salt)),
        **options,
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- every operation on disk, and a failure before each ----------------------------------------


class KilledError(BaseException):
    """The process is gone: nothing after this runs, not even what stands in finally."""


class Disk:
    """Stand in for `os`: count the calls that touch the disk, and fail from a chosen one on."""

    CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "replace", "unlink", "rmdir")

    lasting = True  # or the failure is gone at the next call

    def __init__(self, fail_from=None, failure=None, fails=CALLS, sync=False, **given):
        self.log, self.count, self.paths = [], 0, {}
        self.fail_from, self.failure, self.fails, self.sync = fail_from, failure, fails, sync
        self.__dict__ |= given

    def __getattr__(self, name):
        function = getattr(os, name)
        return (lambda *given: self.call(name, function, given)) if name in self.CALLS else function

    def call(self, name, function, given):
        if name in self.fails:
            self.count += 1
            past = self.fail_from is not None and self.count - self.fail_from
            if past == 1 or (past and past > 1 and self.lasting):
                if name == "close":
                    function(*given)  # or the test itself would run out of handles
                elif name == "write" and past == 1:
                    function(given[0], given[1][: len(given[1]) // 2])  # torn in the middle
                self.failure()
        where = self.paths.get(given[0], given[0])
        self.log.append((name, Path(where), *given[1:]))
        # A flush shows after a power cut only; leaving it out makes this a test of seconds.
        result = None if name == "fsync" and not self.sync else function(*given)
        if name == "open":
            self.paths[result] = given[0]
        return result


def killed():
    raise KilledError


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def first(folder):
    """No folder yet."""


def later(folder):
    put(folder, 100)
    put(folder, 200)


def again(folder):
    put(folder, 200)
    put(folder, 300, salt=7)


def after_a_kill(folder):
    put(folder, 200)
    put(folder, 300, salt=7)
    shutil.copytree(folder / "checkpoint-000200", folder / ".checkpoint-000100.removing-0123abcd")
    (folder / ".checkpoint-000100.removing-0123abcd" / "manifest.json").unlink()
    shutil.copytree(folder / "checkpoint-000200", folder / ".checkpoint-000300.writing-0123abcd")
    (folder / "checkpoint-000300").rename(folder / ".checkpoint-000300.replaced-0123abcd")


def after_a_kill_past_the_rename(folder):
    put(folder, 200)
    put(folder, 300, salt=7)
    shutil.copytree(folder / "checkpoint-000300", folder / ".checkpoint-000300.replaced-0123abcd")


SCENARIOS = [first, later, again, after_a_kill, after_a_kill_past_the_rename]


def run_through(monkeypatch, scenario, tmp_path, failure, fails, end, lasting=True):
    """Save step 300 once for every operation, failing from there on; `end` judges each."""
    pattern = tmp_path / "pattern"
    scenario(pattern)
    for k in range(1000):
        folder = tmp_path / f"run {k}" / "여기"
        if pattern.exists():
            shutil.copytree(pattern, folder)
        disk = Disk(fail_from=k, failure=failure, fails=fails, lasting=lasting)
        outcome = None
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            patch.setattr(checkpoint, "os", disk)
            try:
                put(folder, 300)
            except (KilledError, CheckpointError) as error:
                outcome = error
        end(folder, outcome, warned)
        if disk.count <= k:  # it ran to its end without meeting the failure
            assert outcome is None
            assert not warned
            return k
        shutil.rmtree(folder.parent, ignore_errors=True)
    raise AssertionError("a save has fewer operations than this")


def old_of(scenario):
    return {
        first: None,
        later: content(200),
        again: content(307),
        after_a_kill: content(307),
        after_a_kill_past_the_rename: content(307),
    }[scenario]


def check_old_or_new(scenario, folder):
    found = load_latest(folder)  # warnings are errors: nothing may even look damaged
    old, new = old_of(scenario), content(300)
    is_old = found is None if old is None else found is not None and holds(found, *old)
    is_new = found is not None and holds(found, *new)
    assert is_old or is_new
    return is_new


def check_next_save(scenario, folder):
    put(folder, 400)
    assert holds(load_latest(folder), *content(400))
    assert len(names(folder)) <= 2
    assert all(name.startswith("checkpoint-") for name in names(folder))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_killed_before_any_operation_leaves_the_old_or_the_new(
    scenario, monkeypatch, tmp_path
):
    seen = []

    def end(folder, outcome, warned):
        assert outcome is None or isinstance(outcome, KilledError)
        seen.append(check_old_or_new(scenario, folder))
        check_next_save(scenario, folder)

    count = run_through(monkeypatch, scenario, tmp_path, killed, Disk.CALLS, end)
    assert count > 40
    assert seen == sorted(seen), "once the new one is found it stays"
    assert not seen[0]
    assert seen[-1]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("fails", [("write",), ("mkdir", "open", "write", "fsync", "rename")])
@pytest.mark.parametrize("lasting", [True, False])
def test_a_full_disk_leaves_the_old_one_and_says_so(
    scenario, fails, lasting, monkeypatch, tmp_path
):
    def end(folder, outcome, warned):
        is_new = check_old_or_new(scenario, folder)
        if outcome is None:
            assert is_new
            assert all("could not be removed" in str(one.message) for one in warned)
        else:
            intact = load_latest(folder)
            assert isinstance(outcome, CheckpointError)
            assert os.strerror(errno.ENOSPC) in str(outcome)
            assert "It needs at least" in str(outcome)
            expected = "no intact checkpoint" if intact is None else f"is {intact.path.name}."
            assert expected in str(outcome)
            left = (
                [name for name in names(folder) if name.startswith(".")] if folder.exists() else []
            )
            assert not [name for name in left if "writing" in name and "0123abcd" not in name]
            if not lasting and not is_new and "after_a_kill" not in scenario.__name__:
                assert not left
        check_next_save(scenario, folder)

    assert run_through(monkeypatch, scenario, tmp_path, full, fails, end, lasting) > 5


KILL_FOR_REAL = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_checkpoint as t

base = Path(sys.argv[2])
t.again(base / "pattern")
for k in range(1000):
    shutil.copytree(base / "pattern", base / str(k))
    child = os.fork()
    if child == 0:
        disk = t.Disk(fail_from=k, failure=lambda: os.kill(os.getpid(), signal.SIGKILL), sync=True)
        t.checkpoint.os = disk
        t.put(base / str(k), 300)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print(k)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_a_process_that_is_really_killed_leaves_the_old_or_the_new(tmp_path):
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-c", KILL_FOR_REAL, str(here.parent), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(here.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
    seen = []
    for k in range(int(done.stdout) + 1):
        seen.append(check_old_or_new(again, tmp_path / str(k)))
        check_next_save(again, tmp_path / str(k))
    assert seen == sorted(seen)
    assert not seen[0]
    assert seen[-1]


def test_all_is_flushed_before_it_gets_its_name_and_nothing_goes_before_that(monkeypatch, tmp_path):
    later(tmp_path)
    disk = Disk()
    monkeypatch.setattr(checkpoint, "os", disk)
    final = put(tmp_path, 300)
    named = next(i for i, call in enumerate(disk.log) if call[0] == "rename" and call[2] == final)
    before, after = disk.log[:named], disk.log[named + 1 :]
    temporary = disk.log[named][1]
    for path in [temporary, *(temporary / file.name for file in final.iterdir())]:
        flushed = max(i for i, call in enumerate(before) if call[:2] == ("fsync", path))
        # A folder changes with each file made in it, a file with each write.
        changes = [("open", path / file.name) for file in final.iterdir()] + [("write", path)]
        changed = [i for i, call in enumerate(before) if call[:2] in changes]
        assert flushed > max(changed, default=-1)
    opened = [c[1].name for c in before if c[0] == "open" and c[1].parent == temporary]
    assert opened[-1] == "manifest.json"
    flushed = next(i for i, call in enumerate(after) if call[:2] == ("fsync", tmp_path))
    removed = [i for i, call in enumerate(after) if call[0] in ("rename", "unlink", "rmdir")]
    assert removed
    assert flushed < min(removed)
    assert not [call for call in before if call[0] in ("rename", "rmdir")]


def test_each_folder_that_is_made_is_flushed_into_its_parent(monkeypatch, tmp_path):
    disk = Disk()
    monkeypatch.setattr(checkpoint, "os", disk)
    final = put(tmp_path / "a" / "b", 1)
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        made = disk.log.index(("mkdir", folder))
        flushed = [call[:2] for call in disk.log].index(("fsync", folder.parent))
        named = next(i for i, call in enumerate(disk.log) if call[-1] == final)
        assert made < flushed < named


def test_a_system_that_writes_less_than_asked_is_asked_again(monkeypatch, tmp_path):
    class Slow(Disk):
        def call(self, name, function, given):
            if name == "write":
                given = (given[0], given[1][:7])
            return super().call(name, function, given)

    monkeypatch.setattr(checkpoint, "os", Slow())
    assert holds(load(put(tmp_path, 1)), *content(1))


def test_no_change_on_disk_escapes_the_list_of_operations(monkeypatch, tmp_path):
    events, watching = [], True
    changes = {"os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "unlink"}
    changes |= {"os.rmdir": "rmdir"}

    def listen(event, given):
        if watching:
            if event in changes:
                events.append(changes[event])
            elif event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                events.append("open")
            elif event.startswith(("shutil", "os.truncate", "os.link", "os.symlink", "tempfile")):
                events.append(event)

    again(tmp_path)
    disk = Disk()
    monkeypatch.setattr(checkpoint, "os", disk)
    sys.addaudithook(listen)
    put(tmp_path, 300)
    watching = False
    log = [
        # Both renames tell of themselves by one name.
        "rename" if call[0] == "replace" else call[0]
        for call in disk.log
        if call[0] not in ("write", "fsync", "close") and (call[0] != "open" or call[2])
    ]
    assert events == log


# --- round trips -------------------------------------------------------------------------------

DTYPES = "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64"


@st.composite
def an_array(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES.split())))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = int(np.prod(shape)) * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    if dtype.name == "bool":
        content = bytes(byte & 1 for byte in content)
    return np.frombuffer(content, dtype).reshape(shape)


a_name = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
some_arrays = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_-]{0,5}", fullmatch=True),
    st.dictionaries(a_name, an_array(), max_size=3),
    max_size=3,
)
a_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**20_000), 2**20_000)
    | st.floats()
    | a_name
    | st.sampled_from(["$int", "$", "nan"])
    | an_array(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            a_name | st.integers() | st.sampled_from(["$int", "$float", "$dict", "$array"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
a_state = st.dictionaries(a_name | st.sampled_from(["$int", "$tuple"]), a_value, max_size=3)


@settings(deadline=None)
@given(arrays=some_arrays, state=a_state, step=st.integers(0, 10**9))
def test_any_arrays_and_state_come_back_bit_for_bit(arrays, state, step):
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder), step, arrays=arrays, state=state)
        found = load_latest(Path(folder))
        assert found.path == path
        assert found.step == step
        assert holds(found, arrays, state)


def test_views_other_byte_orders_and_scalars_are_saved_by_value(tmp_path):
    block = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    arrays = {"model": {"strided": block[:, ::-1, ::2].swapaxes(0, 2), "big": block}}
    state = {"loss": np.float32(0.1), "n": np.int64(3), "half": ml_dtypes.bfloat16(1.5), "b": block}
    found = load(save(tmp_path, 1, arrays=arrays, state=state))
    assert same(found.arrays["model"]["strided"], block.astype("<f4")[:, ::-1, ::2].swapaxes(0, 2))
    assert same(found.arrays["model"]["big"], block.astype("<f4"))
    expected = {"loss": float(np.float32(0.1)), "n": 3, "half": 1.5, "b": block.astype("<f4")}
    assert same(found.state, expected)


def test_loaded_arrays_can_be_written_to_and_are_not_the_file(tmp_path):
    path = put(tmp_path, 1)
    found = load(path)
    found.arrays["model"]["가중치"][:] = 0
    assert holds(load(path), *content(1))


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_a_generator_goes_on_where_it_was(kind, tmp_path):
    make = getattr(np.random, kind)
    rng = np.random.Generator(make(5))
    rng.normal(size=3)
    rng.integers(9, dtype=np.int32)
    path = save(tmp_path, 1, arrays={}, state={"rng": rng.bit_generator.state})
    other = np.random.Generator(make(6))
    other.bit_generator.state = load(path).state["rng"]
    assert same(other.normal(size=9), rng.normal(size=9))
    assert same(other.integers(9, size=9, dtype=np.int32), rng.integers(9, size=9, dtype=np.int32))


def test_the_folder_is_a_model_folder_for_others(tmp_path):
    from safetensors import safe_open

    path = put(tmp_path, 12)
    assert names(path) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    with safe_open(path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert same(
            {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118
            content(12)[0]["model"],
        )
    for name in ("manifest.json", "state.json"):
        json.loads((path / name).read_text("utf-8"), parse_constant=pytest.fail)


def test_every_array_starts_at_a_multiple_of_its_element(tmp_path):
    named = {f"{dtype}{i}": np.ones(3, dtype) for i in range(3) for dtype in DTYPES.split()}
    path = save(tmp_path, 1, arrays={"model": named}, state={})
    data = (path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name, array in named.items():
        assert (start + header[name]["data_offsets"][0]) % array.itemsize == 0


# --- damage ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return put(tmp_path_factory.mktemp("kept"), 300)


FILES = ["config.json", "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255)
)
def test_a_changed_byte_anywhere_is_noticed_and_named(kept, name, where, flip):
    path = kept / name
    good = path.read_bytes()
    bad = bytearray(good)
    bad[int(where * len(bad))] ^= flip
    path.write_bytes(bad)
    try:
        with pytest.raises(CheckpointError, match=name):
            load(kept)
    finally:
        path.write_bytes(good)


def test_a_changed_byte_at_each_place_of_the_manifest_is_noticed(kept):
    path = kept / "manifest.json"
    good = path.read_bytes()
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            load(kept)
    path.write_bytes(good)
    load(kept)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\n")


def empty(path):
    path.write_bytes(b"")


def make_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [cut, lengthen, empty, Path.unlink, make_folder])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(name, harm, tmp_path):
    later(tmp_path)
    harm(tmp_path / "checkpoint-000200" / name)
    with pytest.warns(TinyplmWarning, match=f"checkpoint-000200.*{name}: ") as warned:
        found = load_latest(tmp_path)
    assert len(warned) == 1
    assert "checkpoint-000100 instead" in str(warned[0].message)
    assert holds(found, *content(100))


def test_the_cause_of_damage_is_said(tmp_path):
    path = put(tmp_path, 1)
    size = (path / "state.json").stat().st_size
    cut(path / "state.json")
    with pytest.raises(CheckpointError, match=rf"{size - 1} bytes, but {size} bytes were written"):
        load(path)
    with pytest.raises(CheckpointError, match="no such folder"):
        load(tmp_path / "checkpoint-000002")


def test_nothing_intact_is_an_error_and_never_a_fresh_start(tmp_path):
    later(tmp_path)
    cut(tmp_path / "checkpoint-000100" / "model.safetensors")
    (tmp_path / "checkpoint-000200" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints is intact") as caught:
        load_latest(tmp_path)
    assert "model.safetensors: " in str(caught.value)
    assert "manifest.json: missing" in str(caught.value)


def test_a_folder_without_checkpoints_is_a_fresh_start(tmp_path):
    assert load_latest(tmp_path / "none") is None
    (tmp_path / "metrics.jsonl").write_text("{}\n", "utf-8")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / ".checkpoint-000001.writing-0123abcd").mkdir()
    assert load_latest(tmp_path) is None


def test_a_renamed_checkpoint_does_not_pass_for_another_step(tmp_path):
    path = put(tmp_path, 1)
    copy = shutil.copytree(path, tmp_path / "best")
    assert holds(load(copy), *content(1))
    moved = path.rename(tmp_path / "checkpoint-000009")
    with pytest.raises(CheckpointError, match="the manifest says step 1"):
        load(moved)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../b", "c:secret", "..\\secret"]
)
def test_a_manifest_that_points_outside_is_refused(name, tmp_path):
    path = put(tmp_path, 1)
    (tmp_path / "secret").write_bytes(b"")
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = manifest["files"]["config.json"]
    forged = checkpoint._manifest(1, manifest["groups"], manifest["files"])
    (path / "manifest.json").write_bytes(forged)
    with pytest.raises(CheckpointError, match="outside the folder; refused"):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "[" * 100_000,
        '{"step": 1}',
        '{"step": 1, "groups": [], "files": []}',
        '{"step": 1, "groups": 3, "files": {}}',
        '{"step": 1, "groups": [], "files": {"a": 3}}',
        '{"step": 1, "groups": [["x"]], "files": {}}',
        '{"step": 1, "groups": [], "files": {"a": {"bytes": NaN, "sha256": "x"}}}',
        '{"step": ' + "9" * 5000 + ', "groups": [], "files": {}}',
    ],
)
def test_a_manifest_of_another_form_is_a_checkpoint_error(text, tmp_path):
    path = put(tmp_path, 1)
    (path / "manifest.json").write_text(text, "utf-8")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load(path)


@pytest.mark.parametrize(
    "text", ['{"$int": 3}', '{"$array": ["object", [1], ""]}', "[]", "{", '{"$x": 1}']
)
def test_a_forged_state_is_a_checkpoint_error(text, tmp_path):
    path = put(tmp_path, 1)
    (path / "state.json").write_text(text, "utf-8")
    manifest = json.loads((path / "manifest.json").read_bytes())
    size, digest = checkpoint._measure(path / "state.json")
    manifest["files"]["state.json"] = {"bytes": size, "sha256": digest}
    forged = checkpoint._manifest(1, manifest["groups"], manifest["files"])
    (path / "manifest.json").write_bytes(forged)
    with pytest.raises(CheckpointError):
        load(path)


# --- which ones stay ---------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_only_the_newest_stay(keep, tmp_path):
    for step in (1, 20, 300, 4000):
        put(tmp_path, step, keep=keep)
    all_of_them = [f"checkpoint-{step:06d}" for step in (1, 20, 300, 4000)]
    assert names(tmp_path) == all_of_them[-keep:]


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (999_999, 1_000_000, 1_000_001):
        put(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-1000000", "checkpoint-1000001"]
    assert load_latest(tmp_path).step == 1_000_001


def test_a_damaged_one_does_not_push_out_the_last_good_one(tmp_path):
    later(tmp_path)
    (tmp_path / "checkpoint-000200" / "model.safetensors").unlink()
    put(tmp_path, 300)
    cut(tmp_path / "checkpoint-000300" / "state.json")
    with pytest.warns(TinyplmWarning, match="checkpoint-000100 instead"):
        assert holds(load_latest(tmp_path), *content(100))


def test_checkpoints_of_a_later_step_stay_and_are_told_of(tmp_path):
    later(tmp_path)
    with pytest.warns(TinyplmWarning, match="also holds checkpoint-000100, checkpoint-000200"):
        put(tmp_path, 50, keep=1)
    assert names(tmp_path) == ["checkpoint-000050", "checkpoint-000100", "checkpoint-000200"]


def test_saving_clears_only_what_has_our_names(tmp_path):
    others = [".checkpoint-000100.writing-notes", ".tmp", "checkpoint-best", "checkpoint-100.bak"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / ".checkpoint-000100.writing-0123abcd" / "deep").mkdir(parents=True)
    put(tmp_path, 100)
    assert names(tmp_path) == sorted([*others, "checkpoint-000100"])


def test_an_outdated_one_that_cannot_be_removed_is_a_warning(monkeypatch, tmp_path):
    later(tmp_path)

    class Locked(Disk):
        def call(self, name, function, given):
            if name == "rename" and "000100" in str(given[0]):
                raise PermissionError(errno.EACCES, "in use")
            return super().call(name, function, given)

    monkeypatch.setattr(checkpoint, "os", Locked())
    with pytest.warns(TinyplmWarning, match=r"checkpoint-000100 is outdated .* \(in use\)"):
        put(tmp_path, 300)
    assert load_latest(tmp_path).step == 300


# --- places and callers ------------------------------------------------------------------------


def test_relative_folders_with_blanks_and_other_scripts_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for folder in (Path("."), Path("a b") / "한국어 😀" / "ü"):
        path = put(folder, 1)
        assert not path.is_absolute()
        assert holds(load_latest(folder), *content(1))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_another_file_system_than_the_temporary_one_works():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        later(Path(folder) / "run")
        assert holds(load_latest(Path(folder) / "run"), *content(200))


def test_where_folders_cannot_be_flushed_none_is_opened(monkeypatch, tmp_path):
    disk = Disk(name="nt")
    monkeypatch.setattr(checkpoint, "os", disk)
    put(tmp_path, 1)
    opened = [call for call in disk.log if call[0] == "open"]
    assert opened
    assert all(flags & (os.O_WRONLY | os.O_RDWR) for _, _, flags, *_ in opened)
    assert holds(load_latest(tmp_path), *content(1))


def test_a_file_system_without_folder_flush_is_no_failure(monkeypatch, tmp_path):
    class Network(Disk):
        def call(self, name, function, given):
            if name == "fsync" and Path(self.paths[given[0]]).is_dir():
                raise OSError(errno.EINVAL, "Invalid argument")
            return super().call(name, function, given)

    monkeypatch.setattr(checkpoint, "os", Network())
    put(tmp_path, 1)
    assert holds(load_latest(tmp_path), *content(1))


@pytest.mark.skipif(os.name == "nt", reason="permissions are of another kind there")
def test_permissions_are_those_of_any_file_of_the_user(tmp_path):
    before = os.umask(0o022)
    try:
        path = put(tmp_path / "run", 1)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o644}


def test_what_the_caller_adds_may_lie_deeper(tmp_path):
    def also(folder):
        (folder / "tokenizer" / "더").mkdir(parents=True)
        (folder / "tokenizer" / "더" / "vocab.txt").write_text("[PAD]\n", "utf-8")

    path = save(tmp_path, 1, arrays={}, state={}, also=also)
    load(path)
    cut(path / "tokenizer" / "더" / "vocab.txt")
    with pytest.raises(CheckpointError, match=r"vocab\.txt"):
        load(path)


def test_an_error_of_the_caller_passes_through_and_leaves_nothing(tmp_path):
    put(tmp_path, 1)

    def also(folder):
        (folder / "half").write_text("x", "utf-8")
        raise KeyError("tokenizer")

    with pytest.raises(KeyError, match="tokenizer"):
        save(tmp_path, 2, arrays={}, state={}, also=also)
    assert names(tmp_path) == ["checkpoint-000001"]


def test_a_file_of_the_caller_is_never_written_over(tmp_path):
    def also(folder):
        (folder / "model.safetensors").write_text("x", "utf-8")

    with pytest.raises(CheckpointError, match=r"File exists \(model\.safetensors\)"):
        save(tmp_path, 1, arrays={"model": {}}, state={}, also=also)
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="permissions are of another kind there")
def test_a_place_that_cannot_be_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(CheckpointError, match=r"could not be saved: .*choose another one"):
        put(tmp_path / "file" / "run", 1)


@pytest.mark.parametrize(
    ("arrays", "state", "error", "text"),
    [
        (
            {"m": {"w": np.ones(2, np.complex64)}},
            {},
            DtypeError,
            r"arrays\['m'\]\['w'\].*complex64",
        ),
        ({"m": {"w": [1.0]}}, {}, DtypeError, "is a list; expected a NumPy array"),
        ({"../m": {}}, {}, ConfigError, "it names a file"),
        ({"m": {"__metadata__": np.ones(1)}}, {}, ConfigError, "cannot be written"),
        ({"m": {"\ud800": np.ones(1)}}, {}, ConfigError, "cannot be written"),
        ({}, {"a": [0, {"b": {1}}]}, DtypeError, r"state\['a'\]\[1\]\['b'\] is a set"),
        ({}, {"a": np.array([None])}, DtypeError, r"state\['a'\] is a ndarray"),
        ({}, {"a": b"x"}, DtypeError, "is a bytes"),
    ],
)
def test_what_cannot_be_saved_is_named_before_anything_changes(
    arrays, state, error, text, tmp_path
):
    with pytest.raises(error, match=text):
        save(tmp_path / "run", 1, arrays=arrays, state=state)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "options", [{"step": -1}, {"step": 1.0}, {"step": True}, {"step": 1, "keep": 0}]
)
def test_impossible_settings_are_refused(options, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a whole number|at least 1"):
        save(tmp_path, arrays={}, state={}, **options)


def test_replacing_a_file_is_all_or_nothing(monkeypatch, tmp_path):
    path = tmp_path / "metrics.jsonl"
    k = 0
    while True:
        path.write_bytes(b"old")
        disk = Disk(fail_from=k, failure=killed)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "os", disk)
            try:
                replace_file(path, b"new one")
            except KilledError:
                assert path.read_bytes() in (b"old", b"new one")
            else:
                break
        k += 1
    assert k > 6
    assert path.read_bytes() == b"new one"
    assert names(tmp_path) == ["metrics.jsonl"]
