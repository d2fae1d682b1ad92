"""The command line as a user meets it: words, exit codes, files, and never a traceback."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyplm.cli import main
from tinyplm.cli.main import parser
from tinyplm.cli.pretrain import GROUPS
from tinyplm.kernels.precision import current
from tinyplm.models.gpt2 import Gpt2
from tinyplm.recipes import pretrain as recipe
from tinyplm.recipes.run import Run, read_toml
from tinyplm.train.progress import read_metrics

TINY = (
    *("--layers=1", "--heads=2", "--hidden-size=16", "--positions=16", "--batch=2"),
    *("--tokenizer=chars", "--sample-tokens=8"),
)
TEXT = "the cat sat on the mat and the dog sat on the log. " * 20
KOREAN = "옛날 옛적에 호랑이가 산골 마을에 살았습니다.\n떡 하나 주면 안 잡아먹지!\n" * 30
VERBS = (
    *("pretrain", "generate", "evaluate", "explain", "models", "objectives", "plot", "gradcheck"),
    *("attention", "doctor", "tokenizer", "tokenizer train", "tokenizer show"),
)


@pytest.fixture
def say(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder; gives its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINYPLM_TRACEBACK", raising=False)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run, what it printed, and what it told meanwhile."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(
            [
                *("pretrain", "gpt2", "--data", str(folder / "text.txt"), *TINY),
                *("--steps=6", "--evaluate-every=3", "--output", str(folder / "run")),
            ]
        )
    assert code == 0, err.getvalue()
    return folder / "run", out.getvalue(), err.getvalue()


def process(*arguments, folder, **settings):
    """The same in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tinyplm", *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        **settings,
    )


# What a run says and leaves


def test_a_run_tells_what_it_found_and_what_it_does(finished):
    folder, _, err = finished
    assert "text.txt: text as UTF-8, 1.0 kB" in err
    assert "chars tokenizer, 14 tokens" in err
    assert "1,020, 1.00 bytes each; 918 to train on, 102 held out" in err
    assert "gpt2, 3,792 parameters: 1 layer, 2 heads, 16 wide, 16 positions" in err
    assert "memory     about " in err
    assert "6 steps of 2 windows of 16 tokens: 0.21 times the text" in err
    assert "step 3: validation " in err
    assert "[checkpoint-000003 saved]" in err
    assert str(folder) in err


def test_a_run_prints_its_results_alone_to_standard_output(finished):
    folder, out, _ = finished
    last = read_metrics(folder / "metrics.jsonl")[-1]["validation_loss"]
    assert out.startswith("Trained in ")
    assert f"validation {last:.4f} nats per token" in out
    assert "bits per byte" in out
    assert "A sample:" in out
    assert f"The model is in {folder}." in out
    assert f'tinyplm generate {folder} --prompt "' in out


def test_a_run_leaves_a_model_folder_and_a_plot(finished):
    folder, out, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "run.json"} <= names
    assert {"metrics.jsonl", "checkpoint-000003", "checkpoint-000006"} <= names
    assert ("loss.png" in names) == ("loss.png" in out)


def test_without_matplotlib_the_plot_is_text(say, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    code, out, err = say("pretrain", "gpt2", "--data", text, *TINY, "--steps=2", "--output=run")
    assert code == 0
    assert 'Warning: Plotting needs matplotlib: pip install "tinyplm[plot]".' in err
    assert "loss (nats per token)" in out


def test_without_numba_the_extra_is_named_once(say, text, monkeypatch):
    monkeypatch.setattr("tinyplm.cli.pretrain.find_spec", lambda name: None)
    code, _, err = say("pretrain", "gpt2", "--data", text, *TINY, "--steps=2", "--output=run")
    assert code == 0
    assert err.count('pip install "tinyplm[fast]"') == 1


def test_json_is_one_object_and_nothing_else(say, text):
    code, out, _ = say(
        *("pretrain", "gpt2", "--data", text, *TINY, "--steps=2", "--output=run", "--json")
    )
    assert code == 0
    found = json.loads(out)
    assert found["parameters"] == 3792
    assert found["interrupted"] is False
    assert set(found["validation"]) == {"nats_per_token", "perplexity", "bits_per_byte"}


def test_a_dry_run_writes_nothing(say, text, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = say("pretrain", "gpt2", "--data", text, *TINY, "--output=run", "--dry-run")
    assert code == 0
    assert "3,792 parameters" in out
    assert f"{Run().steps} steps" in out
    assert "memory" in out
    assert " the " in out.split("first batch:")[1]
    assert sorted(tmp_path.rglob("*")) == before
    code, out, _ = say("pretrain", "gpt2", "--data", text, *TINY, "--dry-run", "--json")
    assert code == 0
    assert len(json.loads(out)["first_batch"]) == 2


def test_flags_win_over_the_config(say, text, tmp_path):
    (tmp_path / "run.toml").write_text(
        'model = "gpt2"\ndata = "text.txt"\nlayers = 2\nhidden-size = 16\nheads = 2\n'
        'positions = 16\ntokenizer = "chars"\nsteps = 3\n',
        encoding="utf-8",
    )
    code, out, _ = say("pretrain", "--config=run.toml", "--layers=1", "--dry-run")
    assert code == 0
    assert "1 layer, 2 heads, 16 wide" in out
    assert "3 steps of 16 windows" in out


def test_the_config_of_shakespeare_gives_one_token_to_each_character(say, tmp_path):
    config = Path(__file__).parents[1] / "configs" / "shakespeare-char.toml"
    assert Run(**read_toml(config)).model == "gpt2"
    characters = "".join(map(chr, range(ord("A"), ord("A") + 65)))
    (tmp_path / "plays.txt").write_text(characters * 20, encoding="utf-8")
    code, out, _ = say("pretrain", "--config", config, "--data=plays.txt", "--dry-run")
    assert code == 0
    assert "chars tokenizer, 65 tokens" in out
    assert "2,000 steps of 12 windows of 64 tokens" in out


def test_two_documents_have_an_end_of_text_between_them(say, tmp_path):
    (tmp_path / "two.jsonl").write_text(
        "".join(json.dumps({"text": "abc" * 100}) + "\n" for _ in range(2)), encoding="utf-8"
    )
    code, out, _ = say("pretrain", "gpt2", "--data=two.jsonl", *TINY, "--dry-run")
    assert code == 0
    assert "chars tokenizer, 4 tokens" in out


def test_every_setting_of_a_run_is_an_option():
    named = [name for names in GROUPS.values() for name in names]
    assert sorted([*named, "model"]) == sorted(Run.__dataclass_fields__)


def test_an_anomaly_is_named(say, text):
    arguments = ("pretrain", "gpt2", "--data", text, *TINY, "--steps=50", "--lr=1e8", "--clip=0")
    code, _, err = say(*arguments, "--output=plain")
    assert code == 1
    assert "--anomaly names the first bad op" in err
    code, _, err = say(*arguments, "--output=run", "--anomaly")
    assert code == 1
    assert "(forward)" in err or "(backward)" in err


# Using what was trained


def test_generate_prints_the_prompt_and_what_follows(say, finished):
    folder = finished[0]
    code, out, _ = say("generate", folder, "--prompt", "the cat", "--max-new-tokens", 5)
    assert code == 0
    assert out.startswith("the cat")
    assert len(out) == len("the cat") + 5 + 1
    assert say("generate", folder, "--prompt", "the cat", "--max-new-tokens", 5)[1] == out
    other = say("generate", folder, "--prompt=the cat", "--max-new-tokens=5", "--seed=1")[1]
    assert other != out


@pytest.mark.parametrize("option", ["--greedy", "--temperature=0", "--top-k=1", "--num-beams=1"])
def test_generate_can_take_the_most_probable_token(say, finished, option):
    folder = finished[0]
    options = ("--max-new-tokens=6", "--json")
    _, out, _ = say("generate", folder, "--prompt=the", option, *options)
    found = json.loads(out)
    assert found["new_tokens"] == 6 == len(found["ids"])
    if option != "--num-beams=1":
        greedy = json.loads(say("generate", folder, "--prompt=the", "--greedy", *options)[1])
        assert found == greedy


def test_generate_searches_with_beams(say, finished):
    code, out, _ = say(
        "generate", finished[0], "--prompt=the", "--num-beams=3", "--max-new-tokens=5"
    )
    assert code == 0
    assert len(out) == len("the") + 5 + 1


def test_a_text_past_the_positions_is_written_and_said_to_be(say, finished):
    code, out, err = say("generate", finished[0], "--prompt=the", "--max-new-tokens=60")
    assert code == 0
    assert len(out) == len("the") + 60 + 1
    assert "outgrew the model's 16 positions" in err


def test_a_run_is_evaluated_on_what_it_held_out(say, finished):
    code, out, err = say("evaluate", finished[0])
    assert code == 0
    assert "102 tokens, 102 bytes; windows of 16 tokens, 8 apart" in out
    assert "the last 10 % of the run's text" in err


def test_a_model_is_evaluated_on_a_text(say, finished, text):
    code, out, _ = say("evaluate", finished[0], "--data", text, "--stride=4", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["bytes"] == found["tokens"] == len(TEXT) - 1
    assert found["bits_per_byte"] == pytest.approx(found["nats_per_token"] / 0.6931471805599453)


@pytest.fixture
def precisions(monkeypatch):
    """The precision that held whenever the model computed."""
    seen, compute = [], Gpt2.__call__

    def noted(model, *arguments, **options):
        seen.append(current())
        return compute(model, *arguments, **options)

    monkeypatch.setattr(Gpt2, "__call__", noted)
    return seen


def test_a_run_has_its_precision_in_training_and_evaluation(say, text, tmp_path, precisions):
    arguments = ("pretrain", "gpt2", "--data", text, *TINY, "--steps=2", "--output=run")
    code, _, _ = say(*arguments, "--precision=bfloat16")
    assert code == 0
    assert set(precisions) == {"bfloat16"}
    assert current() == "float32"
    assert json.loads((tmp_path / "run/run.json").read_text("utf-8"))["precision"] == "bfloat16"
    code, _, err = say("pretrain", "--resume", "--output=run", "--precision=float32")
    assert code == 2
    assert "--precision is float32" in err
    assert "begun with bfloat16" in err


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_a_trained_model_is_used_in_any_precision(say, finished, precisions, verb):
    assert say(verb, finished[0], "--precision=bfloat16x3")[0] == 0
    assert set(precisions) == {"bfloat16x3"}
    assert say(verb, finished[0])[0] == 0
    assert set(precisions) == {"bfloat16x3", "float32"}
    code, _, err = say(verb, finished[0], "--precision=bf16")
    assert code == 2
    assert "for --precision" in err
    assert "Known: float32, bfloat16, bfloat16x3" in err


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_a_model_is_used_with_quantised_weights(say, finished, text, kind):
    code, out, _ = say("generate", finished[0], "--prompt=the", f"--quantize={kind}", "--greedy")
    assert code == 0
    assert out.startswith("the")
    code, out, _ = say("evaluate", finished[0], "--data", text, f"--quantize={kind}")
    assert code == 0
    assert re.search(r"perplexity [\d.,]+ \(float32 [\d.,]+, [+-]\d+\.\d\d %\)", out)
    found = json.loads(say("evaluate", finished[0], f"--quantize={kind}", "--json")[1])
    plain = json.loads(say("evaluate", finished[0], "--json")[1])
    assert found["quantized"] == kind
    assert found["float32_perplexity"] == plain["perplexity"]
    assert found["perplexity"] == pytest.approx(plain["perplexity"], rel=0.01)
    assert plain["float32_perplexity"] is None


def test_weights_cannot_be_quantised_to_anything(say, finished):
    code, _, err = say("generate", finished[0], "--quantize=int4")
    assert code == 2
    assert "int8" in err


def test_explain_shows_losses_of_a_model(say, finished):
    code, out, _ = say("explain", "causal-lm", "the cat", "--model", finished[0])
    assert code == 0
    assert "loss (nats)" in out
    assert "6 labels, " in out
    code, out, _ = say("explain", "causal-lm", "the cat", "--model", finished[0], "--json")
    found = json.loads(out)
    (part,), (term,) = found["parts"], found["terms"]
    assert len(part["positions"]) == found["labels"] == term["labels"] == 6
    assert part["positions"][2]["sees"] == [0, 1, 2]
    assert found["loss"] == pytest.approx(sum(term["losses"]) / 6)


@pytest.mark.parametrize("tokenizer", ["chars", "bytes"])
def test_explain_needs_no_model(say, tokenizer):
    code, out, _ = say("explain", "causal-lm", "to be", "--tokenizer", tokenizer)
    assert code == 0
    assert "'t'    'o'     0\n" in out
    assert "4 labels" in out
    assert "■ ■ · ·" in out


def test_explain_shows_what_is_hidden(say):
    seen = [
        say("explain", "mlm", "The cat sat on the mat", f"--seed={seed}")[1] for seed in (0, 0, 4)
    ]
    assert seen[0] == seen[1] != seen[2]
    assert "[CLS]" in seen[2]
    assert re.search(r"\[MASK\] +' \w+' +' \w+' +0 to 7\n", seen[2])
    assert "Each position may see all." in seen[2]
    assert "\n1 label\n" in seen[2]


def test_explain_shows_two_passages_and_both_terms(say):
    code, out, _ = say("explain", "mlm+nsp", "The cat sat. It slept. It woke.")
    assert code == 0
    assert "segment" in out
    assert re.search(r"\ntokens: \d labels?\npairs: 1 label \(", out)


def test_explain_shows_both_parts_of_a_pair(say):
    code, out, _ = say("explain", "seq2seq", "the cat => le chat")
    assert code == 0
    assert "encoder\n" in out
    assert re.search(r"0  </s> +'le' +0 +0 to 2\n", out)
    assert say("explain", "seq2seq", "the cat", "--target", "le chat")[1] == out


# Attention


def test_attention_is_written_as_a_page(say, finished, tmp_path):
    code, out, _ = say("attention", finished[0], "the cat", "--output=new/page.html")
    assert code == 0
    assert "self: 1 layer of 2 heads, 7 x 7 tokens\n" in out
    assert "page.html" in out
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    found = json.loads(say("attention", finished[0], "the cat", "--json")[1])
    assert found["bytes"] == (tmp_path / "attention.html").stat().st_size
    assert found["maps"][0]["keys"][3:5] == ["␣", "c"]


def test_attention_is_drawn_as_a_picture(say, finished, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, _ = say("attention", finished[0], "the cat", "--output=a.png")
    assert code == 0
    assert "a picture" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["the", "--output=a.svg"],
            2,
            "--output a.svg: expected a name that ends in .html or .png",
        ),
        (["the", "--pair=cat"], 2, "A Gpt2 reads one text, and two were given"),
        (["the", "--target=cat"], 2, "A Gpt2 has one part"),
        ([""], 1, "The text is empty"),
        (["the cat " * 4], 1, "32 tokens, but this GPT-2 has 16 positions"),
        (["the 고양이"], 1, "'고'"),
    ],
)
def test_attention_that_cannot_be_drawn_is_told_why(say, finished, arguments, code, said):
    found, out, err = say("attention", finished[0], *arguments)
    assert (found, out) == (code, "")
    assert said in err
    assert not Path("attention.html").exists()


def test_runs_are_plotted_as_text_or_picture(say, finished, tmp_path):
    code, out, _ = say("plot", finished[0], finished[0] / "metrics.jsonl")
    assert code == 0
    assert "training of" in out
    pytest.importorskip("matplotlib")
    code, out, _ = say("plot", finished[0], "--output=loss.png")
    assert code == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_korean_is_learned_and_written_with_nothing_unknown(say, tmp_path):
    (tmp_path / "글.txt").write_text(KOREAN, encoding="utf-8")
    code, _, err = say(
        *("pretrain", "gpt2", "--data=글.txt", "--vocab-size=350", "--layers=1", "--heads=2"),
        *("--hidden-size=32", "--positions=32", "--batch=4", "--steps=60", "--output=한국어"),
    )
    assert code == 0
    assert "unknown" not in err
    code, out, _ = say("generate", "한국어", "--prompt=호랑이가", "--max-new-tokens=60", "--greedy")
    assert code == 0
    assert out.startswith("호랑이가")
    assert "\ufffd" not in out
    assert any("가" <= letter <= "힣" for letter in out[len("호랑이가") :])


# Going on


def test_going_on_after_the_end_says_the_same_again(say, text):
    arguments = ("pretrain", "gpt2", "--data", text, *TINY, "--steps=3", "--output=run")
    first = say(*arguments)[1]
    code, again, err = say("pretrain", "--resume", "--output=run", "--no-graph")  # the same steps
    assert code == 0
    assert "resumed    after step 3" in err
    assert first.split("validation")[1] == again.split("validation")[1]


def test_a_flag_that_contradicts_the_saved_settings_is_refused_with_both_values(say, finished):
    folder = finished[0]
    code, _, err = say("pretrain", "gpt2", "--resume", "--output", folder, "--steps=9")
    assert code == 2
    assert "--steps is 9" in err
    assert "begun with 6" in err
    code, _, err = say("pretrain", "--resume", "--output", folder, "--min-lr=0.1")
    assert code == 2
    assert "--min-lr is 0.1" in err


def test_a_folder_that_holds_a_run_is_not_taken(say, finished, text):
    code, _, err = say("pretrain", "gpt2", "--data", text, *TINY, "--output", finished[0])
    assert code == 2
    assert "already holds a run. --resume" in err


def test_a_run_moved_elsewhere_goes_on_there(say, text, tmp_path):
    say("pretrain", "gpt2", "--data", text, *TINY, "--steps=2", "--output=here")
    (tmp_path / "here").rename(tmp_path / "there")
    code, out, _ = say("pretrain", "--resume", "--output=there")
    assert code == 0
    assert "The model is in there." in out
    assert not (tmp_path / "here").exists()


def test_an_interrupted_preparation_leaves_nothing(say, text, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe.Material, "tokens", interrupt)
    code, _, err = say("pretrain", "gpt2", "--data", text, *TINY, "--output=run")
    assert code == 130
    assert "nothing was kept" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no Ctrl-C to one process alone")
def test_a_run_that_is_interrupted_goes_on_to_the_same_bits(tmp_path, text):
    arguments = ["pretrain", "gpt2", "--data", text, *TINY, "--steps=600", "--dropout=0.1"]
    whole = process(*arguments, "--output=whole", folder=tmp_path)
    told = whole.communicate(timeout=120)[1]
    assert whole.returncode == 0, told

    halved = process(*arguments, "--output=halved", folder=tmp_path)
    metrics = tmp_path / "halved" / "metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (metrics.exists() and metrics.stat().st_size > 2000):
        time.sleep(0.01)
    halved.send_signal(signal.SIGINT)
    out, told = halved.communicate(timeout=120)
    assert halved.returncode == 130, told
    assert out == ""
    assert "Traceback" not in told
    assert "of 600 is saved in" in told
    assert "tinyplm pretrain gpt2 --output halved --resume" in told

    generated = process("generate", "halved", "--max-new-tokens=4", folder=tmp_path)
    out, told = generated.communicate(timeout=120)
    assert generated.returncode == 0
    assert "This run has not ended" in told

    resumed = process("pretrain", "--output=halved", "--resume", folder=tmp_path)
    told = resumed.communicate(timeout=120)[1]
    assert resumed.returncode == 0, told
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "halved")]
    assert saved[0] == saved[1]


@pytest.mark.slow
def test_the_first_command_needs_nothing_but_a_folder(tmp_path):
    first = process(
        *("pretrain", "gpt2", "--layers=1", "--heads=2", "--hidden-size=16", "--positions=16"),
        *("--batch=2", "--steps=2", "--vocab-size=300", "--evaluation-windows=4"),
        folder=tmp_path,
    )
    out, told = first.communicate(timeout=120)
    assert first.returncode == 0, told
    assert "documentation of Python" in told
    assert f"The model is in {Path('runs') / 'gpt2'}." in out
    assert (tmp_path / "runs" / "gpt2" / "model.safetensors").is_file()


# What goes wrong


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "empty.txt is empty (0 bytes)"),
        ("bin.dat", bytes(range(256)) * 4, "not UTF-8 text"),
        ("cp949.txt", "한국어 글".encode("cp949"), "looks like cp949. Pass --encoding cp949"),
        ("one.txt", b"word", "The text has 4 tokens"),
        ("lines.jsonl", b"{'text': 1}\n", "lines.jsonl, line 1"),
    ],
)
def test_text_that_cannot_be_used_is_told_why(say, tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    code, out, err = say("pretrain", "gpt2", "--data", name, *TINY, "--output=run")
    assert code == 1
    assert out == ""
    assert err.startswith("Error: ")
    assert said in err
    assert not (tmp_path / "run").exists()


def test_a_text_that_is_not_there_suggests_one_that_is(say, text):
    code, _, err = say("pretrain", "gpt2", "--data=texd.txt", *TINY)
    assert code == 1
    assert "no file or folder texd.txt. Did you mean text.txt?" in err
    assert not Path("runs").exists()


def test_a_folder_without_text_is_refused(say, tmp_path):
    (tmp_path / "pictures").mkdir()
    code, _, err = say("pretrain", "gpt2", "--data=pictures", *TINY)
    assert code == 1
    assert "nothing to read in this folder" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "No verb. Known: pretrain"),
        ("pretran", "No verb 'pretran'. Did you mean 'pretrain'?"),
        ("pretrain", "Which model?"),
        ("pretrain gtp2", "No model 'gtp2'. Did you mean 'gpt2'? Known: "),
        ("pretrain gpt2 --objective casual-lm", "Did you mean 'causal-lm'?"),
        ("pretrain gpt2 --stepz 4", "No option '--stepz'. Did you mean '--steps'?"),
        ("pretrain gpt2 --step 4", "No option '--step'. Did you mean '--steps'?"),
        ("pretrain gpt2 --steps", "--steps: expected one argument"),
        ("pretrain gpt2 --steps -3", "--steps is -3"),
        ("pretrain gpt2 --steps 2.5", "--steps: '2.5' is not a whole number"),
        ("pretrain gpt2 --lr nan", "--lr is nan"),
        ("pretrain gpt2 --lr fast", "--lr: 'fast' is not a number"),
        ("pretrain gpt2 --lr -1", "--lr is -1.0"),
        ("pretrain gpt2 --dropout 1", "--dropout is 1.0"),
        ("pretrain gpt2 --heads 3", "hidden_size=128 is not a multiple of heads=3"),
        ("pretrain gpt2 --schedule cosin", "Did you mean 'cosine'?"),
        ("pretrain gpt2 --device gpu", "Known: cpu, cuda"),
        ("pretrain gpt2 --validation 1.5", "--validation is 1.5"),
        ("pretrain gpt2 --tokenizer cahrs", "Did you mean 'chars'?"),
        ("pretrain gpt2 --encoding utf-88 --data text.txt", "no encoding 'utf-88'"),
        ("pretrain gpt2 --resume --dry-run", "--resume and --dry-run"),
        ("pretrain gpt2 one more", "'one' is one argument too many"),
        ("pretrain gpt2 --data text.txt --output text.txt", "--output text.txt is a file"),
        ("generate run --top-p 2", "--top-p is 2.0"),
        ("generate run --max-new-tokens 0", "--max-new-tokens: 0 is too small"),
        ("generate run --temperature nan", "--temperature: nan: expected a finite number"),
        ("explain causal-ml text", "No objective 'causal-ml'. Did you mean 'causal-lm'?"),
        ("explain mlm text --seed x", "--seed: 'x' is not a whole number"),
        ("explain seq2seq text", "reads pairs of texts, and there is one"),
        ("explain mlm text --target x", "reads one text, so there is no target"),
        ("attention run text --output a.jpg", "ends in .html or .png"),
        ("plot run --output loss.jpg", "ends in .png"),
        ("gradcheck sofmax", "Did you mean softmax"),
        ("tokenizer", "tokenizer train, or tinyplm tokenizer show?"),
        ("tokenizer shwo", "No verb 'shwo'. Did you mean 'show'?"),
        (
            "tokenizer train --output x --kind bep",
            "No choice 'bep' for --kind. Did you mean 'bpe'?",
        ),
    ],
)
def test_wrong_usage_is_said_and_exits_with_2(say, text, arguments, said):
    code, out, err = say(*arguments.split())
    assert code == 2
    assert out == ""
    assert said in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("layers = = 4", "is not TOML"),
        ("layrs = 4", "no setting 'layrs'. Did you mean 'layers'?"),
        ("[model]\nlayers = 4", "model is a table"),
        ('layers = "four"', "layers is 'four', expected a whole number"),
        ("lr = true", "lr is True, expected a number"),
        ("lr = nan", "lr is nan"),
    ],
)
def test_a_config_that_is_wrong_is_told_where(say, tmp_path, content, said):
    (tmp_path / "run.toml").write_text(content, encoding="utf-8")
    code, _, err = say("pretrain", "gpt2", "--config=run.toml")
    assert code == 2
    assert "run.toml" in err
    assert said in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("pretrain gpt2 --config none.toml", "No file none.toml"),
        ("pretrain gpt2 --resume", "found no run of gpt2 under runs"),
        ("pretrain --resume --output none", "No run in none"),
        ("pretrain gpt2 --data text.txt --tokenizer text.txt", "not a vocabulary"),
        ("pretrain gpt2 --data text.txt --output text.txt/run", "cannot be written"),
        ("generate none", "There is no folder none"),
        ("generate .", "no config.json"),
        ("evaluate none --data text.txt", "There is no folder none"),
        ("explain causal-lm x --tokenizer chars", "too few for objective 'causal-lm'"),
        ("explain causal-lm text --tokenizer none", "no tokenizer at none"),
        ("attention none text", "There is no folder none"),
        ("plot none", "none cannot be read"),
        ("tokenizer show none text", "no tokenizer at none"),
        ("tokenizer train --data none --output x", "no file or folder none"),
    ],
)
def test_failures_are_said_and_exit_with_1(say, text, arguments, said):
    code, out, err = say(*arguments.split())
    assert code == 1
    assert out == ""
    assert "Error: " in err
    assert said in err


def test_a_device_that_is_missing_names_the_way_out(say, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    code, _, err = say("pretrain", "gpt2", "--data", text, *TINY, "--device=cuda", "--output=run")
    assert code == 1
    assert "--device cpu continues without it" in err
    assert not Path("run").exists()


def test_errors_are_one_object_too_where_json_is_wanted(say):
    code, out, err = say("pretrain", "gtp2", "--json")
    assert code == 2
    assert "Did you mean 'gpt2'?" in json.loads(out)["error"]["message"]
    assert err.startswith("Error: ")


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_printed(say, finished):
    code, out, err = say("generate", finished[0], "--prompt", "the " * 9)
    assert code == 1
    assert out == ""
    assert "36 tokens, but this model has 16 positions" in err
    code, out, err = say("generate", finished[0], "--prompt", "한글")
    assert (code, out) == (1, "")
    assert "'한'" in err


def test_too_little_memory_is_said_with_what_to_lower(say, text, monkeypatch):
    arguments = ("pretrain", "gpt2", "--data", text, *TINY, "--output=run")
    code, _, err = say(*arguments, "--hidden-size=10000000", "--layers=100")
    assert code == 2
    assert "GB to train, and this machine has" in err
    assert "--hidden-size" in err

    def full(*_, **__):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(recipe, "count_labels", full)
    code, _, err = say(*arguments)
    assert code == 1
    assert "Not enough memory (Unable to allocate 9 GiB)" in err
    assert "--hidden-size" in err
    assert not Path("run").exists()


def test_a_fault_of_ours_is_one_sentence_unless_more_is_wanted(say, capsys, monkeypatch):
    def broken():
        raise RuntimeError("out of luck")

    monkeypatch.setattr("tinyplm.recipes.doctor.doctor", broken)
    code, _, err = say("doctor")
    assert code == 1
    assert "RuntimeError: out of luck. This is a fault in tinyplm" in err
    monkeypatch.setenv("TINYPLM_TRACEBACK", "1")
    assert main(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


# The rest


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_ends_with_an_example_that_can_be_typed(say, verb):
    code, out, _ = say(*verb.split(), "--help")
    assert code == 0
    example = out.rstrip().splitlines()[-1].strip()
    assert example.startswith(f"tinyplm {verb}")
    words = example.replace("'", '"').split('"')
    typed = [w for i, part in enumerate(words) for w in ([part] if i % 2 else part.split())]
    assert parser().parse_args(typed[1:]).verb == verb.split()[0]


def test_the_help_names_every_verb(say):
    code, out, _ = say("--help")
    assert code == 0
    for verb in VERBS:
        assert verb.split()[0] in out
    assert say("--version")[:2] == (0, "tinyplm 0.1.0\n")


def test_models_are_counted_without_being_built(say):
    code, out, _ = say("models")
    assert code == 0
    for count in ("124,439,808", "354,823,168", "774,030,080", "1,557,611,200"):
        assert count in out
    assert "Radford et al., 2019" in out
    found = json.loads(say("models", "--json")[1])
    assert found["models"]["gpt2"]["sizes"]["small"]["parameters"] == 124_439_808


def test_objectives_say_what_they_do(say):
    code, out, _ = say("objectives")
    assert code == 0
    assert re.search(r"causal-lm +Predict each token from those before it\. +gpt2", out)
    assert json.loads(say("objectives", "--json")[1])["objectives"]["causal-lm"]["models"]


def test_the_doctor_states_its_two_speeds(say):
    code, out, _ = say("doctor")
    assert code == 0
    assert "GFLOP/s" in out
    assert "GB/s" in out
    assert "bfloat16x3" in out
    found = json.loads(say("doctor", "--json")[1])
    assert found["cores"] >= 1
    assert set(found["precision"]) == {"float32", "bfloat16", "bfloat16x3"}
    assert (found["mkl"]["version"] is None) == bool(found["mkl"]["reason"])


def test_gradcheck_tells_each_op_and_a_summary(say):
    code, out, _ = say("gradcheck", "softmax", "--cases=3", "--seed=1")
    assert code == 0
    assert "softmax" in out
    assert "1 ops, 3 cases" in out
    assert "All agree." in out
    found = json.loads(say("gradcheck", "softmax", "--cases=3", "--json")[1])
    assert found["failed"] == []


def test_gradcheck_fails_when_a_gradient_is_wrong(say, monkeypatch):
    from tinyplm.autograd import gradcheck

    def wrong(name, sample, device):
        raise gradcheck.GradientError("gradient 2, but the function changes by 1")

    monkeypatch.setattr(gradcheck, "check_gradient", wrong)
    code, out, _ = say("gradcheck", "softmax", "--cases=3")
    assert code == 1
    assert "gradient 2, but the function changes by 1" in out
    assert "1 FAILED: softmax." in out


def test_a_tokenizer_is_trained_and_shown(say, text):
    code, out, _ = say("tokenizer", "train", "--data", text, "--vocab-size=300", "--output=mine")
    assert code == 0
    assert "byte-bpe tokenizer" in out
    code, out, _ = say("tokenizer", "show", "mine", "the cat")
    assert code == 0
    assert "' cat'" in out
    found = json.loads(say("tokenizer", "show", "mine", "the cat", "--json")[1])
    assert found["text"] == "the cat"
    code, out, _ = say("pretrain", "gpt2", "--data", text, *TINY, "--tokenizer=mine", "--dry-run")
    assert code == 0


def test_the_help_imports_nothing_heavy(tmp_path):
    script = (
        "import sys; from tinyplm.cli import main; main(['--help']); "
        "print([m for m in ('tokenizers', 'numba', 'matplotlib', 'safetensors', 'tqdm', 'cupy') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert done.stdout.endswith("[]\n")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    running = process("models", folder=tmp_path)
    running.stdout.close()
    assert running.wait(60) == 1
    assert running.stderr.read() == ""
    running.stderr.close()


def test_a_file_of_settings_is_read_for_the_model_that_was_named(say, text, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('objective = "mlm"\ntokenizer = "wordpiece"\n', encoding="utf-8")
    small = (
        "--steps=1",
        "--layers=1",
        "--hidden-size=8",
        "--heads=2",
        "--positions=16",
        "--batch=2",
    )
    code, out, err = say(
        "pretrain",
        "bert",
        "--config",
        str(file),
        "--data",
        text,
        *small,
        "--vocab-size=300",
        "--dry-run",
    )
    assert code == 0, err
    assert "mlm" in out
    file.write_text("min_lr = 0.01\n", encoding="utf-8")
    arguments = ("pretrain", "gpt2", "--config", str(file), "--data", text, *TINY, "--dry-run")
    assert say(*arguments, "--lr=0.02")[0] == 0  # flags win
    code, _, err = say(*arguments, "--lr=0.001")
    assert code == 2
    assert "run.toml" in err or "--min-lr" in err


def test_blank_lines_part_documents_where_an_objective_wants_many(say, tmp_path):
    words = ["red", "king", "sees", "a", "far", "queen"]
    lines = [f"The {a} {b}. It {c} on." for a in words for b in words for c in words[:3]]
    file = tmp_path / "t.txt"
    file.write_text("\n\n".join(lines), encoding="utf-8")
    small = (
        "--steps=1",
        "--layers=1",
        "--hidden-size=8",
        "--heads=2",
        "--positions=16",
        "--batch=2",
    )
    arguments = ("pretrain", "bert", "--data", str(file), *small, "--vocab-size=60", "--output")
    code, _, err = say(*arguments, str(tmp_path / "pairs"))
    assert code == 0, err
    file.write_text(" ".join(lines), encoding="utf-8")
    code, _, err = say(*arguments, str(tmp_path / "one"))
    assert code == 1
    assert "blank lines between documents" in err
