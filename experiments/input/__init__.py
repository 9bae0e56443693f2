"""The input pipeline for training and evaluation, based on DALI."""

from experiments.input.failures import SampleError
from experiments.input.fake import FakeLoader
from experiments.input.global_batches import GlobalBatchSampler
from experiments.input.input_config import InputConfig
from experiments.input.loader import EvalLoader, Labeler, TrainLoader
from experiments.input.transfer import Batch

__all__ = [
    "Batch",
    "EvalLoader",
    "FakeLoader",
    "GlobalBatchSampler",
    "InputConfig",
    "Labeler",
    "SampleError",
    "TrainLoader",
]
