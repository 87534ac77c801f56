from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcgan_fast.errors import UserError
from dcgan_fast.tags import WordVectors, join_tags, read_tags
from dcgan_fast.tags.table import TaggedImages


def words(*names: str) -> WordVectors:
    return WordVectors(names, [[float(number + 1), 1.0] for number in range(len(names))])


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str | bytes, name: str = "tags.tsv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# ---------------------------------------------------------------------------------------- reading


def test_lines(written) -> None:
    text = "b.png\tdog, brown dog,dog\r\n\na.png\tcat\tsleeping\n b.png \t grass ,\nc.png\t\n"
    assert read_tags(written(text)) == {
        "b.png": ["dog", "brown dog", "grass"],
        "a.png": ["cat", "sleeping"],
        "c.png": [],
    }


def test_a_byte_order_mark_is_no_part_of_the_first_name(written) -> None:
    assert list(read_tags(written(b"\xef\xbb\xbfa.png\tcat\n"))) == ["a.png"]


def test_json(written) -> None:
    content = {"a.png": ["cat", " cat", ""], "b,b.png": ["Nürnberg, at night"], "c.png": []}
    path = written(json.dumps(content), "tags.JSON")
    assert read_tags(path) == {"a.png": ["cat"], "b,b.png": ["Nürnberg, at night"], "c.png": []}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.tsv", "a.png\tcat\nb.png dog\n", "t.tsv, line 2: must be an image's name, a tab"),
        ("t.tsv", "\tcat\n", "line 1"),
        ("t.tsv", "\n \n", "names no image"),
        ("t.json", "{}", "names no image"),
        ("t.json", "{", "is not JSON"),
        ("t.json", "[1]", "must be one JSON object, of images to lists of tags, got a list"),
        ("t.json", '{"a": "cat"}', "the tags of 'a' must be a list of text, got 'cat'"),
        ("t.json", '{"a": ["cat", 3]}', "the tags of 'a' must be"),
        ("t.tsv", b"a\tcaf\xe9\n", "must be text in UTF-8"),
    ],
)
def test_other_forms_are_refused(written, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_tags(written(text, name))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*none.tsv: No such file"):
        read_tags(tmp_path / "none.tsv")


# ---------------------------------------------------------------------------------------- joining


def test_what_can_be_used_and_what_is_left_out() -> None:
    tags = {
        "c.png": ["Dog", "zebra crossing", "dog"],
        "gone.png": ["cat"],
        "a.png": ["zyx", "cat"],
        "d.png": ["zyx"],
        "e.png": [],
    }
    images = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    joined = join_tags(tags, images, words("cat", "dog", "zebra_crossing"))
    assert joined.names == ["a.png", "c.png"]
    assert joined.rows == [0, 2]
    assert joined.words == [[0], [1, 2]]
    assert joined.pairs == 3 and len(joined) == 2
    assert joined.left_out() == {
        "tags without a vector": ["zyx (2)"],
        "images of the tags file that are not there": ["gone.png"],
        "images without tags": ["b.png", "e.png"],
        "images none of whose tags has a vector": ["d.png"],
    }


def test_warnings_count_and_name(recwarn: pytest.WarningsRecorder) -> None:
    joined = TaggedImages(absent=[f"{n}.png" for n in range(12)])
    joined.unknown.update({"common": 3, "rare": 1})
    joined.warn()
    assert [str(warning.message) for warning in recwarn] == [
        "left out 2 tags without a vector: common (3), rare (1)",
        "left out 12 images of the tags file that are not there: "
        + ", ".join(f"{n}.png" for n in range(10))
        + " and 2 more",
    ]


def test_images_are_found_by_the_end_of_their_path_if_only_one_has_it() -> None:
    images = ["x/one/a.png", "x/two/a.png", "x/two/b.png"]
    joined = join_tags(
        {"a.png": ["cat"], "one/a.png": ["dog"], "b.png": ["cat"]}, images, words("cat", "dog")
    )
    assert dict(zip(joined.names, joined.words, strict=True)) == {
        "x/one/a.png": [1],
        "x/two/b.png": [0],
    }
    assert joined.absent == ["a.png"]
    assert joined.untagged == ["x/two/a.png"]


def test_a_whole_path_counts_before_the_end_of_another() -> None:
    joined = join_tags({"a.png": ["cat"]}, ["x/a.png", "a.png"], words("cat"))
    assert joined.names == ["a.png"]


def test_an_image_named_twice() -> None:
    with pytest.raises(UserError, match="names 'x/a.png' twice: as 'x/a.png' and as 'a.png'"):
        join_tags({"x/a.png": ["cat"], "a.png": ["cat"]}, ["x/a.png"], words("cat"))


def test_nothing_in_common() -> None:
    joined = join_tags({"a.png": ["cat"]}, ["b.png"], words("cat"))
    assert not joined and joined.absent == ["a.png"] and joined.untagged == ["b.png"]


def test_select() -> None:
    joined = join_tags({"a": ["x"], "b": ["y"], "c": ["x", "y"]}, ["a", "b", "c"], words("x", "y"))
    part = joined.select([2, 0])
    assert (part.names, part.rows, part.words) == (["c", "a"], [2, 0], [[0, 1], [0]])
