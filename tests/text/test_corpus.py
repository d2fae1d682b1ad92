import json
import re
import sys

import pytest

from tinyplm.errors import ConfigError, DataError, MissingFileError
from tinyplm.text import open_corpus, python_documentation

KOREAN = "한국어 문장이 여기에 있습니다. 이것은 말뭉치의 예입니다.\n"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def documents(path, **options):
    return list(open_corpus(path, **options).documents())


# Python's own documentation


@pytest.mark.slow
def test_without_a_path_there_is_the_documentation_of_python():
    corpus = open_corpus()
    found = list(corpus.documents())
    assert found == list(corpus.documents())
    assert corpus.bytes == sum(len(text.encode()) for text in found)
    assert 1_000_000 < corpus.bytes < 6_000_000
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}" in corpus.description
    assert any('The "with" statement' in text for text in found), "a topic of help()"
    assert any("Read and write ZIP files" in text for text in found), "a docstring of a module"


def test_a_python_without_sources_falls_back_on_its_topics(monkeypatch, tmp_path):
    monkeypatch.setattr(python_documentation.sysconfig, "get_path", lambda name: str(tmp_path))
    assert python_documentation.docstrings() == []
    open_documentation = sys.modules["tinyplm.text.corpus"]._python_documentation.__wrapped__
    assert open_documentation().bytes > 300_000
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert python_documentation.topics() == []
    with pytest.raises(DataError, match="Give one with --data PATH"):
        open_documentation()


def test_docstrings_come_in_the_order_of_the_source_from_wherever_they_stand(tmp_path, monkeypatch):
    source = '''"""one"""
if True:
    def f():
        """two"""
        def g(): "three"
else:
    class C:
        """four

        more"""
        async def h(self): """five"""
try: pass
except ValueError:
    def k(): """six"""
x = """none"""
raise SystemExit("imported, where it should only be read")
'''
    write(tmp_path / "abc.py", source)
    write(tmp_path / "ast.py", "def broken(:\n")
    write(tmp_path / "test" / "__init__.py", '"""not this"""')
    monkeypatch.setattr(python_documentation.sysconfig, "get_path", lambda name: str(tmp_path))
    assert python_documentation.docstrings() == [
        "one\n\ntwo\n\nthree\n\nfour\n\nmore\n\nfive\n\nsix\n"
    ]


# Text files


def test_a_text_file_is_one_document_with_line_feeds(tmp_path):
    path = write(tmp_path / "a.txt", "eins\r\nzwei\rdrei\n\nvier")
    assert documents(path) == ["eins\nzwei\ndrei\n\nvier"]
    assert open_corpus(path).bytes == 21


def test_a_large_text_file_comes_in_pieces_cut_before_white_space(tmp_path):
    text = "".join(f"Satz {i} über Käse.\n" for i in range(60_000))
    corpus = open_corpus(write(tmp_path / "a.txt", text))
    pieces = list(corpus.pieces())
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text[0] in " \n" for piece in pieces[1:])
    assert max(len(piece.text) for piece in pieces) < 600_000


def test_line_ends_cut_in_two_by_a_block_stay_one(tmp_path):
    for shift in (0, 1):
        text = "x" * (2**18 - 1 - shift) + "\r\n" + "y"
        assert documents(write(tmp_path / "a.txt", text)) == [text.replace("\r\n", "\n")]


def test_blank_lines_end_documents_if_asked_to(tmp_path):
    path = write(tmp_path / "a.txt", "\n\na b\nc\n\n \n\nd\n")
    assert documents(path, blank_line_ends_document=True) == ["a b\nc\n", "d\n"]


def test_byte_order_marks_are_understood(tmp_path):
    for name in ("utf-8-sig", "utf-16", "utf-32"):
        path = write(tmp_path / "a.txt", KOREAN.encode(name))
        assert documents(path) == [KOREAN]
        if name != "utf-8-sig":
            assert f"{name.upper()} (byte order mark)" in open_corpus(path).description


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp949", KOREAN * 4),
        ("shift_jis", "これは日本語の文章です。とても短いです。" * 4),
        ("euc_jp", "これは日本語の文章です。とても短いです。" * 4),
        ("gb18030", "这是一个中文句子，我们用它来测试。" * 4),
        ("big5", "這是一個中文句子，我們用它來測試。" * 4),
        ("cp1251", "Это предложение на русском языке. " * 4),
        ("cp1252", "Der Käse schmeckt süß, très élégant. " * 4),
        ("cp1252", "25 °C and no other foreign character"),
    ],
    ids=["Korean", "Japanese", "Japanese-euc", "Chinese", "Taiwan", "Russian", "Europe", "degree"],
)
def test_another_encoding_is_named_and_can_be_passed(encoding, text, tmp_path):
    data = b"hello world " + text.encode(encoding)
    path = write(tmp_path / "corpus.txt", data)
    with pytest.raises(UnicodeDecodeError) as caught:
        data.decode()
    offset = caught.value.start
    words = (
        f"corpus.txt: byte 0x{data[offset]:02x} at offset {offset} is not UTF-8; it looks like "
        f"{encoding}. Pass --encoding {encoding}, or convert the file."
    )
    with pytest.raises(DataError, match=re.escape(words)):
        documents(path)
    assert documents(path, encoding=encoding) == ["hello world " + text]


def test_a_bad_byte_far_into_a_file_has_its_true_offset(tmp_path):
    # "é" is two bytes, so that a block ends inside a character.
    start = "x" + "é" * 400_000
    path = write(tmp_path / "a.txt", start.encode() + b"\xb0 and more")
    with pytest.raises(DataError, match=r"a\.txt: byte 0xb0 at offset 800001 is not UTF-8"):
        documents(path)


def test_a_character_cut_off_by_the_end_of_the_file_is_told_from_another_encoding(tmp_path):
    path = write(tmp_path / "a.txt", KOREAN.strip().rstrip(".").encode()[:-1])
    with pytest.raises(DataError, match=r"offset \d+ begins a character that the end"):
        documents(path)


def test_an_encoding_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no encoding 'utf-99'"):
        open_corpus(write(tmp_path / "a.txt", "a"), encoding="utf-99")


def test_files_that_are_no_text_are_refused(tmp_path):
    for content, words in [
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "begins like a PNG image"),
        (b"\x1f\x8b\x08abc", "gzip; unpack it first"),
        (bytes(range(256)) * 10, "10 of its first 2,560 bytes are zero. Is it a binary"),
        ("no mark".encode("utf-16-le"), "utf-16-le without a byte order mark"),
        (b"", "is empty"),
    ]:
        with pytest.raises(DataError, match=words):
            open_corpus(write(tmp_path / "a.txt", content))


def test_a_missing_file_suggests_a_near_name(tmp_path):
    write(tmp_path / "corpus.txt", "a")
    with pytest.raises(MissingFileError, match=r"Did you mean corpus\.txt\?"):
        open_corpus(tmp_path / "corpsu.txt")
    with pytest.raises(MissingFileError, match=r"has corpus\.txt\."):
        open_corpus(tmp_path / "zzz")
    with pytest.raises(MissingFileError, match="does not exist either"):
        open_corpus(tmp_path / "no" / "corpus.txt")


# Folders


def test_a_folder_is_read_in_the_order_of_names_and_says_what_it_skipped(tmp_path):
    write(tmp_path / "b.txt", "two")
    write(tmp_path / "a" / "z.jsonl", '{"text": "one"}\n')
    write(tmp_path / "c.TSV", "text\tlabel\nthree\t0\n")
    write(tmp_path / "picture.png", b"\x89PNG")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / ".git" / "x.txt", "hidden")
    corpus = open_corpus(tmp_path)
    assert list(corpus.documents()) == ["one", "two", "three"]
    assert corpus.skipped == ("empty.txt", "picture.png")
    assert "3 files" in corpus.description
    assert "skipped empty.txt, picture.png" in corpus.description


def test_a_folder_with_nothing_to_read_says_what_is_in_it(tmp_path):
    with pytest.raises(DataError, match="found no files"):
        open_corpus(tmp_path)
    write(tmp_path / "a.pdf", "x")
    with pytest.raises(DataError, match=r"Expected files ending in \.txt.*found a\.pdf"):
        open_corpus(tmp_path)


# Lines and tables


def test_json_lines_give_the_text_field_or_the_longest(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, '{"id": "abcdefgh", "text": "one\\n"}\n\n{"text": "two", "id": "x"}')
    assert documents(path) == ["one\n", "two"]
    assert documents(path, column="id") == ["abcdefgh", "x"]
    write(path, '{"id": "a", "body": "long enough"}\n')
    assert documents(path) == ["long enough"]
    assert "field 'body'" in open_corpus(path).description
    write(path, '"one"\n"two"\n')
    assert documents(path) == ["one", "two"]


def test_a_separator_that_only_unicode_knows_does_not_end_a_line(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False))
    assert documents(path) == ["a\u2028b\x85c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n{"text": "b"\n', r"line 2, column 1\d: not JSON"),
        ('[\n{"text": "a"}\n]', "line 1.*one complete JSON value on each line"),
        ("3\n", "line 1: expected an object or a string, found int"),
        ('{"text": "a"}\n{"body": "b"}\n', "line 2: no field 'text'; it has body"),
        ('{"text": "a"}\n{"text": null}\n', "line 2: field 'text' is null"),
        ('{"label": 1}\n', "line 1: no field holds a string; found label"),
        ("\n \n", "no records"),
        ("[" * 100_000, "line 1: not JSON .nested too deeply"),
    ],
)
def test_a_broken_json_line_is_named(content, words, tmp_path):
    with pytest.raises(DataError, match=r"a\.jsonl.*" + words):
        documents(write(tmp_path / "a.jsonl", content))


def test_tables_with_a_header_give_the_text_column_or_the_longest(tmp_path):
    path = write(tmp_path / "a.tsv", 'id\tdocument\tlabel\n1\t"좋은 영화\t1\n2\t별로\t0\n')
    assert documents(path) == ['"좋은 영화', "별로"]
    assert "column 'document'" in open_corpus(path).description
    assert documents(path, column="id") == ["1", "2"]
    assert documents(path, column=2) == documents(path, column="2") == ["1", "0"]
    path = write(tmp_path / "a.csv", 'title,text\n"long, long title",short\n')
    assert documents(path) == ["short"]


def test_tables_without_a_header_lose_no_row(tmp_path):
    path = write(tmp_path / "a.tsv", "0\ta good film\n1\ta bad film\n")
    assert documents(path) == ["a good film", "a bad film"]
    assert "no header" in open_corpus(path).description
    path = write(tmp_path / "b.csv", "anger,3\njoy,5\n")
    assert documents(path) == ["anger", "joy"]


def test_words_above_numbers_are_a_header(tmp_path):
    path = write(tmp_path / "a.csv", "Satz,Note\nein Satz,3\nnoch einer,5\n")
    assert documents(path) == ["ein Satz", "noch einer"]


def test_csv_cells_may_hold_commas_line_breaks_and_whole_articles(tmp_path):
    long = "word " * 50_000
    path = write(tmp_path / "a.csv", f'text,label\n"one, two\nthree ""four""",0\n{long},1\n')
    assert documents(path) == ['one, two\nthree "four"', long]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tsv", "text\tlabel\na\t1\nb\n", "line 3: 1 cells, but the first row has 2.*no quoting"),
        ("a.csv", "text,label\na,b,1\n", "line 2: 3 cells.*quoted"),
        ("a.tsv", "\n\n", "no rows"),
    ],
)
def test_a_ragged_table_is_named(name, content, words, tmp_path):
    with pytest.raises(DataError, match=words):
        documents(write(tmp_path / name, content))


def test_a_column_that_is_not_there_is_named(tmp_path):
    path = write(tmp_path / "a.tsv", "id\tdocument\tlabel\n1\ta\t1\n")
    with pytest.raises(DataError, match=r"no column 'documents'; it has id, document, label\. Did"):
        open_corpus(path, column="documents")
    with pytest.raises(DataError, match="no column 7: its rows have 3"):
        open_corpus(path, column=7)
