"""The mini COCO: a generated data set to try everything out on, in COCO's layout.

Small enough for a detector to learn on two CPU cores in a minute, and real in what matters to the
code that reads it: JPEG files of varied size, aspect and quality, some of them grayscale, images
without objects, crowds, objects that hide each other, and category ids with gaps.
"""

import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image

from cocodata.checks.verify import verify_dataset
from cocodata.errors import DatasetError
from cocodata.files import atomic_folder
from cocodata.format.manifest import (
    MANIFEST_NAME,
    hold_against,
    read_manifest,
    usable_cores,
    write_manifest,
)
from cocodata.mini.shapes import CATEGORY_IDS, draw_scene

# Counts the changes to what is generated, so that a folder made before one is made again.
_REVISION = 4

_SPLITS = ("train2017", "val2017")


def generate_mini_coco(
    out: Path,
    *,
    num_train: int = 480,
    num_val: int = 120,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> bool:
    """Generate the mini COCO into a folder, or find it there already.

    It appears in one piece: it is made beside the folder and renamed. The same seed and version of
    Pillow give the same bytes. It is verified before it appears, and its manifest says so.

    Args:
        out: folder to make. One that holds an older mini COCO is replaced.
        num_train: images in train2017.
        num_val: images in val2017.
        seed: of every random choice.
        advance: told how many more images are done.

    Returns:
        Whether it was generated; False if the same one was there.

    Raises:
        DatasetError: the folder holds something else.
    """
    if num_train < 1 or num_val < 1:
        raise DatasetError(f"{out}: both splits need an image; {num_train} + {num_val} were asked")
    name = f"mini-coco-r{_REVISION}-{num_train}+{num_val}-seed{seed}"
    if out.exists() and not _may_replace(out):
        raise DatasetError(
            f"{out}: holds something that is not a generated mini COCO, and is left as it is. "
            "Give a folder that does not exist yet"
        )
    if _is_there(out, name):
        return False

    with atomic_folder(out) as temporary:
        for split_index, (split, count) in enumerate(
            zip(_SPLITS, (num_train, num_val), strict=True)
        ):
            _write_split(temporary, split, count, (seed, split_index), advance)
        _, manifest = verify_dataset(temporary)
        if manifest.verified is None:
            raise AssertionError(f"the generated data set {temporary} has problems")
        write_manifest(temporary, replace(manifest, name=name))
    return True


def _may_replace(out: Path) -> bool:
    """Tell whether a folder is empty or an earlier product of this module."""
    if not out.is_dir():
        return False
    if not any(out.iterdir()):
        return True
    try:
        tree = orjson.loads((out / MANIFEST_NAME).read_bytes())
        return str(tree["name"]).startswith("mini-coco-r")
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return False


def _is_there(out: Path, name: str) -> bool:
    try:
        manifest = read_manifest(out)
    except DatasetError:
        return False
    return (
        manifest is not None
        and manifest.name == name
        and manifest.verified is not None
        and not hold_against(out, manifest, threads=4)
    )


def _write_split(
    data: Path, split: str, count: int, seed: tuple[int, int], advance: Callable[[int], None]
) -> None:
    folder = data / split
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with ProcessPoolExecutor(usable_cores()) as pool:
        drawn = pool.map(_image, [(*seed, index) for index in range(count)], chunksize=16)
        for index, (content, width, height, objects) in enumerate(drawn):
            image_id = 1000 * (seed[1] + 1) + 7 * index
            file_name = f"{image_id:012d}.jpg"
            (folder / file_name).write_bytes(content)
            images.append(
                {
                    "license": 1,
                    "file_name": file_name,
                    "coco_url": "",
                    "height": height,
                    "width": width,
                    "date_captured": "2017-01-01 00:00:00",
                    "flickr_url": "",
                    "id": image_id,
                }
            )
            for entry in objects:
                annotations.append({**entry, "image_id": image_id, "id": len(annotations) + 1})
            advance(1)
    tree = {
        "info": {
            "description": "Mini COCO, generated",
            "url": "",
            "version": str(_REVISION),
            "year": 2017,
            "contributor": "",
            "date_created": "2017/01/01",
        },
        "licenses": [{"url": "", "id": 1, "name": "Apache License 2.0"}],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"supercategory": "shape", "id": category_id, "name": name}
            for name, category_id in CATEGORY_IDS.items()
        ],
    }
    path = data / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(orjson.dumps(tree))


def _image(seed: tuple[int, int, int]) -> tuple[bytes, int, int, list[dict[str, Any]]]:
    """Return a JPEG file, its width and height, and its annotations."""
    # A generator for each image: none depends on how many cores drew the others.
    rng = np.random.default_rng(seed)
    longer = int(rng.integers(176, 257))
    shorter = int(longer * rng.uniform(0.65, 1.0))
    width, height = (longer, shorter) if rng.random() < 0.6 else (shorter, longer)
    num_objects = 0 if rng.random() < 0.04 else int(rng.integers(1, 4))
    crowd = num_objects > 0 and rng.random() < 0.03
    pixels, shown = draw_scene(rng, width, height, num_objects, crowd=crowd)
    picture = Image.fromarray(pixels)
    if rng.random() < 0.03:
        picture = picture.convert("L")
    file = io.BytesIO()
    picture.save(
        file,
        "JPEG",
        quality=int(rng.integers(70, 96)),
        subsampling=int(rng.choice([0, 2])) if picture.mode == "RGB" else -1,
        progressive=bool(rng.random() < 0.1),
    )
    objects = [
        {
            "area": float(shape.area),
            "iscrowd": int(shape.crowd),
            "bbox": [float(value) for value in shape.box],
            "category_id": CATEGORY_IDS[shape.category],
        }
        for shape in shown
    ]
    return file.getvalue(), width, height, objects
