"""CLIP's towers within reach: against open_clip's own forward passes, other image sizes, weights from files."""

from __future__ import annotations

import open_clip
import pytest
import torch
from conftest import refused

from reproductions.features.clip import Clip, load_clip, read_weights, resized_positions
from reproductions.features.deep_text import DeepText
from reproductions.features.text_features import PROMPT, prompted, text_features
from reproductions.features.two_path import advance, projected, start, two_attentions
from reproductions.storage import Cache

NAMES = ("cat", "dog", "traffic light")


def tiny_clip(d: int = 16, vision: dict | None = None, heads: int = 2, text: dict | None = None, seed: int = 0) -> Clip:
    """CLIP of three narrow blocks on 4 × 4 patches, with its own tokens."""
    vision = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3} | (vision or {})
    vision |= {"head_width": vision["width"] // heads}
    text = {"width": 20, "layers": 3, "heads": 2} | (text or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = Clip(open_clip.CLIP(d, vision, text, quick_gelu=True))
        torch.nn.init.constant_(clip.model.logit_scale, 2.0)
    return clip.eval()


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


def images(n: int = 2, rows: int = 32, columns: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, rows, columns, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_features_are_those_of_open_clip(clip):
    x = clip.image_features(images())
    torch.testing.assert_close(x.cls, clip.model.encode_image(images()))
    assert x.patches.shape == (2, 16, 16)
    ids = clip.tokenize(prompted(NAMES))
    assert torch.equal(
        ids, open_clip.tokenize(["A photo of a cat.", "A photo of a dog.", "A photo of a traffic light."])
    )
    torch.testing.assert_close(clip.text_features(ids), clip.model.encode_text(ids))
    assert clip.trimmed(ids).shape == (3, 9)
    assert (clip.patch, clip.width, clip.text_width, clip.dimension) == (8, 24, 20, 16)
    assert clip.kappa == pytest.approx(torch.e**2, rel=1e-6)


@torch.no_grad()
def test_tokens_of_every_block_are_those_of_open_clip(clip):
    found = clip.model.visual.forward_intermediates(
        images(), indices=[0, 2], output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
    )
    for x, patches, prefix in zip(
        clip.layers(images(), [0, 2]),
        found["image_intermediates"],
        found["image_intermediates_prefix"],
        strict=True,
    ):
        torch.testing.assert_close(x[:, 1:], patches)
        torch.testing.assert_close(x[:, :1], prefix)
    assert torch.equal(clip.layers(images(), [2, 0])[1], clip.layers(images(), [0])[0])
    with pytest.raises(ValueError, match="the blocks 0 … 2, and 3"):
        clip.layers(images(), [0, 3])


@torch.no_grad()
def test_other_image_sizes_have_a_resized_position_embedding(clip):
    assert clip.image_features(images(rows=64, columns=48)).patches.shape == (2, 48, 16)
    large = open_clip.CLIP(16, {"image_size": 64, "patch_size": 8, "width": 24, "layers": 3, "head_width": 12}, {
        "width": 20, "layers": 3, "heads": 2
    }, quick_gelu=True)  # fmt: skip
    state = clip.model.state_dict()
    open_clip.model.resize_pos_embed(state, large)
    large.load_state_dict(state)
    torch.testing.assert_close(
        clip.image_features(images(rows=64, columns=64)).cls, large.eval().encode_image(images(rows=64, columns=64))
    )
    positions = clip.model.visual.positional_embedding
    assert resized_positions(positions, (4, 4), (4, 4)) is positions
    constant = resized_positions(torch.ones(17, 3), (4, 4), (6, 5))
    torch.testing.assert_close(constant, torch.ones(31, 3))
    for bad in (torch.zeros(2, 3, 30, 32), torch.zeros(3, 32, 32), torch.zeros(2, 1, 32, 32)):
        with pytest.raises(ValueError, match="multiples of 8 px"):
            clip.embed(bad)


@torch.no_grad()
def test_the_two_paths_are_clip_and_a_plain_formula(clip):
    paths, seen = advance(clip, start(clip, images()), range(3))
    torch.testing.assert_close(projected(clip, paths).cls, clip.model.encode_image(images()))
    assert not seen
    g = clip.embed(images())
    h = g
    for block in clip.blocks:
        x = block.ln_1(g)
        v = (
            (x @ block.attn.in_proj_weight[-24:].mT + block.attn.in_proj_bias[-24:])
            .unflatten(-1, (2, 12))
            .transpose(1, 2)
        )
        local = ((v @ v.mT / 12**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = h + block.attn.out_proj(local)
        torch.testing.assert_close(two_attentions(block.attn, x)[0], block.attn(x, x, x, need_weights=False)[0])
        g = block(g)
    torch.testing.assert_close(paths.h, h[:, 1:])


@torch.no_grad()
def test_learned_image_tokens_reach_the_global_path_alone_and_are_gone_after_the_block(clip):
    tokens = {1: torch.randn(5, 24, generator=torch.Generator().manual_seed(2))}
    plain, _ = advance(clip, start(clip, images()), range(2))
    told, seen = advance(clip, start(clip, images()), range(2), tokens)
    assert told.g.shape == plain.g.shape
    assert list(seen) == [1]
    assert torch.equal(seen[1], told.g[:, 1:])
    assert not torch.allclose(told.g, plain.g)
    torch.testing.assert_close(told.h, plain.h)


def test_gradients_reach_learned_tokens_and_nothing_frozen(clip):
    clip = tiny_clip().requires_grad_(False)
    token = torch.zeros(2, 24, requires_grad=True)
    paths, _ = advance(clip, start(clip, images()), range(3), {1: token})
    projected(clip, paths).patches.sum().backward()
    assert token.grad.abs().sum() > 0
    deep = DeepText(clip, (1, 2), 2)
    ids = clip.trimmed(clip.tokenize(prompted(NAMES)))
    deep(clip, deep.frozen(clip, ids), ids).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in deep.parameters())
    assert all(p.grad is None for p in clip.parameters())
    with pytest.raises(ValueError, match=r"from 0 to 2 are expected, not \(\)"):
        DeepText(clip, (), 2)


def test_text_features_are_cached_by_weights_prompt_and_names(clip, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    first = text_features(clip, NAMES, cache=cache)
    torch.testing.assert_close(first, clip.text_features(clip.tokenize(prompted(NAMES))).detach())
    assert not first.requires_grad
    with monkeypatch.context() as patched:
        patched.setattr(Clip, "text_features", None)
        assert torch.equal(text_features(clip, NAMES, cache=cache), first)
    text_features(clip, NAMES, "{}", cache=cache)
    text_features(clip, NAMES[::-1], cache=cache)
    text_features(tiny_clip(seed=1), NAMES, cache=cache)
    assert len(list(tmp_path.glob("clip_text/*"))) == 4
    assert PROMPT == "A photo of a {}."
    refused(lambda: prompted(NAMES, "a photo"), "'a photo'", "{}")
    refused(lambda: prompted(("cat", " ")), "empty")
    refused(lambda: prompted(()), "at least one")


@pytest.fixture(scope="module")
def small() -> str:
    """The name of a small model, added to those of open_clip."""
    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 12},
        "text_cfg": {"width": 20, "layers": 3, "heads": 2},
    }
    open_clip.factory._MODEL_CONFIGS["tiny-for-tests"] = config
    yield "tiny-for-tests"
    del open_clip.factory._MODEL_CONFIGS["tiny-for-tests"]


def test_random_weights_follow_their_seed_and_leave_the_generator_alone(small):
    before = torch.get_rng_state()
    a, b, c = load_clip(small), load_clip(small), load_clip(small, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert a.weights_hash() == b.weights_hash() != c.weights_hash()
    assert a.weights_hash(text_only=True) == b.weights_hash(text_only=True) != c.weights_hash(text_only=True)
    with torch.no_grad():
        b.model.visual.proj.add_(1.0)
    assert a.weights_hash(text_only=True) == b.weights_hash(text_only=True)
    assert a.weights_hash() != b.weights_hash()


class Archive(torch.nn.Module):
    """A model as OpenAI stores it: half precision, with three numbers among its weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        for name, child in model.half().named_children():
            setattr(self, name, child)
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(model, name))
        for name, value in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("form", ["archive", "pt", "wrapped", "safetensors"])
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.(trace|trace_method|save)` is deprecated")
def test_weights_come_from_a_file_of_any_form(small, form, tmp_path):
    import safetensors.torch

    source = load_clip(small, seed=3)
    state = source.model.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "archive":
        torch.jit.save(torch.jit.trace(Archive(load_clip(small, seed=3).model), torch.zeros(1)), path)
    elif form == "safetensors":
        safetensors.torch.save_file({k: x.contiguous() for k, x in state.items()}, path)
    else:
        torch.save(
            state if form == "pt" else {"epoch": 1, "state_dict": {f"module.{k}": x for k, x in state.items()}}, path
        )
    found = load_clip(small, path).model.state_dict()
    for k, x in state.items():
        assert found[k].dtype == torch.float32
        torch.testing.assert_close(found[k], x.half().float() if form == "archive" else x, rtol=0, atol=0)


def test_weights_that_do_not_fit_are_refused_in_a_sentence(small, tmp_path):
    refused(lambda: load_clip("ViT-Z-1"), "ViT-Z-1")
    refused(lambda: load_clip("RN50"), "RN50", "vision transformer")
    refused(lambda: load_clip(small, tmp_path / "none.pt"), "no file", tmp_path / "none.pt")
    path = tmp_path / "w.pt"
    state = load_clip(small).model.state_dict()
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:1000])
    refused(lambda: load_clip(small, path), "truncated", path)
    for content, part in (
        ({"model": 3}, "state dict"),
        ({k: x for k, x in state.items() if "proj" not in k}, "lacks"),
        (state | {"extra": torch.zeros(1)}, "such as extra"),
        (state | {"text_projection": torch.zeros(3, 4)}, "(3, 4)"),
    ):
        torch.save(content, path)
        refused(lambda: load_clip(small, path), path, part)
    assert "text_projection" in read_weights(path)
    with pytest.raises(ValueError, match="VisionTransformer"):
        Clip(torch.nn.Linear(2, 2))


@torch.no_grad()
def test_a_tower_as_wide_as_vit_b_16_takes_images_of_448_pixels():
    clip = tiny_clip(512, {"image_size": 224, "patch_size": 16, "width": 768, "layers": 2}, heads=12)
    for side, n in ((224, 196), (448, 784)):
        x = clip.image_features(images(1, side, side))
        assert x.cls.shape == (1, 512)
        assert x.patches.shape == (1, n, 512)
    paths, _ = advance(clip, start(clip, images(1, 448, 448)), range(2))
    torch.testing.assert_close(projected(clip, paths).cls, x.cls, rtol=1e-4, atol=1e-5)
