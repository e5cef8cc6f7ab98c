"""Per-example correctness with one bit per example."""

import numpy as np
import pytest

from benchmarks.common.statistics.correctness import packed, unpacked


@pytest.mark.parametrize("examples", [1, 8, 13])
def test_packing_keeps_every_example_in_one_bit(examples):
    correct = np.random.default_rng(examples).random((3, examples)) < 0.5
    bits = packed(correct)
    assert bits.nbytes == 3 * -(-examples // 8)
    np.testing.assert_array_equal(unpacked(bits, examples), correct)


def test_only_boolean_correctness_is_packed():
    with pytest.raises(TypeError, match="predictions == y"):
        packed([1, 0, 2])


def test_another_number_of_examples_is_an_error():
    with pytest.raises(ValueError, match="do not hold 17 examples, which take 3"):
        unpacked(packed(np.ones(16, bool)), 17)
