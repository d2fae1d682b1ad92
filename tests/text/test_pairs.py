"""Pairs of texts: columns found, ids kept on disk, batches of similar lengths that can be resumed."""

import json

import numpy as np
import pytest

from tinyplm.errors import ConfigError, DataError, MissingFileError, TinyplmWarning
from tinyplm.text import Tokenizer
from tinyplm.text.pairs import PairBatches, PairFile, open_pairs, tokenize_pairs

TOKENIZER = Tokenizer.train("bytes", [], special_tokens=("<pad>", "</s>"))


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


ROWS = [("the cat", "die Katze"), ("", "nichts"), ("\uac15\uc544\uc9c0", "Hund"), ("a b", "")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", "".join(f"{a}\t{b}\n" for a, b in ROWS)),
        ("b.tsv", "source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS)),
        ("c.tsv", "id\tTarget\tSource\n" + "".join(f"7\t{b}\t{a}\n" for a, b in ROWS)),
        ("d.csv", "source,target\r\n" + "".join(f'"{a}","{b}"\r\n' for a, b in ROWS)),
        ("e.jsonl", "".join(json.dumps({"n": 1, "en": a, "de": b}) + "\n" for a, b in ROWS)),
        ("f.jsonl", "".join(json.dumps({"target": b, "source": a}) + "\n\n" for a, b in ROWS)),
    ],
    ids=lambda value: value if value.endswith(("v", "l")) else "",
)
def test_two_columns_are_found_by_name_or_are_the_first(tmp_path, name, text):
    pairs = open_pairs(written(tmp_path, name, text))
    assert list(pairs.read()) == ROWS
    assert list(pairs.read()) == ROWS  # any number of times
    assert list(pairs.documents()) == [text for row in ROWS for text in row if text]
    assert name in pairs.description


REFUSED = {
    "one column": ("a.tsv", "only one\nand again\n", r"has 1 column \('only one'.*two: source and"),
    "commas in a tsv": ("a.tsv", "a,b\nc,d\n", r"Is it separated by commas\? Then name it \.csv"),
    "tabs in a csv": ("a.csv", "a\tb\nc\td\n", r"separated by tabs\? Then name it \.tsv"),
    "a row too short": ("a.tsv", "a\tb\nc\n", "line 2: 1 cells, but the first row has 2"),
    "nothing": ("a.tsv", "", "empty"),
    "white space": ("a.tsv", "\n \n", "no rows"),
    "text": ("a.txt", "a\tb\n", r"is a \.txt file, but pairs .* \.tsv, \.csv or \.jsonl"),
    "one field": ("a.jsonl", '{"text": "a"}\n', r"two fields that hold strings; found text"),
    "numbers": ("a.jsonl", '{"a": "x", "b": 3}\n', r"found a, b"),
    "strings": ("a.jsonl", '"a"\n', "found a string"),
    "a line without": (
        "a.jsonl",
        '{"source": "a", "target": "b"}\n{"source": "a"}\n',
        "line 2: field 'target' is null",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_files_without_pairs_are_refused_in_words(tmp_path, kind):
    name, text, message = REFUSED[kind]
    with pytest.raises(DataError, match=message):
        list(open_pairs(written(tmp_path, name, text)).read())


def test_what_is_not_there_is_said(tmp_path):
    written(tmp_path, "pairs.tsv", "a\tb\n")
    with pytest.raises(MissingFileError, match=r"Did you mean pairs\.tsv"):
        open_pairs(tmp_path / "pair.tsv")
    with pytest.raises(DataError, match="is a folder, but pairs"):
        open_pairs(tmp_path)
    with pytest.raises(ConfigError, match="no encoding 'utf-9'"):
        open_pairs(tmp_path / "pairs.tsv", encoding="utf-9")
    written(tmp_path, "header.tsv", "source\ttarget\n")
    with pytest.raises(DataError, match="no pairs beside its header"):
        tokenize_pairs(open_pairs(tmp_path / "header.tsv"), TOKENIZER, tmp_path / "x.bin")


def kept(tmp_path, rows, name="pairs"):
    path = written(tmp_path, f"{name}.tsv", "source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in rows))  # fmt: skip
    return tokenize_pairs(open_pairs(path), TOKENIZER, tmp_path / f"{name}.bin")


def texts(pairs):
    return [tuple(TOKENIZER.decode(ids) for ids in pairs[i]) for i in range(len(pairs))]


def test_ids_on_disk_are_the_texts(tmp_path):
    pairs = kept(tmp_path, ROWS)
    assert texts(pairs) == ROWS
    assert len(pairs) == 4
    assert pairs.text_bytes == sum(len(target.encode()) for _, target in ROWS)
    assert pairs.vocab_size == 258
    assert all(ids.dtype == np.int64 for ids in pairs[0])
    again = PairFile.open(tmp_path / "pairs.bin")
    assert texts(again) == ROWS
    assert again.digest() == pairs.digest()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_same_pairs_are_not_tokenized_twice_and_others_are(tmp_path):
    pairs = kept(tmp_path, ROWS)
    before = pairs.path.stat().st_mtime_ns
    source = open_pairs(tmp_path / "pairs.tsv")
    assert tokenize_pairs(source, TOKENIZER, pairs.path).path.stat().st_mtime_ns == before
    digest = pairs.digest()
    other = kept(tmp_path, ROWS[::-1])
    assert texts(other) == ROWS[::-1]
    assert other.digest() != digest


def test_the_end_is_held_out(tmp_path):
    rows = [(f"s{i}", f"target {i}") for i in range(20)]
    pairs = kept(tmp_path, rows)
    for share, held_out in ((0.1, 2), (0.25, 5), (0.0, 0), (0.01, 1)):
        first, last = pairs.split(share)
        assert texts(first) == rows[: 20 - held_out]
        assert texts(last) == rows[20 - held_out :]
        assert first.text_bytes + last.text_bytes == pairs.text_bytes
    with pytest.raises(ConfigError, match=r"validation must be .* got 1\.5"):
        pairs.split(1.5)


@pytest.mark.parametrize("damage", ["short", "record", "gone", "lengths"])
def test_damaged_files_are_refused_and_made_anew(tmp_path, damage):
    pairs = kept(tmp_path, ROWS)
    path, record = pairs.path, tmp_path / "pairs.json"
    data = path.read_bytes()
    del pairs
    if damage == "short":
        path.write_bytes(data[:-1])
    elif damage == "record":
        record.write_text("{}", encoding="utf-8")
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes([data[0] + 1]) + data[1:])
    with pytest.raises((DataError, MissingFileError), match=r"damaged|missing"):
        PairFile.open(path)
    source = open_pairs(tmp_path / "pairs.tsv")
    assert texts(tokenize_pairs(source, TOKENIZER, path)) == ROWS
    with pytest.raises(MissingFileError, match=r"no pair file at .*tokenize_pairs"):
        PairFile.open(tmp_path / "other.bin")


def test_unknown_tokens_are_told(tmp_path):
    few = Tokenizer.train("wordpiece", ["cat dog " * 20], vocab_size=40)
    written(tmp_path, "a.tsv", "cat\tzebra\nxylophone\tyeti\n")
    with pytest.warns(TinyplmWarning, match=r"\d+ % of the \d+ tokens of .*a\.tsv are unknown"):
        tokenize_pairs(open_pairs(tmp_path / "a.tsv"), few, tmp_path / "a.bin")


# Batches


@pytest.fixture
def many(tmp_path):
    rng = np.random.default_rng(0)
    return kept(
        tmp_path,
        [(f"{i} " + "x" * rng.integers(0, 40), "y" * rng.integers(1, 40)) for i in range(503)],
        "many",
    )


def sources(batch):
    return [
        TOKENIZER.decode(ids[mask == 1])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_an_epoch_visits_every_pair_once_in_an_order_of_its_own(many):
    batches = PairBatches(many, length=64, batch=8, seed=1, padding=256)
    epochs = []
    for _ in range(2):
        seen = [s for _ in range(batches.per_epoch) for s in sources(next(batches))]
        assert sorted(seen) == sorted(a for a, _ in texts(many))
        epochs.append(seen)
    assert epochs[0] != epochs[1]
    other = PairBatches(many, length=64, batch=8, seed=2, padding=256)
    assert [s for _ in range(batches.per_epoch) for s in sources(next(other))] != epochs[0]


def test_batches_are_of_similar_length_and_padded_on_the_right(many):
    batches = PairBatches(many, length=64, batch=8, seed=1, padding=256)
    found = [next(batches) for _ in range(batches.per_epoch)]
    spread, filled = [], []
    for batch in found:
        for name, mask in (("input_ids", "attention_mask"), ("target_ids", "target_mask")):
            ids, real = batch[name], batch[mask]
            assert ids.shape == real.shape
            assert ids.dtype == np.int64
            assert (ids[real == 0] == 256).all()
            assert (np.diff(real, axis=1) <= 0).all()
            assert real.any(axis=0).all()
        sums = batch["attention_mask"].sum(axis=1) + batch["target_mask"].sum(axis=1)
        spread.append(np.ptp(sums))
        filled.append(sums.mean())
    assert np.mean(spread) < 5
    assert np.ptp(filled) > 40
    assert not (np.diff(filled) >= 0).all()  # short ones do not all come first


@pytest.mark.parametrize("steps", [0, 1, 62, 63, 64, 100])
def test_a_restored_source_gives_the_batches_that_would_have_come(many, steps):
    batches = PairBatches(many, length=64, batch=8, seed=3)
    for _ in range(steps):
        next(batches)
    again = PairBatches(many, length=64, batch=8, seed=3)
    again.restore(json.loads(json.dumps(batches.state())))
    for _ in range(70):
        a, b = next(batches), next(again)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("key", ["length", "batch", "seed", "pairs"])
def test_a_state_of_other_settings_is_refused(many, key):
    batches = PairBatches(many, length=64, batch=8, seed=3)
    with pytest.raises(ConfigError, match=f"{key} was 5 and is"):
        batches.restore(batches.state() | {key: 5})


def test_in_order_is_the_order_of_the_file_and_moves_nothing(many):
    batches = PairBatches(many, length=64, batch=8, seed=3)
    before = batches.state()
    assert [s for b in batches.in_order() for s in sources(b)] == [a for a, _ in texts(many)]
    assert batches.state() == before


def test_pairs_that_are_too_long_are_left_out_and_counted(many):
    longest = many.lengths[:, :2].max()
    with pytest.warns(
        TinyplmWarning, match=rf"\d+ of 503 pairs .* --positions {longest + 1} reads"
    ):
        batches = PairBatches(many, length=20, batch=8)
    found = [next(batches) for _ in range(batches.per_epoch)]
    assert max(b["input_ids"].shape[1] for b in found) <= 19
    count = sum(len(b["input_ids"]) for b in found)
    assert count == (many.lengths[:, :2] < 20).all(axis=1).sum()
    with pytest.raises(DataError, match="All 503 pairs are too long for 1 positions"):
        PairBatches(many, length=1, batch=8)
    with pytest.raises(ConfigError, match="batch=0"):
        PairBatches(many, length=8, batch=0)
