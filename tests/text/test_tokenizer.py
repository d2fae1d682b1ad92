import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyplm.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DtypeError,
    MissingFileError,
    ShapeError,
)
from tinyplm.text import Tokenizer, split_long_text

TEXT = """The cat sat on the mat. The dog didn't sit; it ran 12 miles, then 345 more.
Low, lower, lowest: new, newer, newest! Wide, wider, widest?

\tA café in Zürich — “naïve” & co. 한국어 문장도 있다. 먹었다, 먹는다, 먹겠다.
the the the cat cat sat sat mat mat lower lower newest newest widest widest
"""
KINDS = ("chars", "bytes", "bpe", "byte-bpe", "wordpiece", "unigram")
LOSSLESS = ("bytes", "byte-bpe")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: Tokenizer.train(kind, [TEXT], vocab_size=400) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_known_from_its_file_and_saves_and_loads_the_same(kind, tokenizers, tmp_path):
    tokenizer = tokenizers[kind]
    assert tokenizer.kind == kind
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.kind == kind
    assert np.array_equal(again.encode(TEXT), tokenizer.encode(TEXT))
    for role in ("end_of_text", "unknown", "padding", "mask", "classifier", "separator"):
        assert getattr(again, role) == getattr(tokenizer, role), role
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_int64_below_the_vocabulary_size(kind, tokenizers):
    ids = tokenizers[kind].encode(TEXT)
    assert ids.dtype == np.int64
    assert ids.ndim == 1
    assert 0 <= ids.min() <= ids.max() < tokenizers[kind].vocab_size <= 400


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_no_characters_has_no_ids_and_no_ids_are_no_text(kind, tokenizers):
    assert tokenizers[kind].encode("").shape == (0,)
    assert tokenizers[kind].encode("").dtype == np.int64
    assert tokenizers[kind].decode([]) == ""
    assert tokenizers[kind].decode(np.zeros(0)) == ""


any_text = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t\x00'\u00a0\u3000가é"),
    max_size=60,
)


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_any_text_comes_back_unchanged_from_bytes(kind, tokenizers, text):
    ids = tokenizers[kind].encode(text)
    assert tokenizers[kind].decode(ids) == text
    plain = text.replace("<|endoftext|>", "")
    assert tokenizers[kind].token_bytes[ids].sum() == len(plain.encode())


@settings(max_examples=200, deadline=None)
@given(text=st.text(sorted(set(TEXT)), max_size=80))
def test_text_of_known_characters_comes_back_unchanged_from_chars(tokenizers, text):
    ids = tokenizers["chars"].encode(text)
    assert len(ids) == len(text)
    assert tokenizers["chars"].decode(ids) == text
    assert tokenizers["chars"].token_bytes[ids].sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_words_with_single_spaces_come_back_unchanged(kind, tokenizers):
    text = "the cat sat on the mat lower newest widest"
    assert tokenizers[kind].decode(tokenizers[kind].encode(text)) == text


def test_chars_are_in_the_order_of_code_points_and_exactly_as_many_as_asked():
    tokenizer = Tokenizer.train("chars", ["hello\n", "world é"], special_tokens=())
    assert tokenizer.vocab_size == len(set("hello\nworld é"))
    assert [tokenizer.token(i) for i in range(10)] == sorted(set("hello\nworld é"))
    assert tokenizer.end_of_text is None
    assert tokenizer.special_ids == frozenset()


def test_chars_without_an_unknown_token_name_the_character_and_its_place():
    tokenizer = Tokenizer.train("chars", ["abc"])
    with pytest.raises(DataError, match=r"'z' \(U\+007A\) at offset 15"):
        tokenizer.encode("a<|endoftext|>bzc")
    with pytest.raises(DataError, match=r"'<' .* at offset 1,"):
        tokenizer.encode("a<b")


def test_chars_with_an_unknown_token_use_it():
    tokenizer = Tokenizer.train("chars", ["abc"], special_tokens=("<unk>",))
    assert tokenizer.unknown == 3
    assert tokenizer.encode("azzc").tolist() == [0, 3, 3, 2]
    assert tokenizer.encode("a<unk>c").tolist() == [0, 3, 2]


def test_bytes_are_their_own_ids_and_end_of_text_follows():
    tokenizer = Tokenizer.train("bytes", ["x"])
    assert tokenizer.vocab_size == 257
    assert tokenizer.encode("a\n é\x00").tolist() == list("a\n é\x00".encode())
    assert tokenizer.encode("a<|endoftext|>").tolist() == [97, 256]
    assert tokenizer.end_of_text == 256
    assert tokenizer.unknown is None


def test_byte_bpe_has_the_ids_of_gpt2_for_single_bytes_and_end_of_text_last(tokenizers):
    tokenizer = tokenizers["byte-bpe"]
    assert [tokenizer.id(t) for t in ("!", "A", "a", "Ċ", "Ġ")] == [0, 32, 64, 198, 220]
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.token(tokenizer.end_of_text) == "<|endoftext|>"


def test_byte_bpe_splits_as_gpt2_does(tokenizers):
    split = tokenizers["byte-bpe"].library.pre_tokenizer.pre_tokenize_str
    words = "don|'t|Ġwe|'ll|Ġ|Ġ1234|ĠcafÃ©"
    assert [word for word, _ in split("don't we'll  1234 café")] == words.split("|")


def test_bert_and_t5_give_special_tokens_their_usual_first_ids(tokenizers):
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    assert [tokenizers["wordpiece"].id(t) for t in names] == [0, 1, 2, 3, 4]
    assert [tokenizers["unigram"].id(t) for t in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert tokenizers["wordpiece"].end_of_text == 3
    assert tokenizers["wordpiece"].mask == 4
    assert tokenizers["unigram"].unknown == 2


def test_special_tokens_go_around_a_text_only_when_asked_for(tokenizers):
    tokenizer = tokenizers["wordpiece"]
    plain = tokenizer.encode("the cat").tolist()
    assert tokenizer.encode("the cat", add_special_tokens=True).tolist() == [2, *plain, 3]
    ids, segments = tokenizer.encode_pair("the cat", "sat")
    second = tokenizer.encode("sat").tolist()
    assert ids.tolist() == [2, *plain, 3, *second, 3]
    assert segments.tolist() == [0] * (len(plain) + 2) + [1] * (len(second) + 1)
    five = tokenizers["unigram"]
    assert five.encode("the cat", add_special_tokens=True)[-1] == five.id("</s>")


def test_appended_tokens_have_the_last_ids_within_the_vocabulary_size():
    sentinels = ["<extra_id_1>", "<extra_id_0>"]
    tokenizer = Tokenizer.train("unigram", [TEXT], vocab_size=200, appended_tokens=sentinels)
    assert tokenizer.vocab_size <= 200
    assert tokenizer.id("<extra_id_0>") == tokenizer.vocab_size - 1
    assert tokenizer.id("<extra_id_1>") == tokenizer.vocab_size - 2
    assert tokenizer.id("<extra_id_0>") in tokenizer.special_ids


@pytest.mark.parametrize("kind", ["bpe", "byte-bpe", "chars", "wordpiece"])
def test_training_twice_gives_the_same_tokenizer(kind):
    first, second = (Tokenizer.train(kind, [TEXT], vocab_size=350) for _ in range(2))
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                *("the", "cat", "'s", "didn't", " ", "  ", "\n", "\n\n", "\t", ".", "12", "한국어"),
                *("<|endoftext|>", "[MASK]", "</s>", "<", "\u00a0", "\u3000", "a\u0301", "\x00"),
                *("é", "Z", "“", "\r\n", "\x1c"),
            ]
        ),
        max_size=40,
    ),
    size=st.integers(1, 30),
)
def test_cutting_a_text_does_not_change_its_ids(kind, parts, size):
    text = "".join(parts)
    tokenizer = _with_unknown(kind)
    whole = tokenizer.library.encode(text, add_special_tokens=False).ids
    pieces = list(
        split_long_text(text, size=size, marks=tokenizer._marks, whole=tokenizer._contents)
    )
    assert "".join(pieces) == text
    encodings = [tokenizer.library.encode(piece, add_special_tokens=False) for piece in pieces]
    assert [id for encoding in encodings for id in encoding.ids] == whole


_KEPT = {}


def _with_unknown(kind):
    if kind not in _KEPT:
        special = ("<unk>", "<|endoftext|>", "</s>") if kind == "chars" else None
        _KEPT[kind] = Tokenizer.train(kind, [TEXT], vocab_size=400, special_tokens=special)
    return _KEPT[kind]


def test_cutting_finds_pieces_where_there_is_white_space():
    text = "word " * 1000
    pieces = list(split_long_text(text, size=100))
    assert max(map(len, pieces)) <= 100
    assert all(piece.startswith(" word") for piece in pieces[1:])
    assert list(split_long_text("x" * 500, size=100)) == ["x" * 500]
    assert list(split_long_text("x" * 500, size=100, marks="")) == ["x" * 100] * 5


@pytest.mark.parametrize("kind", ["chars", "bytes", "bpe", "byte-bpe", "wordpiece", "unigram"])
def test_a_long_text_has_the_ids_of_its_whole(kind):
    tokenizer = _with_unknown(kind)
    text = TEXT * 150
    whole = tokenizer.library.encode(text, add_special_tokens=False).ids
    assert np.array_equal(tokenizer.encode(text), whole)


def test_five_megabytes_on_one_line_stay_within_seven_hundred_megabytes():
    code = (
        "from pathlib import Path\n"
        "from tinyplm.text import Tokenizer\n"
        "line = 'the cat sat on the mat, didn\\'t it; ' * 145_000\n"
        "tokenizer = Tokenizer.train('byte-bpe', [line[:10_000]], vocab_size=300)\n"
        "ids = tokenizer.encode(line)\n"
        "assert len(line) > 5_000_000 and tokenizer.decode(ids) == line\n"
        "status = Path('/proc/self/status').read_text(encoding='ascii')\n"
        "print(status.partition('VmHWM:')[2].split()[0])\n"  # ru_maxrss begins with the parent's
    )
    if sys.platform != "linux":
        pytest.skip("the memory of a process is read as on Linux")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 700


def test_a_lone_surrogate_is_refused_with_its_place(tokenizers):
    for call in (tokenizers["bytes"].encode, lambda t: Tokenizer.train("bpe", [t])):
        with pytest.raises(DataError, match=r"lone surrogate.*offset 2"):
            call("ab\udcb0")


def test_what_is_not_text_is_refused(tokenizers):
    with pytest.raises(DtypeError, match="text must be a string; got bytes"):
        tokenizers["bytes"].encode(b"ab")
    with pytest.raises(DtypeError, match="one string"):
        tokenizers["bytes"].encode_batch("ab")
    with pytest.raises(DtypeError, match="one string"):
        Tokenizer.train("bpe", "ab")


def test_ids_out_of_range_are_named(tokenizers):
    for wrong in (257, -100):
        with pytest.raises(ShapeError, match=rf"ids contains {wrong} at \[1\].*vocab_size=257"):
            tokenizers["bytes"].decode([5, wrong])
    with pytest.raises(ShapeError, match=r"shape \(1, 2\)"):
        tokenizers["bytes"].decode(np.zeros((1, 2), int))
    with pytest.raises(DtypeError, match="float64"):
        tokenizers["bytes"].decode([0.5])
    with pytest.raises(ShapeError, match="no token has id 300"):
        tokenizers["bytes"].token(300)
    with pytest.raises(DataError, match=r"Did you mean '<\|endoftext\|>'"):
        tokenizers["bytes"].id("<|endoftxt|>")


def test_special_tokens_can_be_left_out_of_decoded_text(tokenizers):
    ids = tokenizers["byte-bpe"].encode("the cat<|endoftext|>sat")
    assert tokenizers["byte-bpe"].decode(ids) == "the cat<|endoftext|>sat"
    assert tokenizers["byte-bpe"].decode(ids, skip_special=True) == "the catsat"


def test_half_a_character_is_decoded_to_a_replacement(tokenizers):
    assert tokenizers["bytes"].decode(list("é".encode()[:1])) == "\ufffd"


def test_settings_that_cannot_be_are_refused():
    for settings_, words in [
        ({"kind": "bep"}, "Did you mean 'bpe'"),
        ({"kind": "byte-bpe", "vocab_size": 200}, "at least 256"),
        ({"kind": "bpe", "special_tokens": ()}, "'<unk>'"),
        ({"kind": "bpe", "special_tokens": ("<unk>", "<unk>")}, "distinct"),
        ({"kind": "bpe", "vocab_size": 10}, "different characters"),
        ({"kind": "bpe", "lowercase": True}, "wordpiece only"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Tokenizer.train(documents=[TEXT], **settings_)
    for kind in set(KINDS) - {"bytes"}:
        with pytest.raises(DataError, match="no text"):
            Tokenizer.train(kind, ["", ""])


# Files


def test_a_missing_tokenizer_says_what_was_found(tmp_path):
    with pytest.raises(MissingFileError, match="no such file or folder"):
        Tokenizer.load(tmp_path / "nothing")
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(MissingFileError, match=r"found weights\.bin"):
        Tokenizer.load(tmp_path)
    with pytest.raises(CheckpointError, match="not a tokenizer file"):
        Tokenizer.load(tmp_path / "weights.bin")


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe\x00",
        b"{}",
        b'{"model": 3}',
        b'{"model": {"type": "BPE"}}',
        b'{"model": {"type": "NoSuchModel"}}',
        b"[" * 100_000,
        json.dumps({"version": "1.0", "model": BPE | {"merges": [["x", "y"]]}}).encode(),
        json.dumps({"version": "1.0", "model": BPE | {"vocab": {"a": -1}}}).encode(),
        json.dumps({"version": "1.0", "model": BPE | {"vocab": {}, "merges": []}}).encode(),
        json.dumps(
            {
                "version": "1.0",
                "model": BPE,
                "added_tokens": [
                    {"id": 9, "content": "<x>", "special": True}
                    | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
                ],
            }
        ).encode(),
        b'{"version": "1.0", "model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0]]}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"\\ud800": 0}, "merges": []}}',
    ],
)
def test_a_damaged_tokenizer_file_is_named(content, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_file_cut_off_anywhere_is_refused(tokenizers, tmp_path):
    tokenizers["byte-bpe"].save(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, len(whole) // 40):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path)


def test_shortening_filling_up_and_dropping_by_chance_are_left_out(tokenizers, tmp_path):
    library = tokenizers["byte-bpe"].library.from_str(tokenizers["byte-bpe"].library.to_str())
    library.enable_truncation(3)
    library.enable_padding(length=64)
    data = json.loads(library.to_str())
    data["model"]["dropout"] = 0.5
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    loaded = Tokenizer.load(path)
    assert np.array_equal(loaded.encode(TEXT), tokenizers["byte-bpe"].encode(TEXT))


def test_files_of_gpt2_are_read(tokenizers, tmp_path):
    tokenizer = tokenizers["byte-bpe"]
    tokenizer.library.model.save(str(tmp_path))
    vocab = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    vocab["<|endoftext|>"] = len(vocab)
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "merges.txt"):
        loaded = Tokenizer.load(path)
        assert np.array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
        assert loaded.end_of_text == tokenizer.end_of_text
        assert loaded.kind == "byte-bpe"
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"merges\.txt: line 2"):
        Tokenizer.load(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(MissingFileError, match=r"no merges\.txt"):
        Tokenizer.load(tmp_path)


def test_files_of_gpt1_are_read(tmp_path):
    tokens = ["<unk>", "l", "o", "w", "w</w>", "lo", "low</w>"]
    vocab = {token: id for id, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nl o\nlo w</w>\n", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("Low z lo").tolist()[:2] == [6, 0]
    assert tokenizer.unknown == 0
    assert tokenizer.end_of_text is None


def test_files_of_bert_are_read_and_case_is_known_from_the_vocabulary(tokenizers, tmp_path):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "é"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(names) + "\n", encoding="utf-8", newline="\r\n")
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode("The CATS dog", add_special_tokens=True).tolist()
    assert ids == [2, 5, 6, 7, 1, 3]
    assert tokenizer.mask == 4
    path.write_text("\n".join([*names, "The"]) + "\n", encoding="utf-8")
    assert Tokenizer.load(path).encode("The the CAT").tolist() == [9, 5, 1]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}', encoding="utf-8")
    assert Tokenizer.load(path).encode("The the CAT").tolist() == [5, 5, 6]
    path.write_text("just\nsome\ntext\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"none is \[UNK\]"):
        Tokenizer.load(path)


def test_loaded_configuration_says_which_token_plays_which_part(tmp_path):
    tokenizer = Tokenizer.train(
        "byte-bpe", [TEXT], vocab_size=300, special_tokens=("<start>", "<stop>")
    )
    assert tokenizer.end_of_text is None
    tokenizer.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    data = json.loads(config.read_text(encoding="utf-8"))
    data |= {"eos_token": {"content": "<stop>"}, "pad_token": "<stop>", "model_max_length": 77}
    config.write_text(json.dumps(data), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.end_of_text == loaded.padding == loaded.id("<stop>")
    loaded.save(tmp_path / "copy")
    copy = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert copy["model_max_length"] == 77
    assert copy["eos_token"] == "<stop>"


def test_the_library_is_imported_only_when_it_is_used():
    code = "import sys, tinyplm.text; assert 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
