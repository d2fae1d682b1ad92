"""A tokenizer trained from a file is saved whole, and none is written over."""

import pytest

from tinyplm.errors import ConfigError
from tinyplm.recipes.tokenizer import KINDS, train_tokenizer
from tinyplm.text import Tokenizer

TEXT = "고양이가 매트 위에 앉았다. the cat sat on the mat.\n" * 20


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_is_trained_and_saved(tmp_path, kind):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    made = train_tokenizer(str(path), kind, tmp_path / "out", vocab_size=300)
    loaded = Tokenizer.load(tmp_path / "out")
    assert loaded.kind == KINDS[kind] == made.tokenizer.kind
    ids = loaded.encode(TEXT)
    assert made.bytes_per_token == pytest.approx(len(TEXT.encode()) / len(ids))
    assert loaded.unknown is None or loaded.unknown not in ids


def test_a_tokenizer_is_not_written_over(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    train_tokenizer(str(path), "chars", tmp_path / "out")
    with pytest.raises(ConfigError, match="already holds a tokenizer"):
        train_tokenizer(str(path), "chars", tmp_path / "out")
    with pytest.raises(ConfigError, match="is a file"):
        train_tokenizer(str(path), "chars", path)
