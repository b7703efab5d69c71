"""RAM: against the outputs of its official code, against plain formulas, and as a model on a tiny CLIP."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from test_clip import tiny_clip
from torch import Tensor

from reproductions import claims
from reproductions.features.clip import Clip
from reproductions.features.deep_text import DeepText
from reproductions.features.two_path import Paths, advance, projected, start
from reproductions.multi_label.losses import asymmetric_loss, binary_cross_entropy
from reproductions.ram.adapter import LadderAdapter
from reproductions.ram.kcot import Kcot, cost, region_weights, teacher_prior
from reproductions.ram.matcher import Matcher, score
from reproductions.ram.mmc_loss import mmc_loss
from reproductions.ram.model import RamModel
from reproductions.ram.settings import RamSettings
from reproductions.storage import Cache

SEEN, UNSEEN = ("cat", "dog", "traffic light"), ("zebra", "horse")
SMALL = {"layers": (1, 2), "image_tokens": 3, "text_layers": (1,), "text_tokens": 2}
BOTH_ROUND = 2e-5  # the official scores are within 1.5e-5 of double precision, and ours round, too
ADAPTER = {  # the official names of an adapter's parts
    "conv_adapter_layers1.": "point.",
    "conv_adapter_layers2.": "field.",
    "conv_adapter_layers.": "gate.",
    "conv_adapter_final.": "out.",
    "adapter_norm_q1.": "norms.0.",
    "adapter_norm_q2.": "norms.1.",
    "adapter_norm_kv.": "text_norm.",
}


def tensors(stored: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in stored.items()}


def official_adapter(stored: dict[str, Tensor], prefix: str = "w::") -> LadderAdapter:
    """The adapter with the weights of the official one."""
    found = {k.removeprefix(prefix): x.float() for k, x in stored.items() if k.startswith(prefix)}
    adapter = LadderAdapter(*found["conv_adapter_final.weight"].shape[:2])
    renamed = {
        new + k.removeprefix(old): x for k, x in found.items() for old, new in ADAPTER.items() if k.startswith(old)
    }
    adapter.load_state_dict(renamed)
    return adapter.eval()


# ------------------------------------------------------------------------------------------------ the official code


class Case:
    """A golden batch of features, and the matcher with its hyper-parameters and the published number of iterations."""

    def __init__(self, stored: dict[str, np.ndarray]) -> None:
        self.stored = tensors(stored)
        self.S = int(self["n_seen"])
        self.columns = {"train": slice(0, self.S), "zsl": slice(self.S, None), "gzsl": slice(0, None)}
        self.kappa = float(self["logit_scale"])

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name]

    def matcher(self, part: str, iterations: int | None = None) -> Matcher:
        iterations = int(self[f"{part}_sinkhorn_iters"]) if iterations is None else iterations
        kcot = Kcot(reg=float(self["reg"]), prior_weight=float(self["reg_sc"]), iterations=iterations, floor="batch")
        matcher = Matcher(RamSettings(kcot=kcot, tau_local=float(self["tau_loc"])), self.kappa)
        assert float(matcher.log_tau_global.detach().exp()) == pytest.approx(float(self["tau_glb"]), rel=1e-6)
        return matcher

    def features(self, part: str, kind: torch.dtype = torch.float32) -> list[Tensor]:
        """Global, regional and text features."""
        x = (self["global_feat"], self["region_feat_with_cls"][:, 1:], self["text_feat"][self.columns[part]])
        return [f.to(kind).clone() for f in x]

    def prior(self, matcher: Matcher, kind: torch.dtype = torch.float32) -> Tensor:
        regions, text = self["teacher_region_feat_with_cls"][:, 1:], self["teacher_text_feat"][: self.S]
        return matcher.prior(regions.to(kind), text.to(kind), self["labels"][:, : self.S])


@pytest.fixture(params=["ram_kcot_A", "ram_kcot_B", "ram_kcot_C"])
def case(request, golden):
    return Case(golden(request.param))


def test_cost_weights_and_prior_are_the_official_ones(case):
    sim = F.normalize(case["region_feat_with_cls"][:, 1:], dim=-1) @ F.normalize(case["text_feat"], dim=-1).mT
    torch.testing.assert_close(sim, case["similarity_all_labels"], rtol=0, atol=1e-6)
    for part, name in (("train", "train_cost_base"), ("zsl", "zsl_cost"), ("gzsl", "gzsl_cost")):
        chosen = case["similarity_all_labels"][..., case.columns[part]]
        torch.testing.assert_close(cost(chosen, case.kappa), case[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(region_weights(chosen, 0.1), case[f"{part}_u"], rtol=0, atol=1e-6)
    P = case.prior(case.matcher("train"))
    torch.testing.assert_close(P, case["teacher_prior_masked"], rtol=0, atol=5e-5)
    total = cost(case["similarity_all_labels"][..., : case.S], case.kappa) - float(case["reg_sc"]) * P.log()
    torch.testing.assert_close(total, case["train_cost_total"], rtol=0, atol=5e-5)


def test_plans_logits_and_scores_are_the_official_ones(case):
    for part in ("train", "zsl", "gzsl"):
        matcher, features = case.matcher(part), case.features(part)
        prior = case.prior(matcher) if part == "train" else None
        sim = F.normalize(features[1], dim=-1) @ F.normalize(features[2], dim=-1).mT
        torch.testing.assert_close(matcher.plan(sim, prior), case[f"{part}_plan"], rtol=0, atol=1e-6)
        logits = matcher(*features, prior)
        largest = float(case[f"{part}_logits_loc"].abs().max())
        torch.testing.assert_close(logits.z, case[f"{part}_logits_loc"], rtol=0, atol=3e-6 * largest)
        torch.testing.assert_close(score(logits), case[f"{part}_score"], rtol=0, atol=BOTH_ROUND)


def test_in_double_precision_they_are_those_of_the_official_arithmetic(case):
    for part in ("train", "zsl", "gzsl"):
        matcher, features = case.matcher(part).double(), case.features(part, torch.float64)
        with torch.no_grad():
            matcher.log_tau_local.copy_(case["tau_loc"].log())
            matcher.log_tau_global.copy_(case["tau_glb"].log())
            logits = matcher(*features, case.prior(matcher, torch.float64) if part == "train" else None)
        if part == "train":
            labels = case["labels"][:, : case.S]
            total = mmc_loss(logits.g, labels) + mmc_loss(logits.z, labels)
            assert float(total) == pytest.approx(float(case["check_f64_train_loss"]), rel=1e-7)
        else:
            torch.testing.assert_close(score(logits), case[f"check_f64_{part}_score"], rtol=0, atol=1e-8)


def test_scores_of_an_image_alone_are_the_official_ones(case):
    for part in ("zsl", "gzsl"):
        x, x_n, t = case.features(part)
        for b, iterations in enumerate(case[f"{part}_sinkhorn_iters_one_image_per_batch"].tolist()):
            alone = score(case.matcher(part, iterations)(x[b : b + 1], x_n[b : b + 1], t))
            torch.testing.assert_close(alone[0], case[f"{part}_score_one_image_per_batch"][b], rtol=0, atol=BOTH_ROUND)


def test_the_published_stop_is_close_to_the_converged_plan(case):
    for part, most in (("train", 7e-5), ("zsl", 4e-3), ("gzsl", 4e-3)):
        _, x_n, t = case.features(part)
        sim = F.normalize(x_n, dim=-1) @ F.normalize(t, dim=-1).mT
        matcher = case.matcher(part)
        prior = case.prior(matcher) if part == "train" else None
        T = dataclasses.replace(matcher.kcot, iterations=None).plan(sim, case.kappa, prior)
        assert (T - case[f"{part}_plan"]).abs().sum((-2, -1)).max() < most
        u = region_weights(sim, 0.1)
        assert (T.sum(-1) - u).abs().sum(-1).max() < 1.2e-5
        torch.testing.assert_close(T.sum(-2), torch.full_like(T[:, 0], 1 / T.shape[-1]), rtol=0, atol=1e-6)


def test_losses_and_their_gradients_are_the_official_ones(case):
    matcher, features = case.matcher("train"), case.features("train")
    for f in features:
        f.requires_grad_()
    labels = case["labels"][:, : case.S]
    logits = matcher(*features, case.prior(matcher))
    losses = [mmc_loss(x, labels) for x in logits]
    total = losses[0] + losses[1]
    for loss, name in zip([*losses, total], ("train_loss_glb", "train_loss_loc", "train_loss"), strict=True):
        assert abs(float(loss.detach()) - float(case[name])) < 5e-5 * max(1, float(case[name]) / 10)
    if "grad_text" not in case.stored:
        return
    total.backward()
    for f, name in zip(features, ("grad_global", "grad_region", "grad_text"), strict=True):
        wanted = case[name][: case.S] if name == "grad_text" else case[name]
        wanted = wanted[:, 1:] if name == "grad_region" else wanted
        assert (f.grad - wanted).abs().max() < 1e-4 * wanted.abs().max()
    for log_tau, name in ((matcher.log_tau_local, "loc"), (matcher.log_tau_global, "glb")):
        tau = float(log_tau.detach().exp())  # dL/dτ = (dL/dlog τ)/τ
        assert float(log_tau.grad) / tau == pytest.approx(float(case[f"grad_tau_{name}"]), rel=1e-4)


def test_the_multi_label_losses_are_the_official_ones(golden):
    stored = tensors(golden("ram_losses"))
    assert float(mmc_loss(stored["logits_mild"], torch.zeros_like(stored["labels_mild"]))) == stored["mmc_no_positive"]
    for kind in ("mild", "sharp"):
        Y = stored[f"labels_{kind}"]
        for loss, name, value in (
            (mmc_loss, "mmc", f"mmc_{kind}"),
            # the official loss is a mean over images with 1000 labels, and bounds its logarithms at 1e-5
            (
                lambda Z, Y: 1000 / Y.shape[1] * asymmetric_loss(Z, Y, 0, 2, 0, floor=1e-5),
                "asl",
                f"asl_g2_0_clip0_{kind}",
            ),
        ):
            Z = stored[f"logits_{kind}"].clone().requires_grad_()
            L = loss(Z, Y)
            L.backward()
            torch.testing.assert_close(L.detach(), stored[value], rtol=1e-5, atol=0)
            wanted = stored[f"{name}_grad_{kind}"]
            assert (Z.grad - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_the_adapter_is_the_official_one(golden):
    stored = tensors(golden("ram_lla"))
    grid = (int(stored["grid"]),) * 2
    X = stored["x_tokens_batch_dim"][1:].transpose(0, 1)  # the class token comes first and is passed through there
    with torch.no_grad():
        out = official_adapter(stored)(X, stored["text"], grid)
    torch.testing.assert_close(out.transpose(0, 1), stored["out"][1:], rtol=0, atol=1e-5)


def test_the_two_path_tower_is_the_official_one(golden):
    stored = tensors(golden("ram_vit_tiny"))
    width, layers, heads, patch, side, d, count = (
        int(stored[k]) for k in ("width", "layers", "heads", "patch", "resolution", "out_dim", "n_learned_tokens")
    )
    clip = tiny_clip(d, {"image_size": side, "patch_size": patch, "width": width, "layers": layers}, heads)
    tower = {
        k.removeprefix("w::").replace("qkv.weight", "in_proj_weight").replace("qkv.bias", "in_proj_bias"): x
        for k, x in stored.items()
        if k.startswith("w::") and "adapt" not in k and not k.startswith("w::attn")
    }
    clip.model.visual.load_state_dict(tower)
    tokens, adapters = {}, {}
    for k in stored["adapter_layers"].tolist():
        block = f"w::transformer.resblocks.{k}."
        tokens[k] = stored[block + "adapt_embeds"].half().float()  # the official block rounds them
        assert len(tokens[k]) == count
        adapters[k] = official_adapter(stored, block + "conv_adapter.")
    with torch.no_grad():
        paths, seen = advance(clip, start(clip, stored["image"]), range(layers), tokens)
        h = paths.h + sum(adapters[k](seen[k], stored["text"], clip.grid(stored["image"])) for k in adapters)
        x = projected(clip, Paths(paths.g, h))
    torch.testing.assert_close(x.cls, stored["out_global"], rtol=0, atol=2e-5)
    torch.testing.assert_close(x.patches, stored["out_local_with_cls"][:, 1:], rtol=0, atol=2e-5)


def test_the_text_tower_with_learned_tokens_is_the_official_one(golden):
    stored = tensors(golden("ram_text_tiny"))
    vocabulary, width = stored["w::token_embedding.weight"].shape
    text = {"vocab_size": vocabulary, "width": width, "layers": int(stored["layers"]), "heads": int(stored["heads"])}
    clip = tiny_clip(stored["out"].shape[1], text=text)
    found = {k.removeprefix("w::"): x for k, x in stored.items() if k.startswith("w::") and "deep_embeds" not in k}
    assert not clip.model.load_state_dict(found, strict=False).unexpected_keys
    layers = stored["learned_token_layers"].tolist()
    deep = DeepText(clip, layers, int(stored["n_learned_tokens"]))
    with torch.no_grad():
        for k in layers:  # the official block rounds them
            deep.tokens[str(k)].copy_(stored[f"w::transformer.resblocks.{k}.deep_embeds"].half())
        assert stored["tokens"][-1].argmax() == 76, "a text that fills the context loses its end inside the blocks"
        for rows in (slice(None), slice(0, 4)):  # with the one that fills the context, and trimmed without it
            ids = clip.trimmed(stored["tokens"][rows])
            out = deep(clip, deep.frozen(clip, ids), ids)
            torch.testing.assert_close(out, stored["out"][rows], rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ plain formulas


def made(B: int = 3, N: int = 6, C: int = 4, d: int = 8, kind: torch.dtype = torch.float64) -> list[Tensor]:
    """Global, regional and text features."""
    g = torch.Generator().manual_seed(0)
    shapes = ((B, d), (B, N, d), (C, d))
    return [torch.randn(s, generator=g, dtype=torch.float64).to(kind) for s in shapes]


def some_targets(B: int = 3, C: int = 4) -> Tensor:
    return (torch.arange(B * C).reshape(B, C) % 3 == 0).to(torch.int8)


@pytest.mark.parametrize("matching", ["pooling", "max", "attention", "ct", "ot", "kcot"])
def test_every_matching_is_a_plan_and_does_what_it_says(matching):
    x, x_n, t = made()
    matcher = Matcher(RamSettings(matching=matching, teacher=False), 10.0).double()
    sim = F.normalize(x_n, dim=-1) @ F.normalize(t, dim=-1).mT
    T = matcher.plan(sim)
    torch.testing.assert_close(T.sum((-2, -1)), torch.ones(3, dtype=T.dtype))
    if matching != "ct":
        torch.testing.assert_close(T.sum(-2), torch.full((3, 4), 0.25, dtype=T.dtype))
    rows = T.sum(-1)
    if matching == "pooling":
        torch.testing.assert_close(matcher(x, x_n, t).z, sim.mean(-2) / 4 / 2e-3)
    elif matching == "attention":
        torch.testing.assert_close(T[1, :, 2] * 4, (10 * sim[1, :, 2]).softmax(0))
    elif matching == "max":
        torch.testing.assert_close(matcher(x, x_n, t).z, sim.amax(-2) / 4 / 2e-3)
    elif matching == "ct":
        torch.testing.assert_close(T, (10 * sim).softmax(-1) / 12 + (10 * sim).softmax(-2) / 8)
    else:
        wanted = torch.full((3, 6), 1 / 6, dtype=T.dtype) if matching == "ot" else region_weights(sim, 0.1)
        torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-5)
    for b in range(3):  # an image alone
        torch.testing.assert_close(matcher.plan(sim[b : b + 1])[0], T[b], rtol=0, atol=1e-15)


def test_the_plan_minimises_its_objective():
    _, x_n, t = made(B=1)
    sim = F.normalize(x_n, dim=-1) @ F.normalize(t, dim=-1).mT
    P = teacher_prior(sim, some_targets(1), 10.0, 20.0)
    kcot = Kcot(tolerance=1e-13)
    T = kcot.plan(sim, 10.0, P)

    def objective(T: Tensor) -> Tensor:
        return (T * cost(sim, 10.0) + 0.1 * T * (T.log() - 1) + 0.05 * (T * (T / P).log() - T + P)).sum()

    (slope,) = torch.autograd.grad(objective(T.requires_grad_()), T)
    for i, j in ((0, 1), (2, 3), (4, 1)):  # changes that keep both marginals
        along = slope[0, i, j] + slope[0, i + 1, j - 1] - slope[0, i, j - 1] - slope[0, i + 1, j]
        assert abs(float(along)) < 1e-9
    assert objective(kcot.plan(sim, 10.0)) > objective(T), "without the prior it is another plan"


def test_the_floor_of_the_teacher_is_per_image_unless_asked_for():
    sim, targets = made(B=3, N=5, C=4)[1][..., :4] / 10, some_targets(3)
    P = teacher_prior(sim, targets, 10.0, 20.0)
    for b in range(3):
        alone = teacher_prior(sim[b : b + 1], targets[b : b + 1], 10.0, 20.0)
        assert torch.equal(alone[0], P[b])
        absent = targets[b] == 0
        assert (P[b][:, absent] == P[b][:, absent].max()).all()
        assert P[b][:, absent].max() <= P[b].min()
    batch = teacher_prior(sim, targets, 10.0, 20.0, "batch")
    assert len(batch[(targets == 0)[:, None].expand_as(batch)].unique()) == 1


def test_gradients_of_losses_and_of_the_matching():
    targets = some_targets()
    targets[0, 1] = -1
    Z = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for loss in (
        mmc_loss,
        binary_cross_entropy,
        lambda Z, Y: asymmetric_loss(Z, Y, 1.0, 2.0, 0.05, focal_gradient=True, floor=0.0),
    ):
        assert torch.autograd.gradcheck(lambda Z, loss=loss: loss(Z, targets), (Z,))
    matcher = Matcher(RamSettings(matching="pooling", teacher=False, tau_local=0.1), 10.0).double()
    features = [f.requires_grad_() for f in made()]
    assert torch.autograd.gradcheck(lambda *f: tuple(matcher(*f)), features)


def test_the_gradient_takes_the_plan_as_given():
    features = [f.requires_grad_() for f in made()]
    matcher = Matcher(RamSettings(teacher=False), 10.0).double()
    _, x_n, t = (F.normalize(f, dim=-1) for f in features)
    sim = x_n @ t.mT
    z = (matcher.plan(sim) * sim).sum(-2) / 2e-3
    wanted = torch.autograd.grad(z.square().sum(), features[1:])
    found = torch.autograd.grad(matcher(*features).z.square().sum(), features[1:])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_gradients_of_the_adapter_in_training():
    torch.manual_seed(0)
    adapter = LadderAdapter(3, 4).double()
    X, T = torch.randn(2, 6, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda X, T: adapter(X, T, (2, 3)), (X.requires_grad_(), T.requires_grad_()))


def test_losses_leave_out_what_is_not_labelled():
    Z = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))
    targets = some_targets()
    targets[:, 1] = -1
    kept = [0, 2, 3]
    for loss in (mmc_loss, binary_cross_entropy, asymmetric_loss):
        torch.testing.assert_close(loss(Z, targets), loss(Z[:, kept], targets[:, kept]))
    wanted = F.binary_cross_entropy_with_logits(Z[:, kept], (targets[:, kept] == 1).float(), reduction="sum") / 3
    torch.testing.assert_close(binary_cross_entropy(Z, targets), wanted)
    torch.testing.assert_close(asymmetric_loss(Z, targets, 0, 0, 0), wanted)
    far = torch.full((1, 1), 500.0)
    assert float(asymmetric_loss(far, torch.zeros(1, 1), 0, 0, 0)) == pytest.approx(-np.log(1e-8))
    assert float(asymmetric_loss(far, torch.zeros(1, 1), 0, 0, 0, floor=0.0)) == pytest.approx(500.0)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="one of pooling, max, attention, ct, ot, kcot"):
        RamSettings(matching="emd")
    with pytest.raises(ValueError, match="teacher=False"):
        RamSettings(matching="pooling")
    with pytest.raises(ValueError, match="tau_local must be positive"):
        RamSettings(tau_local=0.0)


# ------------------------------------------------------------------------------------------------------------ the model


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


def a_model(clip: Clip, seen=SEEN, unseen=UNSEEN, **settings) -> RamModel:
    return RamModel(clip, seen, unseen, RamSettings(**(SMALL | settings)), seed=1)


def images(n: int = 4, side: int = 32, kind: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(3)).to(kind)


def labels(n: int = 4) -> Tensor:
    return torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, -1, 1]], dtype=torch.int8)[:n]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"matching": "ot"},
        {"matching": "kcot", "teacher": False},
        {"matching": "pooling", "teacher": False},
        {"matching": "attention", "teacher": False},
        {"adapter": False},
        {"text_layers": ()},
        {"adapter": False, "text_layers": (), "teacher": False, "matching": "ot"},
    ],
    ids=str,
)
def test_every_switch_runs_and_trains_what_it_says(clip, settings):
    model = a_model(clip, **settings)
    model.train()
    model.loss(images(), labels()).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == trained
    kinds = {"matcher"} | ({"adapters", "image_tokens"} if model.settings.adapter else set())
    assert {name.split(".")[0] for name in trained} == kinds | ({"text"} if model.settings.text_layers else set())
    model.eval()
    with torch.no_grad():
        for candidates, width in (("seen", 3), ("zsl", 2), ("gzsl", 5)):
            model.candidates = candidates
            p = model.scores(images())
            assert p.shape == (4, width) == (4, len(model.names(candidates)))
            torch.testing.assert_close(p.sum(-1), torch.ones(4))
    assert model.names("gzsl") == (*SEEN, *UNSEEN)


def test_scores_do_not_depend_on_the_batch_nor_on_what_else_is_ranked(clip):
    model = a_model(clip, kcot=Kcot(tolerance=1e-7)).double().eval()
    x = images(kind=torch.float64)
    with torch.no_grad():
        together = model.scores_of(x, ("zsl", "gzsl"))
        for b in range(len(x)):
            for candidates, p in zip(("zsl", "gzsl"), together, strict=True):
                model.candidates = candidates
                torch.testing.assert_close(model.scores(x[b : b + 1])[0], p[b], rtol=1e-9, atol=0)
        single = a_model(clip, kcot=Kcot(tolerance=1e-7)).float().eval().scores_of(x.float(), ("zsl", "gzsl"))
    for p, q in zip(together, single, strict=True):
        assert (p - q).abs().max() < 2e-4


def test_the_stem_shared_with_the_teacher_is_the_whole_tower(clip):
    model = a_model(clip).eval()
    x = images()
    with torch.no_grad():
        whole, seen = advance(clip, start(clip, x), range(len(clip.blocks)))
        shared, _ = advance(clip, model._stem(x), model._side_blocks)
    assert not seen
    torch.testing.assert_close(shared.g, whole.g)
    torch.testing.assert_close(shared.h, whole.h)
    torch.testing.assert_close(projected(clip, whole).cls, clip.image_features(x).cls)


def test_remembered_texts_follow_their_learned_tokens(clip):
    model = a_model(clip).eval()
    with torch.no_grad():
        before = model.text_features("gzsl")
        assert model.text_features("gzsl") is before
        model.text.tokens["1"].add_(1.0)
        after = model.text_features("gzsl")
    assert not torch.allclose(before, after)
    torch.testing.assert_close(model.text_features("gzsl").detach(), after)
    torch.testing.assert_close(model.text_features("seen").detach(), after[:3])


def test_vocabularies_and_blocks_that_do_not_fit_are_refused(clip, tmp_path):
    refused(lambda: a_model(clip, seen=("cat",), unseen=("dog", "cat")), "'cat'", "twice")
    refused(lambda: a_model(clip, seen=(), unseen=("dog",)), "seen label")
    refused(lambda: a_model(clip, unseen=()).scores_of(images(), ["zsl"]), "no unseen labels")
    with pytest.raises(ValueError, match="from 0 to 2"):
        a_model(clip, layers=(2, 3))
    cached = RamModel(clip, SEEN, UNSEEN, RamSettings(**SMALL), Cache(tmp_path), seed=1)
    assert torch.equal(cached.teacher_text, a_model(clip).teacher_text)


def test_training_lowers_the_loss(clip):
    model = a_model(clip).train()
    descent = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        descent.zero_grad()
        loss = model.loss(images(), labels())
        loss.backward()
        descent.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_mixed_precision_keeps_the_matching_in_full(clip):
    model = a_model(clip).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(images(), labels())
    assert loss.dtype == torch.float32
    loss.backward()
    assert float(loss.detach()) == pytest.approx(
        float(a_model(clip).train().loss(images(), labels()).detach()), rel=0.05
    )


def test_the_claims_of_the_paper_are_the_six_found():
    paper = claims.load_paper("ram")
    found = {(c.data, c.column, c.metric): c.value for c in paper.claims}
    assert len(found) == len(paper.claims) == 6
    # with exactly k predictions P/R is the number of labels of an image over k: COCO's unseen ones are 1.2074
    assert found["MS-COCO 48/17", "ZSL P@3", "precision_at_k"] <= 100 * 1.2074 / 3
    assert all(c.protocol and c.source and c.tolerance_reason for c in paper.claims)
