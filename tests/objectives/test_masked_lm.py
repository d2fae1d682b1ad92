"""Masked language modelling by hand, by loops, and by counting."""

import math
from itertools import islice

import numpy as np
import pytest

from tinyplm.errors import ConfigError, DataError
from tinyplm.models.bert import Bert, BertConfig
from tinyplm.objectives import MaskedLM, NextSentence, Sum, objective_named
from tinyplm.text import Tokenizer

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = frozenset(range(5))
TEXT = ["The cat sat on the mat. The dog, unbelievably, sat on the cat!"] * 3


def masked(**settings):
    return MaskedLM(**({"mask": MASK, "vocab_size": 1000, "special": SPECIAL} | settings))


def rows(count, length, seed=0, vocab=1000):
    ids = np.random.default_rng(seed).integers(5, vocab, size=(count, length))
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def prepare(objective, ids, *, seed=0, **fields):
    batch = {"input_ids": np.asarray(ids)} | fields
    return objective.prepare(batch, rng=np.random.default_rng(seed))


def within_six_deviations(count, trials, probability):
    spread = math.sqrt(trials * probability * (1 - probability))
    assert abs(count - trials * probability) < 6 * spread, f"{count} of {trials}, p {probability}"


def test_all_that_can_be_is_hidden_where_the_rate_says_so():
    made = prepare(masked(rate=1, keep=0, swap=0), [[CLS, 7, 8, SEP], [CLS, 9, SEP, PAD]])
    assert made["input_ids"].tolist() == [[CLS, MASK, MASK, SEP], [CLS, MASK, SEP, PAD]]
    assert made["labels"].tolist() == [[-100, 7, 8, -100], [-100, 9, -100, -100]]
    kept = prepare(masked(rate=1, keep=1, swap=0), [[CLS, 7, 8, SEP]])
    assert kept["input_ids"].tolist() == [[CLS, 7, 8, SEP]]
    assert kept["labels"].tolist() == [[-100, 7, 8, -100]]
    swapped = prepare(masked(rate=1, keep=0, swap=1, vocab_size=6), [[CLS, 7, 8, SEP]])
    assert swapped["input_ids"].tolist() == [[CLS, 5, 5, SEP]]  # the only id that is not special
    assert swapped["labels"].tolist() == [[-100, 7, 8, -100]]


def test_each_row_has_exactly_its_share_rounded_as_the_paper_does():
    # The whole length counts, with what frames it; halves go to the even number; at least one.
    for length in range(3, 60):
        made = prepare(masked(), rows(2, length))
        expected = min(length - 2, max(1, round(0.15 * length)))
        assert ((made["labels"] != -100).sum(axis=1) == expected).all(), length
    made = prepare(masked(most=20), rows(2, 512))
    assert ((made["labels"] != -100).sum(axis=1) == 20).all()


def test_padding_does_not_count():
    ids = rows(2, 40)
    mask = np.ones((2, 40), int)
    mask[1, 10:] = 0
    made = prepare(masked(), ids, attention_mask=mask)
    assert (made["labels"] != -100).sum(axis=1).tolist() == [6, 2]
    assert (made["labels"][1, 10:] == -100).all()
    np.testing.assert_array_equal(made["attention_mask"], mask)


def test_proportions_are_those_of_the_paper():
    count, length = 4000, 102
    ids = rows(count, length)
    made = prepare(masked(), ids)
    chosen = made["labels"] != -100
    now = made["input_ids"]
    total = chosen.sum()
    assert total == count * 15
    np.testing.assert_array_equal(made["labels"][chosen], ids[chosen])
    np.testing.assert_array_equal(now[~chosen], ids[~chosen])
    hidden, same = (now == MASK) & chosen, (now == ids) & chosen
    by_chance = 0.1 / 995  # a random token that happens to be the old one
    within_six_deviations(hidden.sum(), total, 0.8)
    within_six_deviations(same.sum(), total, 0.1 + by_chance)
    within_six_deviations(total - hidden.sum() - same.sum(), total, 0.1 - by_chance)
    assert not np.isin(now[chosen & ~hidden], list(SPECIAL)).any()
    # Each place is as likely as another, and each random token.
    for place in chosen[:, 1:-1].sum(axis=0):
        within_six_deviations(place, count, 15 / 100)
    assert not chosen[:, [0, -1]].any()
    swapped = now[chosen & ~hidden & ~same]
    for token in np.bincount(swapped, minlength=1000)[5:]:
        within_six_deviations(token, swapped.size, 1 / 995)


def test_special_tokens_and_padding_are_never_chosen():
    rng = np.random.default_rng(0)
    for seed in range(50):
        ids = rng.integers(0, 12, size=(6, 20))
        mask = rng.integers(0, 2, size=(6, 20))
        chosen = prepare(masked(rate=0.9), ids, seed=seed, attention_mask=mask)["labels"] != -100
        assert not chosen[(ids < 5) | (mask == 0)].any()


def test_whole_words_are_never_split_and_never_too_many():
    begins = np.random.default_rng(0).random(1000) < 0.5
    objective = masked(whole_words=True, begins=begins, rate=0.3)
    total = 0
    for seed in range(40):
        ids = rows(8, 30, seed)
        mask = (np.arange(30) < np.random.default_rng(seed).integers(5, 31, size=(8, 1))).astype(
            int
        )
        made = prepare(objective, ids, seed=seed, attention_mask=mask)
        for row, chosen, real in zip(ids, made["labels"] != -100, mask, strict=True):
            assert chosen.sum() <= max(1, round(0.3 * real.sum()))
            total += chosen.sum()
            for place in range(1, 29):
                joined = not begins[row[place]] and place > 1 and real[place]
                if joined:  # a piece and what stands before it are of one word
                    assert chosen[place] == chosen[place - 1]
    assert total > 1500


def test_a_word_too_long_is_passed_over_for_one_that_fits():
    begins = np.zeros(1000, bool)
    begins[[10, 20]] = True
    objective = masked(whole_words=True, begins=begins, rate=0.15, keep=0, swap=0)
    ids = [[CLS, 10, 11, 12, 13, 20, SEP]]  # one token may be chosen: 20
    for seed in range(10):
        made = prepare(objective, ids, seed=seed)
        assert made["input_ids"].tolist() == [[CLS, 10, 11, 12, 13, MASK, SEP]]


def test_pieces_of_a_word_draw_for_themselves():
    objective = masked(whole_words=True, begins=np.arange(1000) == 10, rate=1.0)
    fates = set()
    for seed in range(60):
        now = prepare(objective, [[CLS, 10, 11, SEP]], seed=seed)["input_ids"][0, 1:3]
        fates.add(tuple(["hidden" if id == MASK else "other" for id in now]))
    assert len(fates) == 4


def test_masks_are_fresh_each_time_or_come_back_with_their_row():
    ids = rows(4, 40)
    fresh = [prepare(masked(), ids, seed=seed)["labels"] for seed in range(2)]
    assert not np.array_equal(*fresh)
    static = masked(copies=1)
    first = prepare(static, ids, seed=0)
    for seed in range(3):
        again = prepare(static, ids[::-1], seed=seed)
        np.testing.assert_array_equal(again["labels"][::-1], first["labels"])
        np.testing.assert_array_equal(again["input_ids"][::-1], first["input_ids"])
    padded = np.pad(ids, ((0, 0), (0, 7)))
    wider = prepare(static, padded, attention_mask=(np.arange(47) < 40) * np.ones((4, 1), int))
    np.testing.assert_array_equal(wider["labels"][:, :40], first["labels"])
    assert not np.array_equal(prepare(masked(copies=1, seed=1), ids)["labels"], first["labels"])


def test_a_row_has_as_many_masks_as_there_are_copies():
    ids = rows(1, 60)
    objective = masked(copies=10)
    seen = {prepare(objective, ids, seed=seed)["labels"].tobytes() for seed in range(400)}
    assert len(seen) == 10


def test_windows_begin_anew_each_epoch_unless_masks_come_back():
    tokens = np.arange(5, 5 + 95)
    frame = ((CLS,), (SEP,))

    def epochs(objective):
        source = objective.batches(tokens, length=12, batch=1, seed=0)
        found = [next(source)["input_ids"][0] for _ in range(2 * 9)]
        assert all(row[0] == CLS and row[-1] == SEP and len(row) == 12 for row in found)
        return [{row.tobytes() for row in found[i : i + 9]} for i in (0, 9)]

    first, second = epochs(masked(frame=frame, copies=10))
    assert first == second
    first, second = epochs(masked(frame=frame))
    assert first != second


def small_bert(**changes):
    config = {"vocab_size": 50, "hidden_size": 8, "layers": 1, "heads": 2, "positions": 16}
    rates = {"dropout": 0.0, "attention_dropout": 0.0}
    model = Bert(BertConfig(**(config | rates | changes)), rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    model.load({k: 0.4 * rng.standard_normal(a.shape) for k, a in model.arrays().items()})
    return model


def test_the_loss_is_that_of_a_slow_loop():
    model, objective = small_bert(), masked(vocab_size=50, rate=0.4)
    mask = (np.arange(9) < np.array([[9], [5], [7]])).astype(int)
    made = prepare(objective, rows(3, 9, vocab=50), attention_mask=mask)
    logits = model.head(model(made["input_ids"], attention_mask=mask)).array
    lost = []
    for b in range(3):
        for t in range(9):
            if made["labels"][b, t] != -100:
                row = logits[b, t]
                lost.append(math.log(sum(math.exp(x) for x in row)) - row[made["labels"][b, t]])
    assert len(lost) == objective.counts(made)["tokens"]
    assert math.isclose(objective.loss(model, made).item(), sum(lost) / len(lost), rel_tol=1e-12)


def test_only_places_that_may_have_a_label_reach_the_head():
    """As many of every row, so that a batch has one shape; the loss and the gradients have the same bits."""
    objective = masked(rate=0.3)
    ids = rows(3, 20)
    ids[1, 12:] = PAD
    made = prepare(objective, ids, attention_mask=(ids != PAD).astype(np.int64))
    places, labels = made["label_places"], made["labels"]
    counts = (labels != -100).sum(axis=1)
    assert counts[1] < counts[0]
    assert places.shape == (3, counts.max())
    for row, own, count in zip(labels, places, counts, strict=True):
        assert own[:count].tolist() == np.flatnonzero(row != -100).tolist()
        assert (row[own[count:]] == -100).all()
    config = BertConfig(vocab_size=1000, hidden_size=8, layers=1, heads=2, positions=20)
    found = []
    for batch in (made, {name: a for name, a in made.items() if name != "label_places"}):
        model = Bert(config, rng=np.random.default_rng(0))
        loss = objective.loss(model, batch)
        loss.backward()
        bits = [None if p.grad is None else p.grad.tobytes() for p in model.parameters()]
        found.append((loss.item(), bits))
        (tokens,) = objective.predictions(model, objective.read(model, batch), batch).values()
        assert tokens.hidden.size == (8 * places.size if "label_places" in batch else 8 * ids.size)
    assert found[0] == found[1]


def test_with_next_sentences_the_loss_is_the_sum_of_both():
    nsp = NextSentence(
        classifier=CLS, separator=SEP, padding=PAD, end_of_text=SEP, ends=np.zeros(50, bool)
    )
    mlm = masked(vocab_size=50)
    both = Sum(mlm, nsp)
    made = prepare(
        both,
        rows(4, 9, vocab=50),
        token_type_ids=(np.arange(9) > 4) * np.ones((4, 1), int),
        next_sentence_labels=np.array([0, 1, 1, 0]),
    )
    model = small_bert()
    expected = mlm.loss(model, made).item() + nsp.loss(model, made).item()
    assert math.isclose(both.loss(model, made).item(), expected, rel_tol=1e-12)
    assert both.counts(made) == {"tokens": 4.0, "pairs": 4.0}


@pytest.fixture(scope="module")
def wordpiece():
    return Tokenizer.train("wordpiece", TEXT, vocab_size=60, lowercase=True)


@pytest.fixture(scope="module")
def byte_level():
    special = ("<s>", "<pad>", "</s>", "<unk>")
    return Tokenizer.train(
        "byte-bpe", TEXT, vocab_size=300, special_tokens=special, appended_tokens=("<mask>",)
    )


def test_a_tokenizer_gives_the_ids_and_the_frame(wordpiece, byte_level):
    objective = objective_named("mlm", wordpiece)
    assert objective.mask == wordpiece.id("[MASK]")
    assert objective.frame == ((wordpiece.id("[CLS]"),), (wordpiece.id("[SEP]"),))
    assert objective.special == wordpiece.special_ids
    assert objective.vocab_size == len(wordpiece)
    objective = MaskedLM.of(byte_level, rate=0.3)
    assert objective.mask == byte_level.id("<mask>")
    assert objective.frame == ((byte_level.id("<s>"),), (byte_level.id("</s>"),))
    assert objective.rate == 0.3
    # As published: padding is 1, the mask is last and takes the space before it along.
    assert (byte_level.padding, byte_level.mask) == (1, len(byte_level) - 1)
    framed = byte_level.encode("The cat <mask>.", add_special_tokens=True).tolist()
    assert framed == [0, *byte_level.encode("The cat"), byte_level.mask, *byte_level.encode("."), 2]
    tokens = np.tile(wordpiece.encode(TEXT[0]), 9)
    source = objective_named("mlm", wordpiece).batches(tokens, length=16, batch=2, seed=0)
    for batch in islice(source, 3):
        assert batch["input_ids"].shape == (2, 16)


def test_a_tokenizer_without_a_mask_is_refused_with_a_way_out():
    tokenizer = Tokenizer.train("bytes", [])
    with pytest.raises(
        ConfigError, match=r"'mlm' needs a mask token; this bytes tokenizer has none"
    ):
        MaskedLM.of(tokenizer)
    with pytest.raises(ConfigError, match="causal-lm"):
        objective_named("mlm", tokenizer)


def test_words_begin_where_the_tokens_say(wordpiece, byte_level):
    for tokenizer, continues in ((wordpiece, ("##",)), (byte_level, None)):
        begins = MaskedLM.of(tokenizer, whole_words=True).begins
        for id in range(len(tokenizer)):
            token = tokenizer.token(id)
            expected = (
                not token.startswith(continues)
                if continues
                else token[0] in "\u0120\u010a\u010d\u0109"
            )
            assert begins[id] == expected, token
    made = MaskedLM.of(byte_level, whole_words=True, rate=0.5, keep=0, swap=0)
    ids = byte_level.encode(" unbelievably sat")
    hidden = made.prepare({"input_ids": ids[None]}, rng=np.random.default_rng(0))["input_ids"][0]
    left = byte_level.decode([id for id in hidden if id != made.mask])
    assert left in (" unbelievably", " sat", " unbelievably sat")


def test_nothing_chosen_is_said_with_the_numbers():
    objective = masked(whole_words=True, begins=np.zeros(1000, bool))
    made = prepare(objective, [[CLS, 7, 8, 9, SEP]])  # one word of three, and room for one token
    message = r"No token of this batch was chosen.*rate=0\.15 and 5 tokens.*higher rate"
    with pytest.raises(DataError, match=message):
        objective.loss(small_bert(), made)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0}, "rate is 0"),
        ({"rate": 1.1}, "rate is 1.1"),
        ({"keep": -0.1}, "keep is -0.1"),
        ({"keep": 0.6, "swap": 0.5}, "at most 1"),
        ({"most": 0}, "most is 0"),
        ({"copies": 0}, "copies is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"whole_words": True}, "MaskedLM.of"),
        ({"vocab_size": 5}, "All 5 tokens are special"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        masked(**settings)
