"""How many of a machine's cores a rank may use, so that ranks and trials do not share any.

Ranks that each use all cores slow each other down tenfold, since the threads of one wait for each
other while those of another run.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

# A thread of a processor makes about 150 training images of COCO a second at 512 pixels: 8 are more
# than a GPU trains on. On a GPU, each one takes memory of the device, and page-locked memory.
MAX_INPUT_THREADS = 8
_GROUPS_OF_PROCESS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def cores_per_rank() -> int:
    """Return this rank's share of the cores that its machine or container grants, at least 1.

    On a cluster, cores are divided among the slots of the agent, whether they are taken or not:
    another trial may start on them at any time.
    """
    sharers = max(_ranks_of_machine(), _slots_of_agent())
    return max(1, usable_cores() // sharers)


def input_threads() -> int:
    """Return how many threads of the processor the input of a rank uses by default."""
    return min(cores_per_rank(), MAX_INPUT_THREADS)


def usable_cores(groups_of_process: Path = _GROUPS_OF_PROCESS, groups: Path = _GROUPS) -> int:
    """Return the number of cores by this process's affinity and its control groups' quotas.

    Args:
        groups_of_process: The file that lists the process's control groups.
        groups: Where control groups are mounted.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, int(min([allowed, *_quotas(groups_of_process, groups)])))


def _quotas(groups_of_process: Path, groups: Path) -> Iterator[float]:
    """Yield the limits of processor time, in cores (cgroups(7), `cpu.max`, `cpu.cfs_quota_us`)."""
    for line in _read(groups_of_process).splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            root = groups
        elif "cpu" in controllers.split(","):
            root = groups / "cpu"
        else:
            continue
        # Limits of the groups above count too. In a container the name may be the host's, while
        # the container's own group is the root.
        for folder in (own := root / name.strip("/"), *own.parents):
            limit = _read(folder / "cpu.max") or (
                f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
            )
            quota, *period = limit.split() or ["max"]
            if quota.isdigit() and period:  # not `max` or -1
                yield int(quota) / int(period[0])
            if folder == root:
                break


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _ranks_of_machine() -> int:
    """Return how many ranks of this run are on this machine; every launcher sets one of these."""
    names = ("LOCAL_WORLD_SIZE", "HOROVOD_LOCAL_SIZE")
    return max(1, int(next((os.environ[name] for name in names if os.environ.get(name)), "1")))


@functools.cache
def _slots_of_agent() -> int:
    """Return how many slots this trial's agent has; 1 if this is no trial on a cluster."""
    if "DET_AGENT_ID" not in os.environ:
        return 1
    import determined as det  # takes a moment, and most commands do not need it

    from experiments.runtime.slots import slots_of_agent

    info = det.get_cluster_info()
    return slots_of_agent(info) if info is not None else 1
