import csv
import json

import numpy as np
import pytest

from styledrop_jax.io import captions
from styledrop_jax.io.captions import images_in, read_prompts, read_references
from styledrop_jax.io.image_files import write_png


@pytest.fixture
def folder(tmp_path, image):
    """A folder of three different images without captions."""
    for i, name in enumerate(("a cat.png", "red_house-2.png", "tree.png")):
        write_png(tmp_path / "images" / name, np.roll(image, i, axis=0))
    return tmp_path / "images"


def _words(path, content="", descriptor="s", **more):
    references = read_references(str(path), content, descriptor, **more)
    return [(reference.content, reference.descriptor) for reference in references]


def _write_jsonl(path, *rows):
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---------------------------------------------------------- files and folders


def test_one_file(tmp_path, image):
    write_png(tmp_path / "Cat.PNG", image)
    (found,) = read_references(str(tmp_path / "Cat.PNG"), " a  cat ", "in crayon style")
    assert (found.content, found.descriptor) == ("a cat", "in crayon style")
    assert found.path == str(tmp_path / "Cat.PNG") and len(found.sha256) == 64
    np.testing.assert_array_equal(found.image, image)


def test_a_folder_by_its_names(folder, image, caplog):
    write_png(folder / "dog.png", image)
    (folder / "._red.png").write_text("x")
    assert [words[0] for words in _words(folder)] == ["a cat", "dog", "red house", "tree"]
    assert "dog.png: the same image as" in caplog.text and "a cat.png: it counts" in caplog.text
    assert "left out" not in caplog.text
    assert set(_words(folder, "a thing")) == {("a thing", "s")}


def test_what_a_folder_leaves_out_is_named(folder, caplog):
    (folder / "notes.pdf").write_text("x")
    (folder / "photo.heic").write_text("x")
    (folder / "plot.eps").write_text("x")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    (folder / "more").mkdir()
    assert len(images_in(folder)) == 3 and len(_words(folder)) == 3
    assert "dead.png, notes.pdf, photo.heic and 1 more" in caplog.text
    assert "images in subfolders are not read: more" in caplog.text


def test_a_broken_image_in_a_folder_is_an_error(folder, refused):
    (folder / "broken.png").write_text("x")
    message = refused(_words, folder)
    assert "config.reference.image" in message and "broken.png: not an image" in message


def test_a_prompt_of_ten_million_letters_is_refused_by_its_line(tmp_path, refused):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n" + "x" * 10**7)
    assert "line 2: found 10,000,000 letters" in refused(captions.read_prompts, path)
    path.write_text("x" * (2**26 + 1))
    assert "67,108,865 bytes" in refused(captions.read_prompts, path)
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"image": "a.png", "content": "x" * 10**7}))
    assert "10,000,000 letters" in refused(captions.read_references, str(table), "", "s")


def test_what_is_no_square_is_named_with_what_is_done_with_it(folder, image, caplog):
    captions.read_references(str(folder), "", "s")
    cut = "cut to the middle square: a cat.png, red_house-2.png, tree.png"
    assert f"config.reference.fit: {cut}" in caplog.text
    for name in "xyz":
        bar = np.full((8, 30, 3), ord(name), np.uint8)
        bar[3:5, 3:-3] = 0
        write_png(folder / f"{name} bar.png", bar)
    write_png(folder / "square.png", image[:, :24])
    caplog.clear()
    found = captions.read_references(str(folder), "", "s", field="config.aux")
    padded = "padded to a square with the colour of the ground: x bar.png, y bar.png, z bar.png"
    assert caplog.messages == [f"config.aux.fit: {padded}; {cut}"]
    assert [one.ground for one in found] == ["", "", "", "", "#787878", "#797979", "#7a7a7a"]
    caplog.clear()
    captions.read_references(str(folder), "", "s", fit="pad")
    assert "cut" not in caplog.text and "a cat.png, red_house-2.png, tree.png and 3 more" in (
        caplog.text
    )
    caplog.clear()
    captions.read_references(str(folder / "square.png"), "", "s", needs=())
    assert not caplog.messages


def test_references_without_words_name_the_field(tmp_path, image, refused):
    path = tmp_path / "IMG_2023.png"
    write_png(path, image)
    assert "config.reference.content" in refused(_words, path)
    assert "config.reference.content: empty for IMG_2023.png" in refused(_words, tmp_path)
    assert "config.reference.descriptor: empty" in refused(_words, tmp_path, "a house", "")
    both = "config.reference.content and config.reference.descriptor: empty for IMG_2023.png"
    assert both in refused(_words, tmp_path, "", "")
    assert "other.image: empty" in refused(_words, "", "a house", field="other")
    assert _words(tmp_path, "", "", needs=()) == [("", "")]
    (tmp_path / "empty").mkdir()
    assert "no image" in refused(_words, tmp_path / "empty", "a")
    assert "no image" in refused(images_in, tmp_path / "empty")


def test_words_that_are_not_unicode_are_refused(tmp_path, image, refused):
    write_png(tmp_path / "a.png", image)
    assert "config.reference.content" in refused(_words, tmp_path / "a.png", "\ud800" * 500)
    path = tmp_path / "refs.jsonl"
    path.write_text('{"image": "a.png", "content": "a \\ud800"}')
    assert "line 1.content" in refused(_words, path)


# ------------------------------------------------------------ captions in a folder


def test_text_files_beside_the_images(folder, caplog):
    (folder / "a cat.txt").write_text("\ufeffa black cat,\r\nasleep\n", encoding="utf-8")
    (folder / "tree.TXT").write_text("un pommier en été", encoding="utf-8")
    (folder / "nothing.txt").write_text("x")
    expected = [("a black cat, asleep", "s"), ("red house", "s"), ("un pommier en été", "s")]
    assert _words(folder) == expected
    assert "captions from NAME.txt files" in caplog.text
    assert "none there for red_house-2.png" in caplog.text and "nothing.txt" in caplog.text
    assert "cat.txt" not in caplog.text
    expected[1] = ("a thing", "s")
    assert _words(folder, "a thing") == expected
    (folder / "a cat.txt").write_text(" \n")
    assert _words(folder)[0] == ("a cat", "s")


def test_a_text_file_that_is_no_text(folder, refused):
    (folder / "tree.txt").write_bytes("été".encode("utf-16"))
    assert "tree.txt: not UTF-8" in refused(_words, folder)


def test_metadata_in_json_lines(folder, caplog):
    _write_jsonl(
        folder / "metadata.jsonl",
        {"file_name": "tree.png", "text": "an  oak", "width": 36, "image_id": "7"},
        {"file_name": "a cat.png", "caption": "a cat", "descriptor": "in ink"},
    )
    (folder / "tree.txt").write_text("never read")
    (folder / "metadata.csv").write_text("never read")
    assert _words(folder) == [("a cat", "in ink"), ("red house", "s"), ("an oak", "s")]
    assert "captions from metadata.jsonl" in caplog.text
    assert "none there for red_house-2.png" in caplog.text
    assert "left out what is not an image that can be read: metadata.csv, tree.txt" in caplog.text


def test_metadata_may_name_images_in_subfolders(tmp_path, folder):
    _write_jsonl(tmp_path / "metadata.jsonl", {"file_name": "images/tree.png", "prompt": "an oak"})
    assert _words(tmp_path) == [("an oak", "s")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_metadata_in_csv(folder, caplog, delimiter):
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(["file_name", "text", "descriptor"])
        table.writerow(["tree.png", 'an "oak", or\ntwo', "in\u2028ink"])
        table.writerow(["a cat.png", "un café", ""])
        table.writerow(["red_house-2.png", "", ""])
    found = [("un café", "s"), ("red house", "s"), ('an "oak", or two', "in ink")]
    assert _words(folder) == found
    assert "captions from metadata.csv" in caplog.text and "none there" not in caplog.text
    assert sorted(_words(folder / "metadata.csv", "x")) == sorted([found[0], found[2], ("x", "s")])


def test_errors_in_csv_name_the_line(folder, refused):
    path = folder / "metadata.csv"
    path.write_text("file_name,text\ntree.png,a,b\n")
    assert "metadata.csv line 2: more cells" in refused(_words, folder)
    path.write_text("file_name,text\ntree.png,an oak\noak.png,an oak\n")
    assert "metadata.csv line 3.image" in refused(_words, folder)
    path.write_text('file_name,text\ntree.png,"an oak')
    assert "metadata.csv line 2: expected CSV" in refused(_words, folder)
    path.write_text("name,text\ntree.png,an oak\n")
    assert "line 2: no 'image' or 'file_name'" in refused(_words, folder)
    path.write_text("")
    assert "holds no reference" in refused(_words, folder)


# -------------------------------------------------------------- JSON lines


def test_references_of_a_jsonl(folder, tmp_path, refused):
    path = tmp_path / "refs.jsonl"
    cat = {"image": "images/tree.png", "content": "a cat", "descriptor": "in ink"}
    rows = [json.dumps(cat), json.dumps({"image": "images/tree.png", "content": "b"})]
    path.write_text("\r\n\r\n".join(rows))
    assert _words(path, "", "in oil") == [("a cat", "in ink"), ("b", "in oil")]
    assert "line 3.descriptor" in refused(_words, path, "", "")
    path.write_text('{"image": "images/tree.png", "contnt": "a cat"}')
    assert "did you mean 'content'" in refused(_words, path)
    path.write_text('{"content": "a cat"}')
    assert "line 1: no 'image'" in refused(_words, path)
    path.write_text('{"image": "images/tre.png", "content": "a cat"}')
    assert "did you mean 'tree.png'" in refused(_words, path)
    path.write_text('{"image": "~nosuchuser/tree.png", "content": "a cat"}')
    assert "refs.jsonl line 1.image" in refused(_words, path)


@pytest.mark.parametrize("line", ["{", "[" * 100_000, "[1]", '{"image": 3}', "9" * 5000, "\0"])
def test_a_line_that_is_no_object_is_refused(tmp_path, refused, line):
    path = tmp_path / "refs.jsonl"
    path.write_text("\n" + line)
    assert "refs.jsonl line 2" in refused(_words, path)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\f", "\v", "\x1c"])
def test_only_line_feeds_end_lines(tmp_path, image, separator):
    write_png(tmp_path / "a.png", image)
    raw = (
        separator if separator.isprintable() or separator > "\x1f" else json.dumps(separator)[1:-1]
    )
    path = tmp_path / "refs.jsonl"
    path.write_text(f'{{"image": "a.png", "content": "a{raw}cat"}}\r\n', encoding="utf-8")
    assert _words(path) == [("a cat", "s")]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"a{separator}cat\r\na dog\ra house", encoding="utf-8", newline="")
    assert read_prompts(prompts) == ["a cat", "a dog", "a house"]


def test_bundled_references_bring_their_words(tmp_path, image, monkeypatch, refused):
    write_png(tmp_path / "house-ink.png", image)
    _write_jsonl(
        tmp_path / "references.jsonl",
        {"image": "house-ink.png", "content": "a house", "descriptor": "in ink", "credit": "me"},
    )
    monkeypatch.setattr(captions, "BUNDLED", tmp_path / "references.jsonl")
    assert _words("bundled:house-ink", "", "") == [("a house", "in ink")]
    assert _words("bundled:house-ink", "", "in odd lines") == [("a house", "in odd lines")]
    assert "did you mean 'house-ink'" in refused(_words, "bundled:house-inc")
    refused(_words, "bundled:" + "house" * 1000)


def test_prompts(tmp_path, refused):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa  cat\r\n\n  a café \n".encode())
    assert read_prompts(path) == ["a cat", "a café"]
    path.write_text(" \n\n")
    assert "no prompt" in refused(read_prompts, path)
    path.write_text("")
    assert "no prompt" in refused(read_prompts, path)
    path.write_bytes("é".encode("latin-1"))
    assert "UTF-8" in refused(read_prompts, path)
    assert "did you mean 'p.txt'" in refused(read_prompts, tmp_path / "pp.txt")
