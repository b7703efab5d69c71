"""DeepEMD: the metric against the official code's outputs, the episodes, the encoder and its training."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reproductions.deepemd import experiment
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.episodes import episodes, sample_indices
from reproductions.deepemd.method import (
    NodeMatching,
    cross_reference_weights,
    fused_logits,
    neighbour_logits,
    nodes,
    pooled_logits,
    scaled,
    similarity,
)
from reproductions.deepemd.pretrain import Pretraining, cached_feature_maps, feature_maps, pretrained_encoder
from reproductions.deepemd.structured_layer import StructuredLayer, random_orders
from reproductions.deepemd.studies import studies
from reproductions.experiment import Options
from reproductions.metrics import few_shot_accuracy
from reproductions.statistics import mean_interval
from reproductions.storage import Cache
from solvers import TransportProblem, solve

FORWARD = [
    "deepemd_fcn_1shot_640d_25n",
    "deepemd_fcn_1shot_small_25n",
    "deepemd_fcn_5shot_mean_640d_25n",
    "deepemd_grid_1shot_640d_38n",
    "deepemd_pyramid_small",
]


@pytest.mark.parametrize("name", FORWARD)
def test_the_metric_is_that_of_the_official_code(golden, name):
    """Tolerances as stated with the files: weights 1e-5 relative, cosines 2e-6, optimal cost 1e-6, logits 5e-6."""
    stored = {k: torch.from_numpy(v) for k, v in golden(name).items()}
    query, prototype = nodes(stored["query"]), nodes(stored["proto"])
    s, d = cross_reference_weights(query, prototype)
    torch.testing.assert_close(s, stored["weight_query"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(d, stored["weight_proto"].transpose(0, 1), rtol=1e-5, atol=1e-7)
    S = similarity(query, prototype)
    torch.testing.assert_close(S, stored["similarity"], rtol=0, atol=2e-6)
    solution = NodeMatching().solution(query, prototype, S)
    count = S.shape[-1]
    torch.testing.assert_close(solution.value / count, stored["emd_cost_opencv"], rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.plan.sum(-1), scaled(s), rtol=0, atol=1e-5)
    logits = NodeMatching().logits(query, prototype)
    torch.testing.assert_close(logits, stored["logits_opencv"], rtol=0, atol=5e-6)
    torch.testing.assert_close(logits.double(), stored["check_logits_exact_lp"], rtol=0, atol=5e-6)
    close = stored["check_flow_maxdiff_exact_lp"] < 1e-4
    torch.testing.assert_close(solution.plan[close], stored["flow_opencv"][close], rtol=0, atol=2e-4)
    if "query_label" in stored:
        accuracy = few_shot_accuracy(logits, stored["query_label"])
        assert accuracy.item() == pytest.approx(100 * stored["accuracy"].item())


@pytest.mark.parametrize(
    ("name", "tag", "tol"),
    [("deepemd_sfc_5w5s", "", 1e-3), ("deepemd_sfc_tiny", "_lr100", 1e-5), ("deepemd_sfc_tiny", "_lr0.1", 1e-5)],
)
def test_logits_with_a_learned_layer_are_those_of_the_official_code(golden, name, tag, tol):
    """The structured fully-connected layer is given; fitting it is not part of the metric."""
    stored = {k: torch.from_numpy(v) for k, v in golden(name).items()}
    logits = NodeMatching().logits(nodes(stored[f"query{tag}"]), nodes(stored[f"sfc{tag}"]))
    torch.testing.assert_close(logits, stored[f"logits{tag}"], rtol=0, atol=tol)


def test_the_gradient_through_the_cost_is_that_of_the_official_opencv_path(golden):
    """Official training with OpenCV lets no gradient through the weights: with ours held fixed, both agree."""
    stored = {k: torch.from_numpy(v) for k, v in golden("deepemd_grad_opencv_small").items()}
    proto, query = (stored[k].clone().requires_grad_() for k in ("proto", "query"))
    u, v = nodes(query), nodes(proto)
    S = similarity(u, v)
    s, d = (scaled(w).detach() for w in cross_reference_weights(u, v))
    logits = 12.5 * (1 - solve(TransportProblem(1 - S, s, d), "emd").value.float() / S.shape[-1])
    torch.testing.assert_close(logits, stored["logits_opencv"], rtol=0, atol=5e-6)
    torch.nn.functional.cross_entropy(logits, stored["query_label"]).backward()
    for leaf, name in ((proto, "grad_proto"), (query, "grad_query")):
        largest = stored[name].abs().max().item()
        torch.testing.assert_close(leaf.grad, stored[name], rtol=0, atol=1e-4 * largest + 1e-7)


def test_weight_gradients_are_those_of_the_exact_linear_program(golden):
    for name in ("deepemd_qpth_25n", "deepemd_qpth_small"):
        stored = {k: torch.from_numpy(v) for k, v in golden(name).items()}
        S = stored["similarity"].double()
        raw = stored["weight_query"].double(), stored["weight_proto"].double().transpose(0, 1)
        leaves = [w.clone().requires_grad_() for w in raw]
        a, b = (w * (w.shape[-1] / w.sum(-1, keepdim=True)) for w in leaves)
        score = S.shape[-1] - solve(TransportProblem(1 - S, a, b), "emd").value
        torch.testing.assert_close(score, stored["check_score_exact_lp"].double(), rtol=0, atol=1e-6)
        score.sum().backward()
        for leaf, side in zip(leaves, ("query", "proto"), strict=True):
            expected = stored[f"check_dscore_dweight_{side}_exact_lp"].double()
            torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-6)


def test_episodes_are_those_of_the_official_sampler(golden):
    stored = golden("deepemd_protocol")
    generator = torch.Generator().manual_seed(int(stored["sampler_torch_seed"]))
    drawn = sample_indices(
        stored["sampler_labels"], int(stored["sampler_way"]), int(stored["sampler_per_class"]), generator
    )
    ours = torch.stack(list(islice(drawn, int(stored["sampler_n_batch"])))).numpy()
    np.testing.assert_array_equal(ours, stored["sampler_episodes"])
    interval = mean_interval(stored["ci_accuracies_percent"])
    assert interval.mean == pytest.approx(float(stored["ci_mean"]), abs=1e-12)
    assert interval.half_width == pytest.approx(float(stored["ci_halfwidth"]), abs=1e-12)


def test_an_episode_has_disjoint_support_and_query_of_the_right_classes():
    labels = np.repeat(np.arange(7), 20)
    for episode in episodes(labels, way=5, shot=3, queries=4, count=3, seed=1):
        assert episode.support.shape == (5, 3)
        assert episode.query.shape == (20,)
        classes = labels[episode.support.numpy()]
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0])) == 5
        np.testing.assert_array_equal(labels[episode.query.numpy()], classes[episode.labels.numpy(), 0])
        assert not set(episode.support.flatten().tolist()) & set(episode.query.tolist())
    with pytest.raises(ValueError, match="5-way episodes need 5 classes, but the split has 2"):
        next(episodes([0, 1], 5, 1, 1, 1, 0))
    with pytest.raises(ValueError, match="takes 4 images of each class, but the smallest class has 1"):
        next(episodes([0, 1], 2, 1, 3, 1, 0))


def test_uniform_weights_by_transport_and_by_assignment_are_the_same_logits():
    g = torch.Generator().manual_seed(0)
    query, prototype = torch.rand(3, 9, 8, generator=g), torch.rand(2, 9, 8, generator=g)
    transport = NodeMatching("emd", "uniform").logits(query, prototype)
    assignment = NodeMatching("jonker_volgenant", "uniform").logits(query, prototype)
    torch.testing.assert_close(transport, assignment, rtol=1e-5, atol=1e-5)
    assert transport.shape == (3, 2)


def test_episodes_may_be_batched():
    g = torch.Generator().manual_seed(0)
    query, prototype = torch.rand(4, 3, 9, 8, generator=g), torch.rand(4, 2, 9, 8, generator=g)
    for logits in (NodeMatching().logits, lambda q, p: pooled_logits(q, p, "euclidean")):
        together = logits(query, prototype)
        for k in range(4):
            torch.testing.assert_close(together[k], logits(query[k], prototype[k]), rtol=1e-5, atol=1e-5)


def test_the_paper_s_encoder_makes_25_nodes_of_640_channels():
    encoder = ResNet12().eval()
    assert nodes(encoder(torch.zeros(1, 3, 84, 84))).shape == (1, 25, 640)
    assert "layer1.0.conv1.weight" in encoder.state_dict()
    assert sum(p.numel() for p in encoder.parameters()) == 12_424_320


@pytest.fixture
def tiny():
    g = torch.Generator().manual_seed(0)
    images, labels = torch.rand(12, 1, 8, 8, generator=g), torch.arange(12) % 3
    return images, labels, Pretraining(classes=(0, 1, 2), side=8, widths=(4, 6), epochs=3, batch=5)


def test_an_interrupted_training_ends_with_the_weights_of_an_undisturbed_one(tiny, tmp_path):
    whole = pretrained_encoder(*tiny, Cache(tmp_path / "whole")).state_dict()

    class Killed(BaseException):
        pass

    def kill(epoch, epochs, loss):
        if epoch == 2:
            raise Killed

    seen = []
    cache = Cache(tmp_path / "resumed")
    with pytest.raises(Killed):
        pretrained_encoder(*tiny, cache, kill)
    resumed = pretrained_encoder(*tiny, cache, lambda epoch, *_: seen.append(epoch)).state_dict()
    assert seen == [3]
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert pretrained_encoder(*tiny, cache, kill).state_dict().keys() == whole.keys()
    assert len(list((tmp_path / "resumed" / "weights").iterdir())) == 1, "a finished training's state is removed"


def test_damaged_weights_are_trained_again(tiny, tmp_path):
    cache = Cache(tmp_path)
    whole = pretrained_encoder(*tiny, cache).state_dict()
    (stored,) = tmp_path.rglob("*.safetensors")
    stored.write_bytes(stored.read_bytes()[:100])
    assert all(torch.equal(v, whole[k]) for k, v in pretrained_encoder(*tiny, cache).state_dict().items())


def test_features_have_no_augmentation_and_no_batch_effects(tiny, tmp_path):
    images, labels, settings = tiny
    encoder = pretrained_encoder(images, labels, settings, Cache(tmp_path))
    together = feature_maps(encoder, images, settings)
    torch.testing.assert_close(together[:1], feature_maps(encoder, images[:1], settings), rtol=1e-4, atol=1e-5)
    cached = [cached_feature_maps(encoder, images, settings, Cache(tmp_path)) for _ in range(2)]
    assert torch.equal(cached[0], cached[1])
    assert torch.equal(cached[0], together)
    assert len(list((tmp_path / "features").iterdir())) == 1


# --------------------------------------------------------------------------------------- classes fitted, other metrics


@pytest.mark.parametrize(
    ("name", "tag", "moved", "logit"),
    [
        ("deepemd_sfc_5w5s", "", 1e-2, 1e-3),
        ("deepemd_sfc_tiny", "_lr100", 3e-4, 1e-5),
        ("deepemd_sfc_tiny", "_lr0.1", 3e-4, 1e-5),
    ],
)
def test_the_structured_layer_is_fitted_as_by_the_official_code(golden, name, tag, moved, logit):
    stored = {k: torch.from_numpy(v) for k, v in golden(name).items()}
    support, labels = nodes(stored[f"support{tag}"]), stored["support_label"]
    lr = float(stored["sfc_lr"]) if "sfc_lr" in stored else float(tag.removeprefix("_lr"))
    layer = StructuredLayer(lr=lr, passes=int(stored["sfc_update_step"]), batch=int(stored["sfc_bs"]))
    torch.manual_seed(int(stored["torch_seed"]))
    assert torch.equal(random_orders(layer.passes, len(labels)), stored["perms"])
    phi = layer.fitted(support[None], labels, stored["perms"][None])[0]
    start = torch.stack([support[labels == k].mean(0) for k in range(len(phi))])
    wanted = nodes(stored[f"sfc{tag}"]) - start
    assert (phi - start - wanted).abs().max() < moved * wanted.abs().max()
    logits = NodeMatching().logits(nodes(stored[f"query{tag}"]), phi)
    torch.testing.assert_close(logits, stored[f"logits{tag}"], rtol=0, atol=logit)


def test_layers_of_several_episodes_are_fitted_side_by_side():
    g = torch.Generator().manual_seed(0)
    support, labels = torch.rand(3, 6, 4, 8, generator=g), torch.tensor([0, 1, 2, 0, 1, 2])
    orders = [random_orders(2, 6, g) for _ in range(3)]
    layer = StructuredLayer(lr=1.0, passes=2)
    together = layer.fitted(support, labels, orders)
    for k in range(3):
        alone = layer.fitted(support[k : k + 1], labels, orders[k : k + 1])[0]
        torch.testing.assert_close(together[k], alone, rtol=1e-4, atol=1e-5)
    assert (together - support[:, :3] / 2 - support[:, 3:] / 2).abs().max() > 1e-3


def test_the_other_metrics_by_hand():
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    prototype = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 2.0]]])
    root = 0.5**0.5
    expected = torch.tensor([[0.5, (root + 1) / 2]])
    torch.testing.assert_close(neighbour_logits(query, prototype), expected)
    torch.testing.assert_close(neighbour_logits(query, prototype, 2), torch.tensor([[0.5, (root + 1 + root) / 4]]))
    v = torch.nn.functional.normalize(prototype.mean(1), dim=-1)
    shares = (12.5 * query[0] @ v.mT).softmax(-1).mean(0)
    torch.testing.assert_close(fused_logits(query, prototype)[0].exp(), shares)


# --------------------------------------------------------------------------------------------------------- its studies


def test_every_row_of_the_digits_belongs_to_a_task_and_a_method():
    found = experiment.rows(Options(Path("unused")))
    tasks = {(r.column, r.row) for r in found}
    assert ("5-way 5-shot", "EMD, structured layer, step 100") in tasks
    assert ("5-way 1-shot", "EMD, structured layer, step 100") not in tasks, "one image is its own mean"
    assert {r.settings["episodes"] for r in found if r.table == "few_shot_digits"} == {600, experiment.FITTED}
    published = {(r.row, r.column): r.claim.row for r in found if r.claim is not None}
    assert published["EMD, cross-reference weights", "5-way 1-shot"] == "DeepEMD (5x5)"
    assert ("EMD, cross-reference weights", "5-way 5-shot") not in published, "published with a structured layer"


def test_studies_of_a_folder(tmp_path):
    """Characters of alphabets that training never saw, and runs whose answers are numbered as their training images."""
    rng = np.random.default_rng(0)

    def draw(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 2, (105, 105), dtype=np.uint8) * 255).save(path)

    for alphabet in "ABCDEFGH":
        for character in ("character01", "character02", "character03"):
            for k in range(3):
                draw(tmp_path / "omniglot" / "images_background" / alphabet / character / f"{alphabet}{k}.png")
    for run in range(1, 21):
        folder = tmp_path / "omniglot" / "all_runs" / f"run{run:02d}"
        for part in ("training", "test"):
            for k in range(20):
                draw(folder / part / f"{k:02d}.png")
        pairs = [f"run{run:02d}/test/{k:02d}.png run{run:02d}/training/{(k + run) % 20:02d}.png" for k in range(20)]
        (folder / "class_labels.txt").write_text("\n".join(pairs))
    digits, omniglot = studies(tmp_path)
    assert (digits.table, omniglot.table) == ("few_shot_digits", "few_shot_omniglot")
    images, labels = omniglot.base
    assert images.shape == (45, 1, 105, 105)
    assert labels.unique().tolist() == list(range(15))
    runs, one_shot, _, _ = omniglot.tasks
    assert omniglot.images(runs).shape == (800, 1, 105, 105)
    assert omniglot.images(one_shot).shape == (27, 1, 105, 105)
    drawn = omniglot.episodes(runs, seed=0)
    assert len(drawn) == 20
    assert drawn[1].support[:, 0].tolist() == list(range(40, 60))
    assert drawn[1].labels.tolist() == [(k + 2) % 20 for k in range(20)]
