"""The samples of each global batch, as a function of the seed and the batch's number."""

import operator

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

# The last word of Philox's 256-bit counter, which separates the streams of a (seed, epoch) key.
# Augmentation uses the image id for it, and no id is this large.
_ORDER_STREAM = 2**64 - 1
_CACHED_EPOCHS = 2  # a batch no larger than the data set spans at most two epochs


class GlobalBatchSampler:
    """Splits an endless sequence of samples, one permutation per epoch, into global batches.

    Batch ``k`` has the positions ``k * B`` to ``(k + 1) * B - 1`` of the sequence. So no sample is
    dropped or repeated at the end of an epoch; a batch there continues with the next epoch.

    Args:
        num_samples: Size N of the data set.
        seed: The run's seed, 0 to 2**64 - 1.
        global_batch_size: Samples B per batch over all ranks.
    """

    def __init__(self, num_samples: int, seed: int, global_batch_size: int) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples is {num_samples}: it must be at least 1")
        if global_batch_size < 1:
            raise ValueError(f"global_batch_size is {global_batch_size}: it must be at least 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed is {seed}: it must be between 0 and 2**64 - 1")
        self.num_samples = num_samples
        self.seed = seed
        self.global_batch_size = global_batch_size
        self._permutations: dict[int, IntArray] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Batches that contain every sample; the last one may continue with the next epoch."""
        return -(-self.num_samples // self.global_batch_size)

    def permutation(self, epoch: int) -> IntArray:
        """Return the order of the samples in an epoch, (N,), a function of (seed, epoch)."""
        if epoch not in self._permutations:
            while len(self._permutations) >= _CACHED_EPOCHS:
                del self._permutations[min(self._permutations)]
            bits = np.random.Philox(
                key=np.array([self.seed, epoch], np.uint64),
                counter=np.array([0, 0, 0, _ORDER_STREAM], np.uint64),
            )
            order = np.random.Generator(bits).permutation(self.num_samples)
            self._permutations[epoch] = order.astype(np.int64, copy=False)
        return self._permutations[epoch]

    def batch(self, k: int, rank: int = 0, num_ranks: int = 1) -> tuple[IntArray, IntArray]:
        """Return one rank's samples of batch ``k``, which are B/R consecutive ones.

        Returns:
            Epochs and indices, each (B/R,): each sample's epoch, from 0, and its index in the data
            set.

        Raises:
            ValueError: B is not divisible by the number of ranks R, or there is no such batch or
                rank.
        """
        per_rank, remainder = divmod(self.global_batch_size, num_ranks)
        if remainder:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not divisible by {num_ranks} ranks"
            )
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank is {rank}: it must be between 0 and {num_ranks - 1}")
        k = operator.index(k)
        if k < 0:
            raise ValueError(f"batch is {k}: it must be at least 0")
        first = k * self.global_batch_size + rank * per_rank
        epochs, positions = np.divmod(
            np.arange(first, first + per_rank, dtype=np.int64), self.num_samples
        )
        indices = np.empty_like(positions)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            indices[inside] = self.permutation(epoch)[positions[inside]]
        return epochs, indices


def shard(num_samples: int, rank: int, num_ranks: int) -> IntArray:
    """Return the indices of the samples that one rank evaluates: rank, rank + R, rank + 2R, ..."""
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank is {rank}: it must be between 0 and {num_ranks - 1}")
    return np.arange(rank, num_samples, num_ranks, dtype=np.int64)
