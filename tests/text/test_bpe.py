import json

from hypothesis import given, settings
from hypothesis import strategies as st

from tinyplm.text import bpe

WORKED = {"low": 5, "lower": 2, "newest": 6, "widest": 3}


def library_trained(words, vocab_size, min_frequency):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, show_progress=False
    )
    text = " ".join(word for word, count in words.items() for _ in range(count))
    library.train_from_iterator([text], trainer)
    return library


def test_the_worked_example_of_the_paper_merges_est_and_low_first():
    vocab, merges = bpe.train(WORKED, vocab_size=100)
    assert merges[:4] == [("e", "s"), ("es", "t"), ("l", "o"), ("lo", "w")]
    assert vocab[:10] == list("deilnorstw")
    assert bpe.encode("lowest", merges) == ["low", "est"]


def test_the_worked_example_equals_the_library():
    library = library_trained(WORKED, 100, 1)
    vocab, merges = bpe.train(WORKED, vocab_size=100)
    model = json.loads(library.to_str())["model"]
    assert [tuple(pair) for pair in model["merges"]] == merges
    assert model["vocab"] == {token: id for id, token in enumerate(vocab)}
    assert library.encode("lowest").tokens == ["low", "est"]


words = st.dictionaries(
    st.text("abc", min_size=1, max_size=9) | st.text("ab가é😀", min_size=1, max_size=7),
    st.integers(1, 5),
    min_size=1,
    max_size=10,
)


@settings(max_examples=150, deadline=None)
@given(words, st.integers(1, 40), st.integers(1, 3))
def test_training_gives_the_merges_and_ids_of_the_library(words, vocab_size, min_frequency):
    model = json.loads(library_trained(words, vocab_size, min_frequency).to_str())["model"]
    vocab, merges = bpe.train(words, vocab_size=vocab_size, min_frequency=min_frequency)
    assert [tuple(pair) for pair in model["merges"]] == merges
    assert model["vocab"] == {token: id for id, token in enumerate(vocab)}


@settings(max_examples=150, deadline=None)
@given(words, st.integers(10, 40), st.data())
def test_encoding_gives_the_tokens_of_the_library(words, vocab_size, data):
    library = library_trained(words, vocab_size, 1)
    _, merges = bpe.train(words, vocab_size=vocab_size)
    word = data.draw(st.text(sorted(set("".join(words))), min_size=1, max_size=30))
    assert bpe.encode(word, merges) == library.encode(word).tokens


def test_merges_are_applied_by_rank_and_not_by_length():
    assert bpe.encode("aaab", [("a", "a"), ("a", "b"), ("aa", "b")]) == ["aa", "ab"]
    assert bpe.encode("abaab", [("a", "a"), ("a", "b"), ("aa", "b")]) == ["ab", "aab"]


def test_a_word_without_known_merges_stays_characters():
    assert bpe.encode("xyz", [("a", "b")]) == ["x", "y", "z"]
    assert bpe.encode("", [("a", "b")]) == []
