"""What fits a GPU: as few passes as the estimate allows, then fewer rows where memory runs out."""

import pytest

from catalens.config import TrainingSpec
from catalens.estimates import REFERENCE_SIZES, Setup, step_memory
from catalens.training import estimated_fit

SQUARE_AT_4_CROPS = (8, 817, 5)


def fit(gigabytes: float | None, largest=SQUARE_AT_4_CROPS, **training) -> tuple[int, bool]:
    spec = TrainingSpec.model_validate({"method": "lora", **training})
    memory = None if gigabytes is None else gigabytes * 1e9
    return estimated_fit(spec, Setup.from_spec(spec), REFERENCE_SIZES, largest, memory)


@pytest.mark.parametrize(
    ("gigabytes", "passes", "again"),
    [(80, 1, False), (24, 3, False), (16, 8, False), (12, 8, True)],
)
def test_as_few_passes_as_fit_and_only_then_recomputing(gigabytes, passes, again):
    assert fit(gigabytes, gradient_accumulation=1) == (passes, again)


def test_rows_of_a_step_go_into_one_pass_where_they_fit():
    assert fit(141, gradient_accumulation=4) == (1, False)
    assert fit(80, gradient_accumulation=4) == (2, False)
    assert fit(None, gradient_accumulation=4) == (4, False)  # no GPU: as the recipe says


def test_a_batch_size_of_the_recipe_is_kept():
    assert fit(80, (8, 2569, 17), batch_size=8) == (1, True)  # which does not fit otherwise
    assert fit(80, (8, 2569, 17), batch_size=8, gradient_checkpointing=False) == (1, False)  # tried, then divided
    assert fit(80, (4, 2569, 17), batch_size=4, gradient_accumulation=2) == (2, False)


def test_full_fine_tuning_in_fp32_has_to_recompute():
    spec = TrainingSpec(method="full", gradient_checkpointing=False)
    assert step_memory(REFERENCE_SIZES, Setup.from_spec(spec), 817, 5).peak(1) > 80e9
    assert fit(80, (1, 817, 5), method="full") == (1, True)
    narrow = {"method": "full", "weights": "bf16", "optimizer": "adamw_8bit"}
    assert fit(80, (1, 817, 5), **narrow, gradient_checkpointing="auto") == (1, False)
    assert fit(48, (1, 817, 5), **narrow) == (1, False)
