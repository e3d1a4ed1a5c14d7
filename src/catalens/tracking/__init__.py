"""Trackers of a run; off is a null object, so that nobody asks whether tracking is on.

tracker = start_tracker(recipe.tracking, folder, config, warn)
tracker.log({"train/loss": 2.31, "train/learning_rate": 0.0002}, step=10)
tracker.examples([LoggedExample("17.jpg", picture, {"price": 1290.0}, {"price": 1150.0}, None)], step=50)
tracker.warn("Shuffled pictures do not hurt", "The model answers as well without seeing the picture.")
tracker.model(folder / "best", step=50, metadata={"validation/loss": 0.71, "catalog": "sha256:4f1c..."})
tracker.finish()

The names are the same in every tracker, and `metrics.jsonl` in the run's folder holds every figure without one.
"""

from catalens.tracking.tracker import LoggedExample, NoTracker, Tracker, start_tracker

__all__ = ["LoggedExample", "NoTracker", "Tracker", "start_tracker"]
