"""Files of other people's: nothing in them is run, leaves its folder, fills the disk, or becomes markup."""

from __future__ import annotations

import ast
import io
import os
import pickle
import struct
import tarfile
import tomllib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refused
from test_cli import run  # noqa: F401
from test_reproductions import CLAIMS

import reproductions
from reproductions.claims import Paper
from reproductions.datasets import archives, cifar
from reproductions.datasets.annotations import read_arrays, read_matlab
from reproductions.datasets.archives import unpack
from reproductions.datasets.class_vectors import HUMAN, load_human_answers
from reproductions.datasets.files import decode, open_tree, unpacked
from reproductions.datasets.labelled_images import OnDisk
from reproductions.datasets.nus_wide import _array, _seen_and_unseen
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import load_encoder
from reproductions.features.clip import read_weights
from reproductions.features.vision_models import load_vision_model
from reproductions.match_files import read_embeddings
from reproductions.multi_label.checkpoints import load_weights
from reproductions.report import COLUMNS, cell, markdown
from reproductions.scot.backbones import Backbone
from reproductions.solve_file import read_problem
from reproductions.storage import Cache
from reproductions.training import Training

ROOT = Path(reproductions.__file__).parents[1]

# ------------------------------------------------------------------------------------------------------------- pickles


class Payload:
    """What a pickle may do to whoever reads it: here it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def bare(thing, path):
    path.write_bytes(pickle.dumps(thing, protocol=2))


def of_torch(thing, path):
    torch.save(thing, path)


def old_torch(thing, path):
    torch.save(thing, path, _use_new_zipfile_serialization=False)


def object_array(thing, path):
    with path.open("wb") as file:  # by name, NumPy would add its own suffix
        np.save(file, np.array([thing], dtype=object), allow_pickle=True)


def object_arrays(thing, path):
    with path.open("wb") as file:
        np.savez(file, cost=np.array([thing], dtype=object), x=np.array([thing], dtype=object))


def batch_of_cifar(path):
    folder = path.parent / "cifar-10-batches-py"
    folder.mkdir()
    path.rename(folder / "test_batch")
    cifar.load_cifar(path.parent, "cifar10")


def human_answers(path):
    place = path.parent / HUMAN
    place.parent.mkdir()
    path.rename(place)
    load_human_answers(path.parent)


def weights_of_timm(path):
    place = path.parent / "weights" / f"mobilenetv2_100_same{path.suffix}"
    place.parent.mkdir()
    path.rename(place)
    return load_vision_model("MobileNetV2", path.parent).network


ARRAYS, WEIGHTS = (bare, object_array, object_arrays), (bare, of_torch, old_torch)
READERS = {
    "a problem": ("problem.npz", ARRAYS, lambda path: read_problem(path, None, None)),
    "embeddings": ("x.npy", ARRAYS, read_embeddings),
    "embeddings in an archive": ("x.npz", ARRAYS, read_embeddings),
    "arrays of features": ("x.npz", ARRAYS, lambda path: read_arrays(path, "x")),
    "NUS-WIDE's labels": ("labels.npy", ARRAYS, _array),
    "CIFAR-10H": ("answers.npy", ARRAYS, human_answers),
    "a batch of CIFAR": ("batch", ARRAYS[:1], batch_of_cifar),
    "NUS-WIDE's classes": ("cls_id.pickle", ARRAYS[:1], lambda path: _seen_and_unseen(path, 3)),
    "an annotation": ("a.mat", ARRAYS, read_matlab),
    "CLIP's weights": ("clip.pt", WEIGHTS, read_weights),
    "CLIP's weights, safe ones": ("clip.safetensors", WEIGHTS, read_weights),
    "DeepEMD's checkpoint": ("max_acc.pth", WEIGHTS, lambda path: load_encoder(path, ResNet12((2, 2, 2, 2)))),
    "SCOT's backbone": ("resnet.pth", WEIGHTS, lambda path: Backbone("m", (0,), path).loaded(torch.nn.Linear(1, 1))),
    "timm's weights": ("weights.pth", WEIGHTS, weights_of_timm),
    "trained weights": ("a.safetensors", WEIGHTS, lambda path: load_weights(path, torch.nn.Linear(1, 1))),
}


@pytest.mark.parametrize(
    ("reader", "form"), [(name, form) for name, (_, forms, _) in READERS.items() for form in forms]
)
def test_a_disguised_pickle_is_refused_and_its_payload_not_run(tmp_path, reader, form):
    name, _, read = READERS[reader]
    mark, path = tmp_path / "mark", tmp_path / "files" / name
    path.parent.mkdir()
    form(Payload(mark), path)
    refused(lambda: read(path), tmp_path / "files")
    assert not mark.exists()


@pytest.mark.parametrize("form", WEIGHTS)
def test_a_payload_beside_weights_is_not_run_either(tmp_path, form):
    mark, path = tmp_path / "mark", tmp_path / "clip.pt"
    form({"state_dict": {"x": torch.zeros(1), "y": Payload(mark)}}, path)
    refused(lambda: read_weights(path), path)
    assert not mark.exists()


@pytest.mark.parametrize("form", WEIGHTS)
def test_a_payload_in_the_place_of_a_training_s_state_is_not_run(tmp_path, form):
    mark, path = tmp_path / "mark", tmp_path / "state"
    form(Payload(mark), path)
    model, epochs = torch.nn.Linear(1, 1), []
    optimizers = [torch.optim.SGD(model.parameters(), 0.1)]
    Training(model, optimizers, lambda *_: [model(torch.ones(1, 1)).sum()], 1, path).run(epochs.append)
    assert len(epochs) == 1, "it begins anew"
    assert not mark.exists()


def test_a_payload_in_the_cache_is_not_run(tmp_path):
    cache, mark = Cache(tmp_path), tmp_path / "mark"
    for suffix in (".json", ".safetensors"):
        path = cache.path("kind", "key", suffix)
        path.parent.mkdir(exist_ok=True)
        bare(Payload(mark), path)
    assert cache.read_json("kind", "key") is None
    assert cache.tensors("kind", "key", lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]
    assert not mark.exists()


def test_the_payload_does_run_where_pickles_are_read(tmp_path):
    """Else the tests above would show nothing."""
    bare(Payload(tmp_path / "mark"), tmp_path / "file")
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "mark").is_dir()


# ------------------------------------------------------------------------------------------------------------ archives


def tar_with(name, kind=tarfile.REGTYPE, target="", suffix=".tar"):
    def make(folder):
        path = folder / f"a{suffix}"
        with tarfile.open(path, "w:gz" if suffix == ".tgz" else "w") as archive:
            for entry, what in (("SET/first.txt", tarfile.REGTYPE), (name, kind)):
                member = tarfile.TarInfo(entry)
                member.type, member.linkname = what, target if what == kind else ""
                member.size = 4 if what == tarfile.REGTYPE else 0
                archive.addfile(member, io.BytesIO(b"evil"))
        return path

    return make


def zip_with(name, mode=0):
    def make(folder):
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("SET/first.txt", "text")
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, "/etc/passwd")
        return folder / "a.zip"

    return make


OUTSIDE, LINK = "outside the folder", "a link or a device"
MALICIOUS = {
    "tar, parent": (tar_with("SET/../../evil"), OUTSIDE),
    "tar, absolute": (tar_with("/tmp/evil"), OUTSIDE),
    "tgz, parent": (tar_with("../evil", suffix=".tgz"), OUTSIDE),
    "tar, symbolic link": (tar_with("SET/link", tarfile.SYMTYPE, "/etc"), LINK),
    "tar, symbolic link inside": (tar_with("SET/link", tarfile.SYMTYPE, "first.txt"), LINK),
    "tar, hard link": (tar_with("SET/link", tarfile.LNKTYPE, "../../secret"), LINK),
    "tar, device": (tar_with("SET/null", tarfile.CHRTYPE), LINK),
    "tar, pipe": (tar_with("SET/pipe", tarfile.FIFOTYPE), LINK),
    "zip, parent": (zip_with("../evil"), OUTSIDE),
    "zip, absolute": (zip_with("/tmp/evil"), OUTSIDE),
    "zip, drive": (zip_with("C:evil"), OUTSIDE),
    "zip, backslashes": (zip_with("SET\\..\\..\\evil"), OUTSIDE),
    "zip, symbolic link": (zip_with("SET/link", 0o120777), LINK),
}


@pytest.mark.parametrize("what", MALICIOUS)
def test_a_malicious_archive_is_refused_and_nothing_of_it_remains(tmp_path, what):
    make, words = MALICIOUS[what]
    data, storage = tmp_path / "data", tmp_path / "storage"
    data.mkdir()
    path = make(data)
    before = sorted(tmp_path.parent.rglob("*"))
    refused(lambda: unpacked(data, ("SET",), storage), path, "is refused", words)
    assert sorted(p for p in tmp_path.parent.rglob("*") if p != storage) == before
    assert not list(storage.iterdir())


def bomb(path):
    """Ten megabytes of zeros in a few kilobytes."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for k in range(10):
                archive.writestr(f"SET/test/a/{k}.png", bytes(2**20))
    elif path.suffix == ".npz":
        np.savez_compressed(path, x=np.zeros((1024, 1280)), cost=np.zeros((2, 2)))
    else:
        with tarfile.open(path, "w:gz") as archive:
            for k in range(10):
                member = tarfile.TarInfo(f"SET/{k}")
                member.size = 2**20
                archive.addfile(member, io.BytesIO(bytes(2**20)))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path, monkeypatch, suffix):
    path = bomb(tmp_path / f"a{suffix}")
    unpack(path, tmp_path / "small")
    assert sum(p.stat().st_size for p in (tmp_path / "small").rglob("*") if p.is_file()) == 10 * 2**20
    monkeypatch.setattr(archives, "SMALL", 2**21)
    refused(lambda: unpack(path, tmp_path / "large"), path, "100 times its own size")
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "small"]


def test_a_bomb_that_is_read_in_place_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 2**21)
    path = bomb(tmp_path / "a.zip")

    def opened():
        with open_tree(path):
            pass

    refused(opened, path, "100 times")
    refused(lambda: OnDisk(path, ("SET/test/a/0.png",)).load(0), path, "100 times")
    arrays = bomb(tmp_path / "a.npz")
    for read in (read_embeddings, lambda p: read_arrays(p, "x"), lambda p: read_problem(p, None, None)):
        refused(lambda read=read: read(arrays), arrays, "100 times")


def test_an_image_of_more_pixels_than_memory_is_refused():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    refused(lambda: decode(image, "huge.png"), "huge.png", "far too large")


def test_an_archive_with_a_password_is_one_sentence(tmp_path):
    path = zip_with("SET/second.txt")(tmp_path)
    content = bytearray(path.read_bytes())
    for beginning, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := content.find(beginning, start)) >= 0:
            content[start + flag] |= 1
            start += 1
    path.write_bytes(content)
    refused(lambda: unpack(path, tmp_path / "there"), path, "cannot be unpacked")


def test_an_archive_that_is_fine_is_unpacked(tmp_path):
    name = "SET/a/second.txt"
    for make in (tar_with(name), tar_with(name, suffix=".tgz"), zip_with(name)):
        path = make(tmp_path)
        place = tmp_path / path.name.replace(".", "-")
        unpack(path, place)
        assert (place / name).is_file()


def test_a_full_disk_is_not_the_archive_s_fault(tmp_path, monkeypatch):
    path = zip_with("SET/second.txt")(tmp_path)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(path, tmp_path / "there")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


# -------------------------------------------------------------------------------------------------------------- tables

EVIL = "<script>alert(1)</script> | x\n\n# y [z](javascript:alert(1)) \\| &amp;"


def test_text_of_files_stays_one_cell_of_a_markdown_table():
    row = dict.fromkeys(COLUMNS, "") | {"metric": "pck", "measured": 1.0, "ci_low": 0.0, "ci_high": 2.0, "n": 3}
    row |= {"published": None}
    evil = row | dict.fromkeys(("row", "column", "tier", "data", "verdict", "reason"), EVIL)
    paper = Paper.model_validate(tomllib.loads(CLAIMS))
    text = markdown(paper, "t", pd.DataFrame([row, evil], columns=COLUMNS), [])
    assert "<script" not in text
    assert "](javascript" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    bars = [sum(part.count("|") for part in line.replace("\\\\", "").replace("\\|", "").split()) for line in lines]
    assert bars == [8] * 4
    assert not [line for line in text.splitlines()[1:] if line.startswith("#")]


def test_plain_text_is_left_as_it_is():
    for text in ("DeepEMD (5×5), ε = 0.05", "n > 100: pip install 'matchmark[text]'", "1.0"):
        assert cell(text) == text


# ------------------------------------------------------------------------------------------------------------- sources

SAFE = "reproductions/datasets/safe_pickle.py", "reproductions/datasets/archives.py"
LOADERS = {"load", "loads", "Unpickler", "unpack_archive"}
FORBIDDEN = {
    *(f"{module}.{name}" for module in ("pickle", "cloudpickle", "dill", "marshal", "joblib") for name in LOADERS),
    *("yaml.load", "yaml.unsafe_load", "shelve.open", "eval", "exec", "os.system", "os.popen", "requests.get"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file"),
}
METHODS = {"extractall", "extract", "unpack_archive", "read_pickle", "urlretrieve", "urlopen", "PackageImporter"}
NEEDED = {
    **dict.fromkeys(("np.load", "numpy.load"), ("allow_pickle", False)),
    **dict.fromkeys(("torch.load", "timm.models.load_state_dict"), ("weights_only", True)),
}
OF_LIBRARIES = ("pickle", "joblib", "shutil", "numpy", "torch", "timm.models")


def unsafe(text):
    """The lines of a source that read files of others in a way that may run them, or fetch what nobody checks."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("http://"):
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module in OF_LIBRARIES:
            yield from (node.lineno for alias in node.names if alias.name in LOADERS | {"load_state_dict"})
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        method = isinstance(node.func, ast.Attribute) and node.func.attr in METHODS
        if name in FORBIDDEN or method or given.get("shell") or given.get("trust_remote_code"):
            yield node.lineno
        if name in NEEDED and given.get(NEEDED[name][0], ...) is not NEEDED[name][1]:
            yield node.lineno


@pytest.mark.parametrize("folder", ["solvers", "reproductions", "benchmarks"])
def test_no_source_reads_files_in_a_way_that_may_run_them(folder):
    paths = [path for path in (ROOT / folder).rglob("*.py") if path.relative_to(ROOT).as_posix() not in SAFE]
    assert paths
    assert [f"{path}:{line}" for path in paths for line in unsafe(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=chosen)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(x)",
        "from pickle import load",
        "joblib.load(path)",
        "pd.read_pickle(path)",
        "tarfile.open(path).extractall(folder)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "yaml.load(text)",
        "torch.hub.load_state_dict_from_url(url)",
        "place = 'http://example.org'",
    ],
)
def test_an_unsafe_source_is_found(line):
    assert list(unsafe(line)) == [1]


def test_only_one_file_unpacks_archives():
    found = {name: list(unsafe((ROOT / name).read_text())) for name in SAFE}
    assert {name: len(lines) for name, lines in found.items()} == {SAFE[0]: 0, SAFE[1]: 2}
