"""What each rank runs for test_process: how many threads torch uses, with eight cores."""

import os
import sys
from pathlib import Path
from unittest import mock

import psutil
import torch

from experiments.runtime import cores
from experiments.runtime.process import prepare_process
from experiments.settings.hparams import parse_hparams

if __name__ == "__main__":
    with mock.patch.object(cores, "usable_cores", return_value=8):
        prepare_process(parse_hparams({}))
    before = psutil.Process().num_threads()
    torch.ones(1 << 22).exp()
    started = psutil.Process().num_threads() - before
    rank = os.environ["RANK"]
    (Path(sys.argv[1]) / rank).write_text(f"{torch.get_num_threads()} {started + 1}")
