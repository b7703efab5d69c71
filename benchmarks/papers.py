"""The papers' layers end to end, by the functions that their reproductions call, on random features of their shapes.

No backbone: from features on, to logits, losses, gradients, keypoints or a matching. What is tracked is measured
against formulas or libraries that the layers do not use, or against the truth that was planted.
"""

from functools import cache

import numpy as np
import ot
import torch
import torch.nn.functional as F

from benchmarks import common, reference, timing

KAPPA, DIMENSIONS, TEMPERATURE = 100.0, 512, 0.1  # CLIP's, and that of PatchCT's navigators
LABELS = 3  # of an image


class DeepEMDEpisode(timing.Timed):
    """The logits of an episode and their gradient: 5-way 1-shot with 15 queries a class, an FCN's 5 × 5 nodes."""

    version = "1"  # to be raised when instances or settings change: older results are then no longer comparable
    param_names = ("solver", "size")
    params = (common.grid(["emd"], ["sinkhorn"]), common.grid(["5x15x25x640"], ["5x15x9x640"], ["20x15x25x640"]))

    def setup(self, solver, size):
        self.logits, self.gradient = _deepemd(solver, size)

    def time_logits(self, solver, size):
        self.logits()

    def time_gradient(self, solver, size):
        self.gradient()

    def track_value_error(self, solver, size):
        """Of the similarities that the logits are multiples of to those of POT's exact solver, absolute."""
        return common.tracked(float(abs(common.finite(self.logits()) / 12.5 - deepemd_similarities(size)).max()))

    track_value_error.unit = "similarity"


class ScotPair(timing.Timed):
    """The keypoints of a pair of images: transport of hyperpixels, then Hough matching; rows x columns x channels."""

    version = "1"
    param_names = ("size",)
    params = (common.grid(["28x38x512"], ["56x75x1024"], ["75x75x4096"]),)

    def setup(self, size):
        self.call, self.truth = _scot(size)

    def time_transfer(self, size):
        self.call()

    def track_transfer_error(self, size):
        """The mean distance to where the keypoints belong, as a share of the longer side."""
        rows, columns, _ = map(int, size.split("x"))
        distance = np.linalg.norm(common.finite(self.call()) - self.truth, axis=-1)
        return common.tracked(distance.mean() / (max(rows, columns) * JUMP))

    track_transfer_error.unit = "of the longer side"


class PatchCTBatch(timing.Timed):
    """The regulariser of a batch and its gradient: images x patches x labels, 512 dimensions."""

    version = "1"
    param_names = ("kind", "size", "device")
    params = (
        common.grid(["ct"], ["ot"]),
        common.grid(["32x196x80"], ["32x784x80"], ["128x784x80"]),
        common.grid(["cpu"], ["cuda"]),
    )

    def setup(self, kind, size, device):
        self.costs, self.gradient = _patchct(kind, size, device)

    def time_cost(self, kind, size, device):
        self.costs()

    def time_gradient(self, kind, size, device):
        self.gradient()

    def track_value_error(self, kind, size, device):
        """Of each image's cost to the formula in float64; to POT's plan for the optimal kind; relative."""
        wanted = patchct_costs(kind, size)
        return common.tracked(common.relative_gap(common.finite(self.costs()).astype(np.float64), wanted))

    track_value_error.unit = "relative"


class RamBatch(timing.Timed):
    """The scores of a batch, and a training step's gradient with the teacher's prior: images x regions x labels."""

    version = "1"
    param_names = ("size", "device")
    params = (common.grid(["32x196x80"], ["32x196x1000"], ["64x196x1000"]), common.grid(["cpu"], ["cuda"]))

    def setup(self, size, device):
        self.plan, self.scores, self.gradient = _ram(size, device)

    def time_scores(self, size, device):
        self.scores()

    def time_gradient(self, size, device):
        self.gradient()

    def track_marginal_error(self, size, device):
        """Of the plan that the local logits are read with: region weights on one side, equal labels on the other."""
        a, b = ram_marginals(size)
        return common.tracked(common.marginal_error(self.plan(), a, b))

    track_marginal_error.unit = "1-norm"


class BlindMatch(timing.Timed):
    """From two sets of embeddings of the same classes to their matching, by Gromov–Wasserstein's distances."""

    version = "1"
    param_names = ("solver", "size")
    params = (
        common.grid(["hahn_grant", "local_search"], ["faq", "gromov_wasserstein", "local_cka", "mpopt"]),
        common.grid(["20"], ["40"], ["100"]),
    )

    def setup(self, solver, size):
        self.call = _blind_match(solver, size)

    def time_match(self, solver, size):
        self.call()

    def track_matching_error(self, solver, size):
        """The share of the classes that are given another's partner."""
        return common.tracked(float((common.finite(self.call()) != np.arange(int(size))).mean()))

    track_matching_error.unit = "of the classes"


# --------------------------------------------------------------------------------------------------------- DeepEMD


@cache
def deepemd_features(size):
    """Nodes of queries (way · queries, N, C) and prototypes (way, N, C), float32 and non-negative, as after a ReLU."""
    way, queries, n, channels = map(int, size.split("x"))
    g = torch.Generator().manual_seed(0)
    classes = torch.randn(way, n, channels, generator=g)
    shown = classes.repeat(queries, 1, 1)
    seen = [x + torch.randn(x.shape, generator=g) for x in (shown, classes)]
    return [F.relu(x) for x in seen]


@cache  # asv runs setup before every sample
def _deepemd(solver, size):
    (matching,) = common.of_commit("reproductions.deepemd.method", "NodeMatching")
    settings = {"reg": 0.05} if solver == "sinkhorn" else {}
    logits, features = matching(solver=solver, settings=settings).logits, deepemd_features(size)
    leaves = [x.clone().requires_grad_() for x in features]
    labels = torch.arange(len(features[1])).repeat(len(features[0]) // len(features[1]))
    return _warm(
        lambda: logits(*features), lambda: torch.autograd.grad(F.cross_entropy(logits(*leaves), labels), leaves)[0]
    )


@cache
def deepemd_similarities(size):
    """1 − V/N of every query and prototype, with the weights and cosines of the paper in float64 and V by POT."""
    query, prototype = (x.double().numpy() for x in deepemd_features(size))
    unit = [x - x.mean(-1, keepdims=True) for x in (query, prototype)]
    u, v = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in unit)
    found = np.empty((len(query), len(prototype)))
    for q, w in np.ndindex(found.shape):
        s, d = query[q] @ prototype[w].mean(0), prototype[w] @ query[q].mean(0)
        s, d = (np.maximum(x, 0) + 1e-3 + 1e-5 for x in (s, d))
        found[q, w] = 1 - ot.emd2(s / s.sum(), d / d.sum(), 1 - u[q] @ v[w].T)
    return found


# ------------------------------------------------------------------------------------------------------------ SCOT

JUMP, FIELD, SHIFT = 8, 27, (2, 3)  # pixels, pixels, cells down and right
KEYPOINTS, NOISE = 15, 2.0


@cache
def _scot(size):
    (cells,) = common.of_commit("reproductions.scot.cells", "Cells")
    hyperpixels, matching = common.of_commit("reproductions.scot.method", "Hyperpixels", "Matching")
    rows, columns, channels = map(int, size.split("x"))
    g = torch.Generator().manual_seed(0)
    whole = torch.randn(rows + SHIFT[0], columns + SHIFT[1], channels, generator=g)
    place = cells.of_map((rows, columns), JUMP, FIELD, (rows * JUMP, columns * JUMP))
    sides = []
    for down, right in (SHIFT, (0, 0)):
        seen = whole[down : down + rows, right : right + columns].flatten(0, 1)
        weights = torch.rand(rows * columns, generator=g) + 0.5
        sides.append(hyperpixels(F.relu(seen + NOISE * torch.randn(seen.shape, generator=g)), place, weights))
    span = torch.tensor([columns - SHIFT[1] - 2, rows - SHIFT[0] - 2]) * JUMP
    keypoints = JUMP + torch.rand(KEYPOINTS, 2, generator=g) * span
    truth = keypoints + JUMP * torch.tensor(SHIFT).flip(0)
    (call,) = _warm(lambda: matching().transferred(*sides, keypoints))
    return call, truth.numpy()


# --------------------------------------------------------------------------------------------- PatchCT and RAM


@cache
def label_batch(size):
    """Images (B, d), patches (B, N, d), labels (C, d) in float32, and which labels are present, (B, C)."""
    images, patches, labels = map(int, size.split("x"))
    g = torch.Generator().manual_seed(0)
    t = torch.randn(labels, DIMENSIONS, generator=g)
    shown = torch.stack([torch.randperm(labels, generator=g)[:LABELS] for _ in range(images)])
    targets = torch.zeros(images, labels).scatter_(1, shown, 1)
    x = 0.3 * t[shown[:, torch.arange(patches) % LABELS]] + torch.randn(images, patches, DIMENSIONS, generator=g)
    return x.mean(1), x, t, targets


@cache
def _patchct(kind, size, device):
    (transport,) = common.of_commit("reproductions.patchct.transport", "Transport")
    common.require_device(device)
    _, x, t, targets = (part.to(device) for part in label_batch(size))
    settings, tau = transport(kind=kind, temperature=TEMPERATURE), torch.tensor(TEMPERATURE, device=device)
    beta = settings.label_weights(targets, targets)
    leaves = [part.clone().requires_grad_() for part in (x, t)]
    return _warm(
        lambda: settings.cost(x, t, beta, tau),
        lambda: torch.autograd.grad(settings.cost(*leaves, beta, tau).mean(), leaves)[0],
        device=device,
    )


@cache
def patchct_costs(kind, size):
    """The cost of each image, (B,), in float64."""
    _, x, t, targets = (part.double().numpy() for part in label_batch(size))
    x, t = (z / np.linalg.norm(z, axis=-1, keepdims=True) for z in (x, t))
    cost, beta = 1 - x @ t.T, targets / targets.sum(-1, keepdims=True)
    theta = np.full(cost.shape[:2], 1 / cost.shape[1])
    if kind == "ct":
        return reference.conditional_transport_of(cost, theta, beta, TEMPERATURE)[0]
    found = []
    for C, a, b in zip(cost, theta, beta, strict=True):
        plan = ot.sinkhorn(a, b[b > 0], C[:, b > 0], 0.05, numItermax=10_000, stopThr=1e-12)
        found.append((plan * C[:, b > 0]).sum())
    return np.array(found)


@cache
def _ram(size, device):
    matcher_class, unit, score = common.of_commit("reproductions.ram.matcher", "Matcher", "unit", "score")
    (settings,) = common.of_commit("reproductions.ram.settings", "RamSettings")
    (mmc_loss,) = common.of_commit("reproductions.ram.mmc_loss", "mmc_loss")
    common.require_device(device)
    image, x, t, targets = (part.to(device) for part in label_batch(size))
    matcher = matcher_class(settings(), KAPPA).to(device)
    leaves = [part.clone().requires_grad_() for part in (image, x, t)]

    def training_step():
        logits = matcher(*leaves, matcher.prior(x, t, targets))
        return torch.autograd.grad(mmc_loss(logits.g, targets) + mmc_loss(logits.z, targets), leaves)[1]

    return _warm(
        lambda: matcher.plan(unit(x) @ unit(t).mT),
        torch.no_grad()(lambda: score(matcher(image, x, t))),
        training_step,
        device=device,
    )


def ram_marginals(size):
    """Softmax of the regions' largest cosines at temperature 0.1, and 1/C, (B, N) and (B, C)."""
    _, x, t, _ = (part.double() for part in label_batch(size))
    weights = ((F.normalize(x, dim=-1) @ F.normalize(t, dim=-1).mT).amax(-1) / 0.1).softmax(-1)
    return weights.numpy(), np.full((len(x), len(t)), 1 / len(t))


# --------------------------------------------------------------------------------------------------- blind matching


@cache
def _blind_match(solver, size):
    instance_class, distortion_class = (
        *common.of_commit("reproductions.blind_match.instances", "Instance"),
        *common.of_commit("reproductions.blind_match.method", "Distortion"),
    )
    g, made = torch.Generator().manual_seed(0), common.ours(solver)
    latent = torch.randn(int(size), 16, generator=g)
    sides = [latent @ torch.randn(16, d, generator=g) for d in (384, 768)]
    x, y = (side + 1.5 * torch.randn(side.shape, generator=g) for side in sides)
    order = torch.randperm(int(size), generator=g)

    def call():
        problem = instance_class(x, y[order]).problem(distortion_class("gw"))
        return order[common.solved(made.solve(problem), "ITERATION_LIMIT").permutation]

    return _warm(call)[0]


def _warm(*calls, device="cpu"):
    """The calls, each run once, and each waiting for the device."""
    return [common.warmed_up(_synchronized(call, device)) for call in calls]


def _synchronized(call, device):
    def synchronized():
        answer = call()
        common.synchronize(device)
        return answer

    return synchronized
