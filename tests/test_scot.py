"""SCOT's stages: against the outputs of its official code, and against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor

from reproductions import UserError
from reproductions.scot.activation import activation, combined
from reproductions.scot.backbones import Backbone
from reproductions.scot.cells import Cells
from reproductions.scot.hough import HoughSpace, gaussian
from reproductions.scot.hyperpixels import activation_of, hyperpixels, stacked
from reproductions.scot.images import normalised, resized
from reproductions.scot.method import Hyperpixels, Matching, cost, similarity

PAIRS = ("scot_pair_A", "scot_pair_B", "scot_pair_C")


def relative(x: Tensor, y: Tensor) -> float:
    """The largest error relative to its entry."""
    return float(((x - y).abs() / y.abs().clamp(min=1e-30)).max())


class Pair:
    """A golden pair of images as hyperpixels."""

    def __init__(self, stored: dict[str, np.ndarray]) -> None:
        self.stored = stored
        self.cells = [
            Cells.of_map(
                self[f"{s}_feat"].shape[1:], int(self["jump"]), int(self["rf"]), self[f"{s}_imsize_hw"].tolist()
            )
            for s in ("src", "trg")
        ]
        self.features = [self[f"{s}_feat"].flatten(1).mT for s in ("src", "trg")]
        self.masses = [
            c.weights(self[f"{s}_cam"], float(self["cam_scale"]))
            for c, s in zip(self.cells, ("src", "trg"), strict=True)
        ]
        self.exponent = float(self["exp2"])

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.stored[name])

    def hyperpixels(self, uniform: bool = False) -> list[Hyperpixels]:
        masses = [torch.ones(len(c)) for c in self.cells] if uniform else self.masses
        return [Hyperpixels(*x) for x in zip(self.features, self.cells, masses, strict=True)]


@pytest.fixture(params=PAIRS)
def pair(request, golden):
    return Pair(golden(request.param))


# ------------------------------------------------------------------------------------------------ the official code


def test_cells_and_weights_are_the_official_ones(pair):
    for cells, masses, side in zip(pair.cells, pair.masses, ("src", "trg"), strict=True):
        assert torch.equal(cells.boxes, pair[f"{side}_boxes"])
        assert torch.equal(cells.centres, pair[f"{side}_centers"])
        assert torch.equal(masses, pair[f"{side}_weights"][:, 0])
    mu = pair.masses[0] / pair.masses[0].sum()
    torch.testing.assert_close(mu, pair["mu"][:, 0], rtol=1e-6, atol=0)


def test_cost_and_plans_are_the_official_ones(pair):
    assert (cost(*pair.features).mT - pair["cost"]).abs().max() < 1e-6
    source, target = pair.hyperpixels()
    assert relative(Matching(iterations=1).plan(source, target).mT, pair["plan_1it"]) < 1e-4
    assert relative(Matching(iterations=50).plan(source, target).mT, pair["plan_50it"]) < 1e-3


def test_votes_and_confidence_are_the_official_ones(pair):
    source, target = pair.hyperpixels()
    V = Matching(exponent=pair.exponent).votes(source, target)
    assert relative(V.mT, pair["votes_OT"]) < 1e-4
    space = HoughSpace(source.cells, target.cells)
    assert space.shape == (int(pair["hough_ny"]), int(pair["hough_nx"]))
    assert space.side == pytest.approx(float(pair["hough_cell"]), rel=1e-12)
    np.testing.assert_allclose(np.outer(gaussian(), gaussian()), pair["hough_filter"], atol=1e-7)
    raw = pair["check_hough_raw"].numpy()
    np.testing.assert_allclose(space.votes(V), raw, atol=1e-5 * raw.max())
    assert relative(space.confidence(V).mT, pair["confidence_OTGeo"]) < 1e-4
    if "confidence_cosGeo_exp1_3" in pair.stored:
        W = Matching(transport=False, exponent=3).votes(source, target)
        wanted = pair["confidence_cosGeo_exp1_3"]
        assert (space.confidence(W).mT - wanted).abs().max() < 1e-4 * wanted.max()


@pytest.mark.parametrize("name", ["OTGeo", "OT", "cosGeo", "cos", "OTGeo_uniform"])
def test_matches_and_keypoints_are_the_official_ones(pair, name):
    transport, hough = name.startswith("OT"), "Geo" in name
    matching = Matching(transport=transport, exponent=pair.exponent if transport else 3, hough=hough)
    source, target = pair.hyperpixels(uniform=name.endswith("uniform"))
    sure = pair[f"argmax_relgap_{name}"] > 1e-4
    assert torch.equal(matching.matches(source, target)[sure], pair[f"argmax_{name}"][sure])
    moved = matching.transferred(source, target, pair["src_kps"].mT)
    assert (moved.mT - pair[f"pred_kps_{name}"]).abs().max() < 1e-3


def test_images_are_prepared_as_officially(golden):
    z = {k: torch.from_numpy(v) for k, v in golden("scot_prep").items()}
    x = normalised(z["image_u8"].movedim(0, -1).numpy())
    torch.testing.assert_close(x, z["normalised"], atol=1e-5, rtol=0)
    small, ratio = resized(x, int(z["side"]))
    torch.testing.assert_close(small, z["resized"], atol=1e-5, rtol=0)
    torch.testing.assert_close(z["kps"] * ratio, z["kps_resized"])
    torch.testing.assert_close(resized(z["mask"][None], int(z["side"]))[0][0], z["mask_resized"], atol=1e-3, rtol=0)
    cells = Cells.of_map(
        z["prune_cells_hw"].tolist(), int(z["prune_jump"]), int(z["prune_rf"]), z["prune_imsize_hw"].tolist()
    )
    inside = cells.inside(int(z["prune_threshold"]))
    assert torch.equal(inside, z["pruned_ids"])
    assert torch.equal(cells.subset(inside).boxes, z["pruned_boxes"])


def test_activation_maps_are_the_official_ones(golden):
    z = {k: torch.from_numpy(v) for k, v in golden("scot_cam").items()}
    maps = [
        activation(z[f"feat_map_{s}"][0], z[f"logits_{s}"][0], z["fc_weight"], z["sz_hw"].tolist())
        for s in ("s1", "s15", "s2")
    ]
    torch.testing.assert_close(maps[0], z["cam_single_scale1"], atol=2e-6, rtol=0)
    torch.testing.assert_close(combined(maps), z["cam_multi"], atol=2e-6, rtol=0)


def test_hyperpixels_of_a_resnet_are_the_official_ones(golden, tmp_path):
    z = golden("scot_hyperpixel_r50")
    torch.manual_seed(int(z["torch_seed"]))
    model = torchvision.models.resnet50(weights=None)
    generator = torch.Generator().manual_seed(int(z["bn_seed"]))
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
            layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
    if abs(model.conv1.weight.double().sum().item() - z["weight_checksum_conv1"]) > 1e-6:
        pytest.skip("this torch draws other random weights")
    torch.save(model.state_dict(), tmp_path / "resnet50.pth")
    backbone, x = (
        Backbone("resnet50", tuple(z["layer_ids"].tolist()), tmp_path / "resnet50.pth"),
        torch.from_numpy(z["image"]),
    )
    assert backbone.network.geometry(backbone.layers[0]) == (int(z["jump"]), int(z["rf"]))
    with torch.no_grad():
        h = stacked(backbone.network.tapped(x, backbone.layers))
        logits = backbone.network.classified(x)[1]
    assert h.shape == tuple(z["hyper_shape"])
    subset, mean = torch.from_numpy(z["hyper_subset"]), torch.from_numpy(z["hyper_channel_mean"])
    assert (h[torch.from_numpy(z["channel_subset"])] - subset).abs().max() < 1e-4 * subset.abs().max()
    assert (h.mean((-2, -1)) - mean).abs().max() < 1e-4 * mean.abs().max()
    assert (logits - torch.from_numpy(z["gap_logits"])).abs().max() < 1e-4 * np.abs(z["gap_logits"]).max()


# -------------------------------------------------------------------------------------------------- plain formulas


def random_images(seed: int = 0, channels: int = 8) -> list[Hyperpixels]:
    g = torch.Generator().manual_seed(seed)
    found = []
    for rows, columns in ((4, 6), (5, 3)):
        cells = Cells.of_map((rows, columns), 8, 27, (8 * rows, 8 * columns))
        found.append(
            Hyperpixels(
                torch.randn(len(cells), channels, generator=g), cells, torch.rand(len(cells), generator=g) + 0.5
            )
        )
    return found


def test_votes_fall_into_the_bins_of_their_offsets():
    source, target = random_images()
    V, space = torch.rand(len(target.cells), len(source.cells)), HoughSpace(source.cells, target.cells)
    wanted = np.zeros(space.shape)
    for t, (x_t, y_t) in enumerate(target.cells.centres.tolist()):
        for s, (x_s, y_s) in enumerate(source.cells.centres.tolist()):
            row = int((source.cells.size[0] - y_s + y_t) // space.side)
            column = int((source.cells.size[1] - x_s + x_t) // space.side)
            wanted[row, column] += V[t, s].item()
    np.testing.assert_allclose(space.votes(V), wanted, rtol=1e-6)
    assert abs(space.shape[0] * space.shape[1] / 8192 - 1) < 0.05
    assert torch.equal(space.best_matches(V), space.confidence(V).argmax(0))


def test_an_image_matches_itself_and_its_keypoints_stay():
    source, _ = random_images(channels=32)
    for matching in (Matching(), Matching(transport=False), Matching(hough=False), Matching(solver="emd")):
        assert torch.equal(matching.matches(source, source), torch.arange(len(source.cells)))
        keypoints = torch.tensor([[0.0, 0.0], [11.3, 7.9], [47.0, 31.0]])
        torch.testing.assert_close(matching.transferred(source, source, keypoints), keypoints)


def test_many_iterations_fit_both_marginals_and_one_the_sources():
    source, target = random_images()
    mu_s, mu_t = (x.weights / x.weights.sum() for x in (source, target))
    one, many = Matching(iterations=1).plan(source, target), Matching(iterations=2000).plan(source, target)
    torch.testing.assert_close(one.sum(0), mu_s)
    assert (one.sum(1) - mu_t).abs().sum() > 1e-3
    torch.testing.assert_close(many.sum(0), mu_s)
    torch.testing.assert_close(many.sum(1), mu_t, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(1 - similarity(source.features, target.features), cost(source.features, target.features))


def test_a_point_without_a_box_moves_as_the_nearest_cell():
    cells = Cells.of_map((1, 2), 40, 11, (1, 41))
    moved = cells.transfer(cells, torch.tensor([1, 0]), torch.tensor([[15.0, 0.0], [2.0, 3.0], [39.0, 0.0]]))
    torch.testing.assert_close(moved, torch.tensor([[55.0, 0.0], [42.0, 3.0], [-1.0, 0.0]]))


def test_the_staircase_of_activations():
    cells = Cells.of_map((1, 5), 1, 1, (1, 5))
    m = torch.tensor([[0.4, 0.41, 0.51, 0.61, 0.0]])
    torch.testing.assert_close(cells.weights(m), torch.tensor([0.5, 0.8, 0.9, 1.0, 0.5]))
    torch.testing.assert_close(cells.weights(255 * m, full=255), torch.tensor([0.5, 0.8, 0.9, 1.0, 0.5]))
    assert torch.equal(cells.weights(None), torch.ones(5))


def test_hyperpixels_of_a_network_of_timm():
    backbone = Backbone("mobilenetv2_050", (5, 12, 16), "random")
    image = np.random.default_rng(0).integers(0, 256, (60, 84, 3), dtype=np.uint8)
    found, ratio = hyperpixels(backbone, image, "activation", side=64)
    assert ratio == 64 / 84
    assert found.cells.size == (int(60 * ratio), 64)
    assert found.features.shape == (6 * 8, 16 + 48 + 160)
    assert set(found.weights.unique().tolist()) <= {torch.tensor(w).item() for w in (0.5, 0.8, 0.9, 1.0)}
    assert len(found.weights.unique()) > 1
    masked, _ = hyperpixels(backbone, image, "mask", np.full((60, 84), 255, np.uint8), side=64)
    assert torch.equal(masked.weights, torch.ones(48))
    with torch.no_grad():
        x = resized(normalised(image), 64)[0]
        assert activation_of(backbone, x).max() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "depth", "jumps"),
    [
        ("resnet18", 8, [4, 4, 8, 8, 16, 16, 32, 32]),
        ("vit_tiny_patch16_224", 12, [16] * 12),
        ("convnext_atto", 12, None),
    ],
)
def test_layers_of_other_networks(name, depth, jumps):
    options = (("dynamic_img_size", True),) if name.startswith("vit") else ()
    network = Backbone(name, (0,), "random", options=options).network
    assert network.depth == depth
    assert network.jumps == (jumps or network.jumps)
    with torch.no_grad():
        first, last = network.tapped(torch.zeros(3, 64, 96), (0, depth - 1))
    assert first.shape[-1] * network.jumps[0] == 96
    assert last.shape[-1] * network.jumps[-1] == 96


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (Backbone("resnet50", (0, 17), "random"), "layers 0 … 16, and 17"),
        (Backbone("resnet50", (12,), "random"), "below 10"),
        (Backbone("mobilenetv2_050", (17,), "random"), "layers 0 … 16, and 17"),
        (Backbone("no_such_network", (0,), "random"), "no_such_network"),
        (Backbone("resnet50", (0,), "nowhere.pth"), "there is no file of weights nowhere.pth"),
    ],
)
def test_what_no_network_has_is_refused(backbone, words):
    with pytest.raises(UserError, match=words):
        _ = backbone.network


def test_broken_weights_are_refused(tmp_path):
    for name in ("broken.pth", "broken.safetensors"):
        path = tmp_path / name
        path.write_bytes(b"not weights")
        with pytest.raises(UserError, match=name):
            _ = Backbone("mobilenetv2_050", (0,), path).network
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth holds no weights of mobilenetv2_050"):
        _ = Backbone("mobilenetv2_050", (0,), tmp_path / "other.pth").network


def test_a_network_without_a_classifier_has_no_activation_maps():
    with pytest.raises(UserError, match="another head"), torch.no_grad():
        Backbone("mobilenetv2_050", (0,), "random", options=(("num_classes", 0),)).network.classified(
            torch.zeros(3, 32, 32)
        )
