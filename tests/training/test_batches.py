"""The plan of a run: every row in its turn, the same in every process, nothing lost, nothing doubled."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalens.config import TrainingSpec
from catalens.training import (
    SHAPES,
    PlannedBatches,
    plan_training,
    plan_validation,
    possible_passes,
    regroup,
    shapes_of,
)

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)


def spec(**training) -> TrainingSpec:
    return TrainingSpec.model_validate(training)


def rows_of(plan) -> list[int]:
    return [row for step in plan for batch in step for row in batch]


@given(lengths, st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))
def test_an_epoch_has_every_row_once(lengths, batch_size, accumulation, processes):
    asked = spec(batch_size=batch_size, gradient_accumulation=accumulation, epochs=2)
    plan = plan_training(lengths, asked, processes)
    assert Counter(rows_of(plan)) == dict.fromkeys(range(len(lengths)), 2)
    assert all(1 <= len(batch) <= batch_size for step in plan for batch in step)
    assert all(len(step) == accumulation * processes for step in plan[:-1])
    assert plan == plan_training(lengths, asked, processes)


@given(lengths, st.integers(1, 200), st.booleans())
def test_a_budget_of_tokens_holds_padding_and_all(lengths, budget, packing):
    plan = plan_training(lengths, spec(batch_tokens=budget, packing=packing, epochs=1), 1)
    assert sorted(rows_of(plan)) == list(range(len(lengths)))
    for (batch,) in plan:
        own = [lengths[row] for row in batch]
        size = sum(own) if packing else max(own) * len(own)
        assert size <= budget or len(own) == 1


@given(lengths, st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_processes_share_a_step_whatever_their_number(lengths, batch_size, begun, now):
    plan = plan_training(lengths, spec(batch_size=batch_size, gradient_accumulation=2, epochs=1), begun)
    samplers = [PlannedBatches(plan, rank, now) for rank in range(now)]
    shares = [list(sampler) for sampler in samplers]
    assert len({len(share) for share in shares}) == 1  # none waits for another
    assert len(shares[0]) == len(samplers[0]) == len(plan) * samplers[0].accumulation
    for number, step in enumerate(plan):
        turns = slice(number * samplers[0].accumulation, (number + 1) * samplers[0].accumulation)
        given = [batch for share in shares for batch in share[turns]]
        assert sorted(batch for batch in given if batch[0] >= 0) == sorted(step)
        assert all(~batch[0] in step[0] and len(batch) == 1 for batch in given if batch[0] < 0)


@given(lengths, st.integers(1, 9), st.integers(1, 4))
def test_validation_has_every_row_once(lengths, batch_size, processes):
    plan = plan_validation(lengths, batch_size, processes)
    shares = [row for rank in range(processes) for batch in PlannedBatches(plan, rank, processes) for row in batch]
    assert sorted(row for row in shares if row >= 0) == list(range(len(lengths)))


def test_steps_may_be_given_instead_of_epochs():
    assert len(plan_training([5] * 10, spec(batch_size=4, max_steps=7), 1)) == 7
    assert len(plan_training([5] * 10, spec(batch_size=4, max_steps=1), 1)) == 1
    assert len(rows_of(plan_training([5] * 100, spec(batch_size=4, epochs=0.5), 1))) == pytest.approx(50, abs=4)


def test_rows_of_like_length_share_a_batch():
    mixed = [10, 50] * 64
    plan = plan_training(mixed, spec(batch_size=8, epochs=1), 1)
    padded = sum(max(mixed[row] for row in batch) * len(batch) for (batch,) in plan)
    assert padded - sum(mixed) < 0.25 * (128 * 50 - sum(mixed))  # in random order nearly all rows would be padded


def test_the_order_is_another_in_every_epoch_and_with_every_seed():
    first, second = (plan_training([5] * 40, spec(batch_size=8, epochs=1, seed=seed), 1) for seed in (0, 1))
    assert first != second
    twice = plan_training([5] * 40, spec(batch_size=8, epochs=2), 1)
    assert twice[:5] == first
    assert twice[5:] != first


@given(lengths, st.integers(1, 9), st.integers(1, 6), st.integers(1, 3))
def test_more_or_fewer_passes_have_the_same_rows_in_a_step(lengths, batch_size, accumulation, processes):
    plan = plan_training(
        lengths, spec(batch_size=batch_size, gradient_accumulation=accumulation, epochs=1), processes
    )
    assert regroup(plan, processes, accumulation, accumulation) == plan
    passes = possible_passes(accumulation, batch_size)
    assert passes == sorted(passes)
    assert {1, accumulation, accumulation * batch_size} <= set(passes)
    for number in passes:
        again = regroup(plan, processes, accumulation, number)
        assert [sorted(rows_of([step])) for step in again] == [sorted(rows_of([step])) for step in plan]
        most = max(len(batch) for step in again for batch in step)
        assert most <= -(-batch_size * accumulation // number)
        assert PlannedBatches(again, 0, processes).accumulation <= number
    assert most == 1


@given(lengths, st.integers(1, 9), st.booleans())
def test_few_shapes_hold_all_batches(lengths, batch_size, packed):
    plan = plan_training(lengths, spec(batch_size=batch_size, epochs=2), 1)
    shapes = shapes_of(plan, lengths, packed)
    assert 1 <= len(shapes) <= SHAPES
    for batch in (batch for step in plan for batch in step):
        own = [lengths[row] for row in batch]
        needed = sum(own) if packed else max(own)
        tokens = min(size for size in shapes if size >= needed)
        assert tokens % 8 == 0
        assert len(batch) <= (max(shapes.values()) if packed else shapes[tokens])
