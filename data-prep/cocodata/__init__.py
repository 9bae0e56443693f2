"""COCO on disk: read, check, seal and generate data sets. Imports no deep-learning library."""

from cocodata.categories import Categories
from cocodata.errors import DatasetError
from cocodata.split import Split, load_split, splits

__all__ = ["Categories", "DatasetError", "Split", "load_split", "splits"]
