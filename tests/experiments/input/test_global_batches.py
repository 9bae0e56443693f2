"""The samples of global batches: independent of ranks, complete, and reproducible."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.input.global_batches import GlobalBatchSampler, shard

sizes = st.integers(1, 60)
ranks = st.sampled_from([1, 2, 4, 8])
seeds = st.integers(0, 2**64 - 1)


@given(num_samples=sizes, seed=seeds, k=st.integers(0, 20))
def test_a_global_batch_does_not_depend_on_the_ranks(num_samples, seed, k):
    sampler = GlobalBatchSampler(num_samples, seed, 8)
    whole = sampler.batch(k)
    for num_ranks in (2, 4, 8):
        parts = [
            GlobalBatchSampler(num_samples, seed, 8).batch(k, r, num_ranks)
            for r in range(num_ranks)
        ]
        for column in (0, 1):
            np.testing.assert_array_equal(np.concatenate([p[column] for p in parts]), whole[column])


@given(num_samples=sizes, seed=seeds, per_rank=st.integers(1, 9), num_ranks=ranks)
def test_each_epoch_has_each_sample_once(num_samples, seed, per_rank, num_ranks):
    sampler = GlobalBatchSampler(num_samples, seed, per_rank * num_ranks)
    drawn: dict[int, list[int]] = {}
    for k in range(2 * sampler.batches_per_epoch + 1):
        for rank in range(num_ranks):
            for epoch, index in zip(*sampler.batch(k, rank, num_ranks), strict=True):
                drawn.setdefault(int(epoch), []).append(int(index))
    assert len(drawn) >= 2
    for epoch in sorted(drawn)[:2]:
        assert sorted(drawn[epoch]) == list(range(num_samples))


@given(num_samples=sizes, seed=seeds, batch_size=st.integers(1, 30), k=st.integers(0, 40))
def test_starting_at_a_batch_equals_skipping_to_it(num_samples, seed, batch_size, k):
    skipping = GlobalBatchSampler(num_samples, seed, batch_size)
    for earlier in range(k):
        skipping.batch(earlier)
    fresh = GlobalBatchSampler(num_samples, seed, batch_size)
    np.testing.assert_array_equal(fresh.batch(k), skipping.batch(k))


def test_batches_are_consecutive():
    sampler = GlobalBatchSampler(10, 3, 4)
    epochs, indices = map(np.concatenate, zip(*[sampler.batch(k) for k in range(5)], strict=True))
    np.testing.assert_array_equal(epochs, [0] * 10 + [1] * 10)
    np.testing.assert_array_equal(indices[:10], sampler.permutation(0))
    np.testing.assert_array_equal(indices[10:], sampler.permutation(1))
    assert sampler.batches_per_epoch == 3


def test_seeds_and_epochs_shuffle_differently():
    orders = [
        GlobalBatchSampler(1000, seed, 4).permutation(epoch) for seed in (0, 1) for epoch in (0, 1)
    ]
    for i, one in enumerate(orders):
        assert (one != np.arange(1000)).mean() > 0.9
        for other in orders[:i]:
            assert (one != other).mean() > 0.9


@given(num_samples=sizes, num_ranks=st.integers(1, 9))
def test_shards_have_each_sample_once(num_samples, num_ranks):
    shards = [shard(num_samples, rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(np.concatenate(shards)) == list(range(num_samples))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GlobalBatchSampler(8, 0, 6).batch(0, 0, 4), "6 is not divisible by 4 ranks"),
        (
            lambda: GlobalBatchSampler(8, 0, 8).batch(0, 4, 4),
            "rank is 4: it must be between 0 and 3",
        ),
        (lambda: GlobalBatchSampler(8, 0, 8).batch(-1), "batch is -1"),
        (lambda: GlobalBatchSampler(0, 0, 8), "num_samples is 0"),
        (lambda: GlobalBatchSampler(8, 0, 0), "global_batch_size is 0"),
        (lambda: GlobalBatchSampler(8, -1, 8), "seed is -1"),
        (lambda: shard(8, 2, 2), "rank is 2"),
    ],
)
def test_invalid_arguments_are_reported(call, message):
    with pytest.raises(ValueError, match=message):
        call()
