"""Images and boxes for training and evaluation, through DALI."""

from experiments.input.config import InputConfig, default_threads
from experiments.input.failures import SampleError
from experiments.input.fake import FakeLoader
from experiments.input.loader import EvalLoader, Labeler, TrainLoader
from experiments.input.order import SampleOrder
from experiments.input.stream import Batch

__all__ = [
    "Batch",
    "EvalLoader",
    "FakeLoader",
    "InputConfig",
    "Labeler",
    "SampleError",
    "SampleOrder",
    "TrainLoader",
    "default_threads",
]
