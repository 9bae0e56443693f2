"""COCO on disk: read, check, seal and generate data sets. Imports no deep-learning library."""

from cocodata.categories import Categories
from cocodata.check import SoundData, check_dataset, require_sound
from cocodata.errors import DatasetError
from cocodata.problems import CheckReport, Problem, ProblemKind
from cocodata.split import Split, load_split, splits

__all__ = [
    "Categories",
    "CheckReport",
    "DatasetError",
    "Problem",
    "ProblemKind",
    "SoundData",
    "Split",
    "check_dataset",
    "load_split",
    "require_sound",
    "splits",
]
