"""The embedded colours: names, CIELAB coordinates, and vectors of the names."""

from __future__ import annotations

import builtins
import hashlib

import pytest
import torch

from reproductions.datasets import colours as module
from reproductions.datasets import embed_colours
from reproductions.datasets.catalogue import KNOWN
from reproductions.datasets.colours import BASIC, Colours, load_colours
from reproductions.storage import content_hash

SHA256 = "3745c3dd6495ad1d06da55cac3101f5a726bb92bd03da97bbab59e4d33063cca"


def near(colours: Colours, one: str, other: str) -> float:
    return float(torch.dot(*colours.text[colours.places([one, other])]))


def test_the_set_is_the_one_that_was_embedded():
    colours = load_colours()
    assert len(colours.names) == len(set(colours.names)) == 949
    assert colours.lab.shape == (949, 3)
    assert colours.lab.dtype == torch.float64
    assert colours.text.shape == (949, 384)
    assert torch.allclose(colours.text.norm(dim=1), torch.ones(949), atol=1e-3)
    assert not any(":" in name for name in colours.names)
    assert colours.sha256 == SHA256
    assert {"colours and their names"} <= {known.title for known in KNOWN if known.tier == "embedded"}


def test_names_and_colours_mean_what_they_say():
    colours = load_colours()
    assert near(colours, "sky blue", "light blue") > near(colours, "sky blue", "brown")
    assert near(colours, "dark green", "forest green") > near(colours, "dark green", "pink")
    lab = dict(zip(BASIC, colours.lab[colours.places(BASIC)].tolist(), strict=True))
    assert lab["black"] == pytest.approx([0, 0, 0], abs=1e-3)
    assert lab["white"] == pytest.approx([100, 0, 0], abs=0.02)
    assert lab["red"][1] > 50 > -30 > lab["green"][1]
    assert lab["yellow"][2] > 50 > -30 > lab["blue"][2]
    with pytest.raises(ValueError, match="no colour of this set is called 'infrared'"):
        colours.places(["red", "infrared"])


def test_other_names_than_those_embedded_are_refused(monkeypatch):
    monkeypatch.setattr(module, "colour_names", lambda: ("red", "blue"))
    load_colours.cache_clear()
    with pytest.raises(ValueError, match="the 2 colour names of this matplotlib are not those"):
        load_colours()
    load_colours.cache_clear()


def test_only_the_model_that_made_them_may_make_them_again(tmp_path, monkeypatch):
    from conftest import refused

    refused(lambda: embed_colours.embed_colours(tmp_path), "there is no", tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"another model")
    digest = hashlib.sha256(b"another model").hexdigest()
    refused(lambda: embed_colours.embed_colours(tmp_path), digest, embed_colours.SHA256)
    real = builtins.__import__

    def without(name, *arguments, **settings):
        if name == "sentence_transformers":
            raise ImportError(name)
        return real(name, *arguments, **settings)

    monkeypatch.setattr(embed_colours, "SHA256", digest)
    monkeypatch.setattr(builtins, "__import__", without)
    refused(lambda: embed_colours.embed_colours(tmp_path), "needs sentence-transformers", "matchmark[text]")


def test_the_file_names_the_names_it_was_made_of():
    from safetensors import safe_open

    with safe_open(module.VECTORS, framework="pt") as file:
        assert file.metadata() == {"names_sha256": content_hash(load_colours().names)}
        assert file.get_tensor("text").dtype == torch.float16
