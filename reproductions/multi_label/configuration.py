"""A published setting as one TOML file: ``reproductions/<paper>/configs/<name>.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from reproductions import UserError

Rgb = tuple[float, float, float]
PositiveRgb = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class Strict(BaseModel):
    """Settings that refuse unknown keys and infinite numbers; once read they do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Group(Strict):
    """Parameters that share a learning rate.

    Attributes:
        parameters: patterns of their names, as of files; ``*`` is any part of a name.
    """

    parameters: Annotated[tuple[str, ...], Field(min_length=1)]
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0


class AdamW(Strict):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"]
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]


class Sgd(Strict):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]


class WarmupCosine(Strict):
    """A new learning rate every epoch: a line up to the group's own, then a cosine down, which an early end cuts.

    Attributes:
        warmup: epochs of the line.
        start: the learning rate that the line leaves, in the epoch before the first.
        period: epochs, from before the first, in which the cosine would reach ``end``.
        end: the lowest learning rate.
    """

    kind: Literal["warmup_cosine"]
    warmup: PositiveInt
    start: NonNegativeFloat
    period: PositiveInt
    end: NonNegativeFloat


class OneCycle(Strict):
    """A new learning rate every step, over the whole training: up to the group's own and down again along cosines.

    Attributes:
        rising: share of the steps before the top.
    """

    kind: Literal["one_cycle"]
    rising: Fraction


class Settings(Strict):
    """How a model is trained.

    Attributes:
        side: of the square input, in pixels.
        mean: taken off each of red, green and blue in [0, 1], before the division by ``std``.
        augmentation: a name of ``augmentation.RECIPES``.
        batch: images of a step, shared evenly by the processes.
        test_batch: images that a process scores at a time.
        ema: decay of the moving average of the weights.
        clip: largest norm of the gradient; absent for any.
        amp: mixed precision; CUDA only.
        every: steps after which the state is written inside an epoch too; absent for never.
    """

    seed: Annotated[int, Field(ge=0)]
    side: PositiveInt
    mean: Rgb
    std: PositiveRgb
    augmentation: Literal["pad_crop_erase", "resized_crop", "randaugment_cutout"]
    epochs: PositiveInt
    batch: PositiveInt
    test_batch: PositiveInt
    ema: Fraction
    clip: PositiveFloat | None = None
    amp: bool
    every: PositiveInt | None = None
    schedule: Annotated[WarmupCosine | OneCycle, Field(discriminator="kind")]
    optimizers: Annotated[
        tuple[Annotated[AdamW | Sgd, Field(discriminator="kind")], ...],
        Field(min_length=1),
    ]


ModelSettings = TypeVar("ModelSettings")


class Configuration(Strict, Generic[ModelSettings]):
    """What a file sets.

    Attributes:
        backbone: open_clip's name of both towers.
        model: the paper's own settings, a pydantic model or a dataclass.
        training: how the model is trained.
    """

    backbone: str
    model: ModelSettings
    training: Settings


def read_configuration(path: Path, model: type[ModelSettings]) -> Configuration[ModelSettings]:
    """The setting of this file, whose table ``model`` holds settings of that type.

    Raises:
        UserError: there is no such file, it is no TOML, or it lacks a value, has a wrong one or one nobody asks for.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML file: {error}") from None
    try:
        return Configuration[model].model_validate(content)  # type: ignore[valid-type]
    except ValidationError as error:
        raise UserError(f"{path} {_fault(error)}") from None


def _fault(error: ValidationError) -> str:
    """The first fault, as what is to be said of the file."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    match fault["type"]:
        case "missing":
            return f"lacks {place}"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"sets {place}, which is not known"
        case "value_error":  # by the settings as a whole
            return f"has a wrong {place}: {fault['ctx']['error']}"
        case _:
            return f"sets {place} to {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
