"""Batches in order, made ahead of time: a thread does the arithmetic on boxes, DALI the pixels."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline
from torch import Tensor

from cocodata.format.images import size_mismatch
from experiments.input.augmentation import Geometry
from experiments.input.erasing import Erasure, erase
from experiments.input.failures import SampleError, dali_fault, file_fault
from experiments.input.input_config import InputConfig
from experiments.input.pipeline import JPEG_END, PipelineInputs, image_pipeline, pipeline_inputs

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class BatchPlan:
    """A batch before its pixels are made.

    Attributes:
        paths: of the N image files.
        sizes: (N, 2), width and height that the annotations are for.
        epochs: of the samples; None in evaluation.
        geometry: of the N images.
        erasures: rectangles to erase.
        tensors: all of the batch but the images, on the CPU.
    """

    paths: list[Path]
    sizes: npt.NDArray[np.integer[Any]]
    epochs: list[int] | None
    geometry: Geometry
    erasures: list[Erasure]
    tensors: Batch

    def fault(self, row: int, reason: str, *, others: int = 0) -> SampleError:
        """The error that says what is wrong with one sample."""
        epoch = None if self.epochs is None else self.epochs[row]
        return SampleError(self.paths[row], epoch, reason, others=others)

    def file_fault(self, row: int) -> str | None:
        """What is wrong with the file of one sample; None if it can be read."""
        width, height = self.sizes[row].tolist()
        return file_fault(self.paths[row], width, height)


class DaliStream:
    """Makes batches, one pass over some range of them at a time.

    The pipeline is built once and kept for all passes.

    Args:
        config: of the input.
        prepare: makes batch k but for its pixels; called in another thread.
        max_batch_size: no batch is larger.
    """

    def __init__(
        self,
        config: InputConfig,
        prepare: Callable[[int], BatchPlan],
        *,
        max_batch_size: int,
    ) -> None:
        if config.device == "gpu" and config.device_id >= torch.cuda.device_count():
            raise ValueError(
                f"device is 'gpu' with device_id {config.device_id}, and PyTorch finds "
                f"{torch.cuda.device_count() or 'no'} GPU: give another one, or device 'cpu'"
            )
        self._config = config
        self._prepare = prepare
        self._max_batch_size = max_batch_size
        self._next = 0
        self._end: int | None = None
        self._prepared: deque[Future[tuple[BatchPlan, PipelineInputs]]] = deque()
        self._in_flight: deque[BatchPlan] = deque()
        self._sound_without_end: set[Path] = set()
        self._executor: ThreadPoolExecutor | None = None
        self._pipeline: Pipeline | None = None
        self._pass: Generator[Batch, None, None] | None = None
        self._device = config.torch_device
        self._scheduled = False
        self.closed = False

    def batches(self, first: int, end: int | None = None) -> Generator[Batch, None, None]:
        """Batches ``first``, ``first + 1``, ... up to ``end`` (without it), or without end.

        A pass that was under way is given up.

        Raises:
            SampleError: (when a batch is drawn) a file turned bad. The stream is closed then.
        """
        if self.closed:
            raise ValueError("the loader is closed: make a new one")
        if self._pass is not None:
            self._pass.close()
        self._rewind()
        self._pass = self._one_pass(first, end)
        return self._pass

    def close(self) -> None:
        """End the threads and give the memory back; batches drawn stay valid."""
        self.closed = True
        self._prepared.clear()
        self._in_flight.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor = self._pipeline = self._pass = None

    def _one_pass(self, first: int, end: int | None) -> Generator[Batch, None, None]:
        if end is not None and first >= end:
            return
        try:
            self._begin(first, end)
            while (batch := self._collect()) is not None:
                self._schedule()
                yield batch
        except Exception:
            self.close()
            raise
        self._rewind()

    def _rewind(self) -> None:
        """Let the pipeline see the end of its input, so that it can start over."""
        if self._pipeline is not None and self._scheduled:
            self._prepared.clear()
            self._schedule()
            while self._outputs() is not None:
                pass
            self._in_flight.clear()
            self._pipeline.reset()
            self._scheduled = False

    def _begin(self, first: int, end: int | None) -> None:
        if self._pipeline is None:
            self._executor = ThreadPoolExecutor(1, "input")
            self._pipeline = image_pipeline(
                self._config, self._feed, max_batch_size=self._max_batch_size
            )
            self._pipeline.build()
        self._next, self._end = first, end
        self._scheduled = True
        for _ in range(self._config.prefetch):
            self._prepare_next()
        self._schedule()

    def _schedule(self) -> None:
        """Have another batch made; the first time, as many as are made ahead."""
        self._live_pipeline().schedule_run()

    def _live_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise ValueError("the loader was closed while it was in use")
        return self._pipeline

    def _prepare_next(self) -> None:
        if self._executor is not None and (self._end is None or self._next < self._end):
            self._prepared.append(self._executor.submit(self._prepare_for_pipeline, self._next))
            self._next += 1

    def _prepare_for_pipeline(self, k: int) -> tuple[BatchPlan, PipelineInputs]:
        prepared = self._prepare(k)
        return prepared, pipeline_inputs(prepared.paths, prepared.geometry)

    def _feed(self) -> PipelineInputs:
        """DALI asks for the input of its next batch."""
        if not self._prepared:
            raise StopIteration
        prepared, inputs = self._prepared.popleft().result()
        self._prepare_next()
        self._in_flight.append(prepared)
        return inputs

    def _collect(self) -> Batch | None:
        """The next batch that the pipeline has finished; None after the last."""
        outputs = self._outputs()
        if outputs is None:
            return None
        images, shapes, ends = outputs
        prepared = self._in_flight.popleft()
        self._check(prepared, shapes.as_array(), ends.as_array())
        # The tensor shares the pipeline's memory and keeps it alive: nothing is copied.
        image = torch.from_dlpack(images.as_tensor())
        if self._config.channels_last:
            image = image.permute(0, 3, 1, 2)
        erase(image, prepared.erasures, self._config.remode)
        rest = {key: tensor.to(self._device) for key, tensor in prepared.tensors.items()}
        return {"image": image, **rest}

    def _outputs(self) -> Any:
        # On a GPU the memory must not be used again before what the consumer has queued is done.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            return self._live_pipeline().outputs(cuda_stream=stream)
        except StopIteration:
            return None
        except RuntimeError as error:
            culprit = self._culprit()
            if culprit is None:
                error.add_note("Each of the images in work decodes when it is tried alone.")
                raise
            raise culprit from error

    def _check(self, prepared: BatchPlan, shapes: npt.NDArray[Any], ends: npt.NDArray[Any]) -> None:
        """Refuse images of another size than their annotations', and ones cut short.

        Not every decoder reports a file that ends early, but then its last bytes are not a JPEG's.
        A sound file may lack them too (bytes after the image, another format): those are read in
        full, once.
        """
        found = shapes[:, 1::-1]
        for row in np.flatnonzero((found != prepared.sizes).any(axis=1)).tolist():
            width, height = found[row].tolist()
            expected = prepared.sizes[row].tolist()
            raise prepared.fault(row, size_mismatch((width, height), tuple(expected)))
        for row in np.flatnonzero((ends != JPEG_END).any(axis=1)).tolist():
            if prepared.paths[row] not in self._sound_without_end:
                reason = prepared.file_fault(row)
                if reason is not None:
                    raise prepared.fault(row, reason)
                self._sound_without_end.add(prepared.paths[row])

    def _culprit(self) -> SampleError | None:
        """The file that DALI failed on: it says only that one of the batches in work was bad."""
        samples = [(batch, row) for batch in self._in_flight for row in range(len(batch.paths))]
        faults = [
            (batch, row, reason)
            for batch, row in samples
            if (reason := batch.file_fault(row)) is not None
        ] or [
            (batch, row, reason)
            for batch, row in samples
            if (reason := dali_fault(batch.paths[row])) is not None
        ]
        if not faults:
            return None
        batch, row, reason = faults[0]
        return batch.fault(row, reason, others=len({b.paths[r] for b, r, _ in faults}) - 1)
