"""What the slots of Determined's agents are; needs no torch."""

from determined.common.api import bindings


def gpu_slots(agent: bindings.v1Agent) -> dict[int, str]:
    """Return the models of an agent's GPUs by the number of their slot."""
    devices = [slot.device for slot in (agent.slots or {}).values() if slot.device is not None]
    return {
        device.id or 0: device.brand or "unknown model"
        for device in devices
        if device.type is bindings.devicev1Type.CUDA
    }
