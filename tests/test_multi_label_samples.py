"""Small multi-label data: COCO images with YOLO boxes, their patch features, Corel5k; real ones where at hand."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pytest
from conftest import SHARED, picture, refused, write

from reproductions.datasets.catalogue import KNOWN
from reproductions.datasets.coco_yolo import PATCHES, TEXT, load_coco_patches, load_coco_yolo
from reproductions.datasets.corel5k import PADDING, load_corel5k

# ------------------------------------------------------------------------------------------------------ COCO with boxes


@pytest.fixture
def yolo(tmp_path):
    """Three images, the last without a label file, and a stray label file."""
    folder = tmp_path / "data"
    for name in ("2", "1", "3"):
        picture(folder / "images" / "val2017" / f"{name}.jpg")
    write(folder / "labels" / "val2017" / "1.txt", "79 0.5 0.5 1 1\n16 0.25 0.5 0.5 0.2\n16 .1 .1 .1 .1\n")
    write(folder / "labels" / "val2017" / "2.txt", "")
    write(folder / "labels" / "val2017" / "9.txt", "0 0.5 0.5 1 1\n")
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))


def test_yolo_boxes_are_corners_and_labels(yolo, tmp_path):
    (tmp_path / "zip").mkdir()
    zipped(yolo, tmp_path / "zip" / "some.zip")
    storage = tmp_path / "storage"
    for folder in (yolo, tmp_path / "zip"):
        data = load_coco_yolo(folder, "val", storage)
        assert [p.name for p in data.paths] == ["1.jpg", "2.jpg", "3.jpg"]
        assert [np.flatnonzero(row).tolist() for row in data.targets] == [[16, 79], [], []]
        np.testing.assert_allclose(data.boxes[0].corners[1], [0, 0.4, 0.5, 0.6], atol=1e-12)
        assert data.boxes[0].objects.tolist() == [79, 16, 16]
        assert [b.corners.shape for b in data.boxes] == [(3, 4), (0, 4), (0, 4)]
        assert data.load(2).size == (40, 30)
    assert list(storage.iterdir()), "the zip was unpacked there"


def test_what_is_wrong_with_yolo_labels_is_said(yolo, tmp_path):
    path, load = yolo / "labels" / "val2017" / "1.txt", lambda: load_coco_yolo(yolo, "val", tmp_path / "storage")
    for text, words in (
        ("80 0.5 0.5 1 1", "class 80"),
        ("3 0.5 0.5 1", "width and height"),
        ("dog 0.5 0.5 1 1", "width and height"),
        ("1.5 0.5 0.5 1 1", "width and height"),
        ("3 0.9 0.5 0.4 1", "reaches out"),
        ("3 0.5 0.5 0 1", "empty"),
        ("3 nan 0.5 0.1 0.1", "reaches out"),
    ):
        path.write_text(text)
        refused(load, path, words)
    refused(lambda: load_coco_yolo(yolo, "test", tmp_path), "'test'", "train, val")
    refused(lambda: load_coco_yolo(yolo, "train", tmp_path), "images/train2017")
    for file in (path, path.with_name("2.txt")):
        file.unlink()
    refused(load, "no label file")
    (tmp_path / "empty").mkdir()
    refused(lambda: load_coco_yolo(tmp_path / "empty", "val", tmp_path), "empty", "images/ and labels/")
    refused(lambda: load_coco_yolo(tmp_path / "nowhere", "val", tmp_path), "nowhere", "missing")


def save(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def test_patch_features_agree_with_the_labels_beside_them(yolo):
    labels = np.zeros((3, 80), dtype=bool)
    labels[1, [16, 79]] = True
    arrays = {
        "val2017_feat": np.full((3, 1280, 7, 7), 0.5, dtype=np.float16),
        "val2017_label": labels,
        "val2017_file": np.array(["2.jpg", "1.jpg", "3.jpg"]),
    }
    text = {"coco_clip_vit_b32": np.ones((80, 512), dtype=np.float16), "coco_glove300": np.zeros((80, 300))}
    save(yolo / PATCHES, **arrays)
    save(yolo / TEXT, **text)
    data = load_coco_patches(yolo, "val")
    assert (data.features.dtype, data.targets.dtype, data.clip.dtype) == (np.float32, np.int8, np.float32)
    assert (len(data), data.files) == (3, ("2.jpg", "1.jpg", "3.jpg"))
    assert [len(b.objects) for b in data.boxes] == [0, 3, 0], "in the order of the features"
    load, path = (lambda: load_coco_patches(yolo, "val")), yolo / PATCHES
    for change, words in (
        ({"val2017_label": ~labels}, "disagree about the labels of 2.jpg"),
        ({"val2017_file": np.array(["2.jpg", "1.jpg", "4.jpg"])}, "2 images"),
        ({"val2017_feat": np.zeros((3, 1280, 49))}, "(3, 1280, 49)"),
        ({"val2017_label": labels[:2]}, "(2, 80)"),
    ):
        save(path, **arrays | change)
        refused(load, path, words)
    save(path, val2017_feat=np.zeros(3))
    refused(load, path, "val2017_label")
    path.write_bytes(path.read_bytes()[:50])
    refused(load, path, "cannot be read")
    save(path, **arrays)
    for part in ("images", "labels"):
        (yolo / part).rename(yolo.parent / part)
    alone = load()
    assert alone.boxes is None
    assert alone.sha256 == data.sha256
    save(yolo / TEXT, **text | {"coco_glove300": np.zeros((79, 300))})
    refused(load, yolo / TEXT, "(79, 300)")


# ------------------------------------------------------------------------------------------------------------- Corel5k


def arff(rows, words):
    names = [*(f"Cluster{k + 1}" for k in range(499)), *words]
    header = ["@relation 'made up'", "", *(f"@attribute {name!r} {{0,1}}" for name in names), "", "@data"]
    return "\n".join([*header, *rows]) + "\n"


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_corel5k_is_read_from_sparse_arff(tmp_path, suffix):
    words = [f"word {k}" for k in range(374)]
    rows = ["{0 1,498 1,500 1}", "{7 1}", "{ 499 1, 872 1 }", *(["{}"] * 497)]
    path = tmp_path / "corel5k" / f"Corel5k-test-sparse.arff{suffix}"

    def put(text):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())

    labels = "".join(f'<label name="{word}"></label>' for word in words[::-1])
    listing = write(tmp_path / "corel5k" / "Corel5k.xml", f'<labels xmlns="http://mulan">{labels}</labels>')
    put(arff(rows, words))
    data = load_corel5k(tmp_path, "test")
    assert data.tokens[:3].tolist() == [[0, 498], [7, PADDING], [PADDING, PADDING]]
    assert data.mask.sum(1)[:3].tolist() == [2, 1, 0]
    assert (data.words, data.targets.shape, len(data)) == (tuple(words[::-1]), (500, 374), 500)
    named = [{data.words[c] for c in np.flatnonzero(row)} for row in data.targets[:3]]
    assert named == [{"word 1"}, set(), {"word 0", "word 373"}]
    load, whole = (lambda: load_corel5k(tmp_path, "test")), arff(rows, words)
    for text, where in (
        (arff(rows[1:], words), "499 images where 500"),
        (arff(["{873 1}", *rows[1:]], words), "'{873 1}'"),
        (arff(["{3 2}", *rows[1:]], words), "'{3 2}'"),
        (arff(["0,1,0", *rows[1:]], words), "'0,1,0'"),
        (whole.replace("Cluster9'", "Cluster8'", 1), "'Cluster8' twice"),
        (whole.replace("word 373'", "word x'"), "'word 373'"),
    ):
        put(text)
        refused(load, path, where)
    if suffix:
        path.write_bytes(gzip.compress(whole.encode())[:200])
        refused(load, path, "cannot be read")
    put(whole)
    whole = listing.read_text()
    for text, where in ((whole[:-20], "no XML"), (whole.replace('<label name="word 3"></label>', ""), "373 labels")):
        listing.write_text(text)
        refused(load, listing, where)
    refused(lambda: load_corel5k(tmp_path, "val"), "'val'", "train, test")
    refused(lambda: load_corel5k(tmp_path, "train"), "Corel5k-train-sparse.arff")


# ----------------------------------------------------------------------------------------------------------- real data


def shared(*names):
    """The folder of the real files; the test skips where one is absent."""
    folder = SHARED / "data"
    if not all((folder / name).exists() for name in names):
        pytest.skip("the real data are not at hand")
    return folder


def test_the_real_coco_with_boxes(tmp_path):
    folder = shared("coco256_short320_labels.zip")
    splits = [load_coco_yolo(folder, split, tmp_path) for split in ("train", "val")]
    targets = np.concatenate([data.targets for data in splits])
    assert [len(data) for data in splits] == [128, 128]
    assert targets.any(0).sum() == 76, "of the 80 classes"
    assert targets.sum(1).mean() == pytest.approx(2.87, abs=0.005)
    assert [(~data.targets.any(1)).sum() for data in splits] == [2, 0], "two images without objects"
    assert all(min(data.load(0).size) == 320 for data in splits)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_real_patch_features(split):
    folder = shared(PATCHES, TEXT, "coco256_short320_labels.zip")
    data = load_coco_patches(folder, split)
    assert data.features.shape == (128, 1280, 7, 7)
    assert np.isfinite(data.features).all()
    assert len(data.boxes) == 128
    unit = data.clip / np.linalg.norm(data.clip, axis=1, keepdims=True)
    nearest = {data.classes[(unit @ unit[data.classes.index(name)]).argsort()[-2]] for name in ("fork", "cup")}
    assert nearest <= {"knife", "spoon", "wine glass", "bowl", "bottle"}, "the vectors are in the order of the classes"


def test_the_real_corel5k():
    folder = shared("corel5k")
    train, test = (load_corel5k(folder, split) for split in ("train", "test"))
    assert (len(train), len(test), len(train.words)) == (4500, 500, 374)
    assert train.words == test.words
    assert train.mask.sum(1).mean() == pytest.approx(8.18, abs=0.005)
    assert train.targets.sum(1).mean() == pytest.approx(3.52, abs=0.005)
    assert (train.tokens.min(), train.tokens.max()) == (PADDING, 498)
    assert {train.words[c] for c in np.flatnonzero(train.targets[0])} == {"city", "mountain", "sky", "sun"}


def test_the_catalogue_finds_the_real_data():
    folder = shared("corel5k", "coco256_short320_labels.zip", PATCHES)
    found = {known.title: known.found(folder) for known in KNOWN if known.places}
    assert found["COCO with YOLO labels"] == "coco256_short320_labels.zip, 256 images"
    assert (found["Corel5k"], found["COCO's patch features"]) == ("corel5k", "coco128_mnv2_patches.npz")
    assert not any(found[title] for title in ("MS-COCO 2014", "NUS-WIDE", "VG-500", "RAPv1", "PA-100K", "MLRSNet"))
