"""What the workers of test_situations.py run: trainings in which something is out of the way."""

import torch

from tests.exchange.counting import (
    counted_reads,
    counted_rounds,
    pickled,
    quiet_attributes,
    scales_that_change,
    skipped_by_the_scaler,
    what_is_the_backends,
)
from tests.exchange.resuming import (
    by_name,
    caller_keeps_checkpoint,
    memories_of_a_frozen_layer,
    mixed_dtypes,
    other_dtype,
    refused_checkpoints,
    resharded,
    without_names,
)
from tests.exchange.unusual import (
    damaged_on_the_way,
    damaged_outside_the_hook,
    drifting,
    failing_in_the_hook,
    not_covered,
    unusual_parameters,
)
from tests.exchange.values import (
    broken_on_the_way_out,
    extreme_values,
    first_gradients_of_zeros,
    half_broken,
    half_near_the_range,
    momentum_in_a_broken_bucket,
    momentum_on_dense_paths,
    outside_the_hook,
    plain_momentum,
)

SCENARIOS = [
    half_near_the_range,
    half_broken,
    extreme_values,
    outside_the_hook,
    first_gradients_of_zeros,
    broken_on_the_way_out,
    momentum_on_dense_paths,
    plain_momentum,
    momentum_in_a_broken_bucket,
    by_name,
    without_names,
    other_dtype,
    mixed_dtypes,
    memories_of_a_frozen_layer,
    refused_checkpoints,
    caller_keeps_checkpoint,
    resharded,
    unusual_parameters,
    not_covered,
    drifting,
    failing_in_the_hook,
    damaged_on_the_way,
    damaged_outside_the_hook,
    counted_rounds,
    counted_reads,
    quiet_attributes,
    what_is_the_backends,
    pickled,
    skipped_by_the_scaler,
    scales_that_change,
]


def everything(worker, workers):
    """All scenarios, by name."""
    torch.manual_seed(11)
    return {scenario.__name__: scenario(worker, workers) for scenario in SCENARIOS}
