"""The interface of a host overrides what the launcher of another host gave."""

from pathlib import Path

from experiments.runtime.interface import use_trial_interface


def test_the_hosts_own_interface_is_used(tmp_path: Path) -> None:
    file = tmp_path / "interface"
    environment = {"HOROVOD_GLOO_IFACE": "eth9", "NCCL_SOCKET_IFNAME": "eth9"}
    file.write_text("ib0\n")
    use_trial_interface(file, environment)
    assert environment == {
        "GLOO_SOCKET_IFNAME": "ib0",
        "HOROVOD_GLOO_IFACE": "ib0",
        "NCCL_SOCKET_IFNAME": "=ib0",
    }


def test_without_one_the_environment_stays(tmp_path: Path) -> None:
    file = tmp_path / "interface"
    environment = {"NCCL_SOCKET_IFNAME": "eth9"}
    use_trial_interface(file, environment)
    file.write_text("\n")
    use_trial_interface(file, environment)
    assert environment == {"NCCL_SOCKET_IFNAME": "eth9"}
