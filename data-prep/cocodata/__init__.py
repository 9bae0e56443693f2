"""COCO data sets on disk: download, read, check, pack and sync. Needs no deep-learning library."""

from cocodata.checks.check import ValidatedData, check_dataset, load_validated, share_labels
from cocodata.checks.problems import CheckReport, Problem, ProblemKind
from cocodata.errors import DatasetError
from cocodata.format.categories import Categories
from cocodata.format.layouts import DatasetFolder, splits
from cocodata.format.split import Split, load_split

__all__ = [
    "Categories",
    "CheckReport",
    "DatasetError",
    "DatasetFolder",
    "Problem",
    "ProblemKind",
    "Split",
    "ValidatedData",
    "check_dataset",
    "load_split",
    "load_validated",
    "share_labels",
    "splits",
]
