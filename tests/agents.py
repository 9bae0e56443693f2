"""Agents as the master's API describes them."""

from typing import Any

# Answers of GET /api/v1/agents, as proto/src/determined/agent/v1/agent.proto defines them; slots
# have sorted keys (master/pkg/model, SortableSlotIndex), and devices the numbers of nvidia-smi.
CPU = {"type": "TYPE_CPU", "brand": "Artificial"}
H100 = {"type": "TYPE_CUDA", "brand": "NVIDIA H100 80GB HBM3"}
L4 = {"type": "TYPE_CUDA", "brand": "NVIDIA L4"}


def agent(
    name: str, *devices: dict[str, str], pool: str = "default", enabled: bool = True
) -> dict[str, Any]:
    return {
        "id": name,
        "enabled": enabled,
        "resourcePools": [pool],
        "slotStats": {"typeStats": {}, "brandStats": {}},
        "slots": {
            f"{number:03d}": {
                "id": f"{number:03d}",
                "enabled": True,
                "device": {**device, "id": number, "uuid": "********"},
            }
            for number, device in enumerate(devices)
        },
    }
