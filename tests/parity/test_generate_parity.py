"""generate against transformers' own, token for token, on small random GPT-2 models.

The model computes in float64, so that reading with a cache, without one, or in another batch
gives the same logits to the last float32 digit and no near-tie can hide or fake a difference.
Sampling is compared with torch's real generator: one torch draw without replacement is the top of
probabilities / q, so our side is handed q from a torch generator in the same state.
"""

import numpy as np
import pytest

from tinyplm.generate import Beams, beam_search, generate
from tinyplm.hub.pretrained import from_pretrained

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

VOCABULARY, POSITIONS = 61, 40


class TorchCache:
    def __init__(self):
        self.inner = transformers.DynamicCache()

    @property
    def length(self):
        return self.inner.get_seq_length()

    def reorder(self, rows):
        self.inner.reorder_cache(torch.from_numpy(rows))


class Wrapped:
    """A transformers model behind the LanguageModel protocol."""

    class config:  # noqa: N801
        vocab_size = VOCABULARY
        positions = POSITIONS

    def __init__(self, model):
        self.model = model

    def new_cache(self, batch, capacity):
        return TorchCache()

    def next_logits(self, input_ids, *, attention_mask, position_ids, cache):
        with torch.no_grad():
            output = self.model(
                input_ids=torch.from_numpy(input_ids),
                attention_mask=None if attention_mask is None else torch.from_numpy(attention_mask),
                position_ids=torch.from_numpy(position_ids),
                past_key_values=None if cache is None else cache.inner,
                use_cache=cache is not None,
            )
        return output.logits[:, -1].numpy()


class TorchDraws:
    """Exponential draws of torch's global generator."""

    def __init__(self, seed):
        torch.manual_seed(seed)

    def standard_exponential(self, size):
        return torch.empty(size).exponential_(1).numpy()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models():
    """Peaked and flat ones, so that both certain and open choices occur."""
    made = []
    for seed, spread in enumerate((0.25, 0.4, 0.8)):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=POSITIONS,
            n_embd=16,
            n_layer=2,
            n_head=2,
            initializer_range=spread,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        made.append(transformers.GPT2LMHeadModel(config).double().eval())
    return made


def prompts(rng, rows, *, pad=None):
    """Ids, and a mask when rows are padded on the left."""
    length = int(rng.integers(1, 8))
    ids = rng.integers(1, VOCABULARY, size=(rows, length))
    if pad is None or length == 1:
        return ids, None
    mask = (np.arange(length) >= rng.integers(0, length, size=rows)[:, None]).astype(np.int64)
    return np.where(mask == 1, ids, pad), mask


def theirs(model, ids, mask, seed, settings):
    torch.manual_seed(seed)
    ids = torch.from_numpy(ids)
    mask = torch.ones_like(ids) if mask is None else torch.from_numpy(mask)
    return model.generate(
        ids,
        attention_mask=mask,
        return_dict_in_generate=True,
        output_scores=settings["num_beams"] > 1,
        **settings,
    )


def assert_same(model, ids, mask, seed, settings, *, ours=None):
    expected = theirs(model, ids, mask, seed, settings)
    wrapped = ours or Wrapped(model)
    mask = np.ones_like(ids) if mask is None else mask
    rest = settings | {"attention_mask": mask, "rng": TorchDraws(seed)}
    if settings["num_beams"] > 1:
        got = beam_search(wrapped, ids, **rest)
        np.testing.assert_array_equal(got.ids, expected.sequences.numpy(), str(settings))
        # Sums of at most 24 float32 log-probabilities: 24 roundings of values below 128, twice.
        np.testing.assert_allclose(
            got.scores, expected.sequences_scores.numpy(), atol=24 * 2 * 2**-18, rtol=0
        )
    else:
        got = generate(wrapped, ids, **rest)
        np.testing.assert_array_equal(got, expected.sequences.numpy(), str(settings))
    return got


def common(rng):
    eos = [None, 3, [3, 7], [2, 5, 11]][rng.integers(4)]
    pad = [None, 1, 3][rng.integers(3)]
    if eos is None and pad is None:
        pad = 1
    return {
        "max_new_tokens": int(rng.integers(1, 16)),
        "repetition_penalty": float(rng.choice([1.0, 0.8, 1.3, 2.0])),
        "no_repeat_ngram_size": int(rng.choice([0, 0, 1, 2, 3])),
        "eos_token_id": eos,
        "pad_token_id": pad,
        "use_cache": bool(rng.integers(2)),
    }


def with_minimum(rng, settings, length):
    kind, new = rng.integers(3), settings["max_new_tokens"]
    least = int(rng.integers(0, new + 1))
    if kind == 1:
        settings["min_length"] = length + least
    elif kind == 2 and least:
        settings["min_new_tokens"] = least
    return settings


def sampling(rng):
    return {
        "do_sample": True,
        "temperature": float(rng.choice([1.0, 0.7, 1.6])),
        "top_k": int(rng.choice([0, 1, 3, 10, 50])),
        "top_p": float(rng.choice([1.0, 0.3, 0.9, 0.97])),
    }


def random_case(seed):
    rng = np.random.default_rng(seed)
    settings = common(rng)
    ids, mask = prompts(rng, int(rng.integers(1, 4)), pad=settings["pad_token_id"])
    return rng, ids, mask, with_minimum(rng, settings, ids.shape[1])


@pytest.mark.parametrize("block", range(4))
def test_greedy_is_the_same(models, block):
    for seed in range(block * 10, block * 10 + 10):
        _, ids, mask, settings = random_case(seed)
        assert_same(models[seed % 3], ids, mask, seed, settings | {"num_beams": 1})


@pytest.mark.parametrize("block", range(4))
def test_sampling_is_the_same_given_the_same_draws(models, block):
    for seed in range(100 + block * 12, 112 + block * 12):
        rng, ids, mask, settings = random_case(seed)
        settings |= sampling(rng) | {"num_beams": 1}
        settings["num_return_sequences"] = int(rng.choice([1, 1, 3]))
        assert_same(models[seed % 3], ids, mask, seed, settings)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
def test_beam_search_is_the_same(models, early_stopping, length_penalty):
    for seed in range(200, 208):
        rng, ids, mask, settings = random_case(seed)
        settings |= {
            "num_beams": int(rng.integers(2, 6)),
            "early_stopping": early_stopping,
            "length_penalty": length_penalty,
        }
        settings["num_return_sequences"] = int(rng.integers(1, settings["num_beams"] + 1))
        assert_same(models[seed % 3], ids, mask, seed, settings)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.6, 1.5, 4.0])
def test_beam_search_is_the_same_when_many_sequences_end(models, early_stopping, length_penalty):
    for seed in range(400, 416):
        rng = np.random.default_rng(seed)
        ids, beams = rng.integers(1, VOCABULARY, size=(3, 2)), int(rng.integers(2, 5))
        settings = {
            "max_new_tokens": 24,
            "eos_token_id": rng.choice(VOCABULARY, size=12, replace=False).tolist(),
            "pad_token_id": 1,
            "num_beams": beams,
            "num_return_sequences": beams,
            "early_stopping": early_stopping,
            "length_penalty": length_penalty,
        }
        assert_same(models[seed % 2], ids, None, seed, settings)


def test_beam_sampling_leaves_each_beam_a_token_that_is_no_end(models):
    # top_k=1 and a tiny top_p still leave two tokens per beam, one more than there are end ids.
    for seed in range(500, 512):
        ids = np.random.default_rng(seed).integers(1, VOCABULARY, size=(2, 3))
        for narrow in ({"top_k": 1}, {"top_k": 0, "top_p": 0.01}):
            settings = {"max_new_tokens": 8, "do_sample": True, "num_beams": 2, "pad_token_id": 1}
            assert_same(models[seed % 3], ids, None, seed, settings | narrow)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_beam_sampling_is_the_same_given_the_same_draws(models, early_stopping):
    for seed in range(300, 316):
        rng, ids, mask, settings = random_case(seed)
        settings |= sampling(rng)
        beams = int(rng.integers(2, 5))
        # Fewer open tokens than candidates leave draws among zeros, whose order torch does not fix.
        settings |= {
            "top_k": int(rng.choice([0, 20, 50])),
            "top_p": float(rng.choice([1.0, 0.995])),
            "temperature": float(rng.choice([2.0, 4.0])),
            "no_repeat_ngram_size": int(rng.choice([0, 2])),
            "num_beams": beams,
            "early_stopping": early_stopping,
            "length_penalty": float(rng.choice([-0.5, 0.0, 1.0])),
            "num_return_sequences": int(rng.integers(1, beams + 1)),
        }
        assert_same(models[0], ids, mask, seed, settings)


@pytest.fixture(scope="module")
def pairs(models, tmp_path_factory):
    """Each model with ours, loaded from the files it saved."""
    made = []
    for number, model in enumerate(models):
        folder = tmp_path_factory.mktemp(f"model{number}")
        model.save_pretrained(folder)
        made.append((model, from_pretrained(folder, dtype="float64")))
    return made


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("do_sample", [False, True])
def test_our_own_model_generates_the_same(pairs, beams, do_sample):
    for seed in range(600, 620):
        rng, ids, mask, settings = random_case(seed)
        model, ours = pairs[seed % 3]
        settings |= {"num_beams": beams, "no_repeat_ngram_size": int(rng.choice([0, 2]))}
        if do_sample:
            settings |= {"do_sample": True, "top_k": 0, "temperature": 2.0}
        assert_same(model, ids, mask, seed, settings, ours=ours)


def test_lengths_and_defaults_are_the_same(models):
    ids = np.array([[4, 9, 2]])
    for settings in ({"max_length": 9}, {"max_length": 4}, {"max_new_tokens": 37}):
        assert_same(models[1], ids, None, 0, settings | {"num_beams": 1, "pad_token_id": 1})
    with pytest.warns(UserWarning, match="max_length"):
        expected = models[1].generate(torch.from_numpy(ids), pad_token_id=1)
    np.testing.assert_array_equal(generate(Wrapped(models[1]), ids), expected.numpy())
    torch.manual_seed(5)
    expected = models[0].generate(torch.from_numpy(ids), do_sample=True, max_new_tokens=30)
    got = generate(Wrapped(models[0]), ids, do_sample=True, max_new_tokens=30, rng=TorchDraws(5))
    np.testing.assert_array_equal(got, expected.numpy())


def test_padding_is_recognised_by_its_id_as_there(models):
    ids = np.array([[1, 1, 6, 8], [5, 4, 3, 2]])
    for eos in (3, [3, 1]):
        expected = models[1].generate(
            torch.from_numpy(ids), max_new_tokens=9, eos_token_id=eos, pad_token_id=1
        )
        got = generate(Wrapped(models[1]), ids, max_new_tokens=9, eos_token_id=eos, pad_token_id=1)
        np.testing.assert_array_equal(got, expected.numpy())


def test_many_beams_end_early_and_are_padded_with_the_id_asked_for(models):
    # transformers pads beams with the end id when pad_token_id is 0; elsewhere 0 is respected.
    seen = 0
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(1, VOCABULARY, size=(3, 4))
        settings = {"max_new_tokens": 10, "eos_token_id": [3, 7, 9], "num_beams": 4}
        settings |= {"num_return_sequences": 4, "early_stopping": True}
        expected = theirs(models[0], ids, None, 0, settings | {"pad_token_id": 1}).sequences.numpy()
        got = beam_search(Wrapped(models[0]), ids, **settings, pad_token_id=0)
        assert isinstance(got, Beams)
        ended = np.cumsum(np.isin(expected[:, 4:], [3, 7, 9]), axis=1)
        after = np.zeros(expected.shape, dtype=bool)
        after[:, 5:] = ended[:, :-1] > 0
        np.testing.assert_array_equal(got.ids, np.where(after, 0, expected))
        seen += after.sum()
    assert seen > 100
