"""The solver table: what an exact or an approximate flow costs in time and changes in accuracy and in the gradient.

Every solver gets the same episodes of the same features. The time is that of an episode from features to logits: CPU
time on one thread, so that other work on the machine hardly matters; on a GPU it is the time on the clock. The
gradient is that of an episode's cross entropy with respect to all of its features, in float64. Its error is taken along
random directions, against central differences of the loss with exact optimal costs (those of POT and OpenCV have errors
that the differences would multiply by 10⁶): the root of the mean squared difference over the root mean square of the
derivatives, which estimates ‖g − g*‖ / ‖g*‖.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reproductions.deepemd.engines import ENGINES, Engine
from reproductions.deepemd.episodes import Episode
from reproductions.deepemd.method import NodeMatching, nodes
from reproductions.deepemd.studies import QUERIES, feature_maps, studies
from reproductions.experiment import Options, Row
from reproductions.metrics import few_shot_accuracy
from reproductions.storage import content_hash, source_hash

TABLE = "solvers"
TIME, ERROR = "one episode", "gradient"
EPISODES, DIFFERENTIATED = 50, 4
DIRECTIONS, STEP = 16, 1e-6


def rows(options: Options) -> list[Row]:
    """Accuracy, time and gradient of every solver on 1-shot episodes of the digits."""
    study = studies(None)[0]
    task = study.tasks[0]
    columns = {task.column: "few_shot_accuracy", TIME: "episode_time", ERROR: "gradient_error"}
    return [
        Row(
            table=TABLE,
            row=name,
            column=column,
            metric=metric,
            solver=engine.solver,
            settings={
                "shot": task.shot,
                "queries": QUERIES,
                "episodes": min(engine.episodes, DIFFERENTIATED if column == ERROR else EPISODES),
                **engine.settings,
            },
            tier=study.tier,
            data=study.name,
            data_hash=study.sha256,
            missing=engine.missing,
        )
        for name, engine in ENGINES.items()
        for column, metric in columns.items()
    ]


def measure(row: Row, options: Options, advance: Callable[[float], None]) -> Sequence[float]:
    """Of each episode the accuracy in percent, the milliseconds, or the relative error of the gradient in percent."""
    study = studies(None)[0]
    task, engine = study.tasks[0], ENGINES[row.row]
    features = nodes(feature_maps(study, task, options)).to(options.device)
    episodes = study.episodes(task, options.seed)[: row.settings["episodes"]]
    versions = source_hash(), torch.__version__, options.seed
    if row.column == ERROR:
        key = content_hash(row.data_hash, *versions, len(episodes))
        made = options.cache.tensors("derivatives", key, lambda: {"": derivatives(features, episodes)})
        return gradient_errors(engine, features, episodes, made[""].to(features.device), advance)
    key = content_hash(row.identity["row"], row.settings, row.data_hash, *versions, options.device)
    made = options.cache.tensors("episodes", key, lambda: _measured(engine, features, episodes, advance))
    return made["milliseconds" if row.column == TIME else "accuracy"].tolist()


def _measured(
    engine: Engine, features: Tensor, episodes: Sequence[Episode], advance: Callable[[float], None]
) -> dict[str, Tensor]:
    """Accuracy and time of each episode, on one thread."""
    if not engine.slow:
        episode_logits(engine, features, episodes[0])  # compiles and imports
    accuracy, milliseconds, threads = [], [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for k, episode in enumerate(episodes, start=1):
            start = _now(features.device)
            logits = episode_logits(engine, features, episode)
            milliseconds.append(1e3 * (_now(features.device) - start))
            accuracy.append(few_shot_accuracy(logits, episode.labels.to(logits.device)).item())
            advance(k / len(episodes))
    finally:
        torch.set_num_threads(threads)
    return {"accuracy": torch.tensor(accuracy), "milliseconds": torch.tensor(milliseconds)}


@torch.no_grad()
def episode_logits(engine: Engine, features: Tensor, episode: Episode) -> Tensor:
    """Logits ``(queries, way)`` of a 1-shot episode of the images with these nodes ``(n, N, C)``."""
    return engine.logits(features[episode.query], features[episode.support[:, 0]])


def gradient_errors(
    engine: Engine, features: Tensor, episodes: Sequence[Episode], reference: Tensor, advance: Callable[[float], None]
) -> list[float]:
    """The relative error of the gradient in percent, one an episode; ``reference`` as of ``derivatives``."""
    found = []
    for k, (episode, true) in enumerate(zip(episodes, reference, strict=True)):
        x = _leaves(features, episode).requires_grad_()
        (gradient,) = torch.autograd.grad(_loss(engine.logits, x, episode), x)
        taken = torch.stack([(gradient * direction).sum() for direction in _directions(x, k)])
        found.append(100 * ((taken - true).norm() / true.norm()).item())
        advance((k + 1) / len(episodes))
    return found


@torch.no_grad()
def derivatives(features: Tensor, episodes: Sequence[Episode]) -> Tensor:
    """Central differences of an episode's loss along its directions: float64 ``(episodes, DIRECTIONS)``."""
    exact, found = NodeMatching().logits, []
    for k, episode in enumerate(episodes):
        x = _leaves(features, episode)
        ends = [[_loss(exact, x + h * d, episode) for h in (STEP, -STEP)] for d in _directions(x, k)]
        found.append(torch.stack([(ahead - behind) / (2 * STEP) for ahead, behind in ends]))
    return torch.stack(found)


def _now(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _leaves(features: Tensor, episode: Episode) -> Tensor:
    """The nodes of an episode's images, the prototypes first."""
    return features[torch.cat([episode.support[:, 0], episode.query])].double()


def _loss(logits: Callable[[Tensor, Tensor], Tensor], x: Tensor, episode: Episode) -> Tensor:
    prototype, query = x.split([len(episode.support), len(episode.query)])
    return F.cross_entropy(logits(query, prototype), episode.labels.to(x.device))


def _directions(x: Tensor, seed: int) -> list[Tensor]:
    generator, size = torch.Generator().manual_seed(seed), x.detach().square().mean().sqrt()
    drawn = torch.randn(DIRECTIONS, *x.shape, generator=generator, dtype=torch.float64)
    return list(size * drawn.to(x.device))
