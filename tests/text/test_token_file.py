import json

import numpy as np
import pytest

from tinyplm.errors import ConfigError, DataError, MissingFileError, TinyplmWarning
from tinyplm.text import TokenFile, Tokenizer, Windows, open_corpus, tokenize_corpus

TEXT = "The cat sat on the mat; the dog ran. Ünïcödé!\n" * 50


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": text}) for text in (TEXT, "", "short", TEXT[:100])]
    path.write_text("\n".join(lines), encoding="utf-8")
    return open_corpus(path)


def make(corpus, tmp_path, kind="byte-bpe", **options):
    tokenizer = Tokenizer.train(kind, corpus.documents(), vocab_size=300, **options)
    return tokenizer, tokenize_corpus(corpus, tokenizer, tmp_path / "out" / "tokens.bin")


def test_all_documents_are_there_each_followed_by_end_of_text(corpus, tmp_path):
    tokenizer, file = make(corpus, tmp_path)
    expected = []
    for text in corpus.documents():
        expected += [*tokenizer.encode(text), tokenizer.end_of_text]
    assert file[:].tolist() == expected
    assert file[:].dtype == np.int64
    assert len(file) == len(expected)
    assert file.tokens.dtype == np.uint16
    assert file.documents == 3
    assert file.text_bytes == sum(len(text.encode()) for text in corpus.documents())
    assert file.token_bytes[file[:]].sum() == file.text_bytes
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["tokens.bin", "tokens.json"]


def test_without_an_end_of_text_token_the_documents_follow_each_other(corpus, tmp_path):
    tokenizer, file = make(corpus, tmp_path, kind="chars", special_tokens=())
    assert tokenizer.decode(file[:]) == "".join(corpus.documents())


def test_a_large_vocabulary_takes_four_bytes_a_token(corpus, tmp_path):
    more = [f"<{i}>" for i in range(70_000)]
    tokenizer, file = make(corpus, tmp_path, kind="bytes", appended_tokens=more)
    assert tokenizer.vocab_size == 70_257
    assert file.tokens.dtype == np.uint32
    assert tokenizer.decode(file[:10]) == TEXT[:10]


def test_a_text_in_pieces_has_the_ids_of_the_whole(tmp_path):
    text = "".join(f"Satz {i} über Käse.\n" for i in range(20_000))
    path = tmp_path / "corpus.txt"
    path.write_text(text, encoding="utf-8")
    corpus = open_corpus(path)
    tokenizer, file = make(corpus, tmp_path)
    assert len(list(corpus.pieces())) > 1
    whole = tokenizer.library.encode(text, add_special_tokens=False).ids
    assert np.array_equal(file[:-1], whole)
    assert file[-1] == tokenizer.end_of_text
    assert file.documents == 1


def test_the_same_text_and_tokenizer_are_not_tokenized_again(corpus, tmp_path):
    tokenizer, file = make(corpus, tmp_path)
    before = file.path.stat().st_mtime_ns
    again = tokenize_corpus(open_corpus(tmp_path / "corpus.jsonl"), tokenizer, file.path)
    assert again.path.stat().st_mtime_ns == before
    assert np.array_equal(again[:], file[:])
    assert np.array_equal(TokenFile.open(file.path)[:], file[:])


def test_another_text_or_tokenizer_is_tokenized_anew(corpus, tmp_path):
    tokenizer, file = make(corpus, tmp_path)
    count = len(file)
    other = Tokenizer.train("bytes", [])
    assert len(tokenize_corpus(corpus, other, file.path)) > count
    (tmp_path / "corpus.jsonl").write_text('{"text": "new"}', encoding="utf-8")
    new = tokenize_corpus(open_corpus(tmp_path / "corpus.jsonl"), tokenizer, file.path)
    assert tokenizer.decode(new[:]) == "new<|endoftext|>"


def test_a_damaged_file_is_named_when_opened_and_made_anew_when_tokenized(corpus, tmp_path):
    tokenizer, file = make(corpus, tmp_path)
    ids, path, record = file[:], file.path, file.path.with_suffix(".json")
    del file
    content = path.read_bytes()
    good = record.read_text(encoding="utf-8")
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"has {len(content) - 1:,} bytes; expected"):
        TokenFile.open(path)
    assert np.array_equal(tokenize_corpus(corpus, tokenizer, path)[:], ids)
    for broken in ("", "{", "[]", "{}", good.replace('"count"', '"cuont"')):
        record.write_text(broken, encoding="utf-8")
        with pytest.raises(DataError, match=r"tokens\.json"):
            TokenFile.open(path)
        assert np.array_equal(tokenize_corpus(corpus, tokenizer, path)[:], ids)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"tokens\.bin is missing"):
        TokenFile.open(path)
    with pytest.raises(MissingFileError, match="no token file"):
        TokenFile.open(tmp_path / "nothing.bin")
    with pytest.raises(ConfigError, match=r"may not end in \.json"):
        TokenFile.open(record)


def test_an_error_on_the_way_leaves_the_old_file_and_no_other(corpus, tmp_path):
    _, file = make(corpus, tmp_path)
    ids = file[:]
    few = Tokenizer.train("chars", ["The cat"])
    with pytest.raises(DataError, match="not among the"):
        tokenize_corpus(corpus, few, file.path)
    assert np.array_equal(TokenFile.open(file.path)[:], ids)
    assert sorted(p.name for p in file.path.parent.iterdir()) == ["tokens.bin", "tokens.json"]


def test_a_corpus_of_empty_documents_is_refused(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"text": ""}\n', encoding="utf-8")
    with pytest.raises(DataError, match="holds no text"):
        tokenize_corpus(open_corpus(path), Tokenizer.train("bytes", []), tmp_path / "a.bin")


@pytest.mark.parametrize("kind", ["chars", "bytes", "byte-bpe"])
def test_the_parts_of_a_split_know_their_bytes_exactly(kind, corpus, tmp_path):
    tokenizer, file = make(corpus, tmp_path, kind=kind)
    for share in (0.0, 0.1, 0.37, 0.9):
        train, validation = file.split(share)
        assert len(train) == int(len(file) * (1 - share))
        assert np.array_equal(np.concatenate([train[:], validation[:]]), file[:])
        assert train.text_bytes + validation.text_bytes == file.text_bytes
        plain = [i for i in validation[:] if i not in tokenizer.special_ids]
        expected = b"".join(bytes_of(tokenizer, kind, i) for i in plain)
        assert validation.text_bytes == len(expected)
    with pytest.raises(ConfigError, match=r"got 1\.5"):
        file.split(1.5)


def bytes_of(tokenizer, kind, id):
    """The bytes of one token, by the library's own table of byte symbols."""
    if kind == "chars":
        return tokenizer.token(id).encode()
    return bytes(range(len(tokenizer.token(id))))


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_the_parts_of_a_split_share_the_bytes_nearly_exactly_for_other_kinds(
    kind, corpus, tmp_path
):
    tokenizer, file = make(corpus, tmp_path, kind=kind)
    train, validation = file.split(0.4)
    assert train.text_bytes + validation.text_bytes == file.text_bytes
    text = tokenizer.decode(validation[:], skip_special=True)
    # A word that the cut divides, or spaces the decoder adds or drops around punctuation.
    assert abs(validation.text_bytes - len(text.encode())) < 0.05 * file.text_bytes


def test_much_unknown_text_warns(tmp_path):
    path = tmp_path / "korean.txt"
    path.write_text("한국어 문장이 여기에 있습니다.\n" * 30, encoding="utf-8")
    english = Tokenizer.train("wordpiece", [TEXT], vocab_size=200)
    words = r"80 % of tokens in a 30-line sample are unknown\. .* tokenizer train --data .*korean"
    with pytest.warns(TinyplmWarning, match=words):
        file = tokenize_corpus(open_corpus(path), english, tmp_path / "a.bin")
    assert file.unknown == 4 * 30
    assert file.text_bytes == path.stat().st_size


def test_windows_are_cut_from_a_token_file(corpus, tmp_path):
    _, file = make(corpus, tmp_path)
    train, _ = file.split(0.2)
    batch = next(Windows(train, length=16, batch=4, seed=0))["input_ids"]
    whole = Windows(train[:], length=16, batch=4, seed=0)
    assert np.array_equal(batch, next(whole)["input_ids"])
    assert batch.shape == (4, 17)
