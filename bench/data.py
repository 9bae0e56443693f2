"""The data set that is measured with."""

import os
import subprocess
import sys
from pathlib import Path

_MINI_COCO = Path(__file__).resolve().parent.parent / "data" / "mini-coco"


def generated_data() -> Path:
    """Return the folder of the generated data set, which `make train-local` uses too."""
    subprocess.run([sys.executable, "-m", "cocodata", "mini", str(_MINI_COCO)], check=True)
    return _MINI_COCO


def data_folder(option: Path | None) -> Path:
    """Return the data set's folder: the option, $DATA, $COCO_TINY, or the generated data set.

    Raises:
        ValueError: The folder does not exist.
    """
    path = option or os.environ.get("DATA") or os.environ.get("COCO_TINY")
    if path:
        folder = Path(path).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; pass one in COCO's layout with --data")
        return folder
    return generated_data()
