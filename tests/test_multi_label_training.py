"""Multi-label training: what is drawn at random, and that processes, workers and interruptions do not matter."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from multi_label_pictures import HERE, LABELS, SIDE, Model, Pictures, configuration, loaded, trained, two_processes
from PIL import Image
from torch import nn

from reproductions.machine import Machine
from reproductions.multi_label.augmentation import RECIPES, whole_image
from reproductions.multi_label.checkpoints import load_weights, save_weights
from reproductions.multi_label.evaluation import scores
from reproductions.multi_label.loading import TrainingImages, epoch_order
from reproductions.multi_label.training import train

ROOT = Path(__file__).parents[1]


class Killed(BaseException):
    pass


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert torch.equal(x, other[name]), name


# --- images


def test_every_epoch_has_an_order_of_its_own_and_the_same_again():
    def order(epoch, seed=0):
        return epoch_order(22, 4, seed, epoch, HERE)

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=1)
    assert [len(step) for step in order(1)] == [4] * 5
    assert len({i for step in order(1) for i in step}) == 20
    left = [set(range(22)).difference(*order(epoch)) for epoch in range(100)]
    assert set.union(*left) == set(range(22)), "each image is left over at times"


def test_processes_share_each_batch():
    whole = epoch_order(22, 6, 0, 1, HERE)
    shares = [epoch_order(22, 6, 0, 1, Machine(rank=rank, count=3)) for rank in range(3)]
    for step, *parts in zip(whole, *shares, strict=True):
        assert sorted(step) == sorted(i for part in parts for i in part)
        assert {len(part) for part in parts} == {2}


@pytest.mark.parametrize("name", RECIPES)
def test_images_are_altered_anew_in_every_epoch_and_without_touching_the_models_random_numbers(name):
    settings = configuration(augmentation=name).training
    transform = RECIPES[name](settings)
    before = torch.random.get_rng_state()
    first, again, later = (TrainingImages(Pictures(), transform, 0, epoch)[5] for epoch in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first[0].shape == (3, SIDE, SIDE)
    assert first[0].dtype == torch.float32
    assert first[1].tolist() == Pictures().targets[5].tolist()
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], later[0])


def test_the_recipes_are_what_they_say():
    image = Image.new("RGB", (40, 30), (255, 0, 0))
    settings = configuration(side=64).training
    plain = whole_image(settings)(image)
    assert torch.equal(plain, torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 64, 64))
    padded, noisy = 0, 0
    for k in range(60):
        torch.manual_seed(k)
        found = RECIPES["pad_crop_erase"](settings)(image)
        noisy += bool((found.abs() > 1).any())
        black = (found == -1).all(0)
        padded += bool(black.any())
        rows, columns = (black.all(d).sum().item() for d in (1, 0))
        assert max(rows, columns) <= 10
    assert 15 <= noisy <= 45
    assert padded > 50
    torch.manual_seed(0)
    grey = (RECIPES["randaugment_cutout"](settings)(image) == 0).all(0).float().mean()
    assert 0.01 < grey < 0.3
    left = Image.new("RGB", (64, 64))
    left.paste((255, 255, 255), (0, 0, 32, 64))
    means = []
    for k in range(60):
        torch.manual_seed(k)
        means.append(RECIPES["resized_crop"](settings)(left).mean((0, 1)))
    assert sum(x[0] > x[-1] for x in means) > 10, "as it was"
    assert sum(x[0] < x[-1] for x in means) > 10, "mirrored"


# --- training


def test_training_learns_to_tell_the_labels(tmp_path):
    seen = []
    settings = {"epochs": 12, "ema": 0.9, "augmentation": "resized_crop"}
    trained(tmp_path, on_epoch=seen.append, **settings)
    assert [epoch.number for epoch in seen] == list(range(1, 13))
    assert seen[-1].loss < 0.8 * seen[0].loss
    losses = {}
    for which in ("last", "average"):
        model, images = Model(), Pictures()
        untrained = scores(model, images, configuration().training, HERE)
        load_weights(tmp_path / "weights.safetensors", model, which)
        found = scores(model, images, configuration().training, HERE)
        targets = torch.from_numpy(images.targets == 1).float()
        losses[which] = F.binary_cross_entropy_with_logits(found, targets)
        assert losses[which] < 0.9 * F.binary_cross_entropy_with_logits(untrained, targets)
    assert losses["last"] != losses["average"]


@pytest.mark.parametrize(("every", "images_before"), [(None, 20), (2, 28)])
def test_a_killed_training_goes_on_as_if_undisturbed(tmp_path, every, images_before):
    loads = []

    class Counted(Pictures):
        killed = True

        def load(self, i):
            loads.append(i)
            if self.killed and len(loads) == 32:  # in the third step of the second epoch
                raise Killed
            return super().load(i)

    whole = trained(tmp_path / "whole", model=Model(0.5), every=every)
    images = Counted()
    with pytest.raises(Killed):
        trained(tmp_path / "resumed", images, model=Model(0.5), every=every)
    assert not (tmp_path / "resumed" / "weights.safetensors").exists()
    loads.clear()
    Counted.killed = False
    assert_same(trained(tmp_path / "resumed", images, model=Model(0.5), every=every), whole)
    assert len(loads) == 40 - images_before
    assert_same(trained(tmp_path / "resumed", images, model=Model(0.5), every=every), whole)
    assert len(loads) == 40 - images_before, "a finished training is not done again"


def test_workers_do_not_matter_and_seeds_do(tmp_path):
    one = trained(tmp_path / "0", epochs=1)
    assert_same(trained(tmp_path / "2", machine=Machine(workers=2), epochs=1), one)
    assert not torch.equal(trained(tmp_path / "seed", epochs=1, seed=4)["last.head.weight"], one["last.head.weight"])


def test_another_training_does_not_go_on_from_this_state(tmp_path):
    first = trained(tmp_path)
    assert len(list(tmp_path.glob("*.part"))) == 1
    other = Model()
    with torch.no_grad():
        other.head.bias.add_(1)
    path = tmp_path / "weights.safetensors"
    train(other, Pictures(), configuration(), path, HERE)
    assert not torch.equal(loaded(path, "last")["head.weight"], first["last.head.weight"])
    train(Model(), Pictures(), configuration().model_copy(update={"model": {"matching": "ot"}}), path, HERE)
    train(Model(), Pictures(sha256="of others"), configuration(), path, HERE)
    assert len(list(tmp_path.glob("*.part"))) == 4


def test_what_does_not_fit_is_refused_before_any_work(tmp_path):
    refused(lambda: trained(tmp_path, machine=Machine(count=3)), "4 images", "by 3 processes")
    refused(lambda: trained(tmp_path, batch=23), "the train split of pictures has 22 images, but a batch takes 23")
    refused(lambda: trained(tmp_path, amp=True), "mixed precision needs a CUDA device, but the device is cpu")
    with pytest.raises(TypeError, match="object is none"):
        train(object(), Pictures(), configuration(), tmp_path / "x", HERE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_sentence(tmp_path, workers):
    machine, images = Machine(workers=workers), Pictures(broken=7)
    refused(lambda: trained(tmp_path, images, machine), "7.jpg is truncated")
    refused(lambda: scores(Model(), images, configuration().training, machine), "7.jpg is truncated")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_leaves_softmaxes_and_losses_in_full_precision(tmp_path):
    seen = set()

    class Watched(Model):
        def loss(self, images, targets):
            logits = self.head(self.stem(images).mean((-2, -1)))
            losses = F.binary_cross_entropy_with_logits(logits / self.log_tau.exp(), (targets == 1).float())
            functions = logits.softmax(-1), logits.log_softmax(-1), logits.logsumexp(-1), logits.exp(), losses
            seen.add((logits.dtype, *(x.dtype for x in functions)))
            return losses

    trained(tmp_path, machine=Machine(torch.device("cuda")), model=Watched(), amp=True)
    assert seen == {(torch.float16, *[torch.float32] * 5)}


# --- scores and weights


def test_scores_are_those_of_each_image_in_order():
    model, images, settings = Model(0.5), Pictures(), configuration().training
    found = scores(model, images, settings, HERE)
    assert not model.training, "dropout is off"
    transform = whole_image(settings)
    with torch.no_grad():
        alone = torch.cat([model.scores(transform(images.load(i))[None]) for i in range(len(images))])
    torch.testing.assert_close(found, alone)
    assert found.shape == (22, LABELS)
    assert not found.requires_grad


def test_weights_of_another_model_are_refused(tmp_path):
    path, model = tmp_path / "w.safetensors", Model()
    refused(lambda: load_weights(path, model), "there is no file of trained weights", path)
    save_weights(path, model, Model())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: load_weights(path, model), path, "no whole file of trained weights")
    path.write_bytes(whole)
    other = Model()
    other.tail = nn.Linear(1, 1)
    refused(lambda: load_weights(path, other), "tail.bias is only in the model")
    other = Model()
    other.head = nn.Linear(8, 5)
    refused(lambda: load_weights(path, other), "head.weight has shape (3, 8), but (5, 8) is expected")
    other = Model()
    with torch.no_grad():
        other.stem.bias.add_(1)
    refused(lambda: load_weights(path, other), "other frozen weights")


SECOND = """
import sys, torch
from pathlib import Path
sys.path[:0] = {paths!r}
from multi_label_pictures import two_processes
torch.set_num_threads(1)
two_processes(Path({folder!r}))
"""


@pytest.mark.slow
def test_two_processes_are_as_one_on_the_same_batches(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    code = SECOND.format(paths=[str(ROOT), str(ROOT / "tests")], folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code]) as second:
        monkeypatch.setenv("RANK", "0")
        two_processes(tmp_path)
    assert second.returncode == 0
    alone = trained(tmp_path / "alone")
    model = Model()
    load_weights(tmp_path / "alone" / "weights.safetensors", model)
    settings = configuration().training
    for rank in (0, 1):
        count, weights, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert count == 2
        for name, x in alone.items():
            torch.testing.assert_close(weights[name], x, rtol=1e-5, atol=1e-6, msg=name)
        for n, ours in zip((22, 21), found, strict=True):
            torch.testing.assert_close(ours, scores(model, Pictures(n), settings, HERE), rtol=1e-4, atol=1e-5)
