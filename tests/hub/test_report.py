"""Filling parameters: all or none, and the report of it."""

import ml_dtypes
import numpy as np
import pytest

from tinyplm.autograd.engine import Tensor
from tinyplm.errors import CheckpointError
from tinyplm.hub.entry import TensorEntry
from tinyplm.hub.report import LoadReport, fill


def entries(tmp_path, **arrays):
    return {
        name: TensorEntry(f"file.{name}", a.shape, a.dtype, tmp_path / "model.safetensors", a.copy)
        for name, a in arrays.items()
    }


@pytest.fixture
def parameters():
    return {
        "w": Tensor(np.zeros((2, 3), "float32"), requires_grad=True),
        "b": Tensor(np.zeros(3, "float32"), requires_grad=True),
    }


W, B = np.arange(6, dtype="float32").reshape(2, 3), np.ones(3, "float32")


def test_every_parameter_gets_its_values(parameters, tmp_path):
    report = fill(parameters, entries(tmp_path, w=W, b=B), ignored=("mask",))
    np.testing.assert_array_equal(parameters["w"].array, W)
    np.testing.assert_array_equal(parameters["b"].array, B)
    assert report == LoadReport(loaded=("w", "b"), ignored=("mask",), values=9)
    assert report.complete


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
def test_values_take_the_dtype_of_the_parameter(parameters, tmp_path, dtype):
    fill(parameters, entries(tmp_path, w=W.astype(dtype), b=B.astype(dtype)))
    assert parameters["w"].dtype == np.float32
    np.testing.assert_array_equal(parameters["w"].array, W)


BAD_B = {
    "missing": (None, "lacks 1 of 2 weights: b"),
    "shape": (np.ones(4, "float32"), r"b: file \(4,\), model \(3,\)"),
    "more axes": (np.ones((1, 3), "float32"), r"b: file \(1, 3\), model \(3,\)"),
    "NaN": (np.array([1, np.nan, 2], "float32"), r"b \(file.b .*holds nan at \[1\], 1 of 3"),
    "infinity": (np.array([1, 2, np.inf], ml_dtypes.bfloat16), r"holds inf at \[2\]"),
    "too large": (np.array([1e300, 0, 0]), r"values up to 1e\+300 do not fit float32"),
    "whole numbers": (np.ones(3, "int64"), "dtype int64; a weight must be of real"),
    "truth values": (np.ones(3, "bool"), "dtype bool"),
    "complex": (np.ones(3, "complex64"), "dtype complex64"),
}


@pytest.mark.parametrize("case", BAD_B, ids=str)
def test_nothing_changes_when_anything_is_wrong(parameters, tmp_path, case):
    array, reason = BAD_B[case]
    given = entries(tmp_path, w=W) if array is None else entries(tmp_path, w=W, b=array)
    with pytest.raises(CheckpointError, match=reason):
        fill(parameters, given)
    assert not parameters["w"].array.any()
    assert not parameters["b"].array.any()


def test_an_entry_without_a_parameter_is_refused(parameters, tmp_path):
    with pytest.raises(CheckpointError, match=r"has c, the model has no such parameter"):
        fill(parameters, entries(tmp_path, w=W, b=B, c=B))


def test_what_is_allowed_is_reported(parameters, tmp_path):
    report = fill(parameters, entries(tmp_path, w=W), allow_new=True, unused=("score.weight",))
    assert (report.loaded, report.new) == (("w",), ("b",))
    assert not report.complete
    report = fill(
        parameters, entries(tmp_path, w=W, b=np.ones(4, "float32")), ignore_mismatched_sizes=True
    )
    assert (report.loaded, report.reshaped) == (("w",), ("b",))
    assert not parameters["b"].array.any()
    nan = np.full(3, np.nan, "float32")
    fill(parameters, entries(tmp_path, w=W, b=nan), allow_nonfinite=True)
    assert np.isnan(parameters["b"].array).all()


def test_the_report_reads_well():
    report = LoadReport(
        loaded=("w", "b"),
        values=1234,
        unused=tuple(f"head.{i}" for i in range(9)),
        ignored=("h.0.attn.bias",),
    )
    assert str(report).splitlines() == [
        "loaded        2  (1,234 values)",
        "unused        9  head.0, head.1, head.2, head.3, head.4, head.5 and 3 more "
        "(in the file, not in the model)",
        "ignored       1  h.0.attn.bias (computed by the model itself)",
    ]
