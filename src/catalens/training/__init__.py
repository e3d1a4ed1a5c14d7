"""A recipe becomes a run."""

from catalens.lazy import exports

HOMES = {
    "batches": "plan_training plan_validation PlannedBatches possible_passes regroup SHAPES shapes_of",
    "checkpoints": "last_checkpoint step_of",
    "fitting": "estimated_fit USABLE",
    "modules": "check_gradients compile_layers coverage make_optimizer OptimizerPair prepare_parts rounded_into "
    "uncast_adapters",
    "run": "anchored",
    "throughput": "device_peak Meter peak_memory",
    "train": "check_machine",
}
"""Public names by module."""
__getattr__, __all__ = exports(__name__, HOMES)
