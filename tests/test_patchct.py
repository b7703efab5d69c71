"""PatchCT: the composed scenes, the transport between patches and labels, the model, and the tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import ot
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED

from reproductions.datasets.digits import load_digits
from reproductions.datasets.scenes import COLOURS, NOISE, PADDING, SIDE, compose_scenes, scene_classes
from reproductions.experiment import Options, reproduce
from reproductions.multi_label.average_precision import mean_average_precision
from reproductions.multi_label.in_memory import Descent
from reproductions.multi_label.localisation import coverage, mass_inside
from reproductions.multi_label.real_images import studies
from reproductions.multi_label.tokens import SceneEncoder, Tokens
from reproductions.patchct import real_images
from reproductions.patchct import scenes as embedded
from reproductions.patchct.experiment import rows
from reproductions.patchct.method import PatchCT, Settings
from reproductions.patchct.transport import Transport, cosines


def points(B=2, N=7, C=4, d=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(*shape, dtype=dtype, generator=generator) for shape in ((B, N, d), (C, d)))


# ------------------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize("colours", [False, True])
def test_scenes_hold_what_their_labels_say(colours):
    found = compose_scenes("train", 40, seed=1, colours=colours)
    assert found.classes == scene_classes(colours)
    assert found.images.shape == (40, 3 if colours else 1, SIDE, SIDE)
    assert found.images.dtype == np.float32
    assert 0 <= found.images.min() <= found.images.max() <= 1
    scans = load_digits().images[:1200, 0]
    for k in range(40):
        there = found.objects[k] != PADDING
        assert 2 <= there.sum() <= 4
        assert set(np.flatnonzero(found.labels[k])) == set(found.objects[k][there])
        for (x0, y0, x1, y1), c in zip(found.boxes[k][there], found.objects[k][there], strict=True):
            patch = found.images[k, :, y0:y1, x0:x1]
            colour = np.array(list(COLOURS.values())[c // 10] if colours else (1.0,))
            strongest = patch[colour.argmax()] / colour.max()
            difference = np.abs(np.where(strongest > NOISE / colour.max(), strongest, 0) - scans).max((1, 2))
            assert difference.min() <= NOISE / colour.max() + 1e-6, "a real scan of the training part"
    again, other = (compose_scenes("train", 40, seed, colours) for seed in (1, 2))
    assert again.sha256 == found.sha256 != other.sha256


def test_scenes_of_some_classes_and_of_other_scans():
    found = compose_scenes("test", 60, colours=True, allowed=[3, 17, 20])
    assert set(np.unique(found.objects)) == {PADDING, 3, 17, 20}
    assert compose_scenes("train", 5).sha256 != compose_scenes("test", 5).sha256


def test_the_share_of_weights_inside_the_boxes():
    boxes = np.array([[[0, 0, 4, 4], [6, 0, 8, 8], [-1, -1, -1, -1]]])
    covered = coverage(boxes, np.array([[0, 1, -1]]), 3, side=8, grid=2)
    assert covered[0, :, 0].tolist() == [1, 0, 0, 0]
    assert covered[0, :, 1].tolist() == [0, 0.5, 0, 0.5]
    weights = torch.tensor([[1.0, 0, 1], [0, 3, 1], [0, 0, 1], [1, 1, 1]]).unsqueeze(0)
    found = mass_inside(weights, covered)
    assert found[0, :2].tolist() == [50, 50]
    assert found[0, 2].isnan()


# ---------------------------------------------------------------------------------------------------------- transport


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_conditional_transport_is_the_formula(rho):
    x, t = points()
    y = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    transport = Transport(rho=rho)
    beta = transport.label_weights(y, torch.full_like(y, 0.5)).double()
    s, tau = cosines(x, t), torch.tensor(0.3, dtype=torch.float64)
    forward = (beta[:, None] * (s / tau).exp()) / (beta[:, None] * (s / tau).exp()).sum(-1, keepdim=True)
    backward = (s / tau).softmax(-2)
    L_f = (forward * (1 - s)).sum((-2, -1)) / 7
    L_b = (beta * (backward * (1 - s)).sum(-2)).sum(-1)
    torch.testing.assert_close(transport.cost(x, t, beta, tau), rho * L_f + (1 - rho) * L_b)


def test_optimal_transport_is_that_of_a_peer():
    x, t = points()
    transport = Transport(kind="ot", reg=0.2)
    beta = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    found = transport.cost(x, t, beta, torch.tensor(1.0))
    C = 1 - cosines(x, t)
    for k in range(2):
        plan = ot.sinkhorn(np.full(7, 1 / 7), beta[k].numpy(), C[k].numpy(), 0.2, numItermax=10_000, stopThr=1e-13)
        assert found[k].item() == pytest.approx((plan * C[k].numpy()).sum(), abs=1e-4)


@pytest.mark.parametrize("kind", ["ct", "ot"])
def test_padding_and_images_without_labels_cost_nothing(kind):
    x, t = points()
    transport, tau = Transport(kind=kind), torch.tensor(0.2, dtype=torch.float64)
    beta = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    mask = torch.arange(9) < 7
    padded = torch.cat([x, torch.full((2, 2, 5), 1e3, dtype=torch.float64)], 1)
    cost = transport.cost(x, t, beta, tau)
    assert cost[1] == 0
    torch.testing.assert_close(transport.cost(padded, t, beta, tau, mask.expand(2, -1)), cost)
    weights = transport.weights(padded, t, tau, mask.expand(2, -1))
    assert weights[:, 7:].abs().max() == 0
    torch.testing.assert_close(weights[:, :7], transport.weights(x, t, tau))
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 4, dtype=torch.float64))


def test_gradients_of_the_conditional_cost():
    x, t = points(B=1, N=3, C=2, d=3)
    beta, tau = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    given = [v.requires_grad_() for v in (x, t, tau)]
    assert torch.autograd.gradcheck(lambda x, t, tau: Transport().cost(x, t, beta, tau), given)


def test_label_sets():
    y, p = torch.tensor([[1.0, -1, 0, 1], [0, 0, 0, 0]]), torch.tensor([[0.2, 0.2, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]])
    weights = {s: Transport(label_set=s).label_weights(y, p) for s in ("positives", "all", "predicted")}
    assert weights["positives"].tolist() == [[0.5, 0, 0, 0.5], [0, 0, 0, 0]]
    assert (weights["all"] == 0.25).all()
    torch.testing.assert_close(weights["predicted"], p / p.sum(1, keepdim=True))


# -------------------------------------------------------------------------------------------------------------- model


def model_of(settings, width=8):
    torch.manual_seed(0)
    return PatchCT(SceneEncoder(1, width), torch.randn(10, width), settings).eval()


@pytest.mark.parametrize("name", embedded.METHODS | embedded.SWITCHES)
def test_an_image_alone_is_scored_as_in_a_batch(name):
    model = model_of((embedded.METHODS | embedded.SWITCHES)[name])
    images = torch.rand(5, 1, SIDE, SIDE)
    scores, weights = model.scores(images), model.weights(images)
    assert scores.shape == (5, 10)
    assert ((scores > 0) & (scores < 1)).all()
    torch.testing.assert_close(model.scores(images[2:3])[0], scores[2])
    torch.testing.assert_close(weights.sum(1), torch.ones(5, 10))
    torch.testing.assert_close(model.weights(images[2:3])[0], weights[2], rtol=1e-3, atol=1e-5)
    loss = model.loss(images, torch.eye(5, 10))
    loss.backward()
    assert loss.isfinite()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {"embeddings", "offset"} <= trained
    assert any(n.startswith("encoder.stem") for n in trained)


def test_the_loss_is_classification_plus_weighted_transport():
    transport = Transport(layers=(0, 1), weight=0.7)
    model, plain = model_of(Settings(transport=transport)), model_of(Settings(transport=Transport(kind="none")))
    plain.load_state_dict(model.state_dict())
    images, y = torch.rand(3, 1, SIDE, SIDE), torch.eye(3, 10)
    tokens: Tokens = model.encoder(images)
    costs = [transport.cost(p, model.embeddings, y, model.log_temperature.exp()) for p in tokens.layers]
    expected = plain.loss(images, y) + 0.7 * torch.stack(costs).mean()
    torch.testing.assert_close(model.loss(images, y), expected)


def test_training_goes_on_where_it_was_killed(tmp_path):
    images, y = torch.rand(20, 1, SIDE, SIDE), (torch.rand(20, 10) < 0.3).float()
    descent, state = Descent(epochs=3, batch=8), tmp_path / "x.part"

    def trained(kill):
        model, steps = model_of(Settings()).train(), 0
        loss = model.loss

        def counted(*given):
            nonlocal steps
            steps += 1
            if steps == kill:
                raise KeyboardInterrupt
            return loss(*given)

        model.loss = counted
        descent.train(model, images, y, 0, state)
        return model

    undisturbed = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(5)
    assert state.exists()
    for ours, theirs in zip(trained(None).parameters(), undisturbed.parameters(), strict=True):
        assert ours.equal(theirs)
    assert not state.exists()


# ------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(embedded, "COUNTS", {"train": 40, "test": 30})
    monkeypatch.setattr(embedded, "SEEDS", 2)
    monkeypatch.setattr(embedded, "WIDTH", 8)
    monkeypatch.setattr(embedded, "DESCENT", replace(embedded.DESCENT, epochs=1))
    embedded.scenes.cache_clear()
    yield
    embedded.scenes.cache_clear()


def test_tables_of_the_scenes(small, tmp_path, monkeypatch):
    chosen = {name: embedded.METHODS[name] for name in ("global pooling", "CT")}
    monkeypatch.setattr(embedded, "prepare", lambda options, advance: None)  # in this process, as rows ask for them
    monkeypatch.setattr("reproductions.patchct.experiment.rows", lambda options: few)
    monkeypatch.setattr("reproductions.patchct.experiment.DRAWN_SCENES", 1)
    monkeypatch.setattr("reproductions.patchct.experiment.DRAWN", tuple(chosen))
    options = Options(tmp_path)
    few = [r for r in rows(options) if r.row in chosen and r.settings.get("less", "global pooling") in chosen]
    outcome = reproduce("patchct", options)
    measured = {(r.row.table, r.row.row, r.row.column): r.estimate for r in outcome.results if r.estimate}
    assert len(measured) == len(few) == 11
    gain = measured["scenes_gains", "CT", "over global pooling"]
    both = [measured["scenes", name, "mAP"].mean for name in ("CT", "global pooling")]
    assert gain.mean == pytest.approx(both[0] - both[1])
    assert measured["scenes", "global pooling", "in the boxes, own weights"].mean == pytest.approx(9, abs=2)
    assert reproduce("patchct", options).reused == 11
    assert (tmp_path / "patchct" / "scenes_weights.png").stat().st_size > 5_000


def test_transported_labels_attract_patches():
    """A few steps on the cost alone bring patches and the image's labels together, and no others."""
    x, t = points(B=4, N=6, C=5, d=8, dtype=torch.float32)
    x.requires_grad_()
    beta = F.one_hot(torch.arange(4), 5).float()
    transport, optimizer = Transport(), torch.optim.Adam([x], 0.1)
    for _ in range(50):
        optimizer.zero_grad()
        transport.cost(x, t, beta, torch.tensor(0.1)).sum().backward()
        optimizer.step()
    assert (cosines(x, t).mean(1).argmax(-1) == torch.arange(4)).all()


def test_real_images_with_sets_of_tokens(tmp_path, monkeypatch):
    if not (SHARED / "data").is_dir():
        pytest.skip("the real data are not at hand")
    study = studies(SHARED / "data")[1]
    monkeypatch.setattr(type(study), "descent", Descent(epochs=3, batch=256, lr=0.02))
    found = real_images.outcome(study, embedded.METHODS["CT"], 0, Options(tmp_path))
    assert found.own is None
    labels = study.targets("test")
    assert found.scores.shape == labels.shape
    chance = 100 * labels.mean(0)[labels.any(0)].mean()
    assert mean_average_precision(found.scores, labels) > 1.5 * chance
