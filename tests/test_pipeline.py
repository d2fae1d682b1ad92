"""A pipeline's answers are what its model computes, one text at a time or several, in the keys that users know."""

import numpy as np
import pytest

import tinyplm
from tinyplm.autograd import no_grad
from tinyplm.errors import ConfigError, DataError, DtypeError, ShapeError
from tinyplm.generate import generate
from tinyplm.models.bert import Bert, BertConfig
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.models.recurrent_lm import RecurrentConfig, RecurrentLM
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tinyplm.models.t5 import T5, T5Config
from tinyplm.text import Tokenizer

WORDS = ["the cat sat on the mat and the dog sat on the log"] * 3
BYTES = Tokenizer.train("byte-bpe", WORDS, vocab_size=300)
PARTS = Tokenizer.train("byte-bpe", WORDS, vocab_size=300, special_tokens=("<pad>", "</s>"))
PIECES = Tokenizer.train("wordpiece", WORDS, vocab_size=60)


def perturbed(model):
    """Weights large enough that every position matters."""
    rng = np.random.default_rng(1)
    arrays = model.arrays().items()
    model.load({k: (0.3 * rng.standard_normal(a.shape)).astype(np.float32) for k, a in arrays})
    return model


@pytest.fixture(scope="module")
def gpt2():
    config = Gpt2Config(vocab_size=len(BYTES), hidden_size=16, layers=2, heads=2, positions=24)
    return perturbed(Gpt2(config, rng=np.random.default_rng(0)))


@pytest.fixture(scope="module")
def bert():
    config = BertConfig(vocab_size=len(PIECES), hidden_size=16, layers=2, heads=2, positions=24)
    return perturbed(Bert(config, rng=np.random.default_rng(0)))


# fill-mask


def test_a_mask_is_filled_with_the_likeliest_tokens(bert):
    found = tinyplm.pipeline("fill-mask", bert, PIECES)("the [MASK] sat on the mat", top_k=3)
    ids = PIECES.encode("the [MASK] sat on the mat", add_special_tokens=True)
    with no_grad():
        logits = bert.head(bert(ids[None])).numpy()[0, 2].astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum()
    assert [one["token"] for one in found] == np.argsort(-scores)[:3].tolist()
    for one in found:
        assert set(one) == {"score", "token", "token_str", "sequence"}
        assert one["score"] == pytest.approx(scores[one["token"]], rel=1e-5)  # of float32
        assert one["token_str"] == PIECES.decode([one["token"]])
        ids[2] = one["token"]
        assert one["sequence"] == PIECES.decode(ids, skip_special=True)


def test_several_masks_give_a_list_for_each(bert):
    fill = tinyplm.pipeline("fill-mask", bert, PIECES)
    first, second = fill("the [MASK] sat on the [MASK]", top_k=2)
    assert len(first) == len(second) == 2
    assert first[0]["sequence"].endswith("sat on the [MASK] [SEP]")
    assert second[0]["sequence"].startswith("[CLS] the [MASK] sat")


def test_targets_are_weighed_among_all_tokens(bert):
    fill = tinyplm.pipeline("fill-mask", bert, PIECES)
    everything = {one["token_str"]: one["score"] for one in fill("the [MASK] sat", top_k=10_000)}
    assert sum(everything.values()) == pytest.approx(1)
    found = fill("the [MASK] sat", targets=["dog", "cat", "cat"])
    assert {one["token_str"] for one in found} == {"dog", "cat"}
    assert found[0]["score"] >= found[1]["score"]
    for one in found:
        assert one["score"] == everything[one["token_str"]]
    assert fill("the [MASK] sat", targets="dog", top_k=1)[0]["token_str"] == "dog"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_texts_together_give_what_each_gives_alone(bert, batch_size):
    texts = ["the [MASK]", "the [MASK] sat on the mat", "a [MASK] and a [MASK]", "[MASK]"]
    texts.append("[MASK] on the log")
    fill = tinyplm.pipeline("fill-mask", bert, PIECES, batch_size=batch_size)
    together = fill(texts, top_k=4)
    for text, found in zip(texts, together, strict=True):
        alone = fill(text, top_k=4)
        for a, b in zip(flat(alone), flat(found), strict=True):
            assert a["token"] == b["token"]
            assert a["sequence"] == b["sequence"]
            assert a["score"] == pytest.approx(b["score"], rel=1e-5)


def flat(found):
    return [one for part in found for one in (part if isinstance(part, list) else [part])]


def test_a_list_of_one_text_gives_a_list_of_one(bert):
    fill = tinyplm.pipeline("fill-mask", bert, PIECES)
    assert fill(["the [MASK]"]) == [fill("the [MASK]")]
    assert fill([]) == []


# text-generation


def test_a_text_goes_on_as_the_model_would_have_it(gpt2):
    write = tinyplm.pipeline("text-generation", gpt2, BYTES)
    ids = BYTES.encode("the cat")[None]
    made = generate(gpt2, ids, max_new_tokens=5, eos_token_id=BYTES.end_of_text)
    expected = BYTES.decode(made[0, ids.shape[1] :], skip_special=True)
    assert write("the cat", max_new_tokens=5) == [{"generated_text": "the cat" + expected}]
    assert write("the cat", max_new_tokens=5, return_full_text=False) == [
        {"generated_text": expected}
    ]


@pytest.mark.parametrize("kind", ["gpt2", "lstm"])
def test_prompts_of_several_lengths_go_on_together(kind, gpt2):
    config = RecurrentConfig(vocab_size=len(BYTES), hidden_size=16, layers=2)
    lstm = perturbed(RecurrentLM(config, rng=np.random.default_rng(0)))
    write = tinyplm.pipeline("text-generation", gpt2 if kind == "gpt2" else lstm, BYTES)
    texts = ["the", "the cat sat on the mat", "dog log"]
    assert write(texts, max_new_tokens=6) == [write(text, max_new_tokens=6) for text in texts]


def test_drawing_takes_a_generator_and_repeats(gpt2):
    write = tinyplm.pipeline("text-generation", gpt2, BYTES)
    settings = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8}
    found = [write("the", rng=np.random.default_rng(seed), **settings) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert len(found[0]) == 3
    with pytest.raises(ConfigError, match="needs a source of randomness"):
        write("the", **settings)


def test_a_prompt_that_does_not_fit_is_refused(gpt2):
    write = tinyplm.pipeline("text-generation", gpt2, BYTES)
    with pytest.raises(ShapeError, match="24 positions"):
        write("the cat " * 20)


# text2text-generation


def of_two_parts(kind):
    V = len(PARTS)
    if kind == "t5":
        config = T5Config(
            vocab_size=V, hidden_size=16, head_size=8, ffn_size=16, layers=1, heads=2,
            decoder_start=PARTS.padding,
        )  # fmt: skip
        return perturbed(T5(config, rng=np.random.default_rng(0)))
    config = Seq2SeqConfig(
        vocab_size=V, hidden_size=16, layers=1, attention="dot", decoder_start=PARTS.end_of_text
    )
    return perturbed(Seq2Seq(config, rng=np.random.default_rng(0)))


@pytest.mark.parametrize("kind", ["t5", "seq2seq"])
def test_a_text_is_made_of_a_text(kind):
    model = of_two_parts(kind)
    make = tinyplm.pipeline("text2text-generation", model, PARTS)
    ids = np.append(PARTS.encode("the cat"), PARTS.end_of_text)[None]
    written = generate(model, ids, max_new_tokens=7, eos_token_id=PARTS.end_of_text)[0]
    expected = PARTS.decode(written, skip_special=True)
    assert make("the cat", max_new_tokens=7) == [{"generated_text": expected}]
    texts = ["the", "the cat sat on the mat", "dog log"]
    together = make(texts, max_new_tokens=5)
    assert together == [make(text, max_new_tokens=5)[0] for text in texts]
    several = make(texts, max_new_tokens=5, num_beams=2, num_return_sequences=2)
    assert [len(one) for one in several] == [2, 2, 2]


@pytest.mark.parametrize("kind", ["t5", "seq2seq"])
def test_features_of_two_parts_are_those_of_the_encoder(kind):
    model = of_two_parts(kind)
    features = tinyplm.pipeline("feature-extraction", model, PARTS)
    ids = np.append(PARTS.encode("the cat"), PARTS.end_of_text)[None]
    with no_grad():
        made = model.encode(ids)
    expected = (made if kind == "t5" else made.annotations).numpy()
    assert np.allclose(features("the cat", return_tensors="np"), expected, atol=1e-6)
    with pytest.raises(ConfigError, match="return_tensors='pt'"):
        features("the cat", return_tensors="pt")


# feature-extraction


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_features_are_the_hidden_states(kind, request):
    model, tokenizer = request.getfixturevalue(kind), {"gpt2": BYTES, "bert": PIECES}[kind]
    features = tinyplm.pipeline("feature-extraction", model, tokenizer)
    ids = tokenizer.encode("the cat sat", add_special_tokens=kind == "bert")
    with no_grad():
        hidden = model(ids[None]).numpy()
    assert np.allclose(features("the cat sat", return_tensors="np"), hidden, atol=1e-6)
    assert features("the cat sat") == features("the cat sat", return_tensors="np").tolist()
    together = features(["the", "the cat sat"], return_tensors="np")
    assert np.allclose(together[1], hidden, atol=1e-5)
    assert together[0].shape[1] < together[1].shape[1]


# Folders, and what goes wrong


def test_a_folder_holds_all_that_a_pipeline_needs(gpt2, tmp_path):
    tinyplm.save_pretrained(gpt2, tmp_path)
    BYTES.save(tmp_path)
    for write in (
        tinyplm.pipeline("text-generation", model=tmp_path),
        tinyplm.pipeline("text-generation", model=str(tmp_path), tokenizer=BYTES),
        tinyplm.pipeline("text-generation", model=gpt2, tokenizer=tmp_path),
    ):
        assert write("the cat", max_new_tokens=3) == tinyplm.pipeline(
            "text-generation", gpt2, BYTES
        )("the cat", max_new_tokens=3)


@pytest.mark.parametrize(
    ("task", "kind", "said"),
    [
        (
            "fill-mak",
            "bert",
            "No task 'fill-mak'. Did you mean 'fill-mask'? Known: fill-mask, text",
        ),
        (
            "fill-mask",
            "gpt2",
            "this Gpt2 does not. It can do: text-generation, feature-extraction.",
        ),
        ("text-generation", "bert", "goes on from a text, and this Bert does not. It can do: fill"),
        ("text2text-generation", "bert", "reads one text and writes another"),
    ],
)
def test_a_task_that_cannot_be_done_is_refused_with_those_that_can(task, kind, said, request):
    with pytest.raises(ConfigError) as caught:
        tinyplm.pipeline(task, request.getfixturevalue(kind), PIECES)
    assert said in str(caught.value)


def test_a_bert_without_its_head_fills_nothing():
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=8, layers=1, heads=1, carries=("pooler",)
    )
    with pytest.raises(ConfigError, match="It can do: feature-extraction"):
        tinyplm.pipeline("fill-mask", Bert(config, rng=np.random.default_rng(0)), PIECES)


def test_a_model_needs_its_own_tokenizer(bert, gpt2):
    with pytest.raises(ConfigError, match="needs the tokenizer of its Bert"):
        tinyplm.pipeline("fill-mask", bert)
    with pytest.raises(ConfigError, match=f"{len(BYTES)} tokens, but this Bert has vocab_size"):
        tinyplm.pipeline("fill-mask", bert, BYTES)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "said"),
    [
        ("no mask", {}, DataError, r"No mask token \(\[MASK\]\) found in the text: 'no mask'"),
        ("", {}, DataError, r"No mask token \(\[MASK\]\) found in the text: ''"),
        ("[MASK]", {"targets": "xyzzy"}, DataError, "Target 'xyzzy' is 1 token"),
        ("[MASK]", {"targets": ["cat sat"]}, DataError, "'cat', 'sat'"),
        ("[MASK]", {"top_k": 0}, ConfigError, "top_k=0"),
        (["[MASK]", 3], {}, DtypeError, "got a int among them"),
        ("[MASK] " * 30, {}, ShapeError, "32 tokens, but this BERT has 24 positions"),
    ],
)
def test_what_cannot_be_filled_is_said(bert, arguments, settings, error, said):
    with pytest.raises(error, match=said):
        tinyplm.pipeline("fill-mask", bert, PIECES)(arguments, **settings)


def test_a_mask_needs_a_token_for_it(gpt2):
    config = BertConfig(vocab_size=len(BYTES), hidden_size=8, layers=1, heads=1, positions=8)
    fill = tinyplm.pipeline("fill-mask", Bert(config, rng=np.random.default_rng(0)), BYTES)
    with pytest.raises(ConfigError, match="no mask token"):
        fill("the [MASK]")
