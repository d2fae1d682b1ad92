"""Commands and entries with `--device cuda`, on the stand-in for CuPy: the same answers as on the CPU."""

import json
import sys

import numpy as np
import pytest

import tinyplm
from tinyplm.analysis.attention_maps import attention_maps
from tinyplm.backend import namespace
from tinyplm.cli import main
from tinyplm.errors import ConfigError, DeviceMemoryError
from tinyplm.hub import save_pretrained
from tinyplm.recipes.material import TOKENIZERS
from tinyplm.recipes.models import MODELS
from tinyplm.recipes.run import Run
from tinyplm.recipes.trained import open_trained
from tinyplm.text import Tokenizer

pytestmark = pytest.mark.device

TEXT = "the cat sat on the mat and the dog sat on the log. " * 4
NEAR = 2e-5
"""Relative: some hundred roundings of float32, as a text of two layers has in a row."""


def saved(name, folder):
    """A tiny model with weights that matter, and its tokenizer, in a folder."""
    entry, rng = MODELS[name], np.random.default_rng(1)
    tokenizer = Tokenizer.train(
        TOKENIZERS.get(entry.tokenizer, entry.tokenizer), [TEXT], vocab_size=400,
        special_tokens=entry.special_tokens, appended_tokens=entry.appended_tokens,
    )  # fmt: skip
    run = Run(model=name, layers=2, heads=2, hidden_size=16, positions=24)
    model = entry.build(entry.config_for(run, tokenizer), rng=np.random.default_rng(0))
    shapes = {k: a.shape for k, a in model.arrays().items()}
    model.load({k: (0.3 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()})
    save_pretrained(model, folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of a model, by its name; each made once."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def find(name):
        if name not in made:
            made[name] = saved(name, folder / name)
        return made[name]

    return find


@pytest.fixture
def say(capsys, tmp_path, monkeypatch):
    """Runs a command; what it printed, as JSON where that was asked for, or why it failed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def run(*arguments, code=0):
        found = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert found == code, out + err
        assert "Traceback" not in err
        return json.loads(out) if "--json" in arguments else (err if code else out)

    return run


def assert_close(found, expected):
    """Equal, and numbers near."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=NEAR)
    else:
        assert found == expected


def on_both(say, card, *arguments):
    """What a command gives on the card, which it has to have used, and on the CPU."""
    before = len(card.uploads)
    found = say(*arguments, "--device=cuda")
    assert len(card.uploads) > before
    return found, say(*arguments)


WRITING = [(), ("--greedy",), ("--num-beams=3",), ("--temperature=1.5", "--top-k=0", "--top-p=0.9")]


@pytest.mark.parametrize("settings", WRITING, ids=str)
@pytest.mark.parametrize("name", ["gpt2", "lstm", "t5", "seq2seq"])
def test_a_card_writes_what_the_cpu_writes(plain_card, say, models, name, settings):
    given = ("generate", models(name), "--prompt=the cat", "--max-new-tokens=8", *settings)
    found, expected = on_both(say, plain_card, *given)
    assert found == expected


def test_a_text_that_outgrows_the_positions_goes_on(plain_card, say, models):
    given = ("generate", models("gpt2"), "--prompt=the cat", "--max-new-tokens=40", "--json")
    found, expected = on_both(say, plain_card, *given)
    assert found == expected
    assert found["slid"]


def test_the_kernels_write_the_same(card, say, models):
    given = ("generate", models("gpt2"), "--prompt=the cat", "--max-new-tokens=8")
    found, expected = on_both(say, card, *given)
    assert found == expected
    assert card.launched


@pytest.mark.parametrize("name", ["gpt2", "gru"])
def test_a_card_measures_what_the_cpu_measures(plain_card, say, models, name):
    given = ("evaluate", models(name), "--data=text.txt", "--stride=24", "--json")
    assert_close(*on_both(say, plain_card, *given))


def test_bfloat16_measures_nearly_the_same(plain_card, say, models):
    given = ("evaluate", models("gpt2"), "--data=text.txt", "--stride=24", "--json")
    found = say(*given, "--device=cuda", "--precision=bfloat16")
    expected = say(*given)
    # Each logit is off by a few of its 2^-9; so is a loss, and its mean by no more.
    assert abs(found["nats_per_token"] - expected["nats_per_token"]) < 0.05
    assert found["nats_per_token"] != expected["nats_per_token"]


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "seq2seq"])
def test_attention_is_drawn_from_a_card(plain_card, say, models, name):
    given = ("attention", models(name), "the cat sat", "--json")
    found, expected = on_both(say, plain_card, *given)
    assert found["maps"] == expected["maps"]
    maps = {}
    for device in ("cpu", "cuda"):
        trained = open_trained(models(name), device=device)
        maps[device] = attention_maps(trained.model, trained.tokenizer, "the cat sat")
    for a, b in zip(maps["cuda"], maps["cpu"], strict=True):
        np.testing.assert_allclose(a.weights, b.weights, rtol=NEAR, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "objective", "text"),
    [
        ("gpt2", "causal-lm", "the cat sat on the mat"),
        ("bert", "mlm", "the cat sat on the mat"),
        ("t5", "span-corruption", "the cat sat on the mat"),
        ("seq2seq", "seq2seq", "the cat => the dog"),
    ],
)
def test_losses_are_explained_from_a_card(plain_card, say, models, name, objective, text):
    given = ("explain", objective, text, "--model", models(name), "--json")
    assert_close(*on_both(say, plain_card, *given))


def test_gradients_are_checked_on_a_card(plain_card, say):
    found, expected = on_both(say, plain_card, "gradcheck", "linear", "--cases=3", "--json")
    assert found["failed"] == []
    assert found["derivatives"] == expected["derivatives"]


@pytest.mark.parametrize(
    ("task", "name", "text"),
    [
        ("fill-mask", "bert", "the [MASK] sat"),
        ("text-generation", "gpt2", "the cat"),
        ("text2text-generation", "t5", "the cat"),
        ("feature-extraction", "roberta", "the cat"),
    ],
)
def test_a_pipeline_runs_on_a_card(plain_card, models, task, name, text):
    found = tinyplm.pipeline(task, models(name), device="cuda")
    assert namespace(found.model.parameters()[0].array) is plain_card.cupy
    expected = tinyplm.pipeline(task, models(name))(text)
    assert_close(found(text), expected)
    moved = tinyplm.pipeline(task, found.model, found.tokenizer, device="cpu")
    assert namespace(moved.model.parameters()[0].array) is np
    assert moved(text) == expected


def test_a_model_is_loaded_onto_a_card_and_saved_from_it(plain_card, models, tmp_path):
    model = tinyplm.from_pretrained(models("gpt2"), device="cuda", dtype="bfloat16")
    arrays = model.arrays()
    assert {namespace(a) for a in arrays.values()} == {plain_card.cupy}
    assert {a.dtype.name for a in arrays.values()} == {"bfloat16"}
    save_pretrained(model, tmp_path / "again")
    back = tinyplm.from_pretrained(tmp_path / "again", dtype="bfloat16").arrays()
    for name, array in arrays.items():
        assert array.get().tobytes() == back[name].tobytes()


def test_weights_that_are_shared_stay_shared(plain_card, models):
    model = tinyplm.from_pretrained(models("gpt2")).to("cuda")
    assert model.parameters() == model.to("cpu").parameters()
    before = model.parameters()[0].array
    assert model.to("cpu").parameters()[0].array.base is before.base


def test_no_room_is_told_with_numbers(plain_card, models):
    plain_card.pool.set_limit(size=1000)
    with pytest.raises(DeviceMemoryError, match=r"No room .* 75,000,000,000 of 80,000,000,000"):
        tinyplm.from_pretrained(models("gpt2"), device="cuda")


def commands(folder):
    """Every command that takes a device."""
    return [
        ("generate", folder, "--prompt=the"),
        ("evaluate", folder, "--data=text.txt"),
        ("attention", folder, "the"),
        ("explain", "causal-lm", "the cat sat", "--model", folder),
        ("gradcheck", "relu"),
        ("pretrain", "gpt2", "--data=text.txt", "--steps=1"),
    ]


@pytest.mark.parametrize("number", range(6))
def test_without_cupy_a_sentence_says_what_to_install(say, models, monkeypatch, number):
    monkeypatch.setitem(sys.modules, "cupy", None)
    said = say(*commands(models("gpt2"))[number], "--device=cuda", code=1)
    assert "CuPy is not installed" in said
    assert said.count("Error") == 1


@pytest.mark.parametrize("number", range(6))
def test_without_a_card_a_sentence_says_so(plain_card, say, models, monkeypatch, number):
    runtime = plain_card.cupy.cuda.runtime

    def none():
        raise runtime.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setattr(runtime, "getDeviceCount", none)
    said = say(*commands(models("gpt2"))[number], "--device=cuda", code=1)
    assert "no GPU answered" in said
    assert "nvidia-smi" in said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--quantize=int8", "--quantize int8 is for the CPU"),
        ("--precision=bfloat16x3", "--precision bfloat16x3 is for the CPU"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_what_a_card_does_not_do_is_refused(plain_card, say, models, verb, option, said):
    data = ("--data=text.txt",) if verb == "evaluate" else ()
    assert said in say(verb, models("gpt2"), *data, option, "--device=cuda", code=2)


def test_a_device_without_a_model_or_of_another_name_is_refused(say):
    assert "--model" in say("explain", "causal-lm", "the cat", "--device=cuda", code=2)
    assert "cpu, cuda" in say("gradcheck", "--device=gpu", code=2)


@pytest.mark.parametrize("name", ["gpu", "cuda:1"])
def test_a_device_of_another_name_is_refused_in_python(models, name):
    with pytest.raises(ConfigError, match=f"device is '{name}'; expected 'cpu' or 'cuda'"):
        tinyplm.from_pretrained(models("gpt2"), device=name)


def test_a_precision_that_a_card_lacks_is_refused(models):
    with pytest.raises(ConfigError, match="bfloat16x3"):
        open_trained(models("gpt2"), device="cuda", precision="bfloat16x3")
