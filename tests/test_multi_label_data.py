"""What all multi-label data sets share, and those of photographs: MS-COCO, VOC 2007, NUS-WIDE, VG-500."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, refused, write

from reproductions.datasets import coco
from reproductions.datasets.coco import CLASSES, SEEN, UNSEEN, load_coco, load_coco_open
from reproductions.datasets.multi_label import MultiLabelImages, check_disjoint, located, targets_of
from reproductions.datasets.nus_wide import load_nus_wide, load_nus_wide_open
from reproductions.datasets.safe_pickle import read_pickle
from reproductions.datasets.visual_genome import load_vg500
from reproductions.datasets.voc2007 import load_voc2007


def names_of(data: MultiLabelImages) -> list[set[str]]:
    """The labels of every image by name."""
    return [{data.classes[c] for c in np.flatnonzero(row == 1)} for row in data.targets]


# ------------------------------------------------------------------------------------------------------- what is shared


@pytest.fixture
def data(tmp_path):
    for k in range(3):
        picture(tmp_path / f"{k}.jpg", (k, 0, 0))
    targets = np.array([[1, 0, -1], [0, 0, 0], [1, 0, 1]], dtype=np.int8)
    paths = tuple(tmp_path / f"{k}.jpg" for k in range(3))
    return MultiLabelImages("few", "Few", "test", "local", paths, targets, ("a", "b", "c"), "none", "here")


def test_classes_are_chosen_by_name_and_in_order(data):
    chosen = data.with_classes(["c", "a"])
    assert chosen.classes == ("c", "a")
    np.testing.assert_array_equal(chosen.targets, [[-1, 1], [0, 0], [1, 1]])
    assert chosen.targets.dtype == np.int8
    assert (len(chosen), chosen.paths, chosen.title) == (3, data.paths, "Few")
    np.testing.assert_array_equal(data.targets[0], [1, 0, -1])
    refused(lambda: data.with_classes(["a", "d"]), "Few", "'d'")
    refused(lambda: data.with_classes(["a", "a"]), "Few", "'a' twice")


def test_the_hash_sees_names_sizes_classes_and_targets_but_not_the_place(data, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in data.paths:
        shutil.copy(path, moved)
    assert replace(data, paths=tuple(moved / p.name for p in data.paths)).sha256 == data.sha256
    others = [
        replace(data, targets=np.abs(data.targets)),
        replace(data, classes=("a", "b", "d")),
        replace(data, paths=data.paths[::-1]),
        data.with_classes(["b", "a", "c"]),
    ]
    (moved / "0.jpg").write_bytes((moved / "0.jpg").read_bytes() + b"0")
    others.append(replace(data, paths=(moved / "0.jpg", *data.paths[1:])))
    assert len({data.sha256, *(other.sha256 for other in others)}) == 6


def test_an_image_is_decoded_when_it_is_asked_for(data):
    image = data.load(2)
    assert (image.mode, image.size) == ("RGB", (40, 30))
    data.paths[1].write_bytes(data.paths[1].read_bytes()[:60])
    refused(lambda: data.load(1), data.paths[1], "truncated")
    data.paths[1].unlink()
    refused(lambda: data.load(1), data.paths[1], "missing")


def test_a_path_is_found_by_its_longest_end_and_never_outside(tmp_path):
    first, second, listing = tmp_path / "first", tmp_path / "second", tmp_path / "list.json"
    for path in (first / "x" / "a.jpg", first / "a.jpg", second / "x" / "b.jpg", second / "c.jpg", tmp_path / "d.jpg"):
        picture(path)
    names = ["/mnt/nas/x/a.jpg", "a.jpg", "y/a.jpg", "x\\b.jpg", "c.jpg"]
    found = located(names, (first, second), listing)
    assert found == (first / "x/a.jpg", first / "a.jpg", first / "a.jpg", second / "x/b.jpg", second / "c.jpg")
    outside = [str(tmp_path / "d.jpg"), "../d.jpg", "c.jpg"]
    refused(lambda: located(outside, (first, second), listing), listing, "2 images", tmp_path / "d.jpg", first, second)


def test_targets_count_a_label_once_and_refuse_unknown_ones():
    targets = targets_of([["b", "b", "a"], [], ["b"]], ("a", "b", "c"), Path("list"))
    np.testing.assert_array_equal(targets, [[1, 1, 0], [0, 0, 0], [0, 1, 0]])
    assert targets.dtype == np.int8
    refused(lambda: targets_of([["a"], ["d"]], ("a", "b"), Path("list")), "list", "image 1", "'d'")
    refused(lambda: targets_of([["a"]], ("a", "a"), Path("list")), "list", "'a' twice")
    check_disjoint("ab", "cd", "there")
    refused(lambda: check_disjoint("abc", "cb", "there"), "there", "2 classes", "'b'")


def test_a_pickle_is_data_or_is_refused(tmp_path):
    path = tmp_path / "x.pickle"
    content = {"seen": [1, 2], "unseen": {3, 4}, "more": (np.arange(3), np.int64(5), frozenset((1.5, "a")), None)}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        read = read_pickle(path, "numbers are expected")
        assert {k: read[k] for k in ("seen", "unseen")} == {k: content[k] for k in ("seen", "unseen")}
        np.testing.assert_array_equal(read["more"][0], np.arange(3))
        assert read["more"][1:] == content["more"][1:]
    np.testing.assert_array_equal(pickle_of_old_numpy(tmp_path)[0], np.arange(3))
    canary = tmp_path / "canary"
    for call in (canary.touch, print, eval):
        path.write_bytes(pickle.dumps({"seen": call}))
        refused(lambda: read_pickle(path, "numbers are expected"), path, "refers to", "numbers are expected")
    path.write_bytes(f"cbuiltins\neval\n(S'__import__(\"pathlib\").Path({str(canary)!r}).touch()'\ntR.".encode())
    refused(lambda: read_pickle(path, "numbers are expected"), path, "builtins.eval")
    assert not canary.exists(), "nothing of it was run"
    path.write_bytes(pickle.dumps(content)[:-9])
    refused(lambda: read_pickle(path, "numbers are expected"), path, "numbers are expected")
    refused(lambda: read_pickle(tmp_path / "y.pickle", "numbers are expected"), "y.pickle", "numbers are expected")


def pickle_of_old_numpy(folder):
    """An array as NumPy 1 wrote it: in the second protocol module names end with a line break, not with a length."""
    path = folder / "old.pickle"
    path.write_bytes(pickle.dumps([np.arange(3)], protocol=2).replace(b"numpy._core.", b"numpy.core."))
    return read_pickle(path, "an array is expected")


# ------------------------------------------------------------------------------------------------------------- MS-COCO


def category_id(name: str) -> int:
    """Ids with gaps, as officially."""
    return CLASSES.index(name) + 1 + CLASSES.index(name) // 9


def annotations(path: Path, labels: dict[str, list[str]], classes=CLASSES, **changes) -> Path:
    """A file in COCO's form: images in order, their labels as annotations in reverse."""
    numbers = {name: 7 * k + 3 for k, name in enumerate(labels)}
    content = {
        "images": [{"id": numbers[name], "file_name": name} for name in labels],
        "annotations": [
            {"id": k, "image_id": numbers[name], "category_id": category_id(label), "iscrowd": k % 2}
            for name in reversed(labels)
            for k, label in enumerate(labels[name])
        ],
        "categories": [{"id": category_id(name), "name": name} for name in classes],
    }
    return write(path, json.dumps(content | changes))


@pytest.fixture
def coco_folder(tmp_path):
    """Three images in each set; the second of them has no annotation."""
    folder = tmp_path / "coco"
    for part in ("train2014", "val2014"):
        names = [f"COCO_{part}_{k:012d}.jpg" for k in (9, 4, 6)]
        for k, name in enumerate(names):
            picture(folder / part / name, (k, 0, 0))
        labels = dict(zip(names, (["dog", "person", "dog"], [], ["toothbrush"]), strict=True))
        annotations(folder / "annotations" / f"instances_{part}.json", labels)
        few = dict(zip(names, (["person"], [], ["zebra", "train"]), strict=True))
        if part == "train2014":
            annotations(folder / "annotations" / coco.OPEN["train"][0], few, SEEN)
        else:
            annotations(folder / "annotations" / coco.OPEN["zsl"][0], {names[0]: ["dog", "cat"]}, UNSEEN)
            annotations(folder / "annotations" / coco.OPEN["gzsl"][0], few | {names[1]: ["tie"]}, SEEN + UNSEEN)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_leaves_out_images_without_annotation_and_counts_crowds(coco_folder, split):
    for root in (coco_folder, coco_folder / "coco"):
        data = load_coco(root, split)
        assert (data.name, data.split, data.tier, data.classes) == ("coco", split, "paper", CLASSES)
        assert names_of(data) == [{"dog", "person"}, {"toothbrush"}]
        assert data.targets.shape == (2, 80)
        assert [int(p.stem[-1]) for p in data.paths] == [9, 6], "in the order of the file"
        assert data.load(1).size == (40, 30)


def test_coco_has_80_classes_of_which_48_are_seen_and_17_unseen():
    assert [len(set(names)) for names in (CLASSES, SEEN, UNSEEN)] == [80, 48, 17]
    assert set(SEEN + UNSEEN) <= set(CLASSES)
    assert not set(SEEN) & set(UNSEEN)
    assert [sorted(names) for names in (SEEN, UNSEEN)] == [list(SEEN), list(UNSEEN)]
    assert (CLASSES.index("stop sign"), CLASSES.index("toothbrush")) == (11, 79)


def test_coco_open_has_the_seen_classes_first(coco_folder):
    train, zsl, gzsl = (load_coco_open(coco_folder, setting) for setting in ("train", "zsl", "gzsl"))
    assert (train.classes, zsl.classes, gzsl.classes) == (SEEN, UNSEEN, SEEN + UNSEEN)
    assert (train.split, zsl.split, gzsl.split) == ("train", "test", "test")
    assert names_of(train) == [{"person"}, {"train", "zebra"}]
    assert names_of(zsl) == [{"dog", "cat"}]
    assert names_of(gzsl) == [{"person"}, {"tie"}, {"train", "zebra"}]
    assert "train2014" in str(train.paths[0])
    assert "val2014" in str(zsl.paths[0])
    refused(lambda: load_coco_open(coco_folder, "test"), "'test'", "train, zsl, gzsl")


def test_what_is_wrong_with_coco_is_said(coco_folder):
    path = coco_folder / "coco" / "annotations" / "instances_val2014.json"
    images, load = coco_folder / "coco" / "val2014", lambda: load_coco(coco_folder, "val")
    whole, name = path.read_text(), "COCO_val2014_000000000009.jpg"
    refused(lambda: load_coco(coco_folder, "test"), "'test'", "train, val")
    refused(lambda: load_coco(coco_folder / "elsewhere", "val"), "elsewhere", "annotations", "coco")
    for cut in (10, len(whole) // 2):
        path.write_text(whole[:cut])
        refused(load, path, "truncated")
    for change, words in (
        ({"images": []}, "annotates the image 17"),
        ({"annotations": [{"image_id": 3}]}, "KeyError('category_id')"),
        ({"annotations": [{"image_id": 3, "category_id": 10}]}, "unknown category 10"),
        ({"categories": []}, "'person'"),
        ({"categories": [{"id": k, "name": "person"} for k in (1, 2)]}, "'person' twice"),
        ({"images": 5}, "is not iterable"),
    ):
        annotations(path, {name: ["dog"], "4.jpg": [], "6.jpg": ["dog"]}, **change)
        refused(load, path, words)
    annotations(path, {f"/mnt/nas/coco/val2014/{name}": ["dog"]})
    assert load().paths == (images / name,), "an absolute path is found below the user's folder"
    path.write_text(whole)
    for image in images.iterdir():
        image.unlink()
    refused(load, path, "2 images", name, images)
    path.unlink()
    refused(load, path, "cannot be read")


# ------------------------------------------------------------------------------------------------------------ VOC 2007


@pytest.fixture
def voc(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2007"
    objects = {"000005": ["cat 0", "cat 1", "dog 1"], "000007": ["dog 0"], "000009": [], "000011": ["sofa 1", "sofa 1"]}
    for stem, found in objects.items():
        picture(folder / "JPEGImages" / f"{stem}.jpg")
        pairs = [line.split() for line in found]
        xml = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in pairs)
        write(folder / "Annotations" / f"{stem}.xml", f"<annotation>{xml}</annotation>")
    for part in ("trainval", "test"):
        write(folder / "ImageSets" / "Main" / f"{part}.txt", "\n".join(objects) + "\n")
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
def test_voc_treats_difficult_objects_in_two_ways(voc, split):
    chosen = ["cat", "dog", "sofa", "person"]
    left_out = [[1, -1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, -1, 0]]
    data = load_voc2007(voc, split)
    np.testing.assert_array_equal(data.with_classes(chosen).targets, left_out)
    kept = load_voc2007(voc, split, "kept in training").with_classes(chosen).targets
    np.testing.assert_array_equal(kept, np.abs(left_out) if split == "train" else left_out)
    assert len(data.classes) == 20
    assert [p.stem for p in data.paths] == ["000005", "000007", "000009", "000011"]


def test_what_is_wrong_with_voc_is_said(voc):
    folder, load = voc / "VOCdevkit" / "VOC2007", lambda: load_voc2007(voc, "test")
    refused(lambda: load_voc2007(voc, "val"), "'val'", "train, test")
    refused(lambda: load_voc2007(voc, "test", "ignored"), "'ignored'", "left out", "kept in training")
    path = folder / "Annotations" / "000007.xml"
    for text, words in (
        ("<annotation><object><name>fox</name></object></annotation>", "'fox'"),
        ("<annotation><object><name>dog</na", "truncated"),
    ):
        path.write_text(text)
        refused(load, path, words)
    path.unlink()
    refused(load, path, "missing")
    listing = folder / "ImageSets" / "Main" / "test.txt"
    listing.write_text("\n")
    refused(load, listing, "empty")
    listing.write_text("000005\n000009\n")
    (folder / "JPEGImages" / "000009.jpg").unlink()
    refused(load, listing, "1 images", "000009.jpg")


# ------------------------------------------------------------------------------------------------------------ NUS-WIDE


@pytest.fixture
def nus(tmp_path):
    folder = tmp_path / "nus_wide"
    names = ["actor\\0001_21.jpg", "zoo\\0002_22.jpg", "zoo\\0003_23.jpg", "actor\\0004_24.jpg"]
    for name in names:
        picture(folder / "Flickr" / name.replace("\\", "/"))
    lists = {"Imagelist": names, "TrainImagelist": names[2::-1], "TestImagelist": names[3:]}
    for name, lines in lists.items():
        write(folder / "ImageList" / f"{name}.txt", "\r\n".join(lines) + "\r\n")
    write(folder / "Concepts81.txt", "sky\nanimal\nsun\n")
    for concept, column in (("sky", "1001"), ("animal", "1010"), ("sun", "0000")):
        write(folder / "Groundtruth" / "AllLabels" / f"Labels_{concept}.txt", "\n".join(column) + "\n")
    return tmp_path


def test_nus_wide_reads_backslashes_and_drops_or_keeps_images_without_labels(nus):
    folder = nus / "nus_wide" / "Flickr"
    data = load_nus_wide(nus, "train")
    assert data.classes == ("sky", "animal", "sun"), "in the order of the file; one has no positive"
    assert data.paths == (folder / "zoo/0003_23.jpg", folder / "actor/0001_21.jpg")
    np.testing.assert_array_equal(data.targets, [[0, 1, 0], [1, 1, 0]])
    kept = load_nus_wide(nus, "train", "kept")
    assert [p.name for p in kept.paths] == ["0003_23.jpg", "0002_22.jpg", "0001_21.jpg"]
    np.testing.assert_array_equal(kept.targets, [[0, 1, 0], [0, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(load_nus_wide(nus, "test").targets, [[1, 0, 0]])


def test_what_is_wrong_with_nus_wide_is_said(nus):
    folder, load = nus / "nus_wide", lambda: load_nus_wide(nus, "train")
    refused(lambda: load_nus_wide(nus, "val"), "'val'", "train, test")
    refused(lambda: load_nus_wide(nus, "train", "hidden"), "'hidden'", "dropped or kept")
    labels = folder / "Groundtruth" / "AllLabels" / "Labels_animal.txt"
    for text, words in (("1\n0\n1\n", "3 lines"), ("1\n0\n1\n2\n", "'2'"), ("", "empty")):
        labels.write_text(text)
        refused(load, labels, words)
    labels.unlink()
    refused(load, labels, "cannot be read")
    write(folder / "Concepts81.txt", "sky\nsky\n")
    refused(load, "Concepts81.txt", "'sky' twice")
    write(folder / "Concepts81.txt", "sky\n")
    (folder / "Flickr" / "actor" / "0001_21.jpg").unlink()
    refused(load, "TrainImagelist.txt", "1 images", "actor\\0001_21.jpg")
    write(folder / "ImageList" / "TrainImagelist.txt", "zoo\\9.jpg\n")
    refused(load, "TrainImagelist.txt", "zoo\\9.jpg", "Imagelist.txt")


@pytest.fixture
def nus_open(tmp_path):
    folder = tmp_path / "nus_wide"
    zsl = folder / "annotations" / "zsl"
    zsl.mkdir(parents=True)
    write(folder / "annotations" / "Tag_all" / "all_labels.txt", "0 one\nsky\ntwo\nsun\n")
    (zsl / "cls_id.pickle").write_bytes(pickle.dumps({"seen": [2, 0], "unseen": np.array([1, 3])}))
    labels = np.array([[1, 0, 0, 1], [0, 0, 1, -1]])
    for setting, images in (("train_all", "train"), ("val_all", "val"), ("val_gzsl", "val_gzsl")):
        np.save(zsl / f"formatted_{setting}_labels_filtered.npy", labels)
        np.save(zsl / f"formatted_{images}_images_filtered.npy", np.array(["actor/1.jpg ", "zoo/2.jpg"]))
    for name in ("actor/1.jpg", "zoo/2.jpg"):
        picture(folder / "images" / name)
    return tmp_path


def test_nus_wide_open_takes_the_columns_of_its_candidates(nus_open):
    expected = {
        "train": (("0 one", "two"), [[1, 0], [0, 1]]),
        "zsl": (("sky", "sun"), [[0, 1], [0, -1]]),
        "gzsl": (("0 one", "two", "sky", "sun"), [[1, 0, 0, 1], [0, 1, 0, -1]]),
    }
    for setting, (classes, targets) in expected.items():
        data = load_nus_wide_open(nus_open, setting)
        assert (data.classes, data.split) == (classes, "train" if setting == "train" else "test")
        np.testing.assert_array_equal(data.targets, targets)
        assert data.targets.dtype == np.int8
        assert [p.name for p in data.paths] == ["1.jpg", "2.jpg"]


def test_what_is_wrong_with_nus_wide_open_is_said(nus_open):
    zsl, load = nus_open / "nus_wide" / "annotations" / "zsl", lambda: load_nus_wide_open(nus_open, "zsl")
    refused(lambda: load_nus_wide_open(nus_open, "val"), "'val'", "train, zsl, gzsl")
    numbers = zsl / "cls_id.pickle"
    for content, words in (
        ({"seen": [0, 1], "unseen": [1, 3]}, "1 classes among both"),
        ({"seen": [0], "unseen": [4]}, "class number 4"),
        ({"seen": [0]}, "two lists"),
        ([1, 2], "two lists"),
        ({"seen": print, "unseen": []}, "builtins.print"),
    ):
        numbers.write_bytes(pickle.dumps(content))
        refused(load, numbers, words)
    numbers.write_bytes(pickle.dumps({"seen": [0, 2], "unseen": [1, 3]}))
    labels = zsl / "formatted_val_all_labels_filtered.npy"
    for array, words in (
        (np.zeros((2, 3)), "(2, 3)"),
        (np.zeros((3, 4)), "(3, 4)"),
        (np.full((2, 4), 2), "outside"),
        (np.full((2, 4), np.nan), "outside"),
        (np.array([[1, None]]), "cannot be read"),
    ):
        np.save(labels, array)
        refused(load, labels, words)
    labels.write_bytes(labels.read_bytes()[:20])
    refused(load, labels, "cannot be read")


# -------------------------------------------------------------------------------------------------------------- VG-500


def test_vg500_reads_class_numbers_from_both_image_folders(tmp_path):
    folder = tmp_path / "VG"
    picture(folder / "VG_100K" / "2.jpg")
    picture(folder / "VG_100K_2" / "11.jpg")
    listing, labels = folder / "test_list_500.txt", folder / "vg_category_500_labels_index.json"
    write(listing, "11.jpg\n2.jpg\n")
    write(labels, json.dumps({"2.jpg": [], "11.jpg": [499, 3, 3], "5.jpg": [1]}))
    data = load_vg500(tmp_path, "test")
    assert data.paths == (folder / "VG_100K_2" / "11.jpg", folder / "VG_100K" / "2.jpg")
    assert data.targets.shape == (2, 500)
    assert names_of(data) == [{"499", "3"}, set()]
    for text, path, words in (
        ('{"2.jpg": [], "11.jpg": [500]}', labels, "[500]"),
        ('{"2.jpg": [], "11.jpg": [-1]}', labels, "[-1]"),
        ('{"2.jpg": [], "11.jpg": "3"}', labels, "11.jpg"),
        ('{"2.jpg": []}', labels, "11.jpg"),
        ("[1]", labels, "an object of image files"),
        ('{"2.jpg": [', labels, "truncated"),
        ('{"2.jpg": [], "11.jpg": [], "5.jpg": []}', listing, "5.jpg"),
    ):
        if path == listing:
            write(listing, "5.jpg\n")
        write(labels, text)
        refused(lambda: load_vg500(tmp_path, "test"), path, words)
    refused(lambda: load_vg500(tmp_path, "val"), "'val'", "train, test")
    refused(lambda: load_vg500(tmp_path, "train"), "train_list_500.txt")
