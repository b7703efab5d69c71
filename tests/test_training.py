"""The training loop that the papers share: killed anywhere it goes on, and its average follows every step."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import refused
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from reproductions.training import Average, Training, load_trained_state, trained_state

STEPS, EPOCHS = 5, 3


class Killed(BaseException):
    pass


class Net(nn.Module):
    """Frozen, normalised with counters and statistics, and random: everything a state has to hold."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.stem.weight.requires_grad_(False)

    def forward(self, x):
        return self.head(nn.functional.dropout(self.norm(self.stem(x)), 0.3, self.training))


class Run:
    """A small training with two optimisers, a schedule by step and one by epoch; it can be killed before a step."""

    def __init__(self, path, kill=None, **settings):
        self.net, self.kill, self.seen, self.epochs = Net(), kill, [], []
        head = SGD(self.net.head.parameters(), 0.05, momentum=0.9)
        rest = AdamW([x for name, x in self.net.named_parameters() if x.requires_grad and "head" not in name], 0.01)
        self.average = Average(self.net, 0.8)
        self.training = Training(
            self.net,
            [head, rest],
            self.losses,
            EPOCHS,
            path,
            schedules=[StepLR(head, 1, 0.5)],
            step_schedules=[OneCycleLR(rest, 0.02, total_steps=EPOCHS * STEPS, cycle_momentum=False)],
            average=self.average,
            **settings,
        )

    def losses(self, epoch, first):
        for step in range(first, STEPS):
            if (epoch, step) == self.kill:
                raise Killed
            torch.manual_seed(100 * epoch + step)
            self.seen.append((epoch, step))
            yield self.net(torch.randn(8, 4)).square().mean()
        if (epoch, STEPS) == self.kill:
            raise Killed

    def __call__(self):
        torch.manual_seed(torch.seed())  # what went on before has no part in it
        self.training.run(self.epochs.append)
        return self

    def weights(self):
        return {
            f"{k}.{name}": x
            for k, m in enumerate((self.net, self.average.module))
            for name, x in m.state_dict().items()
        }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert torch.equal(x, other[name]), name


@pytest.mark.parametrize(
    ("every", "kill", "resumed_at"),
    [
        (None, (0, 3), (0, 0)),
        (None, (2, 3), (2, 0)),
        (2, (1, 3), (1, 2)),
        (2, (2, 0), (2, 0)),
        (2, (1, 1), (1, 0)),
        (5, (0, 5), (1, 0)),  # all steps of an epoch are done, but not what comes after them
    ],
)
def test_a_killed_training_goes_on_as_if_undisturbed(tmp_path, every, kill, resumed_at):
    whole = Run(tmp_path / "whole", every=every)()
    with pytest.raises(Killed):
        Run(tmp_path / "state", kill, every=every)()
    resumed = Run(tmp_path / "state", every=every)()
    assert resumed.seen[0] == resumed_at
    assert_same(resumed.weights(), whole.weights())
    assert resumed.epochs == whole.epochs[kill[0] :], "the mean loss is that of the whole epoch"
    again = Run(tmp_path / "state", every=every)()
    assert again.seen == []
    assert_same(again.weights(), whole.weights())


def test_how_often_the_state_is_written_changes_nothing(tmp_path):
    assert_same(Run(tmp_path / "one")().weights(), Run(tmp_path / "two", every=2)().weights())


def test_the_state_holds_nothing_frozen(tmp_path):
    Run(tmp_path / "state")()
    state = torch.load(tmp_path / "state", weights_only=True)
    assert set(state["model"]) == set(state["average"]) == Net().state_dict().keys() - {"stem.weight"}


def test_the_trained_state_goes_back_beside_what_is_frozen():
    one, other = Net(), Net()
    with torch.no_grad():
        for x in other.parameters():
            x.add_(1)
    load_trained_state(other, trained_state(one))
    assert torch.equal(other.stem.weight, one.stem.weight + 1)
    assert_same(trained_state(other), trained_state(one))
    with pytest.raises(RuntimeError, match="elsewhere"):
        load_trained_state(other, {**trained_state(one), "elsewhere": torch.ones(1)})


def test_the_average_is_the_weighted_mean_of_all_steps_over_epochs_and_interruptions(tmp_path):
    class Watched(Run):
        def losses(self, epoch, first):
            for loss in super().losses(epoch, first):
                yield loss
                history[epoch, self.seen[-1][1]] = copy.deepcopy(self.net.state_dict())

    history = {}
    first = copy.deepcopy(Net().state_dict())
    with pytest.raises(Killed):
        Watched(tmp_path / "state", (1, 4), every=2)()
    average = Watched(tmp_path / "state", every=2)().average.module.state_dict()
    states = [first, *(history[key] for key in sorted(history))]
    assert len(states) == 1 + STEPS * EPOCHS
    weights = [0.2 * 0.8 ** (len(states) - 1 - k) / (0.2 if k == 0 else 1) for k in range(len(states))]
    assert sum(weights) == pytest.approx(1)
    for name, x in average.items():
        if name == "norm.num_batches_tracked":
            assert x == STEPS * EPOCHS
            continue
        expected = sum(w * state[name].double() for w, state in zip(weights, states, strict=True))
        torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-6, msg=name)
    assert not torch.equal(average["norm.running_mean"], states[-1]["norm.running_mean"]), "buffers are averaged, too"


def test_the_average_shares_what_is_frozen_and_nothing_else():
    net = Net()
    average = Average(net, 0.9).module
    shared = {name for (name, x), y in zip(net.named_parameters(), average.parameters(), strict=True) if x is y}
    assert shared == {"stem.weight"}
    assert not average.training


def test_gradients_are_cut_to_the_norm_over_all_optimisers(tmp_path):
    a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    model, before = nn.ModuleList([a, b]), [a.weight.item(), b.weight.item()]

    def losses(epoch, first):
        yield 3 * a.weight.sum() + 4 * b.weight.sum()  # of gradient (3, 4) and norm 5

    optimizers = [SGD(a.parameters(), 1.0), SGD(b.parameters(), 1.0)]
    Training(model, optimizers, losses, 1, tmp_path / "state", clip=0.5).run(lambda epoch: None)
    moved = [x - y.weight.item() for x, y in zip(before, (a, b), strict=True)]
    assert moved == pytest.approx([0.3, 0.4], abs=1e-5)


@pytest.mark.parametrize("every", [None, 1])
def test_a_diverging_loss_is_one_sentence_and_leaves_no_state_of_it(tmp_path, every):
    class Diverging(Run):
        def losses(self, epoch, first):
            for loss in super().losses(epoch, first):
                yield loss * float("nan") if (epoch, self.seen[-1][1]) == (1, 3) else loss

    run = Diverging(tmp_path / "state", every=every)
    refused(run, "the loss is nan in epoch 2", "diverges")
    assert len(run.epochs) == 1
    assert run.seen[-1] == ((1, 3) if every else (1, 4))
    state = torch.load(tmp_path / "state", weights_only=True)
    assert (state["epoch"], len(state["losses"])) == (1, 3 if every else 0)
    assert all(x.isfinite().all() for x in state["model"].values())


def test_a_step_too_large_for_half_precision_is_not_taken(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    optimizer = SGD(model.parameters(), 0.1)
    schedule = OneCycleLR(optimizer, 0.2, total_steps=9, cycle_momentum=False)
    average, seen = Average(model, 0.5), []

    def losses(epoch, first):
        for factor in (1e38, 1.0):  # times a scale of 2¹⁶ the first is infinite
            seen.append((model.weight.item(), average.module.weight.item(), schedule.last_epoch))
            yield factor * model.weight.sum()

    Training(model, [optimizer], losses, 1, tmp_path / "s", step_schedules=[schedule], average=average, amp=True).run(
        lambda epoch: None
    )
    assert seen[0] == seen[1]
    assert model.weight.item() < seen[0][0]
    assert schedule.last_epoch == 1
    assert average.module.weight.item() == pytest.approx((seen[0][0] + model.weight.item()) / 2)


def test_a_loss_in_half_precision_is_a_mistake(tmp_path):
    model = nn.Linear(1, 1)
    training = Training(
        model, [SGD(model.parameters(), 1.0)], lambda *_: [model.weight.sum().bfloat16()], 1, tmp_path / "state"
    )
    with pytest.raises(TypeError, match="full precision, but this one is"):
        training.run(lambda epoch: None)
