"""BERT and RoBERTa against transformers, weights loaded in both directions: everything computed, every gradient."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tinyplm  # noqa: E402
from tinyplm.hub.family import family_named, model_type_of  # noqa: E402
from tinyplm.models.bert import Bert, BertConfig  # noqa: E402
from tinyplm.models.roberta import Roberta, RobertaConfig  # noqa: E402
from tinyplm.nn import Inspection  # noqa: E402
from tinyplm.text import Tokenizer  # noqa: E402

pytestmark = pytest.mark.parity

BOUNDS = {"float64": 1e-9, "float32": 1e-4}  # of the largest value
ODD = {
    "vocab_size": 37,
    "max_position_embeddings": 13,
    "hidden_size": 21,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 23,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
VARIANTS = [
    {},
    {"num_attention_heads": 1, "type_vocab_size": 1},
    {"num_attention_heads": 21, "type_vocab_size": 3},
    {"layer_norm_eps": 0.03},
    {"num_hidden_layers": 1, "vocab_size": 4},
    *({"hidden_act": name} for name in ("gelu_new", "relu", "silu")),
]
CLASSES = {
    "bert": (
        "ForPreTraining", "ForMaskedLM", "ForNextSentencePrediction", "ForSequenceClassification",
        "ForTokenClassification", "ForQuestionAnswering", "Model",
    ),
    "roberta": (
        "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification",
        "ForQuestionAnswering", "Model",
    ),
}  # fmt: skip
PADDING = {"bert": 0, "roberta": 1}
NAMES = {"bert": "Bert", "roberta": "Roberta"}


def build_theirs(family, kind, changes, dtype):
    torch.set_num_threads(1)
    name = NAMES[family]
    labels = {} if kind == "ForQuestionAnswering" else {"num_labels": 3}
    config = getattr(transformers, f"{name}Config")(**(ODD | labels | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name}{kind}")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # gains and biases too: none is 0 or 1
            values = 0.3 * torch.randn(parameter.shape, generator=generator)
            # Around 1 like real gains: norms that give almost nothing leave gradients of rounding alone.
            parameter.copy_(values + ("norm.weight" in name.lower()))
    return model.to(getattr(torch, dtype))


def batch_of(family, config, padding):
    """Rows of 11, 4, 1 and 7 tokens. Their models give no gradient to the row of padding, so no text has it."""
    rng = np.random.default_rng(1)
    ids = rng.integers(2, config.vocab_size, size=(4, 11))
    types = rng.integers(config.segments, size=(4, 11))
    lengths = np.array([[11], [4], [1], [7]])
    columns = np.arange(11)
    mask = (columns < lengths if padding == "right" else columns >= 11 - lengths) * 1
    if padding is None:
        return {"input_ids": ids, "token_type_ids": types}, np.ones((4, 11), int)
    ids[mask == 0] = PADDING[family]
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}, mask


def labels_of(config, mask):
    rng = np.random.default_rng(2)
    tokens = np.where((mask == 1) & (rng.random(mask.shape) < 0.6), 1, -100)
    words = np.where(tokens == 1, rng.integers(config.vocab_size, size=mask.shape), -100)
    tags = np.where(tokens == 1, rng.integers(3, size=mask.shape), -100)
    spans = [mask.cumsum(axis=1).argmax(axis=1), mask.argmax(axis=1)]  # the last token, the first
    return {"words": words, "tags": tags, "rows": rng.integers(2, size=4), "spans": spans}


def mean(head, x, labels):
    return head.cross_entropy(x, labels, scale=1 / (labels != -100).sum())


def our_loss(model, hidden, labels):
    terms = []
    for name in model.config.carries:
        if name == "masked-lm":
            terms.append(mean(model.head, hidden, labels["words"]))
        elif name == "next-sentence":
            terms.append(mean(model.next_sentence, model.pooled(hidden), labels["rows"]))
        elif name == "sequence-classification":
            terms.append(mean(model.classifier, model.features(hidden), labels["rows"]))
        elif name == "token-classification":
            terms.append(mean(model.classifier, model.features(hidden), labels["tags"]))
        elif name == "question-answering":
            starts, ends = (model.span(hidden)[..., i] for i in (0, 1))
            losses = [
                tinyplm.ops.cross_entropy(logits, at)
                for logits, at in zip((starts, ends), labels["spans"], strict=True)
            ]
            terms.append((losses[0] + losses[1]) * 0.5)
        else:
            terms.append((model.pooled(hidden) ** 2).sum())
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def their_loss(kind, there, labels):
    of = {name: torch.from_numpy(np.asarray(values)) for name, values in labels.items()}
    entropy = torch.nn.functional.cross_entropy
    if kind == "ForPreTraining":
        masked = entropy(there.prediction_logits.flatten(0, 1), of["words"].flatten())
        return masked + entropy(there.seq_relationship_logits, of["rows"])
    if kind == "ForMaskedLM":
        return entropy(there.logits.flatten(0, 1), of["words"].flatten())
    if kind == "ForTokenClassification":
        return entropy(there.logits.flatten(0, 1), of["tags"].flatten())
    if kind == "ForQuestionAnswering":
        start, end = of["spans"]
        return (entropy(there.start_logits, start) + entropy(there.end_logits, end)) / 2
    if kind == "Model":
        return (there.pooler_output**2).sum()
    return entropy(there.logits, of["rows"])


def own_labels(kind, labels):
    """The arguments by which their model computes its own loss."""
    of = {name: torch.from_numpy(np.asarray(values)) for name, values in labels.items()}
    return {
        "ForPreTraining": lambda: {"labels": of["words"], "next_sentence_label": of["rows"]},
        "ForMaskedLM": lambda: {"labels": of["words"]},
        "ForTokenClassification": lambda: {"labels": of["tags"]},
        "ForQuestionAnswering": lambda: {
            "start_positions": of["spans"][0],
            "end_positions": of["spans"][1],
        },
        "Model": dict,
    }.get(kind, lambda: {"labels": of["rows"]})()


def assert_close(ours, theirs, dtype, name, *, beside=None):
    """Within the bound of the largest value, theirs or that of another array of theirs."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, name
    sizes = theirs if beside is None else beside.detach().numpy()
    gap, size = np.abs(ours - theirs).max(), np.abs(sizes).max()
    assert gap <= BOUNDS[dtype] * size, f"{name}: off by {gap:.2e} where values reach {size:.2e}"


def logits_of(ours, hidden):
    found = {}
    for name in ours.config.carries:
        if name == "masked-lm":
            found["prediction_logits" if "next-sentence" in ours.config.carries else "logits"] = (
                ours.head(hidden)
            )
        elif name == "next-sentence":
            key = "seq_relationship_logits" if "masked-lm" in ours.config.carries else "logits"
            found[key] = ours.next_sentence(ours.pooled(hidden))
        elif name.endswith("classification"):
            found["logits"] = ours.classifier(ours.features(hidden))
        elif name == "question-answering":
            spans = ours.span(hidden)
            found |= {"start_logits": spans[..., 0], "end_logits": spans[..., 1]}
        else:
            found["pooler_output"] = ours.pooled(hidden)
    return found


def compare(family, kind, ours, theirs, dtype, padding):
    batch, mask = batch_of(family, ours.config, padding)
    real = mask == 1
    given = {name: torch.from_numpy(values) for name, values in batch.items()}
    labels = labels_of(ours.config, mask)
    there = theirs(
        **given, **own_labels(kind, labels), output_hidden_states=True, output_attentions=True
    )
    look = Inspection()
    hidden = ours(**batch, inspection=look)
    for name, logits in logits_of(ours, hidden).items():
        assert logits.dtype == dtype
        expected = there[name].detach().numpy()
        keep = real if logits.array.shape[:2] == real.shape else slice(None)
        assert_close(logits.array[keep], expected[keep], dtype, name)
    assert len(look.hidden_states) == len(there.hidden_states)
    for layer, (a, b) in enumerate(zip(look.hidden_states, there.hidden_states, strict=True)):
        assert_close(a.array[real], b.detach().numpy()[real], dtype, f"hidden states {layer}")
    for layer, (a, b) in enumerate(zip(look.attentions, there.attentions, strict=True)):
        rows = real[:, None].repeat(a.shape[1], axis=1)
        assert_close(a.array[rows], b.detach().numpy()[rows], dtype, f"attentions {layer}")

    loss = our_loss(ours, ours(**batch), labels)
    loss.backward()
    theirs.zero_grad()
    expected = their_loss(kind, there, labels)
    expected.backward()
    assert_close(loss.array, expected, dtype, "loss")
    if kind != "Model":
        assert_close(loss.array, there.loss, dtype, "their own loss")
    table = family_named(family)
    gradients = {name: p.grad for name, p in ours.named_parameters().items()}
    assert all(g is not None and g.dtype == dtype for g in gradients.values())
    made = table.write_arrays(ours.config, gradients)
    their_parameters = dict(theirs.named_parameters())
    assert set(made) == set(their_parameters)
    for name, gradient in made.items():
        beside = their_parameters[not_zero(name, kind, ours.config.layers)].grad
        what = f"gradient of {name}"
        assert_close(gradient, their_parameters[name].grad, dtype, what, beside=beside)


def not_zero(name, kind, layers):
    """The parameter by whose gradient that of this one is measured: where it is 0, all that differs is rounding.

    A bias of keys moves all scores of a query alike, which a softmax does not see. In the same way the softmax over
    positions of question answering does not see its bias, nor the last bias of all before it.
    """
    if name.endswith(".key.bias"):
        return name.replace(".key.", ".query.")
    last = f"encoder.layer.{layers - 1}.output.LayerNorm.bias"
    if kind == "ForQuestionAnswering" and (name == "qa_outputs.bias" or name.endswith(last)):
        return name.replace("bias", "weight")
    return name


def paddings_of(kind):
    """Where no loss reaches a token of padding, whose embedding gets no gradient from them.

    With padding on the left they pool its vector; answers may begin and end anywhere, in padding too.
    """
    if kind == "ForQuestionAnswering":
        return (None,)
    return (
        (None, "right", "left")
        if kind in ("ForMaskedLM", "ForTokenClassification")
        else (None, "right")
    )


def check_from_there(tmp_path, family, kind, changes, dtype):
    theirs = build_theirs(family, kind, changes, dtype)
    theirs.save_pretrained(tmp_path)
    ours = tinyplm.from_pretrained(tmp_path, dtype=dtype)
    assert model_type_of(ours) == family
    for padding in paddings_of(kind):
        ours.clear_gradients()
        compare(family, kind, ours, theirs, dtype, padding)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("family", CLASSES)
def test_a_model_from_there_computes_the_same_here(tmp_path, family, changes, dtype):
    kind = {"bert": "ForPreTraining", "roberta": "ForMaskedLM"}[family]
    check_from_there(tmp_path, family, kind, changes, dtype)


@pytest.mark.parametrize(
    ("family", "kind"), [(family, kind) for family in CLASSES for kind in CLASSES[family]]
)
def test_every_head_from_there_computes_the_same_here(tmp_path, family, kind):
    check_from_there(tmp_path, family, kind, {}, "float64")


OURS = {"vocab_size": 29, "hidden_size": 18, "layers": 2, "heads": 3, "positions": 11}
STILL = {"dropout": 0.0, "attention_dropout": 0.0}
HEADS = {
    "ForPreTraining": ("masked-lm", "next-sentence"),
    "ForMaskedLM": ("masked-lm",),
    "ForNextSentencePrediction": ("next-sentence",),
    "ForSequenceClassification": ("sequence-classification",),
    "ForTokenClassification": ("token-classification",),
    "ForQuestionAnswering": ("question-answering",),
    "Model": ("pooler",),
}


@pytest.mark.parametrize("settings", [{}, {"activation": "relu", "eps": 0.01, "heads": 6}], ids=str)
@pytest.mark.parametrize(
    ("family", "kind"), [(family, kind) for family in CLASSES for kind in CLASSES[family]]
)
def test_a_model_from_here_computes_the_same_there(tmp_path, family, kind, settings):
    build, config = {"bert": (Bert, BertConfig), "roberta": (Roberta, RobertaConfig)}[family]
    labels = {} if kind == "ForQuestionAnswering" else {"labels": 3}
    ours = build(
        config(**(OURS | STILL | labels | settings), carries=HEADS[kind]),
        rng=np.random.default_rng(0),
    )
    rng = np.random.default_rng(1)
    ours.load({n: 0.3 * rng.standard_normal(a.shape) for n, a in ours.arrays().items()})
    tinyplm.save_pretrained(ours, tmp_path)
    theirs, report = getattr(transformers, NAMES[family] + kind).from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float64, output_loading_info=True
    )
    assert not any(report.values()), report
    for padding in paddings_of(kind):
        ours.clear_gradients()
        compare(family, kind, ours, theirs.eval(), "float64", padding)


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_vocabulary_alone_gives_the_same_ids(tmp_path, lowercase):
    names = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s un ##believ ##able ca ##fe 好 ! , ."
    (tmp_path / "vocab.txt").write_text("\n".join(names.split()) + "\n", encoding="utf-8")
    settings = f'{{"tokenizer_class": "BertTokenizer", "do_lower_case": {str(lowercase).lower()}}}'
    (tmp_path / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    for text in (
        "The cats, unbelievable!",
        "Café 好好 cat [MASK]. the",
        "CAT\x00s\tx",
        "x" * 150,
        "cat" * 70,
    ):
        assert ours.encode(text, add_special_tokens=True).tolist() == theirs(text)["input_ids"]
    ids, types = ours.encode_pair("the cat", "cats")
    pair = theirs("the cat", "cats")
    assert (ids.tolist(), types.tolist()) == (pair["input_ids"], pair["token_type_ids"])
