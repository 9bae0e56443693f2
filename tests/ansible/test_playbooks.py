"""The playbooks without hosts: rendered templates, the preflight's report, the commands."""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import determined as det
import pytest
import yaml

import bundle_packages
from experiments.runtime import interface
from tests.ansible.rendering import BIN, HOSTS, ROOT, run


@pytest.fixture(scope="module", autouse=True)
def _ansible_is_installed() -> None:
    if not (BIN / "ansible-playbook").exists():
        pytest.fail("ansible is missing from the environment: make setup")


def test_every_playbook_finds_the_settings() -> None:
    """Ansible reads them from group_vars next to the playbook, an imported one included."""
    files = {file: yaml.safe_load(file.read_text()) for file in (ROOT / "ansible").rglob("*.yml")}
    keys = {"hosts", "ansible.builtin.import_playbook"}
    playbooks = [
        file
        for file, content in files.items()
        if isinstance(content, list) and any(keys & play.keys() for play in content)
    ]
    assert {"site.yml", "master.yml", "coco-sync.yml"} <= {file.name for file in playbooks}
    assert {file.parent for file in playbooks} == {ROOT / "ansible"}
    assert (ROOT / "ansible/group_vars/all/settings.yml") in files


def _yaml(rendered: Path, *path: str) -> Any:
    return yaml.safe_load(rendered.joinpath(*path).read_text())


def test_master_configuration(rendered: Path) -> None:
    master = _yaml(rendered, "mount", "plain", "master.yaml")
    assert master["port"] == 8443
    assert master["db"]["host"] == "127.0.0.1"
    assert master["security"]["tls"]["cert"].endswith("chain.crt")
    assert master["resource_manager"]["require_authentication"] is True
    # Not the authority that agents and trials trust: this one is replaced if a host is removed.
    assert master["resource_manager"]["client_ca"].endswith("/agents-ca.crt")
    assert master["checkpoint_storage"]["host_path"] == "/mnt/shared/checkpoints"
    # Shared with the one-machine cluster.
    assert master["feature_switches"] == ["prevent_blank_password"]
    assert master["telemetry"] == {"enabled": False}
    assert master["observability"] == {"enable_prometheus": True}
    kept = {f"save_{what}": 1 for what in ("experiment_best", "trial_best", "trial_latest")}
    assert kept.items() <= master["checkpoint_storage"].items()
    defaults = master["task_container_defaults"]
    assert defaults["image"] == "trial:1"
    assert defaults["network_mode"] == "host"
    assert defaults["force_pull_image"] is False
    assert "http_proxy=http://proxy:3128" in defaults["environment_variables"]
    variables = defaults["environment_variables"]
    (no_proxy,) = [each for each in variables if each.startswith("no_proxy=")]
    # The cluster's own hosts are included, whatever the inventory says.
    bypassed = no_proxy.removeprefix("no_proxy=").split(",")
    assert {"10.0.0.0/8", "localhost", "10.0.0.2", "fd00::3"} <= set(bypassed)
    password = master["security"]["initial_user_password"]
    assert len(password) == 24
    file = rendered / "secrets/main/admin_password"
    assert file.read_text().strip() == password
    assert file.stat().st_mode & 0o077 == 0
    assert master["db"]["password"] != password
    connection = _yaml(rendered, "mount", "plain", "connection")
    assert connection["user"] == "determined"
    # Trials have its token: it is not an administrator, and has a password of its own.
    assert connection["password"] not in (password, master["db"]["password"])
    assert (rendered / "secrets/main/user_password").read_text().strip() == connection["password"]


def test_s3_keys_come_from_the_secrets(rendered: Path) -> None:
    master = _yaml(rendered, "s3", "plain", "master.yaml")
    storage = master["checkpoint_storage"]
    assert storage["type"] == "s3"
    assert storage["endpoint_url"] == "http://s"
    assert (storage["access_key"], storage["secret_key"]) == ("s3_access_key", "s3_secret_key")
    variables = master["task_container_defaults"]["environment_variables"]
    checksums = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"  # pragma: allowlist secret
    assert checksums in variables


def test_checkpoints_are_exported_to_each_host_and_no_network(rendered: Path) -> None:
    def exports(case: str) -> str:
        (line,) = [
            line
            for line in (rendered / case / "plain/determined.exports").read_text().splitlines()
            if not line.startswith("#")
        ]
        return line

    options = "rw,sync,no_subtree_check"
    members = ("10.0.0.1", "10.0.0.2", "fd00::3")
    # The master's host is an agent too: root of the others must change what trials write there.
    listed = " ".join(f"{member}({options},no_root_squash)" for member in members)
    assert exports("mount") == f"/mnt/shared/checkpoints {listed}"
    squashed = "root_squash,anonuid=998,anongid=997"
    listed = " ".join(f"{member}({options},{squashed})" for member in members)
    assert exports("apart") == f"/mnt/shared/checkpoints {listed}"


def test_agents_join_pools_that_the_master_has(rendered: Path) -> None:
    master = _yaml(rendered, "mount", "plain", "master.yaml")
    assert [pool["pool_name"] for pool in master["resource_pools"]] == ["default", "gpus"]
    for kind in ("compute", "aux"):
        assert master["resource_manager"][f"default_{kind}_resource_pool"] == "default"
    assert _yaml(rendered, "mount", "gpus", "agent.yaml")["resource_pool"] == "gpus"
    # The first agent's pool is the one of experiments that choose none.
    apart = _yaml(rendered, "apart", "plain", "master.yaml")
    assert apart["resource_manager"]["default_compute_resource_pool"] == "gpus"


def test_agents_have_gpus_or_cpu_slots(rendered: Path) -> None:
    plain = _yaml(rendered, "mount", "plain", "agent.yaml")
    assert (plain["slot_type"], plain["artificial_slots"]) == ("cpu", 2)
    assert plain["security"]["tls"]["enabled"] is True
    gpus = _yaml(rendered, "mount", "gpus", "agent.yaml")
    assert gpus["slot_type"] == "cuda"
    assert "artificial_slots" not in gpus
    # Only those that are wanted. systemd takes off the outer quotes, Docker the inner ones.
    option = (rendered / "mount/gpus/agent_gpus").read_text()
    assert shlex.split(option) == ["--gpus", '"device=GPU-a,GPU-b"']
    assert (rendered / "mount/plain/agent_gpus").read_text() == ""


def test_the_network_interface_of_trials_is_configurable(rendered: Path) -> None:
    """Each agent's host has its name in a file, which a hook of the containers reads."""
    # One host of the inventory has the setting.
    defaults = _yaml(rendered, "mount", "plain", "master.yaml")["task_container_defaults"]
    (mounted,) = defaults["bind_mounts"]
    assert mounted["host_path"] == "/etc/determined/trial-interface"
    assert mounted["container_path"] == str(interface.FILE)
    assert "dtrain_network_interface" not in defaults
    script = (
        defaults["startup_hook"] + '\necho "$DET_INTER_NODE_NETWORK_INTERFACE $NCCL_SOCKET_IFNAME"'
    )

    def started(content: str | None) -> str:
        file = rendered / "interface"
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_text(content)
        hook = script.replace(mounted["container_path"], str(file))
        return run("bash", "-euo", "pipefail", "-c", f"set +u; {hook}").stdout.strip()

    assert started("eth1\n") == "eth1 =eth1"
    assert started("\n") == ""
    assert started(None) == ""
    # What Determined has written before the hook, for its launcher of Horovod.
    info = rendered / "trial.json"
    values = dict.fromkeys(inspect.signature(det.TrialInfo.__init__).parameters)
    values.pop("self")
    record = det.TrialInfo(**{**values, "config": {"name": "a null"}})
    record._to_file(str(info))
    script = script.replace("/run/determined/info/trial.json", str(info))
    assert started("\n") == ""
    assert det.TrialInfo._from_file(str(info))._inter_node_network_interface is None
    assert started("eth1\n") == "eth1 =eth1"
    found = det.TrialInfo._from_file(str(info))
    assert found._inter_node_network_interface == "eth1"
    assert {**vars(found), "_inter_node_network_interface": None} == vars(record)


@pytest.mark.parametrize("host", HOSTS)
def test_nft_accepts_the_rules(rendered: Path, host: str) -> None:
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    outcome = run("nft", "--check", "--file", rendered / "mount" / host / "firewall.nft")
    if "Operation not permitted" in outcome.stderr:
        pytest.skip("nft is not permitted to read this machine's rules")
    assert outcome.returncode == 0, outcome.stderr


def test_systemd_accepts_the_units(rendered: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    folder = rendered / "mount/plain"
    shutil.copy(folder / "container.service", folder / "determined-agent.service")
    for name in ("service", "timer"):
        shutil.copy(folder / f"health.{name}", folder / f"determined-agent-health.{name}")
    units = ["determined-agent.service", "determined-agent-health.service"]
    units += ["determined-agent-health.timer", "firewall.service"]
    outcome = run("systemd-analyze", "verify", "--man=no", *(folder / unit for unit in units))
    # Programs that this machine lacks are not errors of the units.
    errors = [
        line
        for line in outcome.stderr.splitlines()
        if str(folder) in line and "is not executable" not in line
    ]
    assert errors == []


def test_preflight_lists_all_hosts_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text(
        yaml.safe_dump(
            {
                "all": {
                    "vars": {
                        "memory_gb": 100000,
                        "task_image": "trial:1",
                        "docker_data": str(tmp_path),
                        "data_path": str(tmp_path / "data"),
                    },
                    "children": {
                        "master": {"hosts": {"here": {"ansible_connection": "local"}}},
                        "agents": {
                            "hosts": {
                                "here": {"ansible_python_interpreter": sys.executable},
                                "gone": {"ansible_host": "127.0.0.1", "ansible_port": 1},
                            }
                        },
                    },
                }
            }
        )
    )
    outcome = run(BIN / "ansible-playbook", "-i", tmp_path / "hosts.yml", "ansible/preflight.yml")
    assert outcome.returncode != 0
    printed = " ".join(outcome.stdout.split())
    assert "FAIL here: memory" in printed
    assert "or lower memory_gb" in printed
    assert "FAIL gone: SSH:" in printed
    assert "changed=0" in outcome.stdout
    assert "changed=1" not in outcome.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["hosts.yml"]


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "ansible/commands/hosts.py", *arguments)


def test_a_missing_inventory_is_an_error() -> None:
    outcome = _command("up", "--inventory", "no-such.yml")
    assert outcome.returncode == 1
    assert "error: there is no inventory no-such.yml. Copy" in outcome.stderr


def test_a_host_that_is_not_in_the_inventory_is_refused() -> None:
    inventory = "ansible/inventories/test-hosts.yml"
    outcome = _command("drain", "--inventory", inventory, "--host", "host7")
    assert outcome.returncode == 1
    assert "'host7' is not an agent in" in outcome.stderr
    assert "host1, host2, host3" in outcome.stderr


def test_the_offline_bundle_contains_what_the_roles_install() -> None:
    """A host without internet cannot install a package that the bundle lacks."""
    wanted: set[str] = set()

    def look(tasks: Any) -> None:
        for task in tasks or []:
            apt = task.get("ansible.builtin.apt") or {}
            names = apt.get("name", []) if apt.get("state") != "absent" else []
            if listed := re.fullmatch(r"{{ cluster_services\.(\w+)\.package }}", str(names)):
                wanted.add(bundle_packages.SERVICES[listed[1]]["package"])
            wanted.update(names.split() if isinstance(names, str) and "{" not in names else [])
            wanted.update(name for name in names if isinstance(names, list))
            look(task.get("block"))

    for file in (ROOT / "ansible/roles").glob("*/tasks/*.yml"):
        look(yaml.safe_load(file.read_text()))
    for name in ("docker_packages", "docker_tools"):
        defaults = (ROOT / "ansible/roles/docker/defaults/main.yml").read_text()
        wanted.update(yaml.safe_load(defaults)[name])
    assert {"nftables", "python3-libtorrent", "docker.io"} <= wanted
    assert wanted - set(bundle_packages.PACKAGES) == set()
    toolkit = yaml.safe_load((ROOT / "ansible/roles/nvidia/vars/main.yml").read_text())
    assert set(toolkit["nvidia_packages"]) == set(bundle_packages.TOOLKIT)


def test_the_toolkit_is_fetched_from_nvidia_or_a_mirror(tmp_path: Path) -> None:
    assert bundle_packages.toolkit_repository().startswith("https://nvidia.github.io/")
    (tmp_path / "gpgkey").write_text("the key")
    key = tmp_path / "nvidia.asc"
    source = bundle_packages.toolkit_source(f"file://{tmp_path}/stable/deb", key)
    assert source == f"deb [signed-by={key}] file://{tmp_path}/stable/deb/amd64 /"
    assert key.read_text() == "the key"
    with pytest.raises(bundle_packages.BundleError, match="--no-gpus"):
        bundle_packages.toolkit_source(f"file://{tmp_path}/missing/stable/deb", key)


def test_down_asks_for_confirmation() -> None:
    inventory = "ansible/inventories/test-hosts.yml"
    outcome = _command("down", "--inventory", inventory)
    assert outcome.returncode == 1
    assert "keep its data" in outcome.stdout + outcome.stderr
    assert "Aborted" in outcome.stdout + outcome.stderr


@pytest.mark.parametrize("name", ["example", "single", "test-hosts"])
def test_inventories_are_complete(name: str) -> None:
    inventory = f"ansible/inventories/{name}.yml"
    outcome = run(BIN / "ansible-inventory", "-i", inventory, "--list")
    assert outcome.returncode == 0, outcome.stderr
    listing = yaml.safe_load(outcome.stdout)
    assert len(listing["master"]["hosts"]) == 1
    assert listing["agents"]["hosts"]
