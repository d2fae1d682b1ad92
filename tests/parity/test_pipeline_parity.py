"""Our pipelines beside those of transformers, on the same folders: random weights, a tokenizer trained here."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tinyplm  # noqa: E402
from tinyplm.models.bert import Bert, BertConfig  # noqa: E402
from tinyplm.models.gpt2 import Gpt2, Gpt2Config  # noqa: E402
from tinyplm.models.roberta import Roberta, RobertaConfig  # noqa: E402
from tinyplm.models.t5 import T5, T5Config  # noqa: E402
from tinyplm.text import Tokenizer  # noqa: E402

pytestmark = pytest.mark.parity

WORDS = ["the cat sat on the mat and the dog sat on the log. it was late, and dark."] * 3
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SIZE = {"hidden_size": 32, "layers": 2, "heads": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each model, in the layout that both libraries read."""
    made = {}
    for name, tokenizer in {
        "gpt2": Tokenizer.train("byte-bpe", WORDS, vocab_size=300),
        "bert": Tokenizer.train("wordpiece", WORDS, vocab_size=70),
        "roberta": Tokenizer.train("byte-bpe", WORDS, vocab_size=300, special_tokens=ROBERTA),
        "t5": Tokenizer.train("byte-bpe", WORDS, vocab_size=300, special_tokens=("<pad>", "</s>")),
    }.items():
        rng, V = np.random.default_rng(0), len(tokenizer)
        if name == "gpt2":
            model = Gpt2(Gpt2Config(vocab_size=V, positions=48, **SIZE), rng=rng)
        elif name == "bert":
            config = BertConfig(vocab_size=V, positions=48, carries=("masked-lm",), **SIZE)
            model = Bert(config, rng=rng)
        elif name == "roberta":
            config = RobertaConfig(
                vocab_size=V,
                positions=48,
                padding=tokenizer.padding,
                carries=("masked-lm",),
                **SIZE,
            )
            model = Roberta(config, rng=rng)
        else:
            start = tokenizer.padding
            config = T5Config(vocab_size=V, head_size=16, ffn_size=64, decoder_start=start, **SIZE)
            model = T5(config, rng=rng)
        draw = np.random.default_rng(1)
        drawn = {k: draw.standard_normal(a.shape) for k, a in model.arrays().items()}
        model.load({k: a + np.float32(0.2) * drawn[k] for k, a in model.arrays().items()})
        made[name] = tmp_path_factory.mktemp(name)
        tinyplm.save_pretrained(model, made[name])
        tokenizer.save(made[name])
    return made


def theirs(task, folder, kind):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    return transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")


def same_answers(ours, other):
    for one, two in zip(ours, other, strict=True):
        if isinstance(one, list):
            same_answers(one, two)
            continue
        assert one.keys() == two.keys()
        assert one["score"] == pytest.approx(two["score"], abs=1e-5)
        for key in ("token", "token_str", "sequence"):
            assert one[key] == two[key]


FILLERS = [
    ("bert", "BertForMaskedLM", "[MASK]", ["cat", "dog"]),
    ("roberta", "RobertaForMaskedLM", "<mask>", [" cat", " dog"]),
]


@pytest.mark.parametrize(("name", "kind", "mask", "targets"), FILLERS)
def test_masks_are_filled_alike(folders, name, kind, mask, targets):
    ours = tinyplm.pipeline("fill-mask", folders[name])
    other = theirs("fill-mask", folders[name], kind)
    for text in (f"the {mask} sat on the mat.", f"the {mask} sat on the {mask}", f"{mask}"):
        same_answers(ours(text, top_k=7), other(text, top_k=7))
    texts = [f"the {mask} sat", f"it was {mask}, and dark. the cat sat on the log"]
    same_answers(ours(texts), other(texts))
    same_answers(ours(texts[0], targets=targets), other(texts[0], targets=targets))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"return_full_text": False},
        {"num_beams": 3, "num_return_sequences": 2},
        {"repetition_penalty": 1.5},
    ],
)
def test_texts_go_on_alike(folders, settings):
    ours = tinyplm.pipeline("text-generation", folders["gpt2"])
    other = theirs("text-generation", folders["gpt2"], "GPT2LMHeadModel")
    texts = ["the cat", "it was late, and"]
    given = {"max_new_tokens": 8} | settings
    for text in texts:
        assert ours(text, **given) == other(text, do_sample=False, **given)
    assert ours(texts, **given) == other(texts, do_sample=False, **given)


@pytest.mark.parametrize(
    ("name", "kind"), [("gpt2", "GPT2Model"), ("bert", "BertModel"), ("roberta", "RobertaModel")]
)
def test_features_are_alike(folders, name, kind):
    ours = tinyplm.pipeline("feature-extraction", folders[name])
    other = theirs("feature-extraction", folders[name], kind)
    for text in ("the cat sat", "late"):
        one, two = np.array(ours(text)), np.array(other(text))
        assert one.shape == two.shape
        assert np.abs(one - two).max() < 1e-5


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_texts_are_made_of_texts_alike(folders, settings):
    """Their pipeline of this name is gone, so its parts are put together here."""
    ours = tinyplm.pipeline("text2text-generation", folders["t5"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["t5"])
    model = transformers.T5ForConditionalGeneration.from_pretrained(folders["t5"]).eval()
    for text in ("the cat sat", "it was late, and dark"):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        made = model.generate(
            ids, max_new_tokens=8, do_sample=False, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=tokenizer.pad_token_id,
            **settings,
        )  # fmt: skip
        expected = [
            {"generated_text": tokenizer.decode(row, skip_special_tokens=True)} for row in made
        ]
        assert ours(text, max_new_tokens=8, **settings) == expected
