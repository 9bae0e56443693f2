"""What each rank of Horovod runs for test_channels_last: steps with weights in both layouts."""

import horovod.torch as hvd
import pytest
import torch

from experiments.runtime.communication import start_distributed
from experiments.settings.hparams import parse_hparams
from experiments.training.detector import use_channels_last
from experiments.training.optimization import build_optimizer
from model import build_detector


def losses(*, channels_last: bool) -> list[float]:
    """The losses of three steps on this rank's images, which are channels_last."""
    torch.manual_seed(0)
    detector = build_detector("tiny", num_classes=3, image_size=(64, 64)).train()
    if channels_last:
        use_channels_last(detector, contiguous=True)
    optimizer = hvd.DistributedOptimizer(
        build_optimizer(detector, parse_hparams({"lr": 1e-4})), detector.named_parameters()
    )
    generator = torch.Generator().manual_seed(hvd.rank())
    found = []
    for _ in range(3):
        images = torch.randn(2, 3, 64, 64, generator=generator)
        logits, regressions = detector(images.to(memory_format=torch.channels_last))
        loss = torch.stack([x.float().square().mean() for x in (*logits, *regressions)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    start_distributed()
    one, other = losses(channels_last=True), losses(channels_last=False)
    assert one == pytest.approx(other, rel=1e-5)
