"""Vectors of a data set: which models there are, how they look at images, and that nothing is computed twice."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from conftest import picture, refused
from PIL import Image
from test_cli import run  # noqa: F401
from torch import nn

from reproductions.blind_match.sources import embedded, missing
from reproductions.datasets.labelled_images import InMemory, LabelledImages
from reproductions.features import embeddings, language_models, vision_models
from reproductions.features.embeddings import embed_images, embed_texts, image_key, is_embedded
from reproductions.features.language_models import CLIPS, LANGUAGE_MODELS, SENTENCE_TRANSFORMERS, load_language_model
from reproductions.features.vision_models import PreLogits, VisionModel, load_vision_model, resized_as_dinov2
from reproductions.features.vision_recipes import MOBILENET, VISION_MODELS, vision_recipe
from reproductions.features.weights import find_weights, weights_sha256
from reproductions.storage import Cache

RNG = np.random.default_rng(0)
QUIET = SimpleNamespace(advance=lambda what, fraction: None).advance


def small(n=10, side=8) -> LabelledImages:
    pixels = RNG.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    texts = (("a", "bb"), ("ccc",), ("d", "ee", "fff"))
    return LabelledImages("s", "small", "local", InMemory(pixels), np.arange(n) % 3, ("x", "y", "z"), texts, "", "")


class Means:
    """A model whose vector is the mean colour; it fails when it has seen as many batches as it is told."""

    name = "means"

    def __init__(self, batches: float = torch.inf) -> None:
        self.left, self.seen = batches, 0

    def transform(self, image):
        return torch.from_numpy(np.array(image)).float().permute(2, 0, 1)

    def __call__(self, batch):
        if self.left <= 0:
            raise RuntimeError("stopped")
        self.left -= 1
        self.seen += len(batch)
        return batch.mean((-2, -1))

    def fixed(self, count):
        return None

    def key(self, cache):
        return "means"


class Lengths(Means):
    """A language model whose vector is the length of the text."""

    def __call__(self, texts):
        return torch.tensor([[float(len(text))] for text in texts])


def test_a_stopped_run_goes_on_after_the_last_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "IMAGES_A_CHUNK", 4)
    data, cache = small(), Cache(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        embed_images(Means(batches=3), data, cache, QUIET, batch_size=2)
    key = image_key(Means(), data, cache)
    assert not is_embedded(key, cache)
    second, told = Means(), []
    vectors = embed_images(second, data, cache, lambda what, fraction: told.append(fraction), batch_size=2)
    assert second.seen == 6  # the first chunk of four is not computed again
    assert told == [0.6, 0.8, 1.0]
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, torch.from_numpy(data.images.pixels).float().mean((1, 2)))
    assert [p.suffix for p in (tmp_path / "embeddings").iterdir()] == [".safetensors"]
    third = Means()
    assert torch.equal(embed_images(third, data, cache, QUIET), vectors)
    assert third.seen == 0


def test_classes_with_fewer_texts_are_padded(tmp_path):
    found = embed_texts(Lengths(), small(), Cache(tmp_path), QUIET, batch_size=4)
    assert found.shape == (3, 3, 1)
    nan = torch.nan
    wanted = torch.tensor([[1, 2, nan], [3, nan, nan], [1, 2, 3]])[..., None]
    assert torch.allclose(found, wanted, equal_nan=True)


def test_vectors_that_are_not_finite_are_refused(tmp_path):
    model = Means()
    model.transform = lambda image: torch.full((3, 2, 2), torch.nan)
    refused(lambda: embed_images(model, small(), Cache(tmp_path), QUIET), "not finite", "means")


def test_the_paper_has_32_vision_and_27_language_models():
    families = [recipe.family for recipe in VISION_MODELS.values()]
    counts = {name: families.count(name) for name in families}
    assert counts == {"CLIP": 9, "ConvNeXt": 6, "DeiT": 8, "DINO": 5, "DINOv2": 4}
    assert (len(SENTENCE_TRANSFORMERS), len(CLIPS), len(set(LANGUAGE_MODELS))) == (18, 9, 27)
    for recipe in VISION_MODELS.values():
        if recipe.library == "timm":
            assert timm.is_model(recipe.model)
            assert str(timm.get_pretrained_cfg(recipe.model).url).endswith(f"/{recipe.stems[1]}.pth")
    refused(lambda: vision_recipe("DINOv3"), "DINOv3", "DINOv2 ViT-S/14", "Pixel values")
    refused(lambda: load_language_model("BERT"), "BERT", "all-mpnet-base-v2")


@pytest.mark.parametrize("name", [*VISION_MODELS, "Pixel values", "MobileNetV2", "Random ViT-H/14, seed 1"])
def test_transforms_end_at_the_side_of_the_recipe(name):
    recipe = vision_recipe(name)
    x = load_vision_model(name).transform(Image.new("RGB", (50, 40), (255, 0, 51)))
    assert x.shape == (3, recipe.side, recipe.side)
    color = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    assert torch.allclose(x.mean((1, 2)), color, atol=1e-4)


def test_squares_keep_the_whole_image_and_libraries_crop_it():
    image = Image.new("RGB", (300, 100))
    image.paste((255, 255, 255), (0, 0, 20, 100))  # a bright left edge, outside of the square in the middle
    assert load_vision_model("DeiT-T/16").transform(image)[0, :, 0].max() > 2
    assert load_vision_model("CLIP ViT-B/32").transform(image)[0].std() < 1e-6
    assert load_vision_model("CN-B-1").transform(image)[0].std() < 1e-6


def test_features_are_what_the_paper_takes():
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    deit = load_vision_model("DeiT-T/16d", random_weights=True)
    model = deit.network
    tokens = model.forward_features(x)
    with torch.no_grad():
        both = (model.head(tokens[:, 0]) + model.head_dist(tokens[:, 1])) / 2
    assert torch.allclose(deit(x), both, atol=1e-6)
    dino = load_vision_model("DINO ViT-S/16", random_weights=True)
    assert torch.allclose(dino(x), dino.network.forward_features(x)[:, 0], atol=1e-6)
    resnet = load_vision_model("DINO RN50", random_weights=True)
    assert resnet(x).shape == (2, 2048)
    assert isinstance(resnet.network.fc, nn.Identity)
    assert torch.equal(load_vision_model("Pixel values")(x), x.flatten(1))


def test_convnext_gives_what_its_classifier_sees():
    model = timm.create_model("convnext_atto", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(model.head.fc(PreLogits(model)(x)), model(x), atol=1e-5)


def test_dinov2_resizes_its_positions_as_its_own_code_does():
    model = load_vision_model("DINOv2 ViT-S/14", random_weights=True).network
    assert model.pos_embed.shape == (1, 1 + 16**2, 384)
    assert model.patch_embed.img_size == (224, 224)
    n, side = 37, 16
    ramp = torch.arange(n, dtype=torch.float64).expand(n, n)
    positions = torch.cat([torch.tensor([[[5.0]]], dtype=torch.float64), ramp.reshape(1, -1, 1)], 1)
    found = resized_as_dinov2(positions, side)
    assert found[0, 0] == 5
    read, cells = found[0, 1:, 0].reshape(side, side)[3, 1:-1], torch.arange(side).double()[1:-1] + 0.5
    assert torch.allclose(read, cells * n / (side + 0.1) - 0.5, rtol=0, atol=0.07)  # bicubic: not quite straight
    assert (read - (cells * n / side - 0.5)).abs().max() > 0.2
    assert torch.equal(resized_as_dinov2(positions, n), positions)


def test_random_controls_depend_on_their_seed_alone(tmp_path):
    data, cache = small(), Cache(tmp_path)
    a, b = (embed_images(load_vision_model(f"Random, seed {k}"), data, cache, QUIET) for k in (1, 2))
    assert a.shape == (10, 1280)
    assert not torch.equal(a, b)
    assert torch.equal(a, load_vision_model("Random, seed 1").fixed(10))
    before = torch.get_rng_state()
    tiny = replace(vision_recipe("Random ViT-H/14, seed 3"), model="vit_b_16", side=32)
    torch.manual_seed(3)
    expected = vision_models.torchvision.models.vit_b_16().class_token
    torch.set_rng_state(before)
    assert torch.equal(VisionModel(tiny).network.class_token, expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_in_the_folder_are_taken_and_checked(tmp_path):
    stored = tmp_path / "weights" / "mobilenetv2_100_same.safetensors"
    stored.parent.mkdir()
    source = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    safetensors.torch.save_file({k: x.contiguous() for k, x in source.state_dict().items()}, stored)
    model, x = load_vision_model("MobileNetV2", tmp_path), torch.randn(1, 3, 64, 64)
    assert model.weights == stored
    assert torch.allclose(model(x), PreLogits(source)(x), atol=1e-6)
    cache = Cache(tmp_path / "cache")
    key, first = model.key(cache), weights_sha256(stored, cache)
    assert key != VisionModel(MOBILENET).key(cache)
    safetensors.torch.save_file({"x": torch.zeros(2)}, stored)
    os.utime(stored, (1, 1))
    assert weights_sha256(stored, cache) != first
    assert model.key(cache) != key
    refused(lambda: load_vision_model("MobileNetV2", tmp_path).network, stored, "MobileNetV2")
    stored.write_bytes(b"nothing")
    refused(lambda: load_vision_model("MobileNetV2", tmp_path).network, stored)
    assert find_weights(tmp_path, ("none",)) is None


@pytest.mark.parametrize("name", ["DeiT-T/16", "CLIP RN50", "DINO RN50"])
def test_a_download_that_fails_is_one_sentence(name, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(vision_models, "open_clip_model", offline)
    monkeypatch.setattr(timm, "create_model", offline)
    stem = vision_recipe(name).stems[0]
    refused(lambda: load_vision_model(name)(torch.zeros(1, 3, 32, 32)), name, f"DIR/weights/{stem}", "downloaded")


def test_clip_s_towers_cut_long_texts(monkeypatch):
    class Model(nn.Module):
        context_length = 77

        def encode_text(self, ids):
            return ids.half()

    monkeypatch.setattr(language_models, "open_clip_model", lambda name, weights, download: Model())
    found = load_language_model("CLIP RN50")(["cat", "word " * 200])
    assert found.shape == (2, 77)
    assert found.dtype == torch.float32


class Sentences(nn.Module):
    """Stands in for sentence-transformers' class: it has a tokenizer, and half the vector is not normalised."""

    def __init__(self, source: str, device: str, local_files_only: bool) -> None:
        super().__init__()
        if not local_files_only:
            raise ConnectionError("no network")
        self.source = source

    def preprocess(self, texts):
        return {"lengths": torch.tensor([[float(len(text))] for text in texts]), "kind": "text"}

    def forward(self, features):
        return {"sentence_embedding": 2 * features["lengths"].expand(-1, 2)}


def test_sentence_transformers_come_from_the_folder_or_by_download(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Sentences))
    monkeypatch.setattr(language_models, "find_spec", lambda name: True)
    place = tmp_path / "weights" / "all-mpnet-base-v2"
    picture(place / "weights.png")
    model = load_language_model("all-mpnet-base-v2", tmp_path)
    assert model(["a", "bbb"]).tolist() == [[2, 2], [6, 6]]
    assert model.tower.model.source == str(place)
    refused(lambda: load_language_model("gtr-t5-xl", tmp_path)(["a"]), "gtr-t5-xl", "DIR/weights/gtr-t5-xl/")
    monkeypatch.setattr(language_models, "find_spec", lambda name: None)
    refused(lambda: load_language_model("all-mpnet-base-v2", tmp_path)(["a"]), "pip install", "matchmark[text]")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the data set "pets" and a language model, whose library is not the real one."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Sentences))
    monkeypatch.setattr(language_models, "find_spec", lambda name: True)
    for name in ("cat", "dog"):
        for k in range(2):
            picture(tmp_path / "data" / "pets" / name / f"{k}.png", (k, 0, 0))
    picture(tmp_path / "data" / "weights" / "all-mpnet-base-v2" / "x.png")
    return tmp_path / "data"


def test_a_source_is_embedded_or_says_what_is_missing(folder, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    pair = "Random, seed 0", "all-mpnet-base-v2"
    assert missing("pets", *pair, folder) == ""
    found = embedded("pets", *pair, folder, cache, "cpu", QUIET)
    assert (found.vision.shape, found.language.shape) == ((4, 1280), (2, 7, 2))
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert (found.classes, found.title, found.tier) == (("cat", "dog"), "pets", "local")
    assert found.sha256 != embedded("pets", "Random, seed 1", pair[1], folder, cache, "cpu", QUIET).sha256
    assert "no CIFAR-100" in missing("cifar100", *pair, folder)
    assert '--vision "DeiT-T/16"' in missing("pets", "DeiT-T/16", pair[1], folder)
    assert '--language "gtr-t5-xl"' in missing("pets", pair[0], "gtr-t5-xl", folder, cache)
    monkeypatch.setattr(language_models, "find_spec", lambda name: None)
    assert missing("pets", *pair, folder, cache) == ""  # it is in the cache
    assert "pip install" in missing("pets", *pair, folder)


def test_the_command_embeds_once(folder, run):  # noqa: F811
    command = ("data", "embed", "--data", "data", "--dataset", "pets", "--vision", "Random, seed 0")
    both = (*command, "--vision", "Random, seed 1", "--language", "all-mpnet-base-v2")
    code, out, err = run(*both)
    assert code == 0, err
    assert "pets, Random, seed 1: 4 images, 1280 numbers each" in out
    assert "2 classes, up to 7 texts each" in out
    assert "3 made, 0 reused" in out
    assert "all 3 were there already" in run(*both)[1]
    assert "all 1 were there already" in run(*command)[1]
    for bad, part in (
        (("data", "embed", "--dataset", "pets", "--vision", "Pixel values"), "--data DIR"),
        (command[:6], "needs a model"),
        ((*command[:5], "plants", *command[6:]), "plants"),
        ((*command[:-1], "DINO"), "no vision model 'DINO'"),
        ((*command, "--device", "tpu"), "tpu"),
    ):
        code, _, err = run(*bad)
        assert code == 2
        assert part in err
