"""Alignments of a decoder with its source: taken from a model, drawn, and written as text."""

import builtins

import numpy as np
import pytest

from tinyplm.analysis.alignment import alignment, plot_alignment
from tinyplm.errors import ConfigError, DataError, TinyplmWarning
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig

WEIGHTS = np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
SOURCE, TARGET = ["the", "cat", "$s$"], ["Katze", "die"]


def model(attention):
    config = Seq2SeqConfig(vocab_size=9, hidden_size=4, layers=1, attention=attention)
    return Seq2Seq(config, rng=np.random.default_rng(0))


def test_the_weights_are_those_of_the_model_and_leave_padding_out():
    source, target = np.array([[3, 4, 5, 6]]), np.array([[0, 7, 8]])
    mask = np.array([[1, 1, 1, 0]])
    found = alignment(model("concat"), source, target, attention_mask=mask)
    assert found.shape == (1, 3, 4)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=0, atol=1e-6)
    assert not found[:, :, 3].any()


def test_what_a_model_does_not_have_is_said():
    source, target = np.array([[3, 4]]), np.array([[0, 7]])
    with pytest.raises(ConfigError, match=r"This Seq2Seq has no attention.*attention='additive'"):
        alignment(model(None), source, target)
    for wrong in ({"layer": 1}, {"layer": -2}, {"head": 1}):
        with pytest.raises(ConfigError, match=r"there are 1 layers of 1 heads"):
            alignment(model("dot"), source, target, **wrong)


def test_as_text_each_weight_has_its_shade():
    lines = plot_alignment(WEIGHTS, SOURCE, TARGET).splitlines()
    assert lines[:3] == ["Katze | :#|", "  die |@  |", "       012"]
    assert lines[3] == "source: 0 the  1 cat  2 $s$"


def test_a_picture_is_drawn_where_matplotlib_is(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "a.png"
    said = plot_alignment(WEIGHTS, SOURCE, TARGET, path, title="$ and _")
    assert said == f"The alignment is drawn in {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_text_takes_its_place(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.warns(TinyplmWarning, match=r"pip install \"tinyplm\[plot\]\""):
        said = plot_alignment(WEIGHTS, SOURCE, TARGET, tmp_path / "a.png")
    assert said == plot_alignment(WEIGHTS, SOURCE, TARGET)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (WEIGHTS.T, r"shape \(3, 2\), but there are 2 target and 3 source tokens"),
        (WEIGHTS[None], r"alignment\(\.\.\.\)\[0\]"),
        (WEIGHTS - 1, "range from -1 to 0; expected shares"),
        (3 * WEIGHTS, "range from 0 to 3"),
        (WEIGHTS * np.nan, "range from nan"),
    ],
)
def test_what_is_no_alignment_is_refused(weights, message):
    with pytest.raises(DataError, match=message):
        plot_alignment(weights, SOURCE, TARGET)
