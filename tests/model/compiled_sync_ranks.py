"""What each rank runs for test_compiled_sync_batchnorm: a step, compiled and not."""

import copy
import sys

import torch
from torch import Tensor

from experiments.runtime.communication import (
    HorovodCommunicator,
    communicator,
    start_distributed,
)
from model import EfficientDet, build_detector, convert_sync_batchnorm


def step(detector: EfficientDet, images: Tensor, *, compiled: bool) -> tuple[Tensor, Tensor]:
    """The loss and all gradients."""

    def loss_of(images: Tensor) -> Tensor:
        logits, regressions = detector(images)
        return torch.stack([x.float().square().mean() for x in (*logits, *regressions)]).sum()

    # fullgraph: fails where the compiler would split the network.
    run = torch.compile(loss_of, backend="aot_eager", fullgraph=True) if compiled else loss_of
    loss = run(images)
    loss.backward()
    gradients = [p.grad.flatten() for p in detector.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients)


def main() -> None:
    """Compare both steps."""
    torch.set_num_threads(1)
    start_distributed()
    ranks = communicator()
    if isinstance(ranks, HorovodCommunicator) and sys.argv[1] == "torch":
        sums = ranks.open_torch_group(torch.device("cpu")).all_reduce_sum
    else:
        sums = ranks.all_reduce_sum
    torch.manual_seed(0)
    detector = build_detector("tiny", num_classes=3, image_size=(64, 64)).train()
    convert_sync_batchnorm(detector, sums)
    other = copy.deepcopy(detector)
    torch.manual_seed(1 + ranks.rank)
    images = torch.randn(2 + ranks.rank, 3, 64, 64)  # unequal batches
    loss, gradients = step(detector, images, compiled=False)
    compiled_loss, compiled_gradients = step(other, images, compiled=True)
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-6, atol=0.0)
    difference = (compiled_gradients - gradients).norm() / gradients.norm()
    assert difference < 1e-5, difference
    for name, buffer in detector.named_buffers():
        torch.testing.assert_close(dict(other.named_buffers())[name], buffer)


if __name__ == "__main__":
    main()
