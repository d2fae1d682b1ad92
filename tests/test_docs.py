"""The README's tour runs, and what the documents point at exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_tour_runs(tmp_path, monkeypatch):
    (tour,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S
    )
    monkeypatch.chdir(tmp_path)
    exec(compile(tour, "README.md", "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} points at {target}"


def test_the_first_two_commands_do_all_the_set_up():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = [line.split("#")[0].strip() for line in lines if line.startswith("    pip install")]
    assert commands == [
        "pip install -e '.[fast]' && tinyplm pretrain gpt2",
        "pip install -e '.[test]' && pytest",
    ]


PAGES = {"recurrent_lm": "lstm"}
"""Pages that are named after the best known of several papers."""

MODELS = sorted(path.stem for path in (ROOT / "tinyplm" / "models").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_page_of_its_paper(name):
    page = ROOT / "docs" / "papers" / f"{PAGES.get(name, name)}.md"
    text = page.read_text(encoding="utf-8")
    for part in (
        "in five lines",
        f"models/{name}.py",
        "tinyplm pretrain",
        "differs from the paper",
    ):
        assert part in text, part
    assert re.search(r"arXiv[: ]\d{4}\.\d{4,5}|no arXiv number", text)
