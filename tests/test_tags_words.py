from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcgan_fast.errors import UserError
from dcgan_fast.tags import WordVectors, load_words, words

GLOVE = "the 0.5 -1 2e-1\nNew_York 1 2 3\n. . . 4 5 6\nthe 9 9 9\n"


def vectors(count: int = 50, width: int = 8) -> WordVectors:
    return WordVectors([f"w{n}" for n in range(count)], torch.randn(count, width))


# ---------------------------------------------------------------------------------------- nearest


def check_nearest(found: WordVectors, queries: torch.Tensor, k: int) -> None:
    cosines, rows = found.nearest(queries, k)
    wanted = torch.nn.functional.cosine_similarity(
        queries.double()[:, None], found.vectors.double()[None], dim=2
    )
    assert cosines.shape == rows.shape == (len(queries), k)
    torch.testing.assert_close(cosines.double(), wanted.gather(1, rows), atol=1e-6, rtol=0)
    torch.testing.assert_close(cosines.double(), wanted.topk(k).values, atol=1e-6, rtol=0)
    assert all(len(set(own)) == k for own in rows.tolist())


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    width=st.integers(1, 9),
    queries=st.integers(0, 20),
    similarities=st.integers(1, 200),
    data=st.data(),
)
def test_nearest_is_that_of_all_pairs_whatever_the_blocks(
    count: int, width: int, queries: int, similarities: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "_SIMILARITIES", similarities)
        patch.setattr(words, "_QUERIES", 3)
        check_nearest(vectors(count, width), torch.randn(queries, width), k)


def test_nearest_of_the_words_themselves() -> None:
    found = vectors()
    _, rows = found.nearest(found.vectors * torch.rand(50, 1).add(0.1), 3)
    assert rows[:, 0].tolist() == list(range(50))


def test_zeros_are_near_to_nothing() -> None:
    found = WordVectors(["zero", "one"], [[0.0, 0.0], [1.0, 0.0]])
    cosines, rows = found.nearest(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), 2)
    assert rows[0].tolist() == [1, 0]
    torch.testing.assert_close(cosines, torch.tensor([[0.5**0.5, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("shape", "k", "message"),
    [
        ((2, 7), 1, r"'queries' must be \(N, 8\), got \(2, 7\)"),
        ((8,), 1, r"'queries' must be \(N, 8\), got \(8,\)"),
        ((2, 8), 0, "'k' must be from 1 to the 50 words, got 0"),
        ((2, 8), 51, "'k' must be from 1 to the 50 words, got 51"),
    ],
)
def test_wrong_queries(shape: tuple[int, ...], k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        vectors().nearest(torch.zeros(shape), k)


# ------------------------------------------------------------------------------------------- words


def test_find() -> None:
    found = WordVectors(["dog", "New_York", "ice-cream", "Paris", "paris"], torch.eye(5))
    for tag, row in (
        ("dog", 0),
        ("Dog", 0),
        ("New York", 1),
        ("new york", None),
        ("Ice Cream", 2),
        ("Paris", 3),
        ("PARIS", 4),
        ("cat", None),
    ):
        assert found.find(tag) == row, tag


def test_select() -> None:
    found = vectors()
    part = found.select([4, 2])
    assert part.words == ["w4", "w2"]
    assert torch.equal(part.vectors, found.vectors[[4, 2]])


@pytest.mark.parametrize(
    ("names", "rows", "message"),
    [
        ([], torch.empty(0, 3), "at least one word"),
        (["a"], torch.empty(1, 0), "at least one word"),
        (["a"], torch.zeros(2, 3), r"\(words, width\) = \(1, at least 1\).*got \(2, 3\)"),
        (["a", "b", "a"], torch.zeros(3, 3), "must differ, 'a' is there twice"),
        (["a", "b"], torch.tensor([[0.0], [float("nan")]]), "vector of 'b' holds NaN"),
    ],
)
def test_wrong_words(names: list[str], rows: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        WordVectors(names, rows)


# ---------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("header", ["", "4 3\n"])
@pytest.mark.parametrize("suffix", [".txt", ".vec.gz"])
def test_text_of_glove_and_word2vec(tmp_path: Path, header: str, suffix: str) -> None:
    path = tmp_path / f"vectors{suffix}"
    text = (header + GLOVE).replace("3\n", "3 \n").encode()  # word2vec's lines end in a space
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    found = load_words(path)
    assert found.words == ["the", "New_York", ". . ."]
    assert found.vectors.tolist() == [[0.5, -1.0, pytest.approx(0.2)], [1, 2, 3], [4, 5, 6]]


def test_only_the_words_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text(GLOVE)
    assert load_words(path, only=["new york", "The"]).words == ["the", "New_York"]
    with pytest.raises(UserError, match=r"holds no word \(none of the 1 that are asked for\)"):
        load_words(path, only=["cat"])


def test_more_words_than_are_parsed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_LINES", 7)
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    path = tmp_path / "v.txt"
    path.write_text(
        "".join(f"w{n} {' '.join(map(repr, map(float, row)))}\n" for n, row in enumerate(rows))
    )
    found = load_words(path)
    assert found.words == [f"w{n}" for n in range(30)]
    assert np.array_equal(found.vectors.numpy(), rows)


def test_odd_characters_break_no_line(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes("a\u2028b 1 2\n\x85 3 4\n\xa0 5 6\n".encode())
    assert load_words(path).words == ["a\u2028b", "\x85", "\xa0"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_array_and_vocabulary(tmp_path: Path, dtype: type) -> None:
    rows = np.arange(6).reshape(3, 2).astype(dtype)
    np.save(tmp_path / "v.npy", rows)
    (tmp_path / "v.txt").write_text("a\nb c\na\n")
    (tmp_path / "other.words").write_text("x\ny\nz")
    found = load_words(tmp_path / "v.npy")
    assert found.words == ["a", "b c"]
    assert found.vectors.dtype == torch.float32 and found.vectors.tolist() == [[0, 1], [2, 3]]
    assert load_words(tmp_path / "v.npy", tmp_path / "other.words").words == ["x", "y", "z"]
    assert load_words(tmp_path / "v.npy", tmp_path / "other.words", only=["Y"]).words == ["y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("word\n", "line 1: must be a word and the numbers of its vector, got 'word"),
        ("a 1 2\nb 1\n", "line 2: must be a word and 2 numbers, as the first line says, got 'b 1'"),
        ("2 3\na 1 2 3\nb 1 2\n", "line 3: must be a word and 3 numbers"),
        ("a 1 2\nb 1 x\n", "line 2: could not convert string to float: .*x"),
        ("a 1 2\nb 1 nan\n", "the vector of 'b' is not finite"),
        ("a 1 2\nb inf 1\n", "the vector of 'b' is not finite"),
        ("2 3\n", "holds no word"),
        (b"3 2\na \xff\xfe\x00\x81", "is not text in UTF-8; of word2vec's formats the text"),
    ],
)
def test_broken_text(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_words(path)


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "v.gz").write_bytes(gzip.compress(GLOVE.encode() * 100)[:-20])
    with pytest.raises(UserError, match="v.gz: is damaged"):
        load_words(tmp_path / "v.gz")
    (tmp_path / "no.gz").write_text(GLOVE)
    with pytest.raises(UserError, match="no.gz: is damaged: Not a gzipped file"):
        load_words(tmp_path / "no.gz")
    with pytest.raises(UserError, match="cannot read .*none.txt: No such file"):
        load_words(tmp_path / "none.txt")
    (tmp_path / "v.txt").write_text(GLOVE)
    with pytest.raises(UserError, match="a vocabulary goes with a .npy"):
        load_words(tmp_path / "v.txt", tmp_path / "v.txt")


def test_broken_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(UserError, match="the words of .*v.npy cannot be read from .*v.txt"):
        load_words(tmp_path / "v.npy")
    (tmp_path / "v.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"for the 2 words of .*, got float32 \(3, 2\)"):
        load_words(tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.zeros((2, 2), np.int64))
    with pytest.raises(UserError, match="must be floating-point"):
        load_words(tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(UserError, match="is not an array of numbers"):
        load_words(tmp_path / "v.npy")
    (tmp_path / "v.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="is not an array of numbers"):
        load_words(tmp_path / "v.npy")
