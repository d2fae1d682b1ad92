"""Text told as it comes is the text, whole characters at a time, past the positions of the model too."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.errors import ConfigError, DataError, ShapeError
from tinyplm.generate import generate
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.models.t5 import T5, T5Config
from tinyplm.recipes.generate_text import TextStream, first_token, generate_text
from tinyplm.recipes.trained import Trained
from tinyplm.text import Tokenizer

BYTES = Tokenizer.train("bytes", [])
TOKENIZERS = [
    BYTES,
    Tokenizer.train("byte-bpe", ["고양이가 고양이와 the cat and the cat 🐈"], vocab_size=290),
    Tokenizer.train("unigram", ["the cat sat on the mat the cat"], vocab_size=30),
]


@pytest.fixture(scope="module")
def trained():
    config = Gpt2Config(vocab_size=257, hidden_size=16, layers=1, heads=2, positions=8)
    return Trained(Gpt2(config, rng=np.random.default_rng(3)), BYTES, None)


def streamed(tokenizer, ids):
    pieces = []
    stream = TextStream(tokenizer, pieces.append)
    for token in ids:
        stream.add(token)
    stream.close()
    return pieces


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.sampled_from(TOKENIZERS))
def test_pieces_join_to_the_decoded_text(text, tokenizer):
    ids = tokenizer.encode(text).tolist()
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special=True)


def test_no_piece_holds_part_of_a_character():
    text = "a고양이🐈 é"
    pieces = streamed(BYTES, text.encode())
    assert pieces == list(text)


@given(st.binary(max_size=20))
def test_bytes_that_are_no_text_are_told_at_last(data):
    assert "".join(streamed(BYTES, data)) == BYTES.decode(list(data))


def test_a_text_longer_than_the_model_goes_on_from_its_last_half(trained):
    slides = []
    made = generate_text(
        trained,
        "abc",
        max_new_tokens=30,
        rng=np.random.default_rng(0),
        on_slide=lambda *numbers: slides.append(numbers),
    )
    assert len(made.ids) == 30 or made.ended
    assert made.slid
    assert slides == [(8, 4)]


def test_the_greedy_text_past_the_positions_is_that_of_windows_read_by_hand(trained):
    made = generate_text(trained, "abc", max_new_tokens=14)
    ids, seen = list(b"abc"), list(b"abc")
    for _ in range(14):
        if len(seen) > 8:
            seen = ids[-4:]
        position = np.arange(len(seen))[None]
        logits = trained.model.next_logits(np.array([seen]), position_ids=position)[0]
        ids.append(int(logits.argmax()))
        seen.append(ids[-1])
    assert made.ids == ids[3:]


def test_the_same_seed_gives_the_same_text(trained):
    texts = {
        generate_text(trained, "", max_new_tokens=20, rng=np.random.default_rng(seed)).text
        for seed in (1, 1, 2)
    }
    assert len(texts) == 2


def test_it_stops_at_the_end_of_text(trained):
    model = trained.model
    end = BYTES.end_of_text
    weight = model.token_embedding.weight
    before = weight.array.copy()
    biased = before.copy()
    biased[end] = 100 * trained.model(np.array([[97]])).array[0, 0]  # now the end is likeliest
    try:
        weight.replace(biased)
        made = generate_text(trained, "a", max_new_tokens=5)
    finally:
        weight.replace(before)
    assert made.ended
    assert made.ids == [end]
    assert made.text == ""


def test_without_a_prompt_a_text_begins_after_the_end_of_another(trained):
    assert first_token(BYTES) == 256
    assert first_token(Tokenizer.train("chars", ["ab\n"], special_tokens=())) == 0
    assert first_token(Tokenizer.train("chars", ["\tb\n"], special_tokens=())) == 1
    assert generate_text(trained, "", max_new_tokens=3).prompt_tokens == 1


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(trained):
    with pytest.raises(ShapeError, match="9 tokens, but this model has 8 positions"):
        generate_text(trained, "a" * 9, max_new_tokens=3)
    assert len(generate_text(trained, "a" * 8, max_new_tokens=3).ids) == 3


def test_beams_that_do_not_fit_are_refused(trained):
    with pytest.raises(ShapeError, match="6 new tokens or fewer"):
        generate_text(trained, "abc", max_new_tokens=7, num_beams=2)
    assert len(generate_text(trained, "abc", max_new_tokens=6, num_beams=2).ids) <= 6


def test_characters_that_are_unknown_are_named(trained):
    tokenizer = Tokenizer.train("chars", ["abc"], special_tokens=())
    with pytest.raises(DataError, match="'한'"):
        generate_text(Trained(trained.model, tokenizer, None), "한", max_new_tokens=3)


def test_a_model_that_does_not_write_is_refused():
    with pytest.raises(ConfigError, match="cannot go on"):
        generate_text(Trained(object(), BYTES, None), "a", max_new_tokens=3)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_model_of_two_parts_answers_a_prompt_and_does_not_repeat_it(num_beams):
    tokenizer = Tokenizer.train("bytes", [], special_tokens=("<pad>", "</s>"))
    config = T5Config(
        vocab_size=258,
        hidden_size=16,
        head_size=8,
        ffn_size=16,
        layers=1,
        heads=2,
        decoder_start=256,
    )
    trained = Trained(T5(config, rng=np.random.default_rng(5)), tokenizer, None)
    pieces = []
    told = pieces.append if num_beams == 1 else None
    made = generate_text(trained, "ab c", max_new_tokens=6, num_beams=num_beams, on_text=told)
    ids = np.array([[*tokenizer.encode("ab c"), tokenizer.end_of_text]])
    expected = generate(
        trained.model,
        ids,
        max_new_tokens=6,
        num_beams=num_beams,
        eos_token_id=tokenizer.end_of_text,
    )[0, 1:]
    assert made.ids == expected.tolist()
    assert made.prompt_tokens == 5
    assert made.text == tokenizer.decode(expected, skip_special=True)
    assert "".join(pieces) == (made.text if num_beams == 1 else "")
