"""Where a run is tracked; off is a null object, so that nobody asks whether tracking is on.

tracker = start_tracker(recipe.tracking, folder, config, warn)
tracker.log({"train/loss": 2.31, "train/learning_rate": 0.0002}, step=10)
tracker.examples([Shown("17.jpg", picture, {"price": 1290.0}, {"price": 1150.0}, None)], step=50)
tracker.warn("Shuffled pictures do not hurt", "The model answers as well without seeing the picture.")
tracker.model(folder / "best", step=50, metadata={"validation/loss": 0.71, "catalog": "sha256:4f1c..."})
tracker.finish()

The names are the same in every tracker, and `metrics.jsonl` in the run's folder holds every figure without one.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from catalens.config import TrackingSpec
from catalens.errors import RecipeError
from catalens.tracking.tracker import NoTracker, Shown, Tracker, Unfailing, reason

__all__ = ["NoTracker", "Shown", "Tracker", "start_tracker"]


def start_tracker(
    spec: TrackingSpec, folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]
) -> Tracker:
    """The tracker that the recipe asks for, which never stops a run.

    `folder` is the run's, its name the run's name; `config` is the resolved recipe and the versions, with the
    catalogue's content hash at `config["versions"]["catalog"]`; `warn` is told, in one sentence, what does not work.
    Raises RecipeError where the tracker is not installed.
    """
    if spec.to == "none":
        return NoTracker()
    if spec.to != "wandb" and importlib.util.find_spec(spec.to) is None:
        raise RecipeError(f"tracking.to is {spec.to!r}, which is not installed: pip install 'catalens[{spec.to}]'")
    try:
        tracker = _started(spec, folder.absolute(), config, warn)
    except Exception as error:  # whatever a library raises, the run is worth more
        warn(f"{spec.to} cannot start ({reason(error)}): the run is tracked in its metrics.jsonl alone")
        return NoTracker()
    return Unfailing(tracker, spec, warn)


def _started(spec: TrackingSpec, folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]) -> Tracker:
    """The tracker itself; imports its library."""
    if spec.to == "wandb":
        from catalens.tracking.wandb import start_wandb

        return start_wandb(spec.project, folder, config, warn)
    if spec.to == "trackio":
        from catalens.tracking.trackio import TrackioTracker

        return TrackioTracker(spec.project, folder, config, warn)
    from catalens.tracking.tensorboard import TensorBoardTracker

    return TensorBoardTracker(folder, config)
