"""A small generated split of JPEG files, for tests that do not need photographs."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from cocodata import Split, load_split

# The time of an example depends on the machine's load.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

NUM_IMAGES = 13


@pytest.fixture(scope="session")
def jpeg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO's layout with one split, val2017: 13 smooth images, one of them without boxes."""
    folder = tmp_path_factory.mktemp("jpegs")
    (folder / "annotations").mkdir()
    (folder / "val2017").mkdir()
    generator = np.random.default_rng(5)
    images, annotations = [], []
    for number in range(NUM_IMAGES):
        width, height = (int(side) for side in generator.integers(48, 97, 2))
        coarse = generator.integers(0, 256, (6, 6, 3), np.uint8)
        name = f"{number:012d}.jpg"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / "val2017" / name, quality=95
        )
        # Ids differ from indices, so that tests detect a mix-up.
        image_id = 1000 - 7 * number
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for _ in range(0 if number == 4 else number % 5 + 1):
            x, y = generator.uniform(0, width / 2), generator.uniform(0, height / 2)
            w, h = generator.uniform(2, width - x), generator.uniform(2, height - y)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(generator.integers(1, 4)),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": f"shape {i}"} for i in (1, 2, 3)]
    (folder / "annotations" / "instances_val2017.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return folder


@pytest.fixture(scope="session")
def jpeg_split(jpeg_folder: Path) -> Split:
    return load_split(jpeg_folder, "val2017")
