"""The full-size path on a few images: data sets, weights, training, tests and tables, as a user would run them."""

from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
import sys
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from conftest import refused
from PIL import Image

import reproductions.experiment
from reproductions.claims import load_paper
from reproductions.datasets import coco
from reproductions.experiment import Options, _not_run, reproduce
from reproductions.features.clip import load_clip
from reproductions.machine import Machine
from reproductions.multi_label import full_size, train_command
from reproductions.multi_label.average_precision import mean_average_precision
from reproductions.multi_label.checkpoints import load_weights
from reproductions.multi_label.evaluation import scores
from reproductions.multi_label.precision_recall import precision_recall, top
from reproductions.patchct import official as patchct
from reproductions.ram import official as ram
from reproductions.statistics import verdict

TINY = "tiny-at-full-size"
COUNT = 8
PAPERS = {"ram": ram.FULL, "patchct": patchct.FULL}


@pytest.fixture
def tiny(monkeypatch):
    """A CLIP of two narrow blocks for images of 32 px, by its name in open_clip."""
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 2, "head_width": 12},
        "text_cfg": {"width": 20, "layers": 2, "heads": 2},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, TINY, config)
    return TINY


def write_coco(root: Path) -> None:
    """Eight images for training and eight to test on, in COCO's layout and in RAM's, each with a few labels."""
    rng = np.random.default_rng(0)
    folder = root / "coco"
    lists = {name: [] for name in ("train", "zsl", "gzsl")}
    for number, part in enumerate(("train2014", "val2014")):
        (folder / part).mkdir(parents=True)
        images, annotations = [], []
        for k in range(COUNT):
            name = f"COCO_{part}_{k:012d}.jpg"
            Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / part / name)
            chosen = [coco.SEEN[(k + number) % 3], coco.SEEN[3 + k % 2], coco.UNSEEN[k % 4]]
            images.append({"id": k, "file_name": name})
            annotations += [{"image_id": k, "category_id": coco.CLASSES.index(c) + 1} for c in chosen]
            for setting, kept in (("train", coco.SEEN), ("zsl", coco.UNSEEN), ("gzsl", coco.SEEN + coco.UNSEEN)):
                if (setting == "train") == (part == "train2014"):
                    entry = [f"/mnt/elsewhere/{part}/{name}", [c for c in chosen if c in kept]]
                    lists[setting].append(entry)
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(coco.CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(folder / "annotations" / f"instances_{part}.json", content)
    classes = {"train_48": coco.SEEN, "test_17": coco.UNSEEN, "test_65": coco.SEEN + coco.UNSEEN}
    for (name, names), images in zip(classes.items(), lists.values(), strict=True):
        content = {"images": images, "classes": list(names)}
        write_json(folder / "annotations" / f"{name}_filtered.json", content)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def small(paper, folder: Path, backbone: str = "", changes: dict[str, str] | None = None):
    """The paper with its own configurations, but for a single epoch of batches of four."""
    few = {"batch": "4", "test_batch": "3", "epochs": "1", **(changes or {})}
    folder.mkdir(parents=True)
    for path in paper.configurations.glob("*.toml"):
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
        lines = [f"{key} = {few[key]}" if (key := line.partition(" =")[0]) in few else line for line in lines]
        text = "\n".join(lines)
        (folder / path.name).write_text(text.replace("ViT-B-16-quickgelu", backbone or "ViT-B-16-quickgelu"))
    return replace(paper, configurations=folder)


def tiny_paper(paper, folder: Path):
    own = {"ram": {"text_layers": "[1]\nlayers = [0, 1]"}, "patchct": {"layers": "[0, -1]"}}[paper.paper]
    return small(paper, folder, TINY, {"side": "32", **own})


@pytest.fixture
def data(tiny, tmp_path):
    """A folder with the data sets, and with weights of CLIP."""
    write_coco(tmp_path / "data")
    path = tmp_path / "data" / "weights" / f"{tiny}.pt"
    path.parent.mkdir()
    torch.save(load_clip(tiny, seed=5).model.state_dict(), path)
    return tmp_path / "data"


@pytest.fixture(params=PAPERS)
def paper(request, tmp_path):
    return tiny_paper(PAPERS[request.param], tmp_path / "configs")


@pytest.fixture
def run(monkeypatch):
    """Runs the whole pipeline for a paper, whose experiment is the full-size path alone."""

    def call(paper, options):
        found = SimpleNamespace(
            rows=paper.rows, prepare=lambda options, advance: None, measure=paper.measure, train=paper.train
        )
        monkeypatch.setattr(reproductions.experiment, "load_experiment", lambda name: found)
        told = []
        return reproduce(paper.paper, options, lambda what, fraction: told.append((what, fraction))), told

    return call


def check_tables(paper, options, outcome) -> pd.DataFrame:
    """What holds for both papers, whatever the size; the table of COCO."""
    here, *others = paper.data_sets
    own = [r for r in outcome.results if r.row.row.startswith(paper.method)]  # other rows quote other papers
    rows = [r for r in own if r.row.table == here.name]
    assert {r.row.row for r in rows} == {paper.method, f"{paper.method}, last weights"}
    assert len(rows) == 2 * len(here.columns)
    for r in rows:
        assert r.estimate is not None
        assert r.estimate.n == COUNT
        assert 0 <= r.estimate.low <= r.estimate.high <= 100
        assert r.row.data == here.title
    for data_set in others:
        (reason,) = {r.reason for r in own if r.row.table == data_set.name}
        assert all(word in reason for word in (data_set.title, data_set.folders[0], "--data DIR --train"))
    folder = options.results / paper.paper
    assert (folder / f"{here.name}.png").stat().st_size > 1000
    assert all(c.name in (folder / f"{here.name}.md").read_text() for c in here.columns)
    table = pd.read_csv(folder / f"{here.name}.csv").query("row.str.startswith(@paper.method)")
    assert table["measured"].between(0, 100).all()
    return table


def test_a_folder_with_data_and_weights_becomes_tables(paper, data, run, tmp_path):
    options = Options(tmp_path / "results", data, train=True)
    outcome, told = run(paper, options)
    table = check_tables(paper, options, outcome)
    assert outcome.measured == len(table)
    assert any("training on MS-COCO" in what for what, _ in told)
    path = paper.trained(paper.data_sets[0], options)
    assert path.is_relative_to(options.cache.folder)
    before = path.stat().st_mtime_ns
    paper.train(options, lambda what, fraction: pytest.fail("what is trained is not trained again"))
    assert path.stat().st_mtime_ns == before
    known = {(r.row.row, r.row.column): r.estimate.mean for r in outcome.results if r.estimate is not None}
    plain = cache(partial(plainly, paper, options, path))
    for which, name in (("average", paper.method), ("last", f"{paper.method}, last weights")):
        for column in paper.data_sets[0].columns:
            found, targets = plain(column.split, which)
            if column.metric == "mean_average_precision":
                expected = mean_average_precision(found, targets)
            elif column.metric == "precision_at_k":
                expected = precision_recall(top(found, 3), targets).OP
            elif column.metric == "f1_at_k":
                expected = precision_recall(top(found, column.settings["k"]), targets).OF1
            else:
                k = column.settings.get("k", found.shape[1])
                f1 = precision_recall(top(found, k, 0.5), targets)
                expected = f1.OF1 if column.metric == "overall_f1" else f1.CF1
            assert known[name, column.name] == pytest.approx(expected, abs=1e-9), column.name


def plainly(paper, options, path, split, which):
    """Scores and targets of a split, by a model that is loaded here."""
    data_set = paper.data_sets[0]
    images, setting = data_set.load(options.data, split), paper.configuration(data_set)
    clip = load_clip(TINY, full_size.clip_weights(options.data, TINY))
    model = paper.make(clip, images.classes, setting.model, options.cache, 99)
    load_weights(path, model, which)
    return scores(model, images, setting.training, Machine()).numpy(), images.targets


def test_published_numbers_stand_beside_those_measured_on_the_papers_lists(data, tmp_path):
    paper = tiny_paper(ram.FULL, tmp_path / "configs")
    options = Options(tmp_path / "results", data)
    paper.train(options, lambda what, fraction: None)
    rows = paper.rows(options)
    claimed = {r.claim.key: r for r in rows if r.claim is not None}
    assert len(_not_run(load_paper("ram"), rows)) == 2, "the remote sensing sets alone have no rows"
    assert len(claimed) == 4
    assert all(r.metric == r.claim.metric and r.data == r.claim.data for r in claimed.values())
    for column in ("ZSL P@3", "GZSL P@3"):
        row = claimed["coco_48_17", "RAM", column]
        found = paper.measure(row, options, lambda fraction: None)
        said, _ = verdict(row.claim, found, row.data, differs=row.differs)
        assert said in ("agrees", "differs", "inconclusive"), "on the paper's own data and lists"
    # DualCoOp's lists are other ones
    folder = data / "coco" / "annotations"
    for path in folder.glob("*_filtered.json"):
        path.unlink()
    for name, images, classes in coco.OPEN.values():
        content = json.loads((folder / f"instances_{images}.json").read_text())
        numbers = [coco.CLASSES.index(c) + 1 for c in classes]
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in numbers]
        write_json(folder / name, content)
    elsewhere = Options(tmp_path / "other", data)
    assert "needs a model trained on MS-COCO 48/17" in paper.rows(elsewhere)[0].missing
    shutil.copy(paper.trained(paper.data_sets[0], options), data / "weights" / "ram_coco_48_17.safetensors")
    full_size._images.cache_clear()
    rows = [r for r in paper.rows(elsewhere) if r.table == "coco_48_17"]
    assert {r.differs for r in rows} == {"measured on DualCoOp's list of 8 images, published for RAM's own"}
    assert not any(r.missing for r in rows)


def test_what_is_missing_is_a_sentence_with_the_command(paper, data, tmp_path):
    def missing(folder):
        return {r.missing for r in paper.rows(Options(tmp_path / "results", folder)) if r.table == here.name}

    here = paper.data_sets[0]
    command = f"matchmark reproduce {paper.paper} --data DIR --train --device cuda"
    for folder, words in (
        (None, ("needs in DIR MS-COCO", here.inside[0], f"{TINY}.pt")),
        (tmp_path, ("needs in DIR MS-COCO",)),
        (data, ("needs a model trained on MS-COCO", f"DIR/weights/{paper.paper}_{here.name}.safetensors")),
    ):
        (sentence,) = missing(folder)
        assert sentence.endswith(command)
        assert all(word in sentence for word in words), sentence
    (data / "weights" / f"{TINY}.pt").unlink()
    (sentence,) = missing(data)
    assert sentence.startswith("needs in DIR OpenAI's weights of CLIP")
    options = Options(tmp_path / "results", data, train=True)
    refused(lambda: paper.train(options, print), data, "lacks OpenAI's weights", f"weights/{TINY}.pt")
    refused(lambda: paper.train(replace(options, data=tmp_path), print), "--train needs --data DIR", here.inside[0])
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", full_size.CLIP_FILES)
def test_weights_of_clip_are_found_by_any_of_their_names(tmp_path, name):
    assert full_size.clip_weights(tmp_path, "ViT-B-16-quickgelu") is None
    path = tmp_path / "weights" / name.format("ViT-B-16")
    path.parent.mkdir(parents=True)
    path.touch()
    assert full_size.clip_weights(tmp_path, "ViT-B-16-quickgelu") == path


def test_another_seed_is_another_training(paper, data, tmp_path):
    options = Options(tmp_path / "results", data)
    here = paper.data_sets[0]
    paper.train(options, lambda what, fraction: None)
    assert paper.trained(here, options) is not None
    assert paper.trained(here, replace(options, seed=1)) is None
    assert paper.configuration(here, 1).training.seed == paper.configuration(here).training.seed + 1


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command of training: (exit code, standard output, standard error)."""

    def call(paper, *arguments):
        monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments), "--workers", "0"])
        with pytest.raises(SystemExit) as caught:
            train_command.main(paper)
        return caught.value.code, *capsys.readouterr()

    return call


def test_the_command_trains_what_reproduce_then_measures(paper, data, command, tmp_path):
    here, options = paper.data_sets[0], Options(tmp_path / "results", data)
    output = options.cache.folder / paper.paper
    given = "--data", data, "--dataset", here.name, "--output", output
    code, out, err = command(paper, *given)
    assert code == 0, err
    assert out.strip() == f"weights: {paper.trained(here, options)}"
    assert not any(r.missing for r in paper.rows(options) if r.table == here.name)
    own = tmp_path / "own.toml"
    shutil.copy(paper.configurations / f"{here.name}.toml", own)
    code, out, _ = command(paper, *given, "--config", own)
    assert code == 0
    assert Path(out.split()[-1]).name.startswith("own_")
    code, _, err = command(paper, *given, "--config", tmp_path / "none.toml")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no configuration file" in err
    for wrong, words in (
        (("--data", data, "--dataset", "imagenet"), f"has to be one of {here.name}"),
        (("--data", tmp_path, "--dataset", here.name), f"{tmp_path} lacks {here.title}"),
    ):
        code, _, err = command(paper, *wrong)
        assert code == 2
        assert words in err


@pytest.mark.parametrize("name", PAPERS)
def test_the_commands_are_there(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(f"reproductions.{name}.train", run_name="__main__")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert PAPERS[name].method in shown
    assert all(d.name in shown for d in PAPERS[name].data_sets)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_vit_b_16_trains_and_is_tested_at_full_size(name, run, tmp_path):
    """Random weights, eight images: 224 px for RAM, 448 px for PatchCT; prints seconds and the peak of memory."""
    write_coco(tmp_path / "data")
    path = tmp_path / "data" / "weights" / "ViT-B-16.pt"
    path.parent.mkdir()
    torch.save(load_clip().model.state_dict(), path)
    paper = small(PAPERS[name], tmp_path / "configs")
    assert {paper.configuration(d).training.side for d in paper.data_sets} == {224 if name == "ram" else 448}
    options, start = Options(tmp_path / "results", tmp_path / "data", train=True), time.perf_counter()
    try:
        outcome, _ = run(paper, options)
        check_tables(paper, options, outcome)
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: {seconds:.0f} s, {peak:.1f} GiB at most, {os.cpu_count()} cores")
    finally:
        shutil.rmtree(tmp_path)  # gigabytes
