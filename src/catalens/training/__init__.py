"""A recipe becomes a run."""

from catalens.lazy import exports

HOMES = {
    "batches": "plan_training plan_validation PlannedBatches",
    "checkpoints": "last_checkpoint step_of",
    "modules": "check_gradients coverage make_optimizer OptimizerPair prepare_parts",
    "run": "anchored",
    "throughput": "device_peak Meter peak_memory",
    "train": "check_machine",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
