"""The settings of multi-label trainings: files, groups of parameters by name, and learning rates."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused
from multi_label_pictures import HERE, LABELS, Model, Pictures, configuration, trained
from test_clip import tiny_clip
from torch import nn

from reproductions.multi_label.augmentation import RECIPES
from reproductions.multi_label.checkpoints import load_weights
from reproductions.multi_label.configuration import OneCycle, WarmupCosine, read_configuration
from reproductions.multi_label.evaluation import scores
from reproductions.multi_label.optimization import make_optimizers, make_schedule, warmup_cosine
from reproductions.multi_label.training import train
from reproductions.patchct.method import PatchCT
from reproductions.patchct.method import Settings as PatchctSettings
from reproductions.ram.model import RamModel
from reproductions.ram.settings import RamSettings

ROOT = Path(__file__).parents[1]
CONFIGURATIONS = sorted((ROOT / "reproductions").glob("*/configs/*.toml"))


# --- files


def ram(settings):
    blocks = {"layers": (1, 2), "text_layers": (1, 2)}  # of the three that the towers here have
    return RamModel(tiny_clip(), ("red", "green", "blue"), ("grey",), replace(settings, **blocks))


def patchct(settings):
    return PatchCT(nn.Linear(4, 4), torch.ones(3, 4), settings)


PAPERS = {"ram": (RamSettings, ram), "patchct": (PatchctSettings, patchct)}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda p: p.stem)
def test_the_published_settings_load_and_fit_the_models(path):
    kind, make = PAPERS[path.parents[1].name]
    found = read_configuration(path, kind)
    assert found.training.model_dump(mode="json", exclude_unset=True) == tomllib.loads(path.read_text())["training"]
    optimizers = make_optimizers(make(found.model), found.training.optimizers)
    for optimizer in optimizers:
        make_schedule(optimizer, found.training.schedule, 100)
    image = RECIPES[found.training.augmentation](found.training)(Pictures().load(0))
    assert image.shape == (3, found.training.side, found.training.side)


def test_the_settings_of_ram_are_the_published_ones():
    coco, nus = (read_configuration(path, RamSettings) for path in CONFIGURATIONS if path.parents[1].name == "ram")
    assert coco.model == RamSettings()
    assert nus.model == RamSettings(tau_local=2e-4, text_layers=(6, 7, 8, 9, 10, 11))
    assert coco.training == nus.training


def test_there_is_a_file_for_each_published_setting():
    assert {f"{p.parents[1].name}/{p.stem}" for p in CONFIGURATIONS} == {
        "ram/coco_48_17",
        "ram/nus_925_81",
        "patchct/coco2014_448",
        "patchct/voc2007_448",
        "patchct/nus_wide_448",
    }


def test_ram_trains_as_its_file_says(tmp_path):
    path = ROOT / "reproductions" / "ram" / "configs" / "coco_48_17.toml"
    published = read_configuration(path, RamSettings)
    few = {"side": 32, "epochs": 2, "batch": 8, "amp": False, "every": 1, "ema": 0.5}
    few = published.model_copy(update={"training": published.training.model_copy(update=few)})
    before, ours, seen = ram(published.model).state_dict(), ram(published.model), []
    train(ours, Pictures(), few, tmp_path / "w.safetensors", HERE, seen.append)
    assert [epoch.number for epoch in seen] == [1, 2]
    averaged = ram(published.model)
    load_weights(tmp_path / "w.safetensors", averaged)
    for name, x in ours.state_dict().items():
        still = name.startswith("clip.")
        assert torch.equal(x, before[name]) == still, name
        assert torch.equal(x, averaged.state_dict()[name]) == (still or name.endswith("num_batches_tracked")), name
    (state,) = tmp_path.glob("*.part")
    assert not any(name.startswith("clip.") for name in torch.load(state, weights_only=True)["model"])
    found = scores(averaged, Pictures(), few.training, HERE)
    torch.testing.assert_close(found.sum(1), torch.ones(22))


@dataclass(frozen=True)
class Own:
    """A paper's settings."""

    tau_local: float = 1.0

    def __post_init__(self):
        if self.tau_local <= 0:
            raise ValueError(f"tau_local must be positive, not {self.tau_local}")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("epochs = 6", "epoch = 6", "lacks training.epochs"),
        ("epochs = 6", "epochs = 6\nlr = 1", "sets training.lr, which is not known"),
        ("epochs = 6", "epochs = -3", "sets training.epochs to -3: input should be greater than 0"),
        ("batch = 32", 'batch = "all"', "sets training.batch to 'all': input should be a valid integer"),
        ("ema = 0.9997", "ema = 1.0", "sets training.ema to 1.0: input should be less than 1"),
        ("std = [0.5, 0.5, 0.5]", "std = [0.5, 0.5, 0]", "sets training.std.2 to 0"),
        ('"pad_crop_erase"', '"colour"', "sets training.augmentation to 'colour'"),
        ('"warmup_cosine"', '"steps"', "'warmup_cosine', 'one_cycle'"),
        ('kind = "sgd"', 'kind = "lion"', "'adamw', 'sgd'"),
        ("lr = 5e-6", "lr = inf", "finite number"),
        ("tau_local = 2e-3", "tau_global = 2e-3", "sets model.tau_global, which is not known"),
        ("tau_local = 2e-3", "tau_local = 0", "has a wrong model: tau_local must be positive, not 0.0"),
        ("[model]", "[model", "is no TOML file"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, old, new, sentence):
    text = (ROOT / "reproductions" / "ram" / "configs" / "coco_48_17.toml").read_text()
    text = text.replace("text_layers = [9, 10, 11]\n", "")
    path = tmp_path / "own.toml"
    path.write_text(text)
    assert read_configuration(path, Own).model == Own(2e-3)
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused(lambda: read_configuration(path, Own), path, sentence)


def test_a_missing_file_is_one_sentence(tmp_path):
    refused(lambda: read_configuration(tmp_path / "none.toml", Own), "there is no configuration file", "none.toml")


# --- optimisers and schedules


def test_groups_are_chosen_by_name():
    adamw, sgd = make_optimizers(Model(), configuration().training.optimizers)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [x.shape for x in adamw.param_groups[0]["params"]] == [()]
    (group,) = sgd.param_groups
    assert [x.shape for x in group["params"]] == [(LABELS, 8), (LABELS,)]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 1e-4)


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        ([["head.*"]], "the parameter log_tau has to be in one group of the optimisers, but none of them takes it"),
        (
            [["*"], ["head.bias"]],
            "the parameter head.bias has to be in one group of the optimisers, but 2 of them take",
        ),
        ([["*", "body.*"]], "pattern 'body.*' is of no parameter that is trained"),
        ([["*"], ["stem.*"]], "pattern 'stem.*' is of no parameter that is trained"),
        ([["log_tau", "head"]], "pattern 'head' is of no parameter that is trained"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(tmp_path, patterns, sentence):
    groups = [{"parameters": some, "lr": 0.1} for some in patterns]
    optimizers = [{"kind": "adamw", "groups": groups}]
    refused(lambda: trained(tmp_path, optimizers=optimizers), sentence)


def rates(settings, lrs, steps):
    """The learning rates that a training would use, from the first epoch or step on."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in lrs]
    optimizer = torch.optim.SGD([{"params": [x], "lr": lr} for x, lr in zip(parameters, lrs, strict=True)])
    schedule = make_schedule(optimizer, settings, steps)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return np.array(found)


def test_warm_up_is_a_line_to_the_groups_own_rate_and_a_cosine_follows():
    settings = WarmupCosine(kind="warmup_cosine", warmup=3, start=0.1, period=12, end=0.2)
    found = rates(settings, [1.0, 4.0], 12)
    np.testing.assert_allclose(found[:2], [[0.4, 1.4], [0.7, 2.7]], rtol=1e-12)
    turn = math.sqrt(0.5)  # cos π/4
    np.testing.assert_allclose(found[2], [0.2 + 0.8 * (1 + turn) / 2, 0.2 + 3.8 * (1 + turn) / 2], rtol=1e-12)
    np.testing.assert_allclose(found[5], [0.6, 2.1], rtol=1e-12)  # halfway
    np.testing.assert_allclose(found[11], [0.2, 0.2], rtol=1e-12)
    assert (np.diff(found[2:], axis=0) < 0).all()


def test_the_published_learning_rates_of_ram(golden):
    stored = golden("ram_lr_schedule")
    settings = read_configuration(
        ROOT / "reproductions" / "ram" / "configs" / "coco_48_17.toml", dict[str, Any]
    ).training
    adapters, local, over_all, tokens = (group.lr for one in settings.optimizers for group in one.groups)
    for lr, name in ((adapters, "clip_side_path"), (tokens, "sgd_tokens")):
        ours = [warmup_cosine(settings.schedule, lr, epoch) for epoch in stored["epoch"]]
        np.testing.assert_allclose(ours, stored[f"lr_{name}"], rtol=1e-12)
        np.testing.assert_allclose(rates(settings.schedule, [lr], len(ours))[:, 0], ours, rtol=1e-12)
    for lr, tau in ((local, RamSettings().tau_local), (over_all, 1e-2)):
        ours = [tau * warmup_cosine(settings.schedule, lr, epoch) for epoch in stored["epoch"]]
        # of steps on the logarithm, whose warm-up starts where that of the others does
        np.testing.assert_allclose(ours, stored["lr_other"], rtol=0.03)


def test_one_cycle_goes_up_and_down_along_cosines():
    found = rates(OneCycle(kind="one_cycle", rising=0.3), [1.0, 0.1], 101)
    np.testing.assert_allclose(found[:, 1], 0.1 * found[:, 0], rtol=1e-12)
    low, top, last = 1 / 25, 1.0, 1 / 25e4  # torch's own shares
    peak = 0.3 * 101 - 1
    steps = np.arange(101)
    up = low + (top - low) * (1 - np.cos(np.pi * steps / peak)) / 2
    down = last + (top - last) * (1 + np.cos(np.pi * (steps - peak) / (100 - peak))) / 2
    np.testing.assert_allclose(found[:, 0], np.where(steps <= peak, up, down), rtol=1e-9)
