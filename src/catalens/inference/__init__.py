"""A run and pictures -> predictions.

    predictor = load_predictor("runs/demo", accept_error={"title": 0.05})
    predictor.predict([Path("photo.jpg").read_bytes()])[0].values

What takes seconds to import is imported where a model is loaded.
"""

from collections.abc import Mapping
from pathlib import Path

from catalens.errors import RecipeError
from catalens.inference.prediction import Prediction, Predictor, record_columns, record_of

__all__ = ["Prediction", "Predictor", "load_predictor", "record_columns", "record_of"]


def load_predictor(
    run: Path | str | None = None,
    *,
    batch_size: int = 16,
    accept_error: Mapping[str, float] | float | None = None,
    free_categories: bool = False,
    engine: str = "native",
) -> Predictor:
    """The predictor of a finished run; of the model that ships with catalens where `run` is None.

    `accept_error` is the share of wrong values that is borne among those not marked for review, for all columns or
    by column. Decoding is constrained: every answer parses, and categories are the catalogue's, unless
    `free_categories`. `engine` is `native` or `vllm`. What a run's calibration was not learned from, free categories
    or another engine, is not calibrated. Raises CheckpointError where it is no finished run, RecipeError where an
    option does not fit.
    """
    from catalens.checkpoint import load_run, load_untrained
    from catalens.inference.calibration import load_calibration
    from catalens.inference.reading import RunPredictor
    from catalens.inference.vllm import load_vllm
    from catalens.inference.writer import Writer

    if engine not in ("native", "vllm"):
        raise RecipeError(f"--engine {engine}: give native or vllm")
    loaded = load_untrained() if run is None else load_run(run, weights=engine == "native")
    prompt, space = loaded.prompt, loaded.space
    columns = [field.column for field in prompt.fields]
    targets = dict.fromkeys(columns, accept_error) if isinstance(accept_error, int | float) else accept_error or {}
    if unknown := [column for column in targets if column not in columns]:
        raise RecipeError(f"--accept-error names {unknown[0]!r}: the fields are {', '.join(columns)}")
    other = free_categories or engine != "native"
    if targets and other:
        raise RecipeError(
            "--accept-error holds for the native engine and the catalogue's own categories: leave it out"
        )
    calibration = None if run is None or other else load_calibration(loaded.folder, prompt)
    longest = loaded.recipe.evaluation.max_new_tokens
    if engine == "vllm":
        writing = load_vllm(loaded.folder / "best", prompt, space, free_categories, longest)
    else:
        writing = Writer(loaded.model, loaded.processor, prompt, batch_size, longest, space, free_categories)
    return RunPredictor(writing, prompt, calibration, targets)
