"""Settings with which contenders are quick."""

from pathlib import Path

from bench.measuring import Settings


def small_settings(scratch: Path, data: Path | None = None, model: str = "tiny") -> Settings:
    return Settings(
        data=data or scratch,
        scratch=scratch,
        batch_size=2,
        gpu_batch_size=2,
        image_size=128,
        threads=1,
        coco_images=10,
        model=model,
    )
