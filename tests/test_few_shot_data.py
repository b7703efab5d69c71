"""The few-shot data sets in their official layouts, and one sentence for everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import picture, refused
from PIL import Image

from reproductions.datasets import few_shot
from reproductions.datasets.few_shot import BENCHMARKS, FEW_SHOT, class_folder, cub

COUNTS = {"train": 3, "val": 2, "test": 2}
SPLIT_FOLDERS = {
    "tiered_imagenet": "tiered_imagenet/{}",
    "fc100": "FC100/{}",
    "cifar_fs": "cifar_fs/meta-{}",
}


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.fixture
def counts(monkeypatch):
    """The benchmarks as if they had few classes."""
    for name, facts in BENCHMARKS.items():
        monkeypatch.setitem(BENCHMARKS, name, replace(facts, classes=tuple(COUNTS.values())))


@pytest.fixture
def data(tmp_path, counts):
    """All five benchmarks, two images a class; in the csv files classes are not in order of name."""
    for split, count in COUNTS.items():
        rows = [(f"{split}_{c}_{k}.png", f"n{9 - c}") for k in range(2) for c in range(count)]
        for file, label in rows:
            picture(tmp_path / "miniimagenet" / "images" / file)
            picture(tmp_path / "cub" / label / file)
        tables = {
            "miniimagenet": ["filename,label", *(f"{file},{label}" for file, label in rows)],
            "cub": ["filename, label, concept", *(f"{label}/{file},{label},7" for file, label in rows)],
        }
        for name, lines in tables.items():
            table = tmp_path / name / "split" / f"{split}.csv"
            table.parent.mkdir(exist_ok=True)
            table.write_text("\n".join(lines) + "\n")
        for pattern in SPLIT_FOLDERS.values():
            for c in reversed(range(count)):
                for k in (1, 0):
                    picture(tmp_path / pattern.format(split) / f"class{c}" / f"{k}.png", (c, k, 0))
                (tmp_path / pattern.format(split) / f"class{c}" / "notes.txt").touch()
    return tmp_path


@pytest.mark.parametrize("split", COUNTS)
@pytest.mark.parametrize("name", FEW_SHOT)
def test_every_benchmark_is_read_in_its_official_layout(data, name, split):
    files = FEW_SHOT[name](data, split)
    count = COUNTS[split]
    assert (files.name, files.split, files.tier) == (name, split, "paper")
    assert len(files) == 2 * count == len(files.labels)
    assert files.labels.dtype == np.int64
    if name in SPLIT_FOLDERS:
        assert files.classes == tuple(f"class{c}" for c in range(count)), "sorted, whatever the file system says"
        assert [files.load(i).getpixel((0, 0)) for i in range(3)] == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
        assert files.labels.tolist() == [c for c in range(count) for _ in range(2)]
    else:
        assert files.classes == tuple(f"n{9 - c}" for c in range(count)), "in order of first appearance"
        assert files.labels.tolist() == list(range(count)) * 2
        assert files.load(0).size == (40, 30)
        assert files.load(0).mode == "RGB"


def test_the_numbers_of_classes_are_those_of_the_papers():
    published = {
        "mini_imagenet": (64, 16, 20),
        "tiered_imagenet": (351, 97, 160),
        "cub": (100, 50, 50),
        "fc100": (60, 20, 20),
        "cifar_fs": (64, 16, 20),
    }
    assert {name: facts.classes for name, facts in BENCHMARKS.items()} == published


def test_the_hash_sees_names_sizes_and_labels(data):
    files = FEW_SHOT["fc100"](data, "test")
    assert files.sha256 == FEW_SHOT["fc100"](data, "test").sha256
    shutil.copytree(data / "FC100", data / "elsewhere" / "FC100")
    assert FEW_SHOT["fc100"](data / "elsewhere", "test").sha256 == files.sha256, "the same files in another place"
    assert replace(files, labels=1 - files.labels).sha256 != files.sha256
    path = data / "FC100" / "test" / "class1" / "1.png"
    path.rename(path.with_name("2.png"))
    renamed = FEW_SHOT["fc100"](data, "test")
    assert renamed.sha256 != files.sha256
    picture(path.with_name("2.png"), size=(41, 400))
    assert FEW_SHOT["fc100"](data, "test").sha256 != renamed.sha256


@pytest.mark.parametrize("name", FEW_SHOT)
def test_a_missing_folder_is_refused(data, name):
    root = data / BENCHMARKS[name].folder
    refused(lambda: FEW_SHOT[name](data, "novel"), "novel", "train, val, test")
    shutil.rmtree(root)
    refused(lambda: FEW_SHOT[name](data, "test"), root, BENCHMARKS[name].title)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_a_wrong_number_of_classes_is_refused(data, name, monkeypatch):
    monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], classes=(3, 4, 2)))
    refused(lambda: FEW_SHOT[name](data, "val"), data / BENCHMARKS[name].folder, "has 2 classes", "has 4")


@pytest.mark.parametrize("name", ["mini_imagenet", "cub"])
def test_what_is_wrong_with_a_csv_is_said(data, name):
    table = data / BENCHMARKS[name].folder / "split" / "val.csv"
    header, *rows = table.read_text().splitlines()

    def load():
        return FEW_SHOT[name](data, "val")

    table.write_text("\n".join(rows))
    refused(load, table, "header line")
    table.write_text("\n".join([header, *(row.split(",")[0] for row in rows)]))
    refused(load, table, "one column", rows[0].split(",")[0])
    table.write_text("")
    refused(load, table, "header line")
    table.write_bytes(b"\xff\xfe\x00")
    refused(load, table, "cannot be read")
    table.unlink()
    refused(load, table, "cannot be read")
    table.write_text("\n".join([header, *rows]))
    image = load().paths[1]
    image.unlink()
    refused(load, table, image, "no such file")


@pytest.mark.parametrize("name", SPLIT_FOLDERS)
def test_what_is_wrong_with_a_split_folder_is_said(data, name):
    folder = data / SPLIT_FOLDERS[name].format("test")
    for image in (folder / "class1").glob("*.png"):
        image.unlink()
    refused(lambda: FEW_SHOT[name](data, "test"), folder / "class1", "no image")
    shutil.rmtree(folder)
    refused(lambda: FEW_SHOT[name](data, "test"), folder, "no folder")


def test_a_truncated_or_broken_image_is_named(data):
    files = FEW_SHOT["mini_imagenet"](data, "test")
    files.load(1)
    truncate(files.paths[1])
    refused(lambda: files.load(1), files.paths[1], "truncated")
    Image.effect_noise((60, 60), 50).save(files.paths[1], "JPEG")
    files.load(1)
    truncate(files.paths[1])
    refused(lambda: files.load(1), files.paths[1], "truncated")
    files.paths[2].write_text("no image")
    refused(lambda: files.load(2), files.paths[2], "broken")
    files.paths[3].unlink()
    refused(lambda: files.load(3), files.paths[3], "missing")


def test_cub_loses_its_known_broken_row_and_no_other(data, monkeypatch):
    monkeypatch.setattr(few_shot, "CUB_BROKEN_ROW", 4)
    whole = cub(data, "train")
    assert len(whole) == 6, "a whole image there belongs to the split"
    truncate(whole.paths[4])
    rest = cub(data, "train")
    assert rest.paths == whole.paths[:4] + whole.paths[5:]
    assert rest.labels.tolist() == [0, 1, 2, 0, 2]
    truncate(whole.paths[3])
    assert cub(data, "train").paths == rest.paths, "another broken image is reported when it is loaded"
    whole.paths[4].unlink()
    refused(lambda: cub(data, "train"), whole.paths[4], "no such file")


def test_images_shrunk_in_advance_are_noticed(data):
    files = FEW_SHOT["mini_imagenet"](data, "train")
    assert "84 px" in files.check_raw_size()
    assert str(data) in files.check_raw_size()
    truncate(files.paths[0])
    assert "57 %" in files.check_raw_size()
    picture(files.paths[3], size=(10, 85))
    assert files.check_raw_size() is None
    assert FEW_SHOT["cifar_fs"](data, "train").check_raw_size() is None, "CIFAR's images are 32 px"


@pytest.fixture
def own(tmp_path):
    """A folder of four classes and a split file."""
    for c in "abcd":
        picture(tmp_path / "own" / c / "x.png")
    split_file = tmp_path / "split.json"
    split_file.write_text(json.dumps({"train": ["c", "a"], "val": ["b"], "test": ["d"]}))
    return tmp_path / "own", split_file


def test_a_folder_of_classes_with_a_split_file(own):
    files = class_folder(*own, "train")
    assert (files.classes, files.tier, files.name) == (("c", "a"), "local", "own")
    assert [p.parent.name for p in files.paths] == ["c", "a"]
    assert files.labels.tolist() == [0, 1]
    assert files.check_raw_size() is None


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"train": ["a", "b"], "val": ["b"], "test": ["d"]}, "class 'b' under 'train' and 'val'"),
        ({"train": ["a", "a"], "val": ["b"], "test": ["d"]}, "class 'a' under 'train' and 'train'"),
        ({"train": ["a"], "val": ["b"], "test": ["e"]}, "class 'e' under 'test'"),
        ({"train": ["a"], "val": ["../own/b"], "test": ["d"]}, "class '../own/b' under 'val'"),
        ({"train": ["a"], "val": [], "test": ["d"]}, "no class under 'val'"),
        ({"train": ["a"], "val": "b", "test": ["d"]}, "no list of names under 'val'"),
        ({"train": ["a"], "val": [1], "test": ["d"]}, "no list of names under 'val'"),
        ({"train": ["a"], "test": ["d"]}, "three splits"),
        (["a"], "three splits"),
    ],
)
def test_what_is_wrong_with_a_split_file_is_said(own, content, part):
    own[1].write_text(json.dumps(content))
    refused(lambda: class_folder(*own, "train"), own[1], part)


def test_what_is_wrong_with_a_folder_of_classes_is_said(own):
    folder, split_file = own
    refused(lambda: class_folder(folder, split_file, "novel"), "novel")
    (folder / "a" / "x.png").unlink()
    (folder / "a" / ".x.png").touch()
    refused(lambda: class_folder(folder, split_file, "train"), folder / "a", "no image")
    refused(lambda: class_folder(folder / "z", split_file, "train"), folder / "z")
    split_file.write_text("{")
    refused(lambda: class_folder(folder, split_file, "train"), split_file, "not JSON")
    split_file.unlink()
    refused(lambda: class_folder(folder, split_file, "train"), split_file, "cannot be read")
