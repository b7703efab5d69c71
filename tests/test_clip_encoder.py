"""PatchCT on CLIP's image tower: its tokens, what of it is trained, and full precision behind it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from test_clip import images, tiny_clip

from reproductions.features.text_features import text_features
from reproductions.patchct.clip_encoder import ClipEncoder, layer_positions
from reproductions.patchct.method import PatchCT, Settings
from reproductions.patchct.official import make
from reproductions.patchct.transport import Transport
from reproductions.storage import Cache

NAMES = ("cat", "dog", "traffic light")
TARGETS = torch.tensor([[1, 0, -1], [0, 1, 1]], dtype=torch.int8)


def a_model(tmp_path, **settings) -> PatchCT:
    return make(tiny_clip(), NAMES, Settings(**settings), Cache(tmp_path), seed=3)


def test_tokens_are_the_projected_ones_of_the_blocks():
    clip = tiny_clip()
    tokens = ClipEncoder(clip, (0, 2))(images())
    expected = clip.image_features(images())
    torch.testing.assert_close(tokens.whole, expected.cls)
    torch.testing.assert_close(tokens.layers[-1], expected.patches)
    torch.testing.assert_close(tokens.layers[0], clip.project(clip.layers(images(), [0])[0])[:, 1:])
    assert tokens.mask is None
    with pytest.raises(ValueError, match="has to end the chosen ones"):
        ClipEncoder(clip, (0, 1))


def test_layers_are_blocks_from_either_end():
    assert layer_positions((-1,), 12) == ((11,), (0,))
    assert layer_positions((11, 3, -2), 12) == ((3, 10, 11), (2, 0, 1))
    assert layer_positions((0,), 12) == ((0, 11), (0,))
    for wrong in ((12,), (-13,), ()):
        refused(lambda wrong=wrong: layer_positions(wrong, 12), "transport.layers", "blocks 0 to 11")


def test_the_layers_of_the_settings_are_the_patches_that_are_transported(tmp_path):
    torch.manual_seed(0)
    losses = {}
    for layers in ((0,), (-1,), (0, -1)):
        model = a_model(tmp_path, transport=Transport(layers=layers))
        losses[layers] = model.loss(images(), TARGETS).item()
    assert losses[0,] != losses[-1,]
    assert losses[0, -1] == pytest.approx((losses[0,] + losses[-1,]) / 2, rel=1e-5)


def test_label_embeddings_come_from_the_text_tower(tmp_path):
    model = a_model(tmp_path)
    torch.testing.assert_close(model.embeddings.detach(), F.normalize(text_features(tiny_clip(), NAMES), dim=-1))
    again = a_model(tmp_path)
    for name, x in model.state_dict().items():
        assert torch.equal(x, again.state_dict()[name]), name


@pytest.mark.parametrize("train_labels", [True, False])
@pytest.mark.parametrize("transport", [Transport(), Transport(kind="ot"), Transport(kind="none")], ids=lambda t: t.kind)
def test_everything_that_is_trained_has_a_gradient_and_the_text_tower_none(tmp_path, train_labels, transport):
    model = a_model(tmp_path, train_labels=train_labels, transport=transport)
    model.loss(images(), TARGETS).backward()
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert trained == {name for name, x in model.named_parameters() if x.grad is not None}
    assert {name for name in trained if name.startswith("encoder.")} == {
        f"encoder.clip.model.visual.{name}" for name, _ in model.encoder.clip.model.visual.named_parameters()
    }
    assert ("embeddings" in trained) == train_labels
    assert ("log_temperature" in trained) == (transport.kind == "ct")


@pytest.mark.parametrize("kind", ["ct", "ot"])
def test_in_mixed_precision_the_encoder_alone_is_in_half(tmp_path, kind):
    model = a_model(tmp_path, transport=Transport(kind=kind))
    seen = []
    model.encoder.clip.blocks[0].mlp.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    model.adaptive.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    with torch.autocast("cpu"):
        loss = model.loss(images(), TARGETS)
    assert seen == [torch.bfloat16, torch.float32]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model.loss(images(), TARGETS), rtol=0.02, atol=0)


def test_in_double_precision_it_stays_in_double(tmp_path):
    model = a_model(tmp_path).double()
    assert model.loss(images().double(), TARGETS).dtype == torch.float64


def test_training_lowers_the_loss(tmp_path):
    model = a_model(tmp_path)
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], 1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.loss(images(), TARGETS)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
