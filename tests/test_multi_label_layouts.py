"""More multi-label data sets in their layouts: pedestrians, scenes from the air, RAM's lists."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import picture, refused, write
from scipy.io import savemat

from reproductions.datasets import coco, ram_json
from reproductions.datasets.pedestrians import load_pa100k, load_rap
from reproductions.datasets.ram_json import load_ram_json, load_ram_open
from reproductions.datasets.remote_sensing import load_mlrsnet, load_multiscene

# --------------------------------------------------------------------------------------------------------- pedestrians


def cells(values):
    """A MATLAB cell array, one column."""
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = values
    return array


def rap(path, **changes):
    labels = np.zeros((3, 92), dtype=np.uint8)
    labels[:, 51] = 1  # beyond the 51
    labels[0, [0, 50]] = 2, 1
    labels[2, [1, 2]] = 1
    parts = [{"train": np.array([[3, 1]]), "test": np.array([[2]])}] * 4 + [
        {"train": [[1]], "test": np.array([[1, 3]])}
    ]
    content = {
        "partion": cells(parts),
        "label": labels,
        "attribute_eng": cells([f"attribute {k}" for k in range(92)]),
        "imagesname": cells(["a.png", "b.png", "c.png"]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"RAP_annotation": content | changes})


def test_rap_has_51_attributes_and_five_partitions(tmp_path):
    path, images = tmp_path / "RAP" / "RAP_annotation" / "RAP_annotation.mat", tmp_path / "RAP" / "RAP_dataset"
    rap(path)
    for name in "abc":
        picture(images / f"{name}.png")
    data = load_rap(tmp_path, "train")
    assert data.classes == tuple(f"attribute {k}" for k in range(51))
    assert [p.name for p in data.paths] == ["c.png", "a.png"], "counted from one"
    assert data.targets.dtype == np.int8
    assert [np.flatnonzero(row).tolist() for row in data.targets] == [[1, 2], [0, 50]]
    assert data.targets[1, [0, 50]].tolist() == [-1, 1], "uncertain is left out"
    assert [p.name for p in load_rap(tmp_path, "test").paths] == ["b.png"], "one image alone"
    assert [p.name for p in load_rap(tmp_path, "test", partition=4).paths] == ["a.png", "c.png"]
    refused(lambda: load_rap(tmp_path, "val"), "'val'", "train, test")
    refused(lambda: load_rap(tmp_path, "test", partition=5), "partition 5", "0 to 4")
    load = lambda: load_rap(tmp_path, "train")  # noqa: E731
    for change, words in (
        ({"label": np.full((3, 92), 3)}, "label 3"),
        ({"label": np.zeros((2, 92))}, "(2, 92)"),
        ({"label": np.zeros((3, 40))}, "(3, 40)"),
        ({"attribute_eng": cells(["same"] * 92)}, "'same' twice"),
        ({"partion": cells([{"train": np.array([[4]]), "test": np.array([[1]])}] * 5)}, "outside 1 to 3"),
        ({"partion": cells([{"test": np.array([[1]])}] * 5)}, "not as expected"),
    ):
        rap(path, **change)
        refused(load, path, words)
    savemat(path, {"other": 1})
    refused(load, path, "not as expected")
    path.write_bytes(b"no matrix" * 30)
    refused(load, path, "cannot be read")
    rap(path)
    (images / "c.png").unlink()
    refused(load, path, "1 images", "c.png", images)


@pytest.mark.parametrize("place", ["release_data/release_data", "data"])
def test_pa100k_has_three_splits(tmp_path, place):
    path = tmp_path / "PA100K" / "annotation.mat"
    names = {"train": ["1.jpg", "2.jpg"], "val": ["3.jpg"], "test": ["4.jpg", "5.jpg"]}
    labels = {part: np.zeros((len(files), 26), dtype=np.uint8) for part, files in names.items()}
    labels["test"][1, 25] = labels["val"][0, 0] = 1
    content = {"attributes": cells([f"is {k}" for k in range(26)])}
    for part, files in names.items():
        content |= {f"{part}_images_name": cells(files), f"{part}_label": labels[part]}
        for name in files:
            picture(tmp_path / "PA100K" / place / name)
    savemat(path, content)
    for part, files in names.items():
        data = load_pa100k(tmp_path, part)
        assert ([p.name for p in data.paths], data.split) == (files, part)
        np.testing.assert_array_equal(data.targets, labels[part])
        assert data.classes[25] == "is 25"
    refused(lambda: load_pa100k(tmp_path, "trainval"), "'trainval'", "train, val, test")
    for change, words in (
        ({"test_label": np.zeros((3, 26))}, "(3, 26)"),
        ({"test_label": np.full((2, 26), 2)}, "label 2"),
        ({"attributes": cells(["x"] * 26)}, "'x' twice"),
        ({"test_images_name": cells(["4.jpg", "6.jpg"])}, "6.jpg"),
    ):
        savemat(path, content | change)
        refused(lambda: load_pa100k(tmp_path, "test"), path, words)
    savemat(path, {k: v for k, v in content.items() if k != "test_label"})
    refused(lambda: load_pa100k(tmp_path, "test"), path, "lacks test_label")


# ---------------------------------------------------------------------------------------------------- scenes from above


def table(path, names, rows, header="image"):
    """A csv with the labels of ``rows``, each a set of columns, under the names."""
    lines = [",".join([header, *names])]
    lines += [",".join([image, *("1" if name in has else "0" for name in names)]) for image, has in rows]
    return write(path, "\n".join(lines) + "\n")


@pytest.mark.parametrize("clean", [True, False])
def test_multiscene_reads_its_columns(tmp_path, clean):
    folder = tmp_path / ("MultiScene/MultiScene-Clean" if clean else "MultiScene")
    names = [f"Scene{k}" for k in range(36)]
    path = table(folder / "Tra.csv", names, [("img_1", {"Scene35", "Scene0"}), ("img_2", set())])
    table(folder / "Test.csv", names, [("img_2", {"Scene4"})])
    for k in (1, 2):
        picture(folder / "images" / f"img_{k}.jpg")
    data = load_multiscene(tmp_path, "train", clean=clean)
    assert data.classes == tuple(names)
    assert [np.flatnonzero(row).tolist() for row in data.targets] == [[0, 35], []], "an image without labels stays"
    assert [p.name for p in data.paths] == ["img_1.jpg", "img_2.jpg"]
    assert load_multiscene(tmp_path, "test", clean=clean).targets[:, 4].tolist() == [1]
    load, whole = (lambda: load_multiscene(tmp_path, "train", clean=clean)), path.read_text()
    for text, words in (
        (whole[:-3], "row 3"),
        (whole[:-2], "neither 0 nor 1"),
        (whole.replace(",1", ",2"), "neither 0 nor 1"),
        (whole.replace("Scene3,", "Scene2,"), "'Scene2' twice"),
        (whole.splitlines()[0], "lists nothing"),
        (whole.replace("img_2", "img_3"), "img_3.jpg"),
    ):
        path.write_text(text)
        refused(load, path, words)
    table(path, names[:35], [("img_1", set())])
    refused(load, path, "35 label columns")
    path.unlink()
    refused(load, "Tra.csv")


def test_mlrsnet_reads_columns_by_name_in_whatever_order(tmp_path):
    folder, names = tmp_path / "MLRSNet", [f"label {k:02d}" for k in range(60)]
    for category, order in (("airport", names), ("sea_ice", names[::-1])):
        rows = [(f"{category}_{k:05d}.jpg", {f"label {k:02d}", "label 59"}) for k in range(5)]
        table(folder / "labels" / f"{category}.csv", order, rows)
        for name, _ in rows:
            picture(folder / "Images" / category / name)
    train, test = (load_mlrsnet(tmp_path, split) for split in ("train", "test"))
    assert train.classes == test.classes == tuple(names)
    assert [np.flatnonzero(row).tolist() for row in train.targets] == [[k, 59] for k in range(4)] * 2
    assert [p.parent.name + "/" + p.name for p in test.paths] == [
        "airport/airport_00004.jpg",
        "sea_ice/sea_ice_00004.jpg",
    ]
    assert (train.tier, len(train), len(test)) == ("local", 8, 2)
    other = table(folder / "labels" / "sea_ice.csv", [*names[:59], "x"], [("sea_ice_00000.jpg", set())])
    refused(lambda: load_mlrsnet(tmp_path, "train"), other, "'label 59'")
    refused(lambda: load_mlrsnet(tmp_path, "val"), "'val'", "train, test")
    for path in (folder / "labels").iterdir():
        path.unlink()
    refused(lambda: load_mlrsnet(tmp_path, "train"), folder, "no labels")


# -------------------------------------------------------------------------------------------------------- RAM's lists


NAS = "/mnt/nas/tan/COCO/trainval2014"


def ram_file(path, images, classes):
    return write(path, json.dumps({"images": images, "classes": classes}))


@pytest.fixture
def ram(tmp_path):
    """RAM's three files of COCO, their classes in no order."""
    folder = tmp_path / "coco"
    for part, k in (("train2014", 1), ("val2014", 2), ("val2014", 3)):
        picture(folder / part / f"COCO_{part}_{k}.jpg")
    train, first, second = (f"{NAS}/COCO_{x}.jpg" for x in ("train2014_1", "val2014_2", "val2014_3"))
    places = {setting: folder / ram_json.OPEN_SETS["coco"].file(setting) for setting in ram_json.SETTINGS}
    seen, unseen = list(coco.SEEN)[::-1], list(coco.UNSEEN)[::-1]
    ram_file(places["train"], [[train, ["zebra", "car", "zebra"]]], seen)
    ram_file(places["zsl"], [[first, ["cat", "cat"]], [second, ["umbrella", "zebra", "zebra", "car"]]], unseen)
    ram_file(places["gzsl"], [[first, ["cat", "car"]], [second, ["hair drier"]]], ["something else"])
    return tmp_path, places


def test_ram_orders_seen_then_unseen_counts_a_label_once_and_finds_foreign_paths(ram):
    root, _ = ram
    train, zsl, gzsl = (load_ram_open(root, "coco", setting) for setting in ram_json.SETTINGS)
    assert (train.classes, zsl.classes, gzsl.classes) == (coco.SEEN, coco.UNSEEN, coco.SEEN + coco.UNSEEN)
    assert [p.relative_to(root).as_posix() for p in (*train.paths, *zsl.paths)] == [
        "coco/train2014/COCO_train2014_1.jpg",
        "coco/val2014/COCO_val2014_2.jpg",
        "coco/val2014/COCO_val2014_3.jpg",
    ]
    named = [[{d.classes[c] for c in np.flatnonzero(row)} for row in d.targets] for d in (train, zsl, gzsl)]
    assert named == [[{"zebra", "car"}], [{"cat"}, {"umbrella"}], [{"cat", "car"}, set()]]
    assert (train.dropped, zsl.dropped, gzsl.dropped) == (0, 2, 1)
    assert (train.split, gzsl.split) == ("train", "test")
    assert zsl.with_classes(["cat"]).dropped == 2


def test_a_ram_list_of_one_class_set_is_read_with_chosen_classes(tmp_path):
    picture(tmp_path / "images" / "img_1.jpg")
    path = ram_file(
        tmp_path / "test.json", [["/nas/MultiScene-Clean/images/img_1.jpg", ["Sea", "Apron"]]], ["Sea", "Apron"]
    )
    facts = {"split": "test", "name": "m", "title": "M", "licence": "none", "source": "here"}
    data = load_ram_json(path, (tmp_path,), **facts)
    assert (data.classes, data.targets.tolist(), data.dropped) == (("Apron", "Sea"), [[1, 1]], 0)
    data = load_ram_json(path, (tmp_path,), classes=["Sea", "Pier"], **facts)
    assert (data.classes, data.targets.tolist(), data.dropped) == (("Sea", "Pier"), [[1, 0]], 1)


def test_what_is_wrong_with_a_ram_list_is_said(ram):
    root, places = ram
    load = lambda: load_ram_open(root, "coco", "zsl")  # noqa: E731
    refused(lambda: load_ram_open(root, "coco", "test"), "'test'", "train, zsl, gzsl")
    refused(lambda: load_ram_open(root, "voc", "zsl"), "'voc'", "coco, nus_wide")
    whole = places["zsl"].read_text()
    for cut in (20, len(whole) // 2):
        places["zsl"].write_text(whole[:cut])
        refused(load, places["zsl"], "truncated")
    image = f"{NAS}/COCO_val2014_2.jpg"
    for images, classes, words in (
        ([[image, "cat"]], coco.UNSEEN, "image 0"),
        ([[image]], coco.UNSEEN, "image 0"),
        ([[image, ["cat", 3]]], coco.UNSEEN, "image 0"),
        ([], coco.UNSEEN, "neither list empty"),
        ([[image, ["cat"]]], [], "neither list empty"),
        ([[f"{NAS}/COCO_val2014_7.jpg", ["cat"]]], coco.UNSEEN, "1 images"),
        ([[image, ["cat"]]], coco.UNSEEN[1:], "16 classes where 17"),
    ):
        ram_file(places["zsl"], images, classes)
        refused(load, places["zsl"], words)
    ram_file(places["zsl"], [[image, ["cat"]]], ["zebra", *coco.UNSEEN[1:]])
    refused(load, "1 classes among both", "'zebra'")
    places["train"].unlink()
    refused(load, places["train"], "cannot be read")
