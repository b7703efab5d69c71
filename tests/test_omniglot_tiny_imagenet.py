"""Omniglot and Tiny-ImageNet, zipped and unpacked, made up and real."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from io import BytesIO

import numpy as np
import pytest
from conftest import SHARED, picture, refused
from PIL import Image

from reproductions.datasets.omniglot import DOWNLOADS, load_omniglot, load_one_shot_runs
from reproductions.datasets.tiny_imagenet import base_and_novel, load_tiny_imagenet, wnids


def drawing(row, side=105):
    """A PNG of one bit a pixel: a line of ink on white."""
    pixels = np.ones((side, side), dtype=bool)
    pixels[row] = False
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_omniglot_zipped_and_unpacked_count_a_shared_drawing_once(tmp_path):
    first = {
        "images_background_small1/Greek/character02/0002_01.png": drawing(2),
        "images_background_small1/Greek/character01/0001_01.png": drawing(1),
    }
    zipped(tmp_path / "images_background_small1.zip", first)
    second = tmp_path / "images_background_small2"
    for name, content in {
        "Greek/character01/0001_01.png": drawing(1),
        "Latin/character01/0003_01.png": drawing(3),
    }.items():
        (second / name).parent.mkdir(parents=True)
        (second / name).write_bytes(content)
    drawings = load_omniglot(tmp_path)
    assert drawings.classes == ("Greek/character01", "Greek/character02", "Latin/character01")
    assert drawings.labels.tolist() == [0, 1, 2]
    assert drawings.images.shape == (3, 1, 105, 105)
    assert drawings.images.dtype == np.float32
    assert drawings.images.sum((1, 2, 3)).tolist() == [105, 105, 105]
    assert (drawings.images[[0, 1, 2], 0, [1, 2, 3]] == 1).all(), "ink is 1"


def test_what_is_wrong_with_omniglot_is_said(tmp_path):
    refused(lambda: load_omniglot(tmp_path), tmp_path, "images_background_small1")
    path = tmp_path / "images_background.zip"
    name = "images_background/Greek/character01/1.png"
    zipped(path, {"images_background/Greek/1.png": drawing(0)})
    refused(lambda: load_omniglot(tmp_path), path, "no drawing")
    zipped(path, {name: drawing(0)[:-30]})
    refused(lambda: load_omniglot(tmp_path), f"{path}/{name}", "truncated")
    zipped(path, {name: drawing(0, side=28)})
    refused(lambda: load_omniglot(tmp_path), f"{path}/{name}", "28×28", "105×105")
    path.write_bytes(path.read_bytes()[:-30])
    refused(lambda: load_omniglot(tmp_path), path, "no whole zip")


def runs():
    """Twenty runs: test item k belongs to training class 20 − k + 1."""
    members = {}
    for run in (f"run{k:02d}" for k in range(1, 21)):
        numbers = range(1, 21)
        members |= {f"{run}/training/class{k:02d}.png": drawing(k) for k in numbers}
        members |= {f"{run}/test/item{k:02d}.png": drawing(50 + k) for k in numbers}
        lines = [f"{run}/test/item{k:02d}.png {run}/training/class{21 - k:02d}.png" for k in reversed(numbers)]
        members[f"{run}/class_labels.txt"] = ("\n".join(lines) + "\n").encode()
    return members


def test_the_one_shot_runs_zipped_and_unpacked(tmp_path):
    path = tmp_path / "all_runs.zip"
    zipped(path, runs())
    loaded = load_one_shot_runs(tmp_path)
    assert len(loaded) == 20
    for run in loaded:
        assert run.training.shape == run.test.shape == (20, 1, 105, 105)
        assert run.answers.tolist() == list(range(19, -1, -1))
        assert (run.training[range(20), 0, range(1, 21)] == 1).all()
        assert (run.test[range(20), 0, range(51, 71)] == 1).all()
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    unpacked = load_one_shot_runs(tmp_path / "unpacked")
    assert (unpacked[19].test == loaded[19].test).all()


def test_what_is_wrong_with_the_runs_is_said(tmp_path):
    refused(lambda: load_one_shot_runs(tmp_path), tmp_path, "all_runs.zip")
    path = tmp_path / "all_runs.zip"
    whole = runs()
    listing = "run01/class_labels.txt"
    for lost, parts in {
        "run01/test/item07.png": ("19 drawings in run01/test", "20 are expected"),
        "run01/training/class07.png": ("19 drawings in run01/training", "20 are expected"),
        listing: (f"no {listing}",),
    }.items():
        zipped(path, {name: content for name, content in whole.items() if name != lost})
        refused(lambda: load_one_shot_runs(tmp_path), path, *parts)
    for wrong in (b"", b"run01/test/item01.png", whole[listing].replace(b"class01", b"class02")):
        zipped(path, whole | {listing: wrong})
        refused(lambda: load_one_shot_runs(tmp_path), f"{path}/{listing}", "pair")


def test_tiny_imagenet_in_the_official_layout(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for c, wnid in enumerate(("n00000002", "n00000001", "n00000003")):
        picture(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", (50 * c, 0, 0), (64, 64))
        picture(root / "val" / "images" / f"val_{c}.JPEG", (0, 0, 50 * c), (64, 64))
        (root / "train" / wnid / f"{wnid}_boxes.txt").touch()
    annotations = root / "val" / "val_annotations.txt"
    annotations.write_text("".join(f"val_{c}.JPEG\tn0000000{k}\t0\t0\t62\t62\n" for c, k in enumerate((2, 1, 3))))
    for split, channel in (("train", 0), ("val", 2)):
        assert wnids(tmp_path, split) == ("n00000001", "n00000002", "n00000003")
        chosen = load_tiny_imagenet(tmp_path, split, ("n00000003", "n00000001"))
        assert chosen.images.shape == (2, 3, 64, 64)
        assert chosen.images.dtype == np.float32
        assert chosen.labels.tolist() == [0, 1]
        np.testing.assert_allclose(chosen.images[:, channel, 0, 0], np.array([100, 50]) / 255, atol=0.02)
    refused(lambda: load_tiny_imagenet(tmp_path, "val", ("n00000009",)), root, "n00000009", "val")
    image = root / "val" / "images" / "val_1.JPEG"
    picture(image, size=(32, 64))
    load_tiny_imagenet(tmp_path, "val", ("n00000003",))
    refused(lambda: load_tiny_imagenet(tmp_path, "val", ("n00000001",)), image, "32×64", "64×64")
    image.write_bytes(image.read_bytes()[:200])
    refused(lambda: load_tiny_imagenet(tmp_path, "val", ("n00000001",)), image, "truncated")
    image.unlink()
    refused(lambda: wnids(tmp_path, "val"), annotations, image)
    refused(lambda: wnids(tmp_path, "test"), "test", "train, val")
    shutil.rmtree(root / "train")
    refused(lambda: wnids(tmp_path, "train"), root, "train/<wnid>/")
    refused(lambda: wnids(tmp_path / "nowhere", "train"), tmp_path / "nowhere", "tiny-imagenet-200")


def test_the_classes_of_tiny_imagenet_are_split_the_same_everywhere():
    names = [f"n{k:08d}" for k in range(200)]
    base, novel = base_and_novel(names[::-1])
    assert (len(base), len(novel)) == (150, 50)
    assert sorted(base + novel) == names
    assert [names.index(n) for n in novel[:8]] == [7, 12, 14, 21, 24, 26, 29, 31]
    with pytest.raises(ValueError, match="200 classes, but 199 were given"):
        base_and_novel(names[1:])


def shared(*names):
    """The folder of the real files; the test skips where one is absent."""
    folder = SHARED / "data"
    if not all((folder / name).exists() for name in names):
        pytest.skip("the real data are not at hand")
    return folder


def test_the_real_omniglot():
    folder = shared("omniglot/images_background_small1.zip", "omniglot/images_background_small2.zip") / "omniglot"
    drawings = load_omniglot(folder)
    assert len(drawings.images) == 4840, "2720 + 3120 drawings, of which the two parts share 1000"
    assert len(drawings.classes) == 242
    assert (np.bincount(drawings.labels) == 20).all()
    assert set(np.unique(drawings.images)) == {0.0, 1.0}
    assert 0.01 < drawings.images.mean() < 0.1, "ink is 1 and rare"


def test_the_real_one_shot_runs():
    folder = shared("omniglot/all_runs.zip") / "omniglot"
    loaded = load_one_shot_runs(folder)
    assert loaded[0].answers[:5].tolist() == [7, 8, 1, 18, 9]
    assert len({run.training.tobytes() for run in loaded}) == 20
    for run in loaded:
        assert sorted(run.answers) == list(range(20))


@pytest.mark.parametrize("download", DOWNLOADS, ids=lambda d: d.file)
def test_the_real_omniglot_files_have_the_hashes_of_the_table(download):
    path = shared(f"omniglot/{download.file}") / "omniglot" / download.file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == download.sha256


def test_the_real_tiny_imagenet():
    folder = shared("tinyimagenet200_val10000.zip", "tinyimagenet200_train50perclass.zip")
    base, novel = base_and_novel(wnids(folder, "val"))
    assert set(wnids(folder, "train")) == {*base, *novel}
    for split in ("train", "val"):
        chosen = load_tiny_imagenet(folder, split, novel[:2])
        assert chosen.images.shape == (100, 3, 64, 64)
        assert np.bincount(chosen.labels).tolist() == [50, 50]
        assert 0.2 < chosen.images.mean() < 0.8
