"""The data sets of blind matching: layouts that are read, files that are refused, texts that are the paper's."""

from __future__ import annotations

import json
import pickle
import shutil
import struct

import numpy as np
import pytest
from conftest import picture, refused, write

from reproductions.datasets import cifar, prompts
from reproductions.datasets.cifar import load_cifar
from reproductions.datasets.class_folders import load_cinic10, load_class_folders
from reproductions.datasets.coco_captions import load_coco_captions
from reproductions.datasets.imagenet100 import OWN_TEXTS, compact_md5, load_imagenet100
from reproductions.datasets.labelled import load_labelled
from reproductions.datasets.tiny_imagenet import load_tiny_imagenet_files

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 3072), dtype=np.uint8)
LABELS = list(range(0, 80, 2))


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote it: byte strings in place of text, and the array's bytes as such a string."""

    def string(x: bytes) -> bytes:
        return b"T" + struct.pack("<i", len(x)) + x

    def number(k: int) -> bytes:
        return b"J" + struct.pack("<i", k)

    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + number(0) + number(1) + b"tR("
    dtype += number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + string(b"b") + b"tR("
    array += number(1) + b"(" + b"".join(map(number, pixels.shape)) + b"t" + dtype + b"\x89"
    array += string(pixels.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"fine_labels") + listed + b"u."


def test_the_texts_are_those_of_the_paper():
    assert len(prompts.CIFAR) == 18
    assert compact_md5(prompts.CIFAR) == "b953684b7ed3a62cbea9fe4e30935ee2"
    assert compact_md5(prompts.IMAGENET) == "db66e19f33b5f2946e3c4507f15d3501"
    assert compact_md5(cifar.CIFAR100) == "12d781c14efb190464ad0c4843308a44"
    assert prompts.sentences(["cat", "dog"], ["a {}.", "{}!"]) == (("a cat.", "cat!"), ("a dog.", "dog!"))


def test_both_distributed_forms_of_cifar_100_are_the_same_images(tmp_path):
    path = tmp_path / "a" / "cifar-100-python" / "test"
    path.parent.mkdir(parents=True)
    path.write_bytes(python2_pickle(PIXELS, LABELS))
    records = np.column_stack([np.zeros(40, np.uint8), np.array(LABELS, np.uint8), PIXELS])
    (tmp_path / "b" / "cifar-100-binary").mkdir(parents=True)
    (tmp_path / "b" / "cifar-100-binary" / "test.bin").write_bytes(records.tobytes())
    a, b = load_cifar(tmp_path / "a", "cifar100"), load_cifar(tmp_path / "b", "cifar100")
    assert a.sha256 == b.sha256
    assert a.tier == "local"  # 40 images are not the 10,000 of the paper
    assert a.labels.tolist() == LABELS
    assert a.classes[41] == "lawn mower"
    assert a.texts[41][0] == "a photo of a lawn mower."
    red = np.asarray(a.images.load(3))[..., 0]
    assert (red == PIXELS[3, :1024].reshape(32, 32)).all()


def test_cifar_10_of_folders_is_in_the_order_of_classes(tmp_path):
    for k, name in enumerate(cifar.CIFAR10):
        picture(tmp_path / "cifar10" / "test" / name / "0.png", (k, 0, 0))
        picture(tmp_path / "cifar10" / "train" / name / "1.png")
    shutil.make_archive(str(tmp_path / "z" / "cifar10"), "zip", tmp_path / "cifar10")
    for folder in (tmp_path, tmp_path / "z"):
        data = load_cifar(folder, "cifar10")
        assert [data.images.load(i).getpixel((0, 0))[0] for i in range(len(data))] == data.labels.tolist()
    shutil.rmtree(tmp_path / "cifar10" / "test" / "deer")
    refused(lambda: load_cifar(tmp_path, "cifar10"), "lacks the class", "deer")
    shutil.move(tmp_path / "cifar10" / "test" / "dog", tmp_path / "cifar10" / "test" / "bat")
    refused(lambda: load_cifar(tmp_path, "cifar10"), "unknown class", "bat")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"data": PIXELS, "labels": LABELS}, "label from 0 to 9"),
        ({"data": PIXELS[:, :10], "labels": [0] * 40}, "(40, 10)"),
        ({"data": PIXELS, "labels": [0] * 39}, "label from 0 to 9"),
        ({"fine_labels": LABELS}, "labels"),
        ([1, 2], "labels"),
    ],
)
def test_a_bad_batch_is_refused(tmp_path, content, part):
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(content, protocol=2))
    refused(lambda: load_cifar(tmp_path, "cifar10"), path, part)


def test_what_is_no_cifar_is_refused(tmp_path):
    refused(lambda: load_cifar(tmp_path, "cifar10"), tmp_path, "cifar-10-batches-py/test_batch")
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.parent.mkdir()
    path.write_bytes(b"\0" * 3072)
    refused(lambda: load_cifar(tmp_path, "cifar10"), path, "3073")


def test_cinic_10_and_folders_of_classes(tmp_path):
    for name in cifar.CIFAR10:
        picture(tmp_path / "cinic-10" / "valid" / name / "b.png")
        picture(tmp_path / "cinic-10" / "valid" / name / "a.png")
        picture(tmp_path / "cinic-10" / "test" / name / "c.png")
    data = load_cinic10(tmp_path)
    assert data.images.names[:2] == ("valid/airplane/a.png", "valid/airplane/b.png")
    assert data.labels.tolist() == sorted([*range(10)] * 2)
    assert data.texts[0][0] == "itap of a airplane."
    refused(lambda: load_class_folders(tmp_path / "cinic-10"), "cinic-10", "test", "valid")
    own = load_labelled("valid", tmp_path / "cinic-10")
    assert (own.tier, own.classes, len(own)) == ("local", cifar.CIFAR10, 20)
    shutil.rmtree(tmp_path / "cinic-10" / "valid" / "cat")
    refused(lambda: load_cinic10(tmp_path), "9 classes")
    refused(lambda: load_cinic10(tmp_path / "cinic-10"), "no CINIC-10")
    refused(lambda: load_labelled("nothing", tmp_path), "nothing", "cifar100")
    (tmp_path / "empty").mkdir()
    refused(lambda: load_class_folders(tmp_path / "empty"), "empty", "<class>/<image>")


def test_imagenet_100_has_the_wnids_of_its_list_and_their_definitions(tmp_path):
    from timm.data import ImageNetInfo

    wnids = sorted(ImageNetInfo().label_names()[:101])
    for wnid in wnids:
        picture(tmp_path / "imagenet100" / "val" / wnid / "a.JPEG", size=(4, 4))
    refused(lambda: load_imagenet100(tmp_path), "IN100.txt")
    listed = write(tmp_path / "IN100.txt", "\n".join(reversed(wnids[:100])))
    data = load_imagenet100(tmp_path)
    assert len(data) == 100
    assert data.images.names[0].startswith(f"val/{wnids[0]}")
    assert data.texts[0][0].startswith("tench: freshwater")
    assert data.classes[0] == "tench"
    assert data.note == OWN_TEXTS
    given = write(tmp_path / "imagenet100" / "IN100_definitions.txt", "\n".join(f"text {k}" for k in range(100)))
    assert load_imagenet100(tmp_path).texts[7] == ("text 7",)
    write(given, "one\ntwo")
    refused(lambda: load_imagenet100(tmp_path), given, "2 definitions")
    for text, part in (("\n".join(wnids), "101"), ("cat", "cat"), ("\n".join([*wnids[:99], "n00000000"]), "n00000000")):
        write(listed, text)
        refused(lambda: load_imagenet100(tmp_path), "IN100.txt" if part != "n00000000" else "class", part)


def test_every_captioned_image_is_a_class(tmp_path):
    images = [{"id": 9, "file_name": "b.jpg"}, {"id": 4, "file_name": "a.jpg"}]
    annotations = [{"image_id": k, "caption": f"{k}, {c}"} for c in "xyz" for k in (4, 9)][:5]
    path = tmp_path / "coco" / "annotations" / "captions_val2017.json"
    write(path, json.dumps({"images": images, "annotations": annotations}))
    refused(lambda: load_coco_captions(tmp_path), "2 images that are missing")
    for name in ("a", "b"):
        picture(tmp_path / "coco" / "val2017" / f"{name}.jpg")
    data = load_coco_captions(tmp_path)
    assert data.classes == ("a", "b")
    assert data.texts == (("4, x", "4, y", "4, z"), ("9, x", "9, y"))
    assert data.labels.tolist() == [0, 1]
    write(path, json.dumps({"images": images, "annotations": annotations[:1]}))
    refused(lambda: load_coco_captions(tmp_path), "no caption", "b.jpg")
    write(path, json.dumps({"images": images[:1], "annotations": annotations[:1]}))
    refused(lambda: load_coco_captions(tmp_path), "image 4")
    write(path, json.dumps({"images": [{}], "annotations": []}))
    refused(lambda: load_coco_captions(tmp_path), path, "form")


def test_tiny_imagenet_takes_its_names_from_either_file(tmp_path):
    for wnid in ("n00000002", "n00000001"):
        picture(tmp_path / "tiny-imagenet-200" / "val" / wnid / "a.JPEG", size=(64, 64))
    refused(lambda: load_tiny_imagenet_files(tmp_path), "words.txt")
    write(tmp_path / "tinyimagenet200_names.json", json.dumps({"n00000001": "one, uno"}))
    refused(lambda: load_tiny_imagenet_files(tmp_path), "n00000002")
    write(tmp_path / "tiny-imagenet-200" / "words.txt", "n00000001\teins, one\nn00000002\tzwei")
    data = load_tiny_imagenet_files(tmp_path)
    assert data.classes == ("eins", "zwei")
    assert data.images.load(1).size == (64, 64)
