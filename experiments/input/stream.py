"""Prefetches batches in order: a thread plans them, and DALI produces the images."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline

from cocodata.format.images import size_mismatch
from experiments.input.augmentation import Geometry
from experiments.input.erasing import Patch, erase
from experiments.input.failures import SampleError, dali_problem, file_problem
from experiments.input.input_config import InputConfig
from experiments.input.pipeline import (
    JPEG_END,
    PipelineInputs,
    image_pipeline,
    pipeline_inputs,
    release_memory,
)
from experiments.input.transfer import Batch, input_thread, one_ahead, send, stage


@dataclass(frozen=True)
class BatchPlan:
    """A batch without its images.

    Attributes:
        paths: The N image files.
        sizes: (N, 2), widths and heights according to the annotations.
        epochs: Epochs of the samples; None in evaluation.
        geometry: Geometry of the N images.
        patches: What random erasing replaces.
        tensors: The batch's other tensors, on the CPU.
    """

    paths: list[Path]
    sizes: npt.NDArray[np.integer[Any]]
    epochs: list[int] | None
    geometry: Geometry
    patches: list[Patch]
    tensors: Batch

    def sample_error(self, row: int, reason: str, *, others: int = 0) -> SampleError:
        """Create the error that reports a sample."""
        epoch = None if self.epochs is None else self.epochs[row]
        return SampleError(self.paths[row], epoch, reason, others=others)

    def file_problem(self, row: int) -> str | None:
        """Return what is wrong with a sample's file; None if nothing is."""
        width, height = self.sizes[row].tolist()
        return file_problem(self.paths[row], width, height)


class DaliStream:
    """Produces ranges of batches, one range at a time; all use the same pipeline.

    Args:
        config: Configuration of the input pipeline.
        plan_batch: Plans batch k; called in another thread.
        max_batch_size: Maximum size of a batch.
    """

    def __init__(
        self,
        config: InputConfig,
        plan_batch: Callable[[int], BatchPlan],
        *,
        max_batch_size: int,
    ) -> None:
        if config.device == "gpu" and config.device_id >= torch.cuda.device_count():
            raise ValueError(
                f"device is 'gpu' with device_id {config.device_id}, but PyTorch finds "
                f"{torch.cuda.device_count() or 'no'} GPU: choose another one, or device 'cpu'"
            )
        self._config = config
        self._plan_batch = plan_batch
        self._max_batch_size = max_batch_size
        self._next = 0
        self._end: int | None = None
        self._planned: deque[Future[tuple[BatchPlan, PipelineInputs]]] = deque()
        self._in_flight: deque[BatchPlan] = deque()
        self._valid_without_end: set[Path] = set()
        self._executor: ThreadPoolExecutor | None = None
        self._pipeline: Pipeline | None = None
        self._pass: Generator[Batch, None, None] | None = None
        self._staging: Generator[Batch, None, None] | None = None
        self._device = config.torch_device
        self._scheduled = False
        self.closed = False

    def batches(self, first: int, end: int | None = None) -> Generator[Batch, None, None]:
        """Yield batches from ``first`` to ``end`` (exclusive; None for no end).

        An unfinished pass is abandoned.

        Raises:
            SampleError: (when a batch is loaded) A file has become unusable. The stream is closed
                then.
        """
        if self.closed:
            raise ValueError("the loader is closed: create a new one")
        if self._pass is not None:
            self._pass.close()
        self._rewind()
        self._pass = self._one_pass(first, end)
        return self._pass

    def close(self) -> None:
        """Stop the threads and free the memory; loaded batches stay valid."""
        self.closed = True
        self._stop_staging()
        self._planned.clear()
        self._in_flight.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor = self._pipeline = self._pass = None
        self._release_memory()

    def _one_pass(self, first: int, end: int | None) -> Generator[Batch, None, None]:
        if end is not None and first >= end:
            return
        try:
            self._start_pass(first, end)
            for batch in self._staged_batches():
                yield send(batch, self._device)
        except Exception:
            self.close()
            raise
        self._rewind()
        self._release_memory()

    def _staged_batches(self) -> Iterator[Batch]:
        if self._config.device == "gpu" or self._device.type == "cpu":
            return self._decoded_batches()
        self._staging = one_ahead(self._decoded_batches(), self._device)
        return self._staging

    def _decoded_batches(self) -> Iterator[Batch]:
        while (batch := self._next_batch()) is not None:
            self._schedule()
            yield batch

    def _stop_staging(self) -> None:
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    def _rewind(self) -> None:
        """Run the pipeline to the end of its input, so that it can be reset."""
        self._stop_staging()
        if self._pipeline is not None and self._scheduled:
            self._planned.clear()
            self._schedule()
            while self._outputs() is not None:
                pass
            self._in_flight.clear()
            self._pipeline.reset()
            self._scheduled = False

    def _release_memory(self) -> None:
        """Leave to the model what the input does not use between passes."""
        if self._config.device == "gpu":
            release_memory()

    def _start_pass(self, first: int, end: int | None) -> None:
        if self._pipeline is None:
            self._executor = input_thread("input", self._device)
            self._pipeline = image_pipeline(
                self._config, self._feed, max_batch_size=self._max_batch_size
            )
            self._pipeline.build()
        self._next, self._end = first, end
        self._scheduled = True
        for _ in range(self._config.prefetch):
            self._plan_next()
        self._schedule()

    def _schedule(self) -> None:
        """Schedule another batch; the first time, as many as are prefetched."""
        self._live_pipeline().schedule_run()

    def _live_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise ValueError("the loader was closed while it was in use")
        return self._pipeline

    def _plan_next(self) -> None:
        if self._executor is not None and (self._end is None or self._next < self._end):
            self._planned.append(self._executor.submit(self._plan_with_inputs, self._next))
            self._next += 1

    def _plan_with_inputs(self, k: int) -> tuple[BatchPlan, PipelineInputs]:
        plan = self._plan_batch(k)
        if self._config.device == "gpu":  # otherwise they are staged with the images
            plan = replace(plan, tensors=stage(plan.tensors, self._device))
        return plan, pipeline_inputs(plan.paths, plan.geometry)

    def _feed(self) -> PipelineInputs:
        """Return the inputs of the next batch; called by DALI."""
        if not self._planned:
            raise StopIteration
        plan, inputs = self._planned.popleft().result()
        self._plan_next()
        self._in_flight.append(plan)
        return inputs

    def _next_batch(self) -> Batch | None:
        """Return the pipeline's next batch; None after the last."""
        outputs = self._outputs()
        if outputs is None:
            return None
        images, shapes, ends = outputs
        plan = self._in_flight.popleft()
        self._check(plan, shapes.as_array(), ends.as_array())
        # Without a copy: the tensor shares the pipeline's memory and keeps it alive.
        image = torch.from_dlpack(images.as_tensor())
        if self._config.channels_last:
            image = image.permute(0, 3, 1, 2)
        erase(image, plan.patches)
        return {"image": image, **plan.tensors}

    def _outputs(self) -> Any:
        # On a GPU, memory must not be reused before the consumer's queued work is done.
        on_gpu = self._config.device == "gpu"
        stream = torch.cuda.current_stream(self._device) if on_gpu else None
        try:
            return self._live_pipeline().outputs(cuda_stream=stream)
        except StopIteration:
            return None
        except Exception as error:  # DALI raises whatever fits, such as ValueError
            sample_error = self._find_bad_file()
            if sample_error is None:
                error.add_note("No image of the current batches is the cause.")
                raise
            raise sample_error from error

    def _check(self, plan: BatchPlan, shapes: npt.NDArray[Any], ends: npt.NDArray[Any]) -> None:
        """Reject truncated images, and images whose size differs from their annotations.

        Not every decoder reports a truncated file, but its last bytes are not a JPEG's end marker.
        Valid files may lack it too (bytes after the image, other formats), so files without one are
        decoded in full, once.
        """
        sizes = shapes[:, 1::-1]
        for row in np.flatnonzero((sizes != plan.sizes).any(axis=1)).tolist():
            width, height = sizes[row].tolist()
            expected = plan.sizes[row].tolist()
            raise plan.sample_error(row, size_mismatch((width, height), tuple(expected)))
        for row in np.flatnonzero((ends != JPEG_END).any(axis=1)).tolist():
            if plan.paths[row] not in self._valid_without_end:
                reason = plan.file_problem(row)
                if reason is not None:
                    raise plan.sample_error(row, reason)
                self._valid_without_end.add(plan.paths[row])

    def _find_bad_file(self) -> SampleError | None:
        """Find the file that DALI failed on, since its error does not name one."""
        samples = [(plan, row) for plan in self._in_flight for row in range(len(plan.paths))]
        problems = [
            (plan, row, reason)
            for plan, row in samples
            if (reason := plan.file_problem(row)) is not None
        ]
        if not problems:
            problems = [
                (plan, row, reason)
                for plan, row in samples
                if (reason := dali_problem(plan.paths[row], self._config)) is not None
            ]
            if self._config.device == "gpu" and len(problems) == len(samples):
                return None  # not the files fail, but the GPU
        if not problems:
            return None
        plan, row, reason = problems[0]
        return plan.sample_error(row, reason, others=len({p.paths[r] for p, r, _ in problems}) - 1)
