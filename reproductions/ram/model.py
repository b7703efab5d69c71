"""RAM as a whole: two paths through a frozen CLIP, the Ladder Local Adapters, the matching, what is scored and trained.

Shapes: B images, N regions, C labels, w the width of the image tower, d the common dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from reproductions import UserError
from reproductions.features.clip import Clip, ImageFeatures
from reproductions.features.deep_text import STD, DeepText, check_layers
from reproductions.features.text_features import AT_ONCE, prompted, text_features
from reproductions.features.two_path import Paths, advance, projected, start
from reproductions.ram.adapter import LadderAdapter
from reproductions.ram.matcher import Matcher, score
from reproductions.ram.mmc_loss import mmc_loss
from reproductions.ram.settings import RamSettings
from reproductions.storage import Cache

Candidates = Literal["seen", "zsl", "gzsl"]


class RamModel(nn.Module):
    """RAM over a vocabulary of seen and unseen labels; the CLIP inside is frozen and is the teacher, too.

    Trained are ``adapters``, ``image_tokens``, ``text.tokens`` and the two temperatures of ``matcher``; nothing else
    has a gradient. Images are ``(B, 3, H, W)``, as published with mean and standard deviation 0.5. The score of an
    image does not depend on its batch; the training loss does, by MMC and by the adapters' batch normalisation.

    Args:
        clip: is frozen; must lie on the device to be used already, or be moved with the model.
        seen: labels of training, in the order of its targets.
        unseen: further labels.
        settings: what RAM is made of.
        cache: for the text features of the frozen tower.
        seed: of the adapters and the learned tokens.

    Attributes:
        candidates: what ``scores`` ranks: "seen", "zsl" (the unseen ones) or "gzsl" (seen, then unseen).

    Raises:
        UserError: no seen labels, an empty or repeated name.
        ValueError: blocks that CLIP lacks.
    """

    ids: Tensor
    teacher_text: Tensor
    text_states: Tensor

    def __init__(
        self,
        clip: Clip,
        seen: Sequence[str],
        unseen: Sequence[str] = (),
        settings: RamSettings | None = None,
        cache: Cache | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not seen:
            raise UserError("RAM needs at least one seen label to train on")
        self.settings = settings = RamSettings() if settings is None else settings
        self.seen, self.unseen = tuple(seen), tuple(unseen)
        self.candidates: Candidates = "gzsl"
        self.clip = clip.requires_grad_(False).eval()
        self.matcher = Matcher(settings, clip.kappa)
        self.adapters, self.image_tokens = nn.ModuleDict(), nn.ParameterDict()
        self.text: DeepText | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if settings.adapter:
                check_layers(settings.layers, len(clip.blocks))
                for k in map(str, settings.layers):
                    self.adapters[k] = LadderAdapter(clip.width, clip.dimension)
                    self.image_tokens[k] = nn.Parameter(STD * torch.randn(settings.image_tokens, clip.width))
            if settings.text_layers:
                self.text = DeepText(clip, settings.text_layers, settings.text_tokens)
        names = (*self.seen, *self.unseen)
        self.to(clip.model.text_projection.device)
        ids = clip.trimmed(clip.tokenize(prompted(names, settings.prompt))).to(clip.model.text_projection.device)
        frozen = text_features(clip, names, settings.prompt, cache)
        states = frozen[:, :0] if self.text is None else _states(self.text, clip, ids)
        for name, fixed in (("ids", ids), ("teacher_text", frozen), ("text_states", states)):
            self.register_buffer(name, fixed, persistent=False)
        self._remembered: dict[str, tuple[Tensor, Tensor]] = {}

    def names(self, candidates: Candidates) -> tuple[str, ...]:
        """The labels of these columns."""
        return (*self.seen, *self.unseen)[self._columns(candidates)]

    def text_features(self, candidates: Candidates) -> Tensor:
        """T: features of the candidates by the tower with its learned tokens, ``(C, d)``, not normalised.

        Without a graph they are computed once for the same learned tokens.
        """
        chosen = self._columns(candidates)
        if self.text is None:
            return self.teacher_text[chosen]
        if torch.is_grad_enabled():
            return self.text(self.clip, self.text_states[chosen], self.ids[chosen])
        tokens = torch.stack(list(self.text.tokens.values()))
        known, features = self._remembered.get(candidates, (None, tokens))
        if known is None or known.device != tokens.device or known.dtype != tokens.dtype or not known.equal(tokens):
            features = self.text(self.clip, self.text_states[chosen], self.ids[chosen])
            self._remembered[candidates] = tokens, features
        return features

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """L(g) + L(z) of images and of targets ``(B, C)`` over the seen labels: 1, 0, or −1 for left out."""
        text, stem = self.text_features("seen"), self._stem(images)
        x = self._told(images, *self._side(stem), text)
        prior = None
        if self.settings.teacher:
            with torch.no_grad():
                paths, _ = advance(self.clip, stem, self._side_blocks)
                regions = projected(self.clip, paths).patches
            prior = self.matcher.prior(regions, self.teacher_text[self._columns("seen")], targets)
        g, z = self.matcher(x.cls, x.patches, text, prior)
        return mmc_loss(g, targets) + mmc_loss(z, targets)

    def scores(self, images: Tensor) -> Tensor:
        """Scores ``(B, C)`` of the images for ``candidates``; each row adds up to 1."""
        return self.scores_of(images, (self.candidates,))[0]

    def scores_of(self, images: Tensor, candidates: Sequence[Candidates]) -> list[Tensor]:
        """Scores ``(B, C)`` for each of several sets of candidates, by one run through the image tower."""
        stem = self._stem(images)
        paths, seen = self._side(stem)
        found = []
        for which in candidates:
            text = self.text_features(which)
            x = self._told(images, paths, seen, text)
            found.append(score(self.matcher(x.cls, x.patches, text)))
        return found

    @property
    def _side_blocks(self) -> range:
        """From the first block that has an adapter on."""
        depth = len(self.clip.blocks)
        return range(min(map(int, self.image_tokens), default=depth), depth)

    def _columns(self, candidates: Candidates) -> slice:
        """Where these candidates stand among seen and unseen labels."""
        if candidates == "zsl" and not self.unseen:
            raise UserError("there are no unseen labels to rank: give some, or rank the seen ones")
        S = len(self.seen)
        return {"seen": slice(0, S), "zsl": slice(S, None), "gzsl": slice(0, None)}[candidates]

    @torch.no_grad()
    def _stem(self, images: Tensor) -> Paths:
        """Both paths up to the first adapter: what the teacher shares."""
        return advance(self.clip, start(self.clip, images), range(self._side_blocks.start))[0]

    def _side(self, stem: Paths) -> tuple[Paths, dict[int, Tensor]]:
        """Both paths through the rest with the learned tokens, and what the adapters read."""
        return advance(self.clip, stem, self._side_blocks, {int(k): x for k, x in self.image_tokens.items()})

    def _told(self, images: Tensor, paths: Paths, seen: dict[int, Tensor], text: Tensor) -> ImageFeatures:
        """Projected features, once the adapters have told the local path of the text."""
        grid, h = self.clip.grid(images), paths.h
        for k, adapter in self.adapters.items():
            h = h + adapter(seen[int(k)], text, grid)
        return projected(self.clip, Paths(paths.g, h))


def _states(text: DeepText, clip: Clip, ids: Tensor) -> Tensor:
    """What enters the first block with learned tokens, ``(C, L, w)``, some texts at a time."""
    return torch.cat([text.frozen(clip, part) for part in ids.split(AT_ONCE)])
