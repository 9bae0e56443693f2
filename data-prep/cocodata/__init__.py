"""COCO on disk: read, check, seal and generate data sets. Imports no deep-learning library."""

from cocodata.checks.check import SoundData, check_dataset, require_sound
from cocodata.checks.problems import CheckReport, Problem, ProblemKind
from cocodata.errors import DatasetError
from cocodata.format.categories import Categories
from cocodata.format.split import Split, load_split, splits

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
