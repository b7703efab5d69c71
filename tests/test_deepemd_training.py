"""DeepEMD's training from files: it learns, goes on when killed, and reads and writes the official checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from PIL import Image

from reproductions.datasets.few_shot import FEW_SHOT, class_folder
from reproductions.deepemd import train as command
from reproductions.deepemd.backbone import ResNet12
from reproductions.deepemd.checkpoints import load_encoder, pretrained_model, save_encoder, trained_model
from reproductions.deepemd.descent import nesterov
from reproductions.deepemd.embedding import VARIANTS, Embedding, make_embedding, pyramid_nodes
from reproductions.deepemd.loading import EpisodeImages, TrainingImages, draw_episodes
from reproductions.deepemd.meta import MetaTraining, meta_train
from reproductions.deepemd.method import nodes
from reproductions.deepemd.patches import Fcn
from reproductions.deepemd.pretrain import FilePretraining, pretrain
from reproductions.deepemd.validation import episode_logits
from reproductions.loading import batches, seed_of
from reproductions.machine import Machine, open_machine

WIDTHS = (4, 4, 6, 8)
PRETRAINING = FilePretraining(widths=WIDTHS, epochs=3, batch=8, lr=0.05, validation=2, way=3, queries=2)
META = MetaTraining(epochs=3, steps=2, way=3, queries=2, lr=0.01, validation=2)
HERE = Machine()
ROOT = Path(__file__).parents[1]


class Killed(BaseException):
    pass


def write_classes(root, per_class=4):
    """Noisy pictures of 100×90 px, a colour a class: four classes to train on, three to validate on, one to test on."""
    rng = np.random.default_rng(0)
    for c in range(8):
        colour = np.array([c & 1, c >> 1 & 1, c >> 2]) * 150
        folder = root / f"c{c}"
        folder.mkdir(parents=True)
        for k in range(per_class):
            pixels = colour + rng.integers(0, 100, (90, 100, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{k}.png")
    names = [f"c{c}" for c in range(8)]
    (root / "splits.json").write_text(json.dumps({"train": names[:4], "val": names[4:7], "test": names[7:]}))
    return root


def split_of(root, split):
    return class_folder(root, root / "splits.json", split)


@pytest.fixture
def splits(tmp_path):
    root = write_classes(tmp_path / "classes")
    return split_of(root, "train"), split_of(root, "val")


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return ResNet12(WIDTHS)


def loaded(path):
    encoder = ResNet12(WIDTHS)
    load_encoder(path, encoder)
    return encoder.state_dict()


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(x, other[k]) for k, x in one.items())


def losses_of(train, **settings):
    """Losses and accuracies that a training reports, epoch by epoch, until it ends or is killed."""
    seen = []
    kill_after = settings.pop("kill_after", None)

    def on_epoch(epoch):
        seen.append((epoch.number, epoch.loss, epoch.accuracy))
        if epoch.number == kill_after:
            raise Killed

    if kill_after is None:
        train(on_epoch)
    else:
        with pytest.raises(Killed):
            train(on_epoch)
    return seen


def test_pre_training_lowers_the_loss_and_does_so_again(splits, tmp_path):
    settings = replace(PRETRAINING, epochs=5)
    first, second = (
        losses_of(lambda on, p=tmp_path / name / "a.pth": pretrain(*splits, settings, p, HERE, on))
        for name in ("one", "two")
    )
    assert [number for number, *_ in first] == [1, 2, 3, 4, 5]
    assert first[-1][1] < 0.8 * first[0][1]
    assert first == second
    assert_same(loaded(tmp_path / "one" / "a.pth"), loaded(tmp_path / "two" / "a.pth"))
    other = losses_of(
        lambda on: pretrain(*splits, replace(settings, seed=1, epochs=1), tmp_path / "three" / "a.pth", HERE, on)
    )
    assert other[0][1] != first[0][1]


def test_pre_training_does_not_depend_on_the_workers(splits, tmp_path):
    settings = replace(PRETRAINING, epochs=1)
    runs = [
        losses_of(lambda on, k=k: pretrain(*splits, settings, tmp_path / f"{k}" / "a.pth", Machine(workers=k), on))
        for k in (0, 2)
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("stage", [pytest.param("pretrain", marks=pytest.mark.slow), "meta"])
def test_a_killed_training_goes_on_as_if_undisturbed(splits, tmp_path, stage):
    def run(path, on_epoch):
        if stage == "pretrain":
            return pretrain(*splits, PRETRAINING, path, HERE, on_epoch)
        torch.manual_seed(0)
        return meta_train(ResNet12(WIDTHS), *splits, make_embedding("fcn", "own"), META, path, HERE, on_epoch)

    whole, resumed = tmp_path / "whole" / "a.pth", tmp_path / "resumed" / "a.pth"
    undisturbed = losses_of(lambda on: run(whole, on))
    assert losses_of(lambda on: run(resumed, on), kill_after=2) == undisturbed[:2]
    assert not resumed.exists(), "what is not finished is not taken for an encoder"
    assert losses_of(lambda on: run(resumed, on)) == undisturbed[2:]
    assert_same(loaded(whole), loaded(resumed))
    resumed.unlink()
    assert losses_of(lambda on: run(resumed, on)) == [], "a finished training is not done again"
    assert_same(loaded(whole), loaded(resumed))
    (state,) = resumed.parent.glob("*.part")
    state.write_bytes(state.read_bytes()[:1000])
    assert losses_of(lambda on: run(resumed, on)) == undisturbed, "a damaged state is left aside"


def test_the_epoch_of_the_highest_accuracy_is_kept(splits, tmp_path, monkeypatch):
    accuracies = iter([50.0, 70.0, 70.0])
    seen = {}

    def accuracy(validation, encoder):
        seen[len(seen) + 1] = {k: x.clone() for k, x in encoder.state_dict().items()}
        return next(accuracies)

    monkeypatch.setattr("reproductions.deepemd.validation.Validation.__call__", accuracy)
    pretrain(*splits, PRETRAINING, tmp_path / "a.pth", HERE)
    assert_same(loaded(tmp_path / "a.pth"), seen[2])
    assert not torch.equal(seen[2]["layer1.0.conv1.weight"], seen[3]["layer1.0.conv1.weight"])


def test_the_learning_rate_falls(splits, encoder, tmp_path, monkeypatch):
    accuracies = iter(range(100))
    monkeypatch.setattr("reproductions.deepemd.validation.Validation.__call__", lambda *_: next(accuracies))

    def weights(epochs):
        copy = ResNet12(WIDTHS)
        copy.load_state_dict(encoder.state_dict())
        settings = replace(META, epochs=epochs, step=2, gamma=0.0)
        meta_train(copy, *splits, make_embedding("fcn", "own"), settings, tmp_path / "a.pth", HERE)
        return copy.layer1[0].conv1.weight

    one, two, three = (weights(epochs) for epochs in (1, 2, 3))
    assert not torch.equal(one, two)
    assert torch.equal(two, three), "the rate is 0 after two epochs"


def test_a_diverging_training_stops_with_a_sentence(splits, tmp_path):
    refused(
        lambda: pretrain(*splits, replace(PRETRAINING, lr=1e30), tmp_path / "a.pth", HERE), "the loss is", "diverges"
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_meta_training_step_reaches_every_weight(splits, encoder, tmp_path, variant):
    embedding = make_embedding(variant, "own")
    images = EpisodeImages(splits[0], embedding.transform, draw_episodes(splits[0], 2, 1, 1, 0), train=True, seed=0)
    logits = episode_logits(encoder.train(), embedding, images[0], way=2)
    assert logits.shape == (2, 2)
    F.cross_entropy(logits, torch.arange(2)).backward()
    for name, weight in encoder.named_parameters():
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name
    before = {k: x.detach().clone() for k, x in encoder.named_parameters()}
    settings = replace(META, way=2, queries=1, epochs=1, steps=1, validation=1)
    meta_train(encoder, *splits, embedding, settings, tmp_path / "a.pth", HERE)
    assert not any(torch.equal(x, before[k]) for k, x in encoder.named_parameters())


@pytest.mark.slow
def test_one_step_is_the_gradient_step_on_the_first_episode(splits, encoder, tmp_path):
    embedding, settings = make_embedding("fcn", "own"), replace(META, epochs=1, steps=1)
    expected = stepped(encoder, splits, embedding, settings, episodes=1)
    meta_train(encoder, *splits, embedding, settings, tmp_path / "a.pth", HERE)
    for name, x in encoder.named_parameters():
        torch.testing.assert_close(x, expected[name])


def stepped(encoder, splits, embedding, settings, episodes):
    """Weights after one step on the mean loss of the first episodes, each with batch statistics of its own."""
    copy = ResNet12(WIDTHS)
    copy.load_state_dict(encoder.state_dict())
    optimizer, seed = nesterov(copy.train(), settings), seed_of(settings.seed, 0)
    drawn = draw_episodes(splits[0], settings.way, settings.queries, episodes, seed)
    images = EpisodeImages(splits[0], embedding.transform, drawn, train=True, seed=seed)
    losses = [
        F.cross_entropy(episode_logits(copy, embedding, images[k], settings.way), drawn[k].labels)
        for k in range(episodes)
    ]
    torch.stack(losses).mean().backward()
    optimizer.step()
    return dict(copy.named_parameters())


def test_the_pyramid_is_that_of_the_official_code(golden):
    stored = {k: torch.from_numpy(v) for k, v in golden("deepemd_pyramid_small").items()}
    for side in ("proto", "query"):
        ours = pyramid_nodes(stored[f"{side}_map"], stored["pyramid_sizes"].tolist())
        torch.testing.assert_close(ours, nodes(stored[side]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("variant", "patches", "count"), [("fcn", 1, 25), ("pyramid", 1, 30), ("grid", 3, 3)])
def test_nodes_are_cells_of_one_map_or_one_for_each_patch(encoder, variant, patches, count):
    images = torch.rand(2, patches, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    embedding = Embedding(Fcn(), pyramid=(2, 1)) if variant == "pyramid" else make_embedding(variant, "own")
    ours = embedding(encoder.eval(), images)
    assert ours.shape == (2, count, 8)
    if patches > 1:
        torch.testing.assert_close(ours[1, 2], encoder(images[1, 2:3]).mean((-2, -1))[0])
    else:
        torch.testing.assert_close(ours[:, -25:], nodes(encoder(images[:, 0])))


@pytest.mark.parametrize(("stage", "prefix"), [("pretrained", ""), ("meta", "module.encoder.")])
def test_checkpoints_have_the_official_names(encoder, tmp_path, stage, prefix):
    path = tmp_path / "folder" / "a.pth"
    save_encoder(path, encoder, stage)
    content = torch.load(path, weights_only=True)
    assert list(content) == ["params"]
    names = list(content["params"])
    assert all(name.startswith(f"{prefix}layer") for name in names)
    some = ("layer1.0.conv1.weight", "layer4.0.bn3.running_var", "layer2.0.downsample.0.weight")
    assert {prefix + name for name in (*some, "layer3.0.downsample.1.bias")} <= set(names)
    assert_same(loaded(path), encoder.state_dict())


def test_what_official_checkpoints_hold_besides_the_encoder_is_left_out(encoder, tmp_path):
    weights = encoder.state_dict()
    lean = {k: x for k, x in weights.items() if not k.endswith("num_batches_tracked")}
    kinds = {
        "after pre-training": lean,
        "after meta-training": {f"module.encoder.{k}": x for k, x in lean.items()}
        | {"module.fc.weight": torch.ones(2)},
        "from one device": {f"encoder.{k}": x for k, x in lean.items()} | {"fc.weight": torch.ones(2)},
        "with a head": {**lean, "fc.weight": torch.ones(2)},
    }
    for name, params in kinds.items():
        torch.save({"params": params}, tmp_path / name)
        assert_same(loaded(tmp_path / name), weights)


def test_the_paths_are_the_official_ones():
    assert pretrained_model(Path("d"), "mini_imagenet") == Path(
        "d/deepemd_pretrain_model/miniimagenet/resnet12/max_acc.pth"
    )
    assert trained_model(Path("d"), "fc100", "grid") == Path("d/deepemd_trained_model/fc100/grid/max_acc.pth")


def test_checkpoints_that_do_not_fit_are_refused(encoder, tmp_path):
    path = tmp_path / "a.pth"
    refused(lambda: loaded(path), "there is no checkpoint", path)
    save_encoder(path, encoder, "meta")
    whole = path.read_bytes()
    for broken in (b"", b"weights", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        refused(lambda: loaded(path), path, "truncated or no checkpoint")
    for content in ([1], {"weights": {}}, {"params": {}}, {"params": {"layer1": 3}}, encoder.state_dict()):
        torch.save(content, path)
        refused(lambda: loaded(path), path, "no checkpoint of DeepEMD", "'params'")
    torch.save({"params": {**encoder.state_dict(), "code": Killed()}}, path)
    refused(lambda: loaded(path), path, "truncated or no checkpoint")
    weights = encoder.state_dict()
    del weights["layer2.0.conv1.weight"]
    torch.save({"params": weights}, path)
    refused(lambda: loaded(path), path, "lacks layer2.0.conv1.weight")
    torch.save({"params": {"encoder.layer9": torch.ones(1)}}, path)
    refused(lambda: loaded(path), path, "lacks layer1.0.conv1.weight and", "others")
    save_encoder(path, ResNet12((4, 4, 6, 9)), "pretrained")
    refused(lambda: loaded(path), path, "layer4.0.conv1.weight has shape (9, 6, 3, 3), but (8, 6, 3, 3) is expected")


def test_small_splits_and_broken_images_are_refused(splits, encoder, tmp_path):
    path, embedding = tmp_path / "a.pth", make_embedding("fcn", "own")
    refused(lambda: pretrain(*splits, replace(PRETRAINING, queries=4), path, HERE), "val split", "takes 5 images")
    refused(lambda: pretrain(*splits, replace(PRETRAINING, way=4), path, HERE), "val split", "4-way")
    few = replace(META, way=5, validation=1)
    both = (splits[0], splits[0])
    refused(lambda: meta_train(encoder, *both, embedding, few, path, HERE), "train split", "5-way")
    refused(lambda: pretrain(*splits, PRETRAINING, path, Machine(count=3)), "8 images", "by 3 processes")
    broken = splits[0].paths[5]
    broken.write_bytes(broken.read_bytes()[:100])
    for workers in (0, 1):
        refused(lambda k=workers: pretrain(*splits, PRETRAINING, path, Machine(workers=k)), broken, "truncated")


def test_images_too_small_for_a_grid_are_refused(splits):
    Image.new("RGB", (2, 2)).save(splits[0].paths[0])
    drawn = draw_episodes(splits[0], 4, 3, 1, 0)
    images = EpisodeImages(splits[0], make_embedding("grid", "own").transform, drawn, train=False, seed=0)
    refused(lambda: list(batches("", images, HERE, batch_size=None)), splits[0].paths[0], "too short for 3 cells")


def test_the_machine_is_what_torchrun_says(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with open_machine() as machine:
        assert torch.distributed.get_backend() == "gloo"
        assert (machine.rank, machine.count, machine.first) == (0, 1, True)
    assert not torch.distributed.is_initialized()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on the small classes in place of FC100: (exit code, standard output, standard error)."""
    root = write_classes(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FEW_SHOT, "fc100", lambda folder, split: replace(split_of(folder, split), raw=True))
    monkeypatch.setattr(command, "PRETRAINING", PRETRAINING)
    monkeypatch.setattr(command, "META", META)

    def call(*arguments, dataset="fc100", variant="fcn"):
        given = ["train", "--data", root, "--dataset", dataset, "--variant", variant, "--workers", 0, *arguments]
        monkeypatch.setattr(sys, "argv", [str(a) for a in given])
        with pytest.raises(SystemExit) as stopped:
            command.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


def test_the_command_trains_both_stages(run, tmp_path):
    code, _, said = run("--stage", "meta")
    assert code == 2
    assert "run --stage pretrain first" in said
    code, printed, said = run("--epochs", 1, variant="grid")
    assert code == 0, said
    folder = Path("results/cache/deepemd")
    end = trained_model(folder, "fc100", "grid")
    assert printed == f"encoder: {end}\n"
    assert "warning" not in said
    start = loaded(pretrained_model(folder, "fc100"))
    assert not torch.equal(start["layer1.0.conv1.weight"], loaded(end)["layer1.0.conv1.weight"])
    for path in (tmp_path / "data").glob("c0/*.png"):
        Image.new("RGB", (84, 84)).save(path)
    code, printed, said = run("--epochs", 1, "--stage", "pretrain", "--output", "elsewhere")
    assert (code, printed) == (0, f"encoder: {pretrained_model(Path('elsewhere'), 'fc100')}\n")
    assert "warning" not in said, "other images are large"


def test_the_command_warns_once_of_images_shrunk_in_advance(run, tmp_path):
    for path in (tmp_path / "data").glob("*/*.png"):
        Image.open(path).resize((84, 84)).save(path)
    code, _, said = run("--epochs", 1)
    assert code == 0
    assert said.count("train: warning: the images of") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dataset": "imagenet"}, "--dataset is 'imagenet', but it has to be one of miniimagenet, tieredimagenet,"),
        ({"variant": "tree"}, "--variant is 'tree', but it has to be one of fcn, grid, sampling"),
        ({"arguments": ["--stage", "all"]}, "--stage is 'all', but it has to be one of pretrain, meta, both"),
        ({"arguments": ["--device", "moon"]}, "there is no device 'moon'"),
        ({"arguments": ["--device", "meta"]}, "the device 'meta' is not supported"),
        ({"arguments": ["--device", "cuda:99"]}, "the device 'cuda:99' is wanted, but torch sees"),
        ({"arguments": ["--amp"]}, "--amp needs a CUDA device, but --device is cpu"),
        ({"dataset": "cub"}, "CUB-200-2011 is expected there"),
        ({"arguments": ["--output", "/dev/null/x"]}, "a file where a folder is expected"),
    ],
)
def test_what_the_command_cannot_use_is_one_sentence(run, arguments, sentence):
    code, _, said = run("--epochs", 1, *arguments.pop("arguments", []), **arguments)
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("train: ")]
    assert sentence in line


def test_ctrl_c_says_how_to_go_on(run, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "pretrain", stopped)
    code, _, said = run()
    assert code == 130
    assert "the same command goes on from there" in said


WORKER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_deepemd_training import META, PRETRAINING, ResNet12, WIDTHS, make_embedding, meta_train, open_machine
from test_deepemd_training import pretrain, replace, split_of
torch.set_num_threads(1)
root, folder = Path({root!r}), Path({folder!r})
splits = split_of(root, "train"), split_of(root, "val")
with open_machine() as machine:
    pretrain(*splits, replace(PRETRAINING, epochs=2), folder / "pretrained.pth", machine)
    torch.manual_seed(0)
    encoder = ResNet12(WIDTHS)
    settings = replace(META, epochs=1, steps=1)
    meta_train(encoder, *splits, make_embedding("fcn", "own"), settings, folder / "meta.pth", machine)
    torch.save([machine.count, encoder.state_dict()], folder / f"{{machine.rank}}.pt")
"""


@pytest.mark.slow
def test_two_processes_step_on_the_mean_gradient_of_two_episodes(splits, encoder, tmp_path):
    script = tmp_path / "worker.py"
    root = splits[0].paths[0].parents[1]
    script.write_text(WORKER.format(tests=str(ROOT / "tests"), root=str(root), folder=str(tmp_path)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([sys.executable, *launch], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = stepped(encoder, splits, make_embedding("fcn", "own"), replace(META, epochs=1, steps=1), episodes=2)
    for rank in (0, 1):
        count, weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert count == 2
        for name, x in expected.items():
            torch.testing.assert_close(weights[name], x.detach())
    assert loaded(tmp_path / "pretrained.pth").keys() == weights.keys()


def test_the_images_of_an_episode_are_in_the_order_of_its_labels(splits):
    transform, (episode,) = make_embedding("fcn", "own").transform, draw_episodes(splits[0], 3, 2, 1, 0)
    patches = EpisodeImages(splits[0], transform, [episode], train=False, seed=0)[0]
    wanted = [*episode.support[:, 0].tolist(), *episode.query.tolist()]
    assert (splits[0].labels[wanted[3:]] == splits[0].labels[wanted[:3]][episode.labels]).all()
    own = [transform(splits[0].load(i), False, torch.Generator()) for i in wanted]
    assert torch.equal(patches, torch.stack(own))


def test_crops_are_new_in_every_epoch_and_the_same_in_every_validation(splits):
    transform = make_embedding("fcn", "own").transform
    first, again, later = (TrainingImages(splits[0], transform, 0, epoch)[5] for epoch in (1, 1, 2))
    assert first[0].shape == (3, 84, 84)
    assert first[1] == later[1] == splits[0].labels[5]
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], later[0])
    drawn, transform = draw_episodes(splits[1], 3, 1, 1, 0), make_embedding("sampling", "own").transform
    first, again, later = (EpisodeImages(splits[1], transform, drawn, train=False, seed=s)[0] for s in (1, 1, 2))
    assert first.shape == (6, 9, 3, 84, 84)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
