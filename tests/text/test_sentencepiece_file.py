"""Files of SentencePiece, written here byte by byte, and what becomes of damaged ones."""

import json
import struct
import tracemalloc

import numpy as np
import pytest

from tinyplm.errors import CheckpointError, MissingFileError, TinyplmError
from tinyplm.text import Tokenizer
from tinyplm.text.sentencepiece_file import read_pieces

PIECES = [
    ("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("\u2581", -3.5, 1), ("\u2581the", -1.25, 1),
    ("\u2581cat", -2.5, 1), ("s", -2.0, 1), ("c", -6.0, 1), ("a", -5.0, 1), ("t", -5.5, 1), ("ca", -5.25, 1),
    ("\u2581th", -4.0, 1), ("e", -4.5, 1), ("1", -7.0, 1), ("/", -7.0, 1), ("2", -7.0, 1), ("<br>", 0.0, 4),
]  # fmt: skip


def whole(value):
    made = bytearray()
    while value >= 0x80:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*made, value])


def field(number, value):
    if isinstance(value, int):
        return whole(number << 3) + whole(value)
    if isinstance(value, float):
        return whole(number << 3 | 5) + struct.pack("<f", value)
    return whole(number << 3 | 2) + whole(len(value)) + value


def piece(text, score, kind):
    return field(1, text.encode()) + field(2, score) + field(3, kind)


def rules(replacements):
    """A double array of what is replaced, with 256 units for each state: wasteful and plain."""
    states, order, texts = {b"": 1}, [b""], b""
    for source in replacements:
        for n in range(1, len(source.encode()) + 1):
            prefix = source.encode()[:n]
            if prefix not in states:
                states[prefix] = len(states) + 1
                order.append(prefix)
    units = np.zeros(256 * (len(states) + 1), np.uint32)
    value_of = {}
    for source, target in replacements.items():
        value_of[source.encode()] = len(texts)
        texts += target.encode() + b"\0"

    def leading(place, state, label, leaf):
        """A unit whose offset is such that place ^ offset is the first unit of a state."""
        offset = place ^ (256 * state)
        if offset % 256 == 0:
            return offset >> 8 << 10 | 1 << 9 | leaf << 8 | label
        return offset << 10 | leaf << 8 | label

    units[0] = leading(0, 1, 0, 0)
    for prefix in order[1:]:
        place = 256 * states[prefix[:-1]] ^ prefix[-1]
        leaf = prefix in value_of
        units[place] = leading(place, states[prefix], prefix[-1], leaf)
        if leaf:
            units[256 * states[prefix]] = value_of[prefix] | 1 << 31
    return struct.pack("<I", 4 * len(units)) + units.tobytes() + texts


def model(pieces=PIECES, *, training=b"", normalisation=b""):
    made = b"".join(field(1, piece(*one)) for one in pieces)
    return made + field(2, field(3, 1) + training) + field(3, field(1, b"own") + normalisation)


FULL = field(2, rules({"½": "1/2", "Ａ": "a", "S": "s", "é": ""}))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "spiece.model").write_bytes(model(normalisation=FULL))
    return tmp_path


TEXTS = [
    "the cats", "  the   cat \n", "cats", "½", "ＡＡ", "theS cat", "unknown", "", " ", "the <br>cat", "cat</s>",
    "<extra_id_0> the <extra_id_1>", "caf\u00e9", "x" * 50 + " the",
]  # fmt: skip


def test_ids_are_those_of_a_unigram_model_of_the_same_pieces(folder):
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    sentinels = [f"<extra_id_{k}>" for k in range(99, -1, -1)]
    vocab = [*((t, s) for t, s, _ in PIECES), *((t, 0.0) for t in sentinels)]
    library = Library(models.Unigram(vocab, unk_id=2))
    replaced = (("½", "1/2"), ("Ａ", "a"), ("S", "s"), ("é", ""))
    library.normalizer = normalizers.Sequence([normalizers.Replace(a, b) for a, b in replaced])
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    special = ["<pad>", "</s>", "<unk>", *sentinels]
    library.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    library.add_tokens([AddedToken("<br>", normalized=False)])
    tokenizer = Tokenizer.load(folder)
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == library.encode(text, add_special_tokens=False).ids


def test_the_roles_and_sentinels_of_t5_are_found(folder):
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.kind == "unigram"
    assert tokenizer.vocab_size == len(PIECES) + 100
    assert (tokenizer.padding, tokenizer.end_of_text, tokenizer.unknown) == (0, 1, 2)
    assert tokenizer.id("<extra_id_0>") == tokenizer.vocab_size - 1
    assert tokenizer.id("<extra_id_99>") == len(PIECES)
    ids = tokenizer.encode("the cats", add_special_tokens=True)
    assert ids.tolist() == [4, 5, 6, 1]
    assert tokenizer.decode(ids, skip_special=True) == "the cats"


def test_a_file_may_be_given_itself_and_saved_as_another_kind(folder, tmp_path):
    tokenizer = Tokenizer.load(folder / "spiece.model")
    tokenizer.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == tokenizer.fingerprint
    for text in TEXTS:
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_the_number_of_sentinels_is_that_of_the_settings(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 7}))
    assert Tokenizer.load(folder).vocab_size == len(PIECES) + 7
    (folder / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 10**12}))
    with pytest.raises(CheckpointError, match="extra_ids=1000000000000"):
        Tokenizer.load(folder)


def test_a_model_that_is_not_t5s_gets_no_sentinels(tmp_path):
    others = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *PIECES[3:]]
    (tmp_path / "tokenizer.model").write_bytes(model(others))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == len(PIECES)
    assert tokenizer.encode("the cat", add_special_tokens=True).tolist() == [4, 5]


def changed(data, at, byte):
    return data[:at] + bytes([byte]) + data[at + 1 :]


BAD = {
    "nothing": (b"", "no pieces"),
    "cut off": (model(normalisation=FULL)[:-300], "begins where only"),
    "text": (b"hello, world; this is not it", "damaged"),
    "an unfinished number": (b"\xff" * 12, "does not end"),
    "a group": (b"\x0b" + model(), "unknown kind 3"),
    "a huge field": (b"\x0a" + whole(1 << 60), "1,152,921,504,606,846,976 bytes"),
    "a piece that is a number": (field(1, 5), "a piece is a number"),
    "a text that is a number": (field(1, field(1, 5)), "text of piece 0 is a number"),
    "a piece that is not UTF-8": (field(1, field(1, b"\xff\xfe")), "not UTF-8"),
    "a score that is not a number": (model([*PIECES, ("x", float("nan"), 1)]), "score nan"),
    "a double score": (
        field(1, field(1, b"x") + whole(2 << 3 | 1) + b"\0" * 8),
        "8 bytes, not 4",
    ),
    "a strange kind": (model([*PIECES, ("x", 0.0, 9)]), "kind 9"),
    "the same piece twice": (model([*PIECES, ("s", 0.0, 1)]), "some are the same"),
    "two unknown ones": (model([*PIECES, ("x", 0.0, 2)]), "found 2"),
    "no unknown one": (model(PIECES[3:], training=field(40, 99)), "found 0"),
    "another algorithm": (
        b"".join(field(1, piece(*one)) for one in PIECES) + field(2, field(3, 2)),
        "algorithm is bpe",
    ),
    "bytes": (model(training=field(35, 1)), "in bytes"),
    "no space in front": (model(normalisation=field(3, 0)), "no space in front"),
    "short rules": (model(normalisation=field(2, b"abc")), "3 bytes"),
    "rules longer than they are": (
        model(normalisation=field(2, struct.pack("<I", 1 << 30) + b"\0" * 64)),
        "1,073,741,824",
    ),
    "rules that lead out": (
        model(normalisation=field(2, struct.pack("<II", 4, 1 << 20) + b"a\0")),
        "out of their table",
    ),
    "replacements that are missing": (
        model(normalisation=field(2, rules({"S": "s"})[:-2])),
        "missing replacements",
    ),
    "replacements that are not UTF-8": (
        model(normalisation=field(2, rules({"S": "s"}) + b"\xff")),
        "not UTF-8",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_damaged_files_are_refused_in_a_sentence(kind, tmp_path):
    data, message = BAD[kind]
    (tmp_path / "spiece.model").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.load(tmp_path)


def test_no_change_of_a_byte_ends_in_anything_but_a_tokenizer_or_a_sentence(tmp_path):
    data = model(normalisation=field(2, rules({"½": "1/2", "S": "s"})))
    path, rng = tmp_path / "spiece.model", np.random.default_rng(0)
    interesting = np.flatnonzero(np.frombuffer(data, np.uint8))
    refused = 0
    for at in rng.choice(interesting, 150):
        path.write_bytes(changed(data, int(at), int(rng.integers(256))))
        try:
            tokenizer = Tokenizer.load(path)
        except TinyplmError:
            refused += 1
            continue
        for text in ("the cats ½ S", "café ÿ"):
            tokenizer.encode(text)
    assert refused > 10


def test_memory_stays_in_proportion_to_the_file(tmp_path):
    path = tmp_path / "spiece.model"
    path.write_bytes(b"\x0a" + whole(1 << 40) + b"x" * 100)
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_pieces(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_file_that_is_far_too_large_is_not_read(tmp_path):
    path = tmp_path / "spiece.model"
    with path.open("wb") as file:
        file.truncate((1 << 26) + 1)
    with pytest.raises(CheckpointError, match=r"67,108,865 bytes"):
        read_pieces(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(MissingFileError, match="could not be read"):
        read_pieces(tmp_path / "spiece.model")
