"""What an explanation shows is what the objective does, for every objective there is."""

import numpy as np
import pytest

from tinyplm.autograd import no_grad
from tinyplm.errors import ConfigError, DataError, ShapeError
from tinyplm.models.bert import Bert, BertConfig
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.models.recurrent_lm import RecurrentConfig, RecurrentLM
from tinyplm.models.t5 import T5, T5Config
from tinyplm.objectives import OBJECTIVES, CausalLM, objective_named
from tinyplm.recipes.explain import explain, words
from tinyplm.recipes.models import MODELS
from tinyplm.text import Tokenizer

SENTENCES = "The cat sat on the mat. It slept for an hour. Then it went home."
LETTERS = [a + b for a in "abcdef" for b in "uvwxyz"]
NAMES = sorted({*OBJECTIVES, *(name for entry in MODELS.values() for name in entry.objectives)})


def reads_pairs(name):
    return any(OBJECTIVES[part].reads == "pairs" for part in name.split("+"))


def a_text(name):
    return "the cat sat => le chat est assis" if reads_pairs(name) else SENTENCES


@pytest.mark.parametrize("name", NAMES)
def test_every_objective_is_explained(name):
    found = explain(name, a_text(name), seed=3)
    assert found.labels > 0
    assert all(part.tokens for part in found.parts)
    for term in found.terms:
        size = 1 if term.part is None else len(found.parts[term.part].tokens)
        assert len(term.targets) == size
    for part in found.parts:
        T = len(part.tokens)
        assert len(part.was) == T
        assert np.array(part.visible).shape == (T, T)
        assert np.array(part.visible).any(axis=1).all()
        if part.name == "decoder":
            assert np.array(part.encoder).shape == (T, len(found.parts[0].tokens))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_explains_the_same(name):
    assert explain(name, a_text(name), seed=5) == explain(name, a_text(name), seed=5)


@pytest.mark.parametrize("name", NAMES)
def test_a_label_of_what_writes_is_never_in_its_sight(name):
    """Where a part sees no position after its own, the target at a position is the token that it reads next."""
    found = explain(name, a_text(name), seed=1)
    for term in found.terms:
        if term.part is None:
            continue
        part = found.parts[term.part]
        visible = np.array(part.visible)
        if np.triu(visible, 1).any():
            continue
        for i, target in enumerate(term.targets[:-1]):
            if target is not None:
                assert part.tokens[i + 1] == target


def test_each_word_is_a_token_when_no_tokenizer_is_given():
    found = explain("causal-lm", "The cat sat on the mat")
    (part,), (term,) = found.parts, found.terms
    assert part.tokens == ["'The'", "' cat'", "' sat'", "' on'", "' the'", "' mat'"]
    assert term.targets == ["' cat'", "' sat'", "' on'", "' the'", "' mat'", "<|endoftext|>"]
    assert found.labels == 6
    assert np.array_equal(part.visible, np.tri(6, dtype=bool))
    assert term.losses is None
    assert found.loss is None


def test_hidden_words_are_told():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    seen = set()
    for seed in range(30):
        found = explain("mlm", text, seed=seed)
        (part,), (term,) = found.parts, found.terms
        assert part.tokens[0] == "[CLS]"
        assert part.tokens[-1] == "[SEP]"
        assert np.all(part.visible)
        assert term.targets == part.was  # what is predicted is what stood there
        assert term.labels == 2  # 15 % of 16
        for token, was in zip(part.tokens, part.was, strict=True):
            if was is not None:
                seen.add("hidden" if token == "[MASK]" else "left" if token == was else "swapped")
            elif token not in ("[CLS]", "[SEP]"):
                assert token.strip("' ") in text.split()
    assert seen == {"hidden", "left", "swapped"}


def test_passages_have_segments_and_one_label_for_both():
    labels = set()
    for seed in range(12):
        found = explain("nsp", SENTENCES, seed=seed)
        (part,), (term,) = found.parts, found.terms
        assert part.segments[0] == 0
        assert part.segments[-1] == 1
        assert part.tokens.count("[SEP]") == 2
        assert term.part is None
        labels.update(term.targets)
        other = any(token in ("'Penguins'", "' They'") for token in part.tokens)
        assert (term.targets == ["it is from another document"]) == other
    assert len(labels) == 2
    assert "Penguins" in found.notes[0]


def test_documents_of_ones_own_are_divided_by_blank_lines():
    text = f"{SENTENCES}\n\nBread is baked. It smells good."
    for seed in range(6):
        found = explain("nsp", text, seed=seed)
        assert found.notes == []
        assert "Penguins" not in "".join(found.parts[0].tokens)


def test_a_sum_has_the_terms_of_its_parts():
    found = explain("mlm+nsp", SENTENCES, seed=0)
    assert [term.name for term in found.terms] == ["tokens", "pairs"]
    assert found.labels == found.terms[0].labels + 1


def test_a_sentinel_tells_what_it_stands_for():
    text = " ".join(LETTERS)
    found = explain("span-corruption", text, seed=1)
    encoder, decoder = found.parts
    rebuilt = []
    for token, was in zip(encoder.tokens, encoder.was, strict=True):
        assert (was is not None) == token.startswith("<extra_id_")
        rebuilt += [token] if was is None else was.replace("' '", "'|'").split("|")
    assert rebuilt[-1] == "</s>"
    assert [token.strip("' ") for token in rebuilt[:-1]] == LETTERS
    assert np.all(encoder.visible)
    assert np.array_equal(decoder.visible, np.tri(len(decoder.tokens), dtype=bool))
    assert np.all(decoder.encoder)
    assert decoder.tokens[1:] == found.terms[0].targets[:-1]
    assert found.terms[0].part == 1


def test_a_prefix_is_seen_whole_and_the_rest_is_predicted():
    found = explain("prefix-lm", "a b c d e f", seed=0)
    encoder = found.parts[0]
    assert "<pad>" not in encoder.tokens
    assert None not in found.terms[0].targets
    written = [*encoder.tokens[:-1], *found.terms[0].targets[:-1]]
    assert written == ["'a'", *(f"' {letter}'" for letter in "bcdef")]


def test_a_pair_is_a_source_and_a_target():
    found = explain("seq2seq", "the cat => le chat")
    assert found == explain("seq2seq", "the cat", target="le chat")
    encoder, decoder = found.parts
    assert encoder.tokens == ["'the'", "' cat'", "</s>"]
    assert decoder.tokens == ["</s>", "'le'", "' chat'"]
    assert found.terms[0].targets == ["'le'", "' chat'", "</s>"]
    assert encoder.was == [None] * 3
    assert np.array_equal(decoder.visible, np.tri(3, dtype=bool))
    assert np.shape(decoder.encoder) == (3, 3)


def test_a_carried_state_is_shown_in_two_windows():
    found = explain("tbptt", "a b c d e f g h")
    first, second = found.parts
    assert [part.name for part in found.parts] == ["window 1", "window 2"]
    assert found.terms[0].targets[-1] == second.tokens[0]
    assert found.terms[1].targets[-1] == "<|endoftext|>"
    assert np.array_equal(first.visible, np.tri(len(first.tokens), dtype=bool))
    assert "the gradient stops there" in found.notes[0]


# Losses


def test_windows_lose_together_what_the_whole_text_loses():
    text = "a b c d e f g h"
    tokenizer = words(text, objective="tbptt")
    config = RecurrentConfig(vocab_size=len(tokenizer), hidden_size=8, layers=1)
    model = RecurrentLM(config, rng=np.random.default_rng(0))
    whole = explain("causal-lm", text, tokenizer, model)
    halves = explain("tbptt", text, tokenizer, model)
    assert halves.loss == pytest.approx(whole.loss, rel=1e-5)
    assert halves.labels == whole.labels


def test_both_parts_of_a_model_lose_what_the_objective_says():
    text = " ".join(LETTERS)
    tokenizer = words(text, objective="prefix-lm")
    config = T5Config(
        vocab_size=len(tokenizer), hidden_size=8, head_size=4, ffn_size=8, layers=1, heads=2,
        decoder_start=tokenizer.padding,
    )  # fmt: skip
    model = T5(config, rng=np.random.default_rng(0))
    for name in ("prefix-lm", "span-corruption"):
        found = explain(name, text, tokenizer, model, seed=3)
        objective = objective_named(name, tokenizer)
        # The objective puts the end behind the text itself, so the text's own is left out.
        batch = {"input_ids": tokenizer.encode(text)[None]}
        batch = objective.prepare(batch, rng=np.random.default_rng(3))
        with no_grad():
            assert found.loss == pytest.approx(objective.loss(model, batch).item(), rel=1e-5)


def a_gpt2(tokenizer):
    config = Gpt2Config(vocab_size=len(tokenizer), hidden_size=8, layers=1, heads=2, positions=16)
    return Gpt2(config, rng=np.random.default_rng(0))


def test_the_mean_of_the_losses_shown_is_the_loss_of_the_objective():
    tokenizer = words("to be or not to be")
    model = a_gpt2(tokenizer)
    found = explain("causal-lm", "to be or not to be", tokenizer, model)
    ids = [*tokenizer.encode("to be or not to be"), tokenizer.end_of_text]
    objective = CausalLM()
    batch = objective.prepare({"input_ids": np.array([ids])}, rng=np.random.default_rng(0))
    with no_grad():
        assert found.loss == pytest.approx(objective.loss(model, batch).item(), rel=1e-6)
    assert len(found.terms[0].losses) == found.labels


def test_the_terms_shown_are_the_terms_of_the_objective():
    tokenizer = words(SENTENCES, "Bread is baked. It smells good.", objective="mlm+nsp")
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=8, layers=1, heads=2, positions=64)
    model = Bert(config, rng=np.random.default_rng(0))
    text = f"{SENTENCES}\n\nBread is baked. It smells good."
    found = explain("mlm+nsp", text, tokenizer, model, seed=2)
    objective = objective_named("mlm+nsp", tokenizer)
    stream = [
        *(*tokenizer.encode(SENTENCES), tokenizer.end_of_text),
        *(*tokenizer.encode("Bread is baked. It smells good."), tokenizer.end_of_text),
    ]
    batches = objective.batches(np.array(stream), length=len(stream) + 8, batch=1, seed=2)
    batch = objective.prepare(next(batches.in_order()), rng=np.random.default_rng(2))
    with no_grad():
        terms = objective.terms(model, batch)
    for shown in found.terms:
        assert shown.mean == pytest.approx(terms[shown.name].item(), rel=1e-5)
    assert found.loss == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-5)


# What goes wrong


@pytest.mark.parametrize("text", ["a", "", " \n\n "])
def test_a_text_with_nothing_to_predict_is_refused(text):
    tokenizer = Tokenizer.train("chars", ["ab \n"], special_tokens=())
    with pytest.raises(DataError, match=r"too few for objective 'causal-lm'|The text is empty"):
        explain("causal-lm", text, tokenizer)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("casual-lm", {}, "No objective 'casual-lm'. Did you mean 'causal-lm'? Known: "),
        ("mlm+nps", {}, "No objective 'nps'. Did you mean 'nsp'?"),
        ("mlm", {"target": "x"}, "reads one text, so there is no target"),
        ("mlm", {"tokenizer": Tokenizer.train("bytes", [])}, "needs a mask token"),
    ],
)
def test_what_does_not_fit_is_said(name, settings, said):
    with pytest.raises(ConfigError) as caught:
        explain(name, "to be or not", **settings)
    assert said in str(caught.value)


def test_a_model_that_does_not_learn_so_is_refused():
    tokenizer = words(SENTENCES, objective="mlm")
    with pytest.raises(ConfigError, match="does not fit a Gpt2, which can learn from: causal-lm"):
        explain("mlm", SENTENCES, tokenizer, a_gpt2(tokenizer))


def test_a_text_that_is_too_long_for_the_model_is_refused():
    tokenizer = words(SENTENCES)
    with pytest.raises(ShapeError, match="this GPT-2 has 16 positions"):
        explain("causal-lm", SENTENCES * 3, tokenizer, a_gpt2(tokenizer))
