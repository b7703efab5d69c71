"""The correspondence data sets, in tiny copies of their official layouts; PF-WILLOW itself where it is at hand."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from scipy.io import savemat

from reproductions import UserError
from reproductions.datasets.correspondence import image_size, read_image
from reproductions.datasets.pf_pascal import load_pf_pascal
from reproductions.datasets.pf_willow import load_pf_willow
from reproductions.datasets.spair import load_spair


def refuses(load, *names):
    """The load raises one sentence that names these."""
    with pytest.raises(UserError) as caught:
        load()
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert not sentence.endswith(".")
    assert all(str(name) in sentence for name in names), sentence


def picture(path: Path, width: int, height: int, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def matrix(path: Path, **content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)


# ---------------------------------------------------------------------------------------------------------- PF-PASCAL

CAT_A = np.array([[3.0, 4.0], [np.nan, np.nan], [20.5, 10.0], [7.0, 29.0]])
CAT_B = np.array([[1.0, 2.0], [5.0, 6.0], [np.nan, np.nan], [39.0, 19.0]])


@pytest.fixture
def pf_pascal(tmp_path):
    folder = tmp_path / "PF-PASCAL"
    for name, size, kps in (("2008_000001", (24, 32), CAT_A), ("2008_000002", (40, 20), CAT_B)):
        picture(folder / "JPEGImages" / f"{name}.jpg", *size)
        matrix(folder / "Annotations" / "cat" / f"{name}.mat", kps=kps, bbox=np.array([[0, 0, 9, 9]]))
    images = "images/2008_000001.jpg,images/2008_000002.jpg"
    (folder / "test_pairs.csv").write_text(f"source_image,target_image,class,XA,YA,XB,YB\n{images},8,1;2,1;2,1;2,1;2\n")
    (folder / "trn_pairs.csv").write_text(f"source_image,target_image,class,flip\n{images},8,0\n{images},8,1\n")
    return tmp_path


def test_pf_pascal_keeps_the_keypoints_of_both_images(pf_pascal):
    data = load_pf_pascal(pf_pascal)
    (pair,) = data.pairs
    assert (data.convention, data.categories, data.split) == ("image", ("cat",), "test")
    np.testing.assert_array_equal(pair.source_keypoints, CAT_A[[0, 3]])
    np.testing.assert_array_equal(pair.target_keypoints, CAT_B[[0, 3]])
    assert pair.source_keypoints.dtype == np.float64
    assert (pair.threshold, pair.flip, pair.source_mask) == (40.0, False, None)
    assert [i.shape for i in pair.images()] == [(32, 24, 3), (20, 40, 3)]


def test_pf_pascal_mirrors_the_second_half_of_its_training_pairs(pf_pascal):
    plain, mirrored = load_pf_pascal(pf_pascal, "trn").pairs
    assert (plain.flip, mirrored.flip) == (False, True)
    np.testing.assert_array_equal(mirrored.source_keypoints, [[21.0, 4.0], [17.0, 29.0]])
    np.testing.assert_array_equal(mirrored.target_keypoints, [[39.0, 2.0], [1.0, 19.0]])
    for a, b in zip(plain.images(), mirrored.images(), strict=True):
        np.testing.assert_array_equal(a[:, ::-1], b)


def test_pf_pascal_names_the_file_that_is_wrong(pf_pascal):
    folder, load = pf_pascal / "PF-PASCAL", lambda: load_pf_pascal(pf_pascal)
    refuses(lambda: load_pf_pascal(pf_pascal, "train"), "train", "trn, val, test")
    refuses(lambda: load_pf_pascal(pf_pascal, "val"), "val_pairs.csv")
    refuses(lambda: load_pf_pascal(pf_pascal, masks=pf_pascal / "masks"), "masks/2008_000001.jpg")
    annotation = folder / "Annotations" / "cat" / "2008_000002.mat"
    for content, words in (
        ({"bbox": np.zeros((1, 4))}, "kps"),
        ({"kps": np.zeros((3, 2))}, "3"),
        ({"kps": np.zeros((4, 3))}, "(4, 3)"),
        ({"kps": np.full((4, 2), np.nan)}, "share no keypoint"),
        ({"kps": CAT_B + np.array([0, 3])}, "keypoint 1"),
        ({"kps": CAT_B - np.array([2.5, 0])}, "(-1.5, 2)"),
    ):
        matrix(annotation, **content)
        refuses(load, annotation, words)
    annotation.write_bytes(b"not a matrix" * 20)
    refuses(load, annotation, "cannot be read")
    annotation.unlink()
    refuses(load, annotation)
    table = folder / "test_pairs.csv"
    for text, words in (
        ("source,target,class\na,b,8\n", "source_image,target_image,class"),
        ("source_image,target_image,class\na.jpg,b.jpg\n", "line 2"),
        ("source_image,target_image,class\na.jpg,b.jpg,21\n", "'21'"),
        ("source_image,target_image,class\n", "lists no pairs"),
    ):
        table.write_text(text)
        refuses(load, table, words)
    (folder / "trn_pairs.csv").write_text("source_image,target_image,class,flip\na.jpg,b.jpg,8,yes\n")
    refuses(lambda: load_pf_pascal(pf_pascal, "trn"), "trn_pairs.csv", "'yes'")


def test_hashes_do_not_depend_on_where_the_files_lie(pf_pascal, tmp_path):
    before = load_pf_pascal(pf_pascal).sha256
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (pf_pascal / "PF-PASCAL").rename(moved / "PF-PASCAL")
    assert load_pf_pascal(moved).sha256 == before
    matrix(moved / "PF-PASCAL" / "Annotations" / "cat" / "2008_000002.mat", kps=CAT_B + 0.25)
    assert load_pf_pascal(moved).sha256 != before


def test_broken_images_are_named(tmp_path):
    for name in ("a.png", "a.jpg"):
        path = tmp_path / name
        picture(path, 60, 40)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert image_size(path) == (40, 60), "the header alone is read"
        refuses(lambda path=path: read_image(path), path)
    (tmp_path / "b.png").write_text("no image")
    for read in (read_image, image_size):
        refuses(lambda read=read: read(tmp_path / "b.png"), "b.png")
        refuses(lambda read=read: read(tmp_path / "c.png"), "c.png is missing")
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.full((4, 5, 3), 7))


# ---------------------------------------------------------------------------------------------------------- PF-WILLOW

DUCK = np.random.default_rng(1).uniform(0, 30, (3, 10, 2))


@pytest.fixture
def pf_willow(tmp_path):
    for k in range(3):
        for folder in ("PF-dataset-WILLOW", "PF-WILLOW"):
            picture(tmp_path / folder / "duck(S)" / f"{k}.png", 32, 30)
        matrix(tmp_path / "PF-dataset-WILLOW" / "duck(S)" / f"{k}.mat", pts_coord=DUCK[k].T)
    header = ",".join(["imageA", "imageB", *(f"{c}{k}" for c in ("XA", "YA", "XB", "YB") for k in range(10))])
    rows = [
        ",".join([f"PF-WILLOW/duck(S)/{a}.png,PF-WILLOW/duck(S)/{b}.png", *map(repr, numbers(a) + numbers(b))])
        for a, b in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))
    ]
    (tmp_path / "PF-WILLOW" / "test_pairs.csv").write_text("\n".join([header, *rows]) + "\n")
    return tmp_path


def numbers(k: int) -> list[float]:
    return [float(x) for x in DUCK[k].T.ravel()]


def test_both_layouts_of_pf_willow_hold_the_same_pairs(pf_willow, tmp_path):
    data = load_pf_willow(pf_willow)
    (pf_willow / "PF-dataset-WILLOW").rename(tmp_path / "away")
    listed = load_pf_willow(pf_willow)
    assert len(data.pairs) == 6
    assert data.sha256 == listed.sha256
    pair = listed.pairs[3]
    assert (pair.source.name, pair.target.name, pair.category) == ("1.png", "2.png", "duck(S)")
    assert pair.source.exists()
    np.testing.assert_array_equal(pair.source_keypoints, DUCK[1])
    assert pair.threshold == max(np.ptp(DUCK[2][:, 0]), np.ptp(DUCK[2][:, 1]))


def test_pf_willow_finds_masks_only_when_asked(pf_willow):
    masks = pf_willow / "masks"
    refuses(lambda: load_pf_willow(pf_willow, masks), "masks/duck(S)/0.png")
    for k in range(3):
        picture(masks / "duck(S)" / f"{k}.png", 32, 30)
    pair = load_pf_willow(pf_willow, masks).pairs[0]
    assert (pair.source_mask, pair.target_mask) == (masks / "duck(S)" / "0.png", masks / "duck(S)" / "1.png")
    assert load_pf_willow(pf_willow).pairs[0].target_mask is None


def test_pf_willow_names_the_file_that_is_wrong(pf_willow, tmp_path):
    load = lambda: load_pf_willow(pf_willow)  # noqa: E731
    annotation = pf_willow / "PF-dataset-WILLOW" / "duck(S)" / "1.mat"
    for content, words in (
        ({"pts": DUCK[0].T}, "pts_coord"),
        ({"pts_coord": DUCK[0]}, "(10, 2)"),
        ({"pts_coord": DUCK[0].T + 3}, "lies outside"),
    ):
        matrix(annotation, **content)
        refuses(load, annotation, words)
    annotation.unlink()
    refuses(load, annotation)
    (pf_willow / "PF-dataset-WILLOW").rename(tmp_path / "away")
    table = pf_willow / "PF-WILLOW" / "test_pairs.csv"
    text = table.read_text()
    first = repr(numbers(0)[0])
    for bad, words in (
        (text.replace(first, "x", 1), "line 2"),
        (text.replace(first, "nan", 1), "line 2"),
        (text.replace(first, "40", 1), "keypoint 0"),
        ("imageA,imageB,XA\na,b,1\n", "42 columns"),
    ):
        table.write_text(bad)
        refuses(load, table, words)
    table.unlink()
    refuses(load, table)
    refuses(lambda: load_pf_willow(tmp_path / "away"), tmp_path / "away", "PF-dataset-WILLOW")
    (tmp_path / "none" / "PF-dataset-WILLOW").mkdir(parents=True)
    refuses(lambda: load_pf_willow(tmp_path / "none"), "holds no images")


def test_pf_willow_itself(tmp_path):
    archive = SHARED / "data" / "pf_willow_with_scot_masks.tar"
    if not archive.exists():
        pytest.skip("PF-WILLOW is not at hand")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    data = load_pf_willow(tmp_path, masks=tmp_path / "PF-WILLOW-FCN")
    assert len(data.pairs) == 900
    assert len(data.categories) == 10
    assert {p.source_keypoints.shape for p in data.pairs} == {p.target_keypoints.shape for p in data.pairs} == {(10, 2)}
    assert len({(p.source, p.target) for p in data.pairs}) == 900
    assert all(p.source.parent == p.target.parent and p.source != p.target for p in data.pairs)
    for pair in data.pairs[::97]:
        for path, mask in ((pair.source, pair.source_mask), (pair.target, pair.target_mask)):
            assert image_size(path) == image_size(mask)
        assert 0 < pair.threshold <= max(image_size(pair.target))


# ---------------------------------------------------------------------------------------------------------- SPair-71k


@pytest.fixture
def spair(tmp_path):
    folder = tmp_path / "SPair-71k"
    for k, (width, height) in enumerate(((50, 40), (60, 30))):
        picture(folder / "JPEGImages" / "dog" / f"2008_00000{k}.jpg", width, height)
    line = "000001-2008_000000-2008_000001:dog"
    content = {"src_kps": [[1, 2], [49, 39]], "trg_kps": [[3, 4], [50, 5]], "trg_bndbox": [2, 3, 52, 24]}
    for path, text in (
        (folder / "PairAnnotation" / "test" / f"{line}.json", json.dumps(content)),
        (folder / "Layout" / "large" / "test.txt", line + "\n"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_spair_measures_by_the_annotated_box(spair):
    data = load_spair(spair)
    (pair,) = data.pairs
    assert (data.convention, pair.category, pair.threshold) == ("box", "dog", 50.0)
    np.testing.assert_array_equal(pair.source_keypoints, [[1, 2], [49, 39]])
    np.testing.assert_array_equal(pair.target_keypoints, [[3, 4], [50, 5]])
    assert pair.images()[1].shape == (30, 60, 3)


def test_spair_names_the_file_that_is_wrong(spair):
    folder, load = spair / "SPair-71k", lambda: load_spair(spair)
    (annotation,) = (folder / "PairAnnotation" / "test").iterdir()
    layout = folder / "Layout" / "large" / "test.txt"
    refuses(lambda: load_spair(spair, "large"), "large", "trn, val, test")
    refuses(lambda: load_spair(spair, "val"), "val.txt")
    refuses(lambda: load_spair(spair, masks=spair), spair / "dog" / "2008_000000.jpg")
    content = json.loads(annotation.read_text())
    for bad, words in (
        ({k: v for k, v in content.items() if k != "src_kps"}, "src_kps"),
        ({**content, "src_kps": [[1, 2]]}, "(1, 2)"),
        ({**content, "src_kps": []}, "(0,)"),
        ({**content, "trg_bndbox": [1, 2, 3]}, "cannot be read"),
        ({**content, "trg_kps": [[3, 4], [50, 35]]}, "keypoint 1"),
    ):
        annotation.write_text(json.dumps(bad))
        refuses(load, annotation, words)
    annotation.write_text('{"src_kps"')
    refuses(load, annotation)
    annotation.unlink()
    refuses(load, annotation)
    for text in ("000001-2008_000000:dog\n", "000001-2008_000000-2008_000001\n", ""):
        layout.write_text(text)
        refuses(load, layout)
