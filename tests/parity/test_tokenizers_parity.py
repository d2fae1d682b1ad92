import pytest

from tinyplm.text import Tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

TEXT = """The cat sat on the mat. The dog didn't sit; it ran 12 miles, then 345 more.
\tA café in Zürich — “naïve” & co.  한국어 문장도 있다. <|endoftext|> [MASK] </s>
the the the cat cat sat sat mat mat lower lower newest newest widest widest
"""
KINDS = ("chars", "bytes", "bpe", "byte-bpe", "wordpiece", "unigram")
ROLES = {
    "eos_token_id": "end_of_text",
    "unk_token_id": "unknown",
    "pad_token_id": "padding",
    "mask_token_id": "mask",
    "cls_token_id": "classifier",
    "sep_token_id": "separator",
}


@pytest.fixture(params=KINDS)
def both(request, tmp_path):
    special = ("<unk>", "<|endoftext|>") if request.param == "chars" else None
    ours = Tokenizer.train(request.param, [TEXT], vocab_size=350, special_tokens=special)
    ours.save(tmp_path)
    return ours, tmp_path


@pytest.mark.parametrize("loader", ["AutoTokenizer", "PreTrainedTokenizerFast"])
def test_a_saved_tokenizer_opens_in_transformers_with_the_same_ids_and_roles(both, loader):
    ours, folder = both
    theirs = getattr(transformers, loader).from_pretrained(folder)
    for text in (TEXT, "", "lowest z가 \x00", "  two  spaces \n\n"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == theirs.decode(ids)
        around = theirs(text, add_special_tokens=True)["input_ids"]
        assert ours.encode(text, add_special_tokens=True).tolist() == around
    for theirs_name, name in ROLES.items():
        if name == "end_of_text" and ours.kind == "wordpiece":
            continue  # transformers knows no end of text for BERT; ours is the separator
        assert getattr(theirs, theirs_name) == getattr(ours, name), name
    assert len(theirs) == ours.vocab_size


def test_a_tokenizer_saved_by_transformers_opens_here_with_the_same_ids(both, tmp_path):
    ours, folder = both
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.save_pretrained(tmp_path / "theirs")
    again = Tokenizer.load(tmp_path / "theirs")
    assert again.encode(TEXT).tolist() == ours.encode(TEXT).tolist()
    assert again.kind == ours.kind
    for name in ROLES.values():
        assert getattr(again, name) == getattr(ours, name), name
