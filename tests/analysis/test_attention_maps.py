"""What a page or a picture of attention shows is the model's attention, whatever the tokens are."""

import base64
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyplm.analysis.attention_maps import (
    LARGEST_PAGE,
    AttentionMap,
    attention_maps,
    attention_page,
    attention_picture,
    quantised,
)
from tinyplm.analysis.reading import label
from tinyplm.autograd import no_grad
from tinyplm.errors import ConfigError, DataError, MissingExtraError, ShapeError
from tinyplm.generate import generate
from tinyplm.models.bert import Bert, BertConfig
from tinyplm.models.gpt2 import Gpt2, Gpt2Config
from tinyplm.models.recurrent_lm import RecurrentConfig, RecurrentLM
from tinyplm.models.seq2seq import Seq2Seq, Seq2SeqConfig
from tinyplm.models.t5 import T5, T5Config
from tinyplm.nn import Inspection
from tinyplm.text import Tokenizer

NASTY = ["</script>", "<b>", "<!--", "&lt;", '"', "'", "고양이", "{{data}}", "\u2028", "]]>"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def a_map(queries, keys, *, layers=2, heads=3, causal=False, name="self", seed=0):
    rng = np.random.default_rng(seed)
    weights = np.exp(3 * rng.standard_normal((layers, heads, len(queries), len(keys))))
    if causal:
        weights = np.tril(weights)
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    return AttentionMap(name, list(queries), list(keys), weights)


def read_back(page):
    """The weights of each map in a page, by their definition: one loop, no array tricks."""

    class Parser(HTMLParser):
        def __init__(self):
            super().__init__()
            self.tags, self.scripts, self.open = [], [], None

        def handle_starttag(self, tag, attributes):
            self.tags.append((tag, dict(attributes)))
            if tag == "script":
                self.scripts.append("")
            self.open = tag

        def handle_endtag(self, tag):
            self.open = None

        def handle_data(self, data):
            if self.open == "script":
                self.scripts[-1] += data

    parser = Parser()
    parser.feed(page)
    data, script = parser.scripts
    found = []
    for each in json.loads(data)["maps"]:
        T, S = len(each["queries"]), len(each["keys"])
        stored = iter(base64.b64decode(each["weights"]))
        weights = np.zeros((each["layers"], each["heads"], T, S))
        for layer in range(each["layers"]):
            for head in range(each["heads"]):
                for i in range(T):
                    for j in range(i + 1 if each["causal"] else S):
                        weights[layer, head, i, j] = (next(stored) / 255) ** 2
        assert next(stored, None) is None
        found.append((each, weights))
    return parser.tags, script, found


@pytest.mark.parametrize("causal", [False, True])
def test_the_page_holds_the_weights_to_the_precision_that_it_promises(causal):
    tokens = [f"t{i}" for i in range(9)]
    each = a_map(tokens, tokens, causal=causal)
    _, _, [(kept, weights)] = read_back(attention_page([each], title="m", text="x"))
    assert kept["causal"] == causal
    assert (np.abs(weights - each.weights) <= np.sqrt(each.weights) / 255 + 1 / 255**2).all()
    assert len(quantised(each)) == 2 * 3 * (45 if causal else 81)


def test_a_map_between_two_texts_of_one_length_is_kept_whole():
    each = a_map("abc", "xyz", name="cross")
    _, _, [(_, weights)] = read_back(attention_page([each], title="m", text="x"))
    assert np.abs(weights - each.weights).max() < 1 / 255


ANY = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(ANY, min_size=1, max_size=4))
def test_no_token_breaks_the_page(tokens):
    each = a_map(tokens, tokens, layers=1, heads=1)
    said = " ".join(tokens)
    page = attention_page([each], title=said, text=said)
    plain = attention_page([a_map("a", "a", layers=1, heads=1)], title="a", text="a")
    tags, script, [(kept, _)] = read_back(page)
    assert kept["queries"] == tokens
    assert [tag for tag, _ in tags] == [tag for tag, _ in read_back(plain)[0]]
    assert script == read_back(plain)[1]


def test_the_page_needs_nothing_else():
    page = attention_page([a_map("ab", "ab")], title="m", text="x")
    tags, script, _ = read_back(page)
    for tag, attributes in tags:
        assert not {"src", "href", "srcset", "data"} & attributes.keys(), tag
    assert not any(word in script for word in ("fetch(", "XMLHttpRequest", "import(", "innerHTML"))
    policy = [a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0].startswith("default-src 'none'")
    # In the style only colours and gradients: nothing is loaded.
    assert "url(" not in page
    assert "@import" not in page


def test_everything_that_can_be_operated_has_a_name():
    tags, _, _ = read_back(attention_page([a_map("ab", "ab")], title="m", text="x"))
    for tag, attributes in tags:
        if attributes.get("role") in ("group", "tablist", "img") or "tabindex" in attributes:
            assert attributes.get("aria-label"), (tag, attributes)
    assert ("html", {"lang": "en"}) in tags
    assert any(a.get("name") == "viewport" for _, a in tags)


def test_a_page_of_twelve_by_twelve_heads_and_64_tokens_is_small():
    tokens = ["token"] * 64
    full = attention_page([a_map(tokens, tokens, layers=12, heads=12)], title="m", text="x")
    half = attention_page(
        [a_map(tokens, tokens, layers=12, heads=12, causal=True)], title="m", text="x"
    )
    assert len(full.encode()) < 830_000
    assert len(half.encode()) < 440_000


def test_a_page_that_no_browser_would_like_is_refused_with_a_length_that_fits():
    T = 2_000
    weights = np.broadcast_to(np.float32(1 / T), (4, 8, T, T))
    each = AttentionMap("self", ["a"] * T, ["a"] * T, weights)
    with pytest.raises(DataError, match=r"171 MB .* a page holds 64 MB. Shorten .* 1,224 tokens"):
        attention_page([each], title="m", text="x")
    assert LARGEST_PAGE >= 4 * 8 * 1224**2 * 4 / 3


# The script

CELL = 36  # pixels of a cell where there is room


def in_node(page, steps, folder):
    node = shutil.which("node")
    if node is None:
        pytest.skip("with Node.js installed, the script of the page would run here")
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
    script = Path(__file__).with_name("page_in_node.js")
    found = subprocess.run(
        [node, script, folder / "page.html", folder / "steps.json"],
        capture_output=True, encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


def test_the_script_tells_the_weight_under_the_pointer(tmp_path):
    maps = [
        a_map("abcd", "abcd", name="encoder"),
        a_map("xyz", "xyz", name="decoder", causal=True, seed=1),
        a_map("xyz", "abcd", name="cross", seed=2),
    ]
    steps = [
        ["thumb", "Layer 2, head 3"],
        ["point", None, {"clientX": 3 * CELL + 4, "clientY": 1 * CELL + 4}],
        ["tab", 1],
        ["point", None, {"clientX": 2 * CELL + 4, "clientY": 0}],
        ["point", None, {"clientX": 4, "clientY": 2 * CELL + 4}],
        ["tab", 2],
        ["point", None, {"clientX": 3 * CELL + 4, "clientY": 2 * CELL + 4}],
        ["view", 1],
        ["token", 0],
    ]
    page = attention_page(maps, title="m", text="x")
    found = in_node(page, steps, tmp_path)
    assert found["ready"] == "6"
    assert found["thumbs"] == found["painted"] == 6
    assert found["tabs"] == ["Encoder", "Decoder", "Decoder to encoder"]
    said = [step["readout"] for step in found["said"]]
    assert found["said"][0]["one"] == "Layer 2, head 3"

    def told(number, i, j):
        value = 100 * read_back(page)[2][number][1][1, 2, i, j]
        digits = 0 if value >= 10 else 1 if value >= 1 else 2
        each = maps[number]
        return (
            f"{each.queries[i]} ({i + 1}) looks at {each.keys[j]} ({j + 1}): {value:.{digits}f} %"
        )

    assert said[1] == told(0, 1, 3)
    assert said[3] == told(1, 0, 2)
    assert said[3].endswith(": 0.00 %")
    assert said[4] == told(1, 2, 0)
    assert said[6] == told(2, 2, 3)
    assert said[8].startswith("x (1) looks at ")
    strong = (read_back(page)[2][2][1][1, 2, 0] >= 0.02).sum()
    assert found["said"][8]["lines"] == strong


def test_the_script_is_operated_with_keys(tmp_path):
    steps = [
        ["key", "heads", {"key": "ArrowRight"}],
        ["key", "heads", {"key": "ArrowUp"}],
        ["press", "cells", {"key": "ArrowRight"}],
        ["press", "cells", {"key": "ArrowDown"}],
        ["key", "tabs", {"key": "ArrowLeft"}],
    ]
    maps = [a_map("ab", "ab"), a_map("ab", "abc", name="cross")]
    found = in_node(attention_page(maps, title="m", text="x"), steps, tmp_path)["said"]
    assert [step["one"] for step in found[:2]] == ["Layer 1, head 2", "Layer 2, head 2"]
    assert found[2]["readout"].startswith("a (1) looks at a (1): ")
    assert found[3]["readout"].startswith("b (2) looks at a (1): ")
    assert found[4]["readout"].startswith("Rows look at columns.")


def test_the_script_tells_what_a_head_does(tmp_path):
    weights = np.zeros((1, 2, 4, 4), np.float32)
    weights[0, 0, range(4), [0, 0, 1, 2]] = 1  # the one before
    weights[0, 1] = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    each = AttentionMap("self", list("abcd"), list("abcd"), weights)
    steps = [["thumb", "Layer 1, head 1"], ["thumb", "Layer 1, head 2"]]
    found = in_node(attention_page([each], title="m", text="x"), steps, tmp_path)["said"]
    assert found[0]["facts"] == [
        *("spread over 1.0 tokens", "first token 50 %", "itself 25 %", "one before 100 %"),
    ]
    assert found[1]["facts"][0] == "spread over 2.5 tokens"


def test_a_long_text_is_shown_by_its_largest_weights(tmp_path):
    tokens = ["t"] * 200
    each = a_map(tokens, tokens, layers=1, heads=1)
    found = in_node(attention_page([each], title="m", text="x"), [], tmp_path)
    assert found["painted"] == 1


def test_a_browser_draws_every_head(tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("with Chromium or Chrome installed, the page would be opened in it here")
    page = tmp_path / "page.html"
    maps = [a_map(NASTY, NASTY), a_map(NASTY, "abc", name="cross")]
    page.write_text(attention_page(maps, title="</b>", text=" ".join(NASTY)), encoding="utf-8")
    found = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()],
        capture_output=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert 'data-ready="6"' in found.stdout
    assert found.stdout.count('class="thumb"') == 6
    assert found.stdout.count('role="tab"') == 2


# Models


WORDS = "the cat sat on the mat and the dog sat on the log"


def a_tokenizer(kind):
    return Tokenizer.train(kind, [WORDS] * 3, vocab_size=300)


def a_gpt2(tokenizer, **settings):
    config = {"hidden_size": 16, "layers": 2, "heads": 2, "positions": 16} | settings
    config = Gpt2Config(vocab_size=len(tokenizer), **config)
    return Gpt2(config, rng=np.random.default_rng(0))


def a_bert(tokenizer):
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, layers=2, heads=2, positions=16)
    return Bert(config, rng=np.random.default_rng(0))


def test_the_maps_are_what_the_model_says_of_itself():
    tokenizer = a_tokenizer("byte-bpe")
    model = a_gpt2(tokenizer)
    (found,) = attention_maps(model, tokenizer, "the cat sat")
    ids, inspection = tokenizer.encode("the cat sat"), Inspection()
    with no_grad():
        model(ids[None], inspection=inspection)
    assert found.weights.shape == (2, 2, len(ids), len(ids))
    for layer, weights in enumerate(inspection.attentions):
        assert np.array_equal(found.weights[layer], weights.numpy()[0])
    assert found.queries == found.keys == ["the", "␣cat", "␣sat"]
    assert found.causal
    assert np.allclose(found.weights.sum(-1), 1, atol=1e-6)


def test_a_pair_is_read_with_its_special_tokens():
    tokenizer = a_tokenizer("wordpiece")
    (found,) = attention_maps(a_bert(tokenizer), tokenizer, "the cat", pair="the dog")
    assert found.queries == ["[CLS]", "the", "cat", "[SEP]", "the", "dog", "[SEP]"]
    assert not found.causal


def a_t5(tokenizer):
    config = T5Config(
        vocab_size=len(tokenizer), hidden_size=16, head_size=8, ffn_size=16, layers=2, heads=2,
        decoder_start=tokenizer.padding,
    )  # fmt: skip
    return T5(config, rng=np.random.default_rng(0))


def a_seq2seq(tokenizer, attention):
    config = Seq2SeqConfig(
        vocab_size=len(tokenizer), hidden_size=8, layers=1, attention=attention,
        decoder_start=tokenizer.end_of_text,
    )  # fmt: skip
    return Seq2Seq(config, rng=np.random.default_rng(0))


def for_two_parts():
    return Tokenizer.train(
        "byte-bpe", [WORDS] * 3, vocab_size=300, special_tokens=("<pad>", "</s>")
    )


def test_a_model_of_two_parts_has_three_kinds_of_attention():
    tokenizer = for_two_parts()
    model = a_t5(tokenizer)
    encoder, decoder, cross = attention_maps(model, tokenizer, "the cat sat", target="the dog")
    read = ["the", "␣cat", "␣sat", "</s>"]
    written = ["<pad>", "the", "␣dog"]
    assert (encoder.name, encoder.queries, encoder.keys) == ("encoder", read, read)
    assert (decoder.name, decoder.queries, decoder.keys) == ("decoder", written, written)
    assert (cross.name, cross.queries, cross.keys) == ("cross", written, read)
    assert [each.weights.shape for each in (encoder, decoder, cross)] == [
        *((2, 2, 4, 4), (2, 2, 3, 3), (2, 2, 3, 4)),
    ]
    assert decoder.causal
    assert not encoder.causal
    for each in (encoder, decoder, cross):
        assert np.allclose(each.weights.sum(-1), 1, atol=1e-6)


def test_without_a_target_it_is_what_the_model_writes():
    tokenizer = for_two_parts()
    model = a_t5(tokenizer)
    ids = np.append(tokenizer.encode("the cat"), tokenizer.end_of_text)[None]
    made = generate(model, ids, max_new_tokens=64, eos_token_id=tokenizer.end_of_text)[0]
    found = attention_maps(model, tokenizer, "the cat")[1]
    expected = made[:-1] if made[-1] == tokenizer.end_of_text else made
    assert found.queries == [label(tokenizer, int(i)) for i in expected]


def test_an_alignment_of_a_recurrent_model_is_attention_too():
    tokenizer = for_two_parts()
    (cross,) = attention_maps(a_seq2seq(tokenizer, "dot"), tokenizer, "the cat", target="the dog")
    assert cross.name == "cross"
    assert cross.weights.shape == (1, 1, 3, 3)
    assert np.allclose(cross.weights.sum(-1), 1, atol=1e-6)


def test_a_model_without_attention_says_so():
    tokenizer = for_two_parts()
    with pytest.raises(ConfigError, match="A Seq2Seq has no attention: it is recurrent"):
        attention_maps(a_seq2seq(tokenizer, None), tokenizer, "the cat", target="the dog")
    config = RecurrentConfig(vocab_size=len(tokenizer), hidden_size=8, layers=1)
    model = RecurrentLM(config, rng=np.random.default_rng(0))
    with pytest.raises(ConfigError, match="A RecurrentLM has no attention"):
        attention_maps(model, tokenizer, "the cat")


@pytest.mark.parametrize(
    ("text", "settings", "error", "said"),
    [
        ("", {}, DataError, "The text is empty"),
        ("the", {"pair": "cat"}, ConfigError, "A Gpt2 reads one text, and two were given"),
        ("the", {"target": "cat"}, ConfigError, "A Gpt2 has one part"),
        ("the cat " * 9, {}, ShapeError, "this GPT-2 has 16 positions"),
    ],
)
def test_what_a_model_cannot_read_is_said(text, settings, error, said):
    tokenizer = a_tokenizer("byte-bpe")
    with pytest.raises(error, match=said):
        attention_maps(a_gpt2(tokenizer), tokenizer, text, **settings)


# The picture


def test_the_picture_has_every_head(tmp_path):
    pytest.importorskip("matplotlib")
    maps = [a_map("ab", "ab", name="encoder"), a_map("abc", "ab", name="cross", layers=1)]
    attention_picture(maps, tmp_path / "new" / "a.png", title="모델 $x$")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match=r'pip install "tinyplm\[plot\]"'):
        attention_picture([a_map("ab", "ab")], tmp_path / "a.png", title="m")


def test_too_many_heads_for_a_picture_are_refused(tmp_path):
    each = a_map("a", "a", layers=50, heads=50)
    with pytest.raises(DataError, match="2,500 heads do not fit"):
        attention_picture([each], tmp_path / "a.png", title="m")
