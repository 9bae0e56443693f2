"""A cluster's whole life on test hosts: from bare machines to bare machines.

Takes 45 minutes on two cores and, with the task image, 75 GB of disk, so it runs only where
TEST_HOSTS=yes asks for it (`make test-hosts`). TEST_HOSTS_IMAGE names a small image in the task
image's place; then nothing is trained. TEST_HOSTS_BUNDLE names an offline bundle; then the hosts
reach nothing but each other. TEST_HOSTS_PROXY=yes gives them a proxy as their only way out. The
tests build on each other, in this order.
"""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest
from determined.common.api import bindings

from cluster.connection import load_connection
from tests import object_store as object_stores
from tests.images import why_missing
from tests.system.hosts import hosts as test_hosts
from tests.system.hosts import strangers
from tests.system.hosts.testing import (
    AGENT_STARTED,
    INTERNET,
    NAME,
    PROXY,
    ROOT,
    SMALL_IMAGE,
    TOKEN,
    Hosts,
    assert_clean,
    busy_agent,
    changed_tasks,
    not_for,
    on_host,
    registers,
    secrets,
    sync,
    train,
    version,
    where_shown,
    where_stored,
)
from tools.versions import read_versions, task_image

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]


def test_up_from_bare_hosts(cluster: Hosts) -> None:
    output = cluster.succeed("up", "--", "-vvv", "--diff")
    found = [*secrets().values(), TOKEN]
    assert [line for line in output.splitlines() if any(each in line for each in found)] == []
    status = cluster.status()
    assert status["master"]["answers"]
    assert [host["slots"] for host in status["hosts"]] == [2, 2, 2]
    assert len({host["image"] for host in status["hosts"]}) == 1
    # The account of train-*, whose token trials hold.
    user = bindings.get_GetMe(load_connection(NAME).session()).user
    assert (user.username, user.admin) == ("determined", False)


def test_second_converge_changes_nothing(cluster: Hosts) -> None:
    recap = cluster.succeed("up")
    assert changed_tasks(recap) == {"host1": 0, "host2": 0, "host3": 0}


def test_secrets_are_shown_nowhere(cluster: Hosts) -> None:
    output = cluster.succeed("up", "--", "-vvv", "--diff")
    named = secrets()
    keys = {"ca.key", "agents-ca.key", "master.key", *(f"hosts/host{n}.key" for n in (1, 2, 3))}
    assert set(named) == {"admin_password", "user_password", "database_password", *keys}
    found = list(named.values())
    shown = [line for line in output.splitlines() if any(each in line for each in [*found, TOKEN])]
    assert shown == []
    for host in ("host1", "host2", "host3"):
        assert where_shown(host, found) == ""
        assert where_stored(host, not_for(host, named)) == ""
    # The search finds what is there.
    assert "/etc/determined/master.yaml" in where_stored("host1", [named["admin_password"]])
    assert where_stored("host2", [named["hosts/host2.key"]]) == "/etc/determined/tls/host.key\n"


def test_check_mode_on_a_provisioned_cluster(cluster: Hosts) -> None:
    recap = cluster.succeed("up", "--", "--check")
    assert set(changed_tasks(recap).values()) == {0}


def test_the_data_set_is_copied_to_all_hosts_only_once(cluster: Hosts, packed: Path) -> None:
    assert min(sync(cluster, packed).values()) > 0
    assert set(sync(cluster, packed).values()) == {0}
    versions = {host["data"]["version"] for host in cluster.status()["hosts"]}
    assert versions == {version(packed)}


def test_doctor_passes(cluster: Hosts) -> None:
    outcome = cluster.run("doctor", "--json")
    checks = json.loads(outcome.stdout)["checks"]
    for check in checks:
        print(f"{check['host']}: {check['name']}: {check['message']}")
    print(cluster.run("status").stdout)
    failed = {check["name"] for check in checks if not check["ok"]}
    assert failed <= ({"all-reduce"} if SMALL_IMAGE else set()), failed
    assert "all-reduce" in {check["name"] for check in checks}


def test_lost_and_overwritten_images_are_repaired(cluster: Hosts) -> None:
    """An engine without the agent's image, and one where a tag means another image."""
    image = read_versions()["AGENT_IMAGE"]
    other = SMALL_IMAGE or task_image()
    on_host(2, f"docker tag {other} {image}")
    identity = f"docker image inspect --format={{{{.Id}}}} {image}"
    on_host(3, f"systemctl stop determined-agent && docker image rm --force $({identity})")
    checks = json.loads(cluster.run("doctor", "--json").stdout)["checks"]
    failed = {(check["host"], check["name"]) for check in checks if not check["ok"]}
    assert {("host2", f"image {image}"), ("host3", f"image {image}")} <= failed
    changed = changed_tasks(cluster.succeed("up"))
    assert changed["host1"] == 0
    wanted = on_host(1, identity)
    assert [on_host(number, identity) for number in (2, 3)] == [wanted] * 2
    assert set(changed_tasks(cluster.succeed("up")).values()) == {0}


def test_access_without_a_certificate_is_refused(cluster: Hosts) -> None:
    """An agent without a certificate is refused, and the database does not answer."""
    probe = "import socket; socket.create_connection(('10.77.0.11', 5432), 3)"
    refused = ["docker", "exec", "host2", "python3", "-c", probe]
    assert subprocess.run(refused, capture_output=True, check=False).returncode != 0
    assert not registers(2)
    assert "false-agent" not in json.dumps(cluster.status())
    assert registers(2, "/etc/determined/tls/host")


def test_certificates_are_renewed_while_agents_run(cluster: Hosts) -> None:
    started = [on_host(number, AGENT_STARTED) for number in (1, 2, 3)]
    before = secrets()
    recap = cluster.succeed("certificates", "--days", "10000")
    assert min(changed_tasks(recap).values()) > 0
    recap = cluster.succeed("certificates", "--new-authority")
    assert min(changed_tasks(recap).values()) > 0
    assert [on_host(number, AGENT_STARTED) for number in (1, 2, 3)] == started
    changed = {name for name, secret in secrets().items() if before[name] != secret}
    assert changed == {"agents-ca.key"}
    cluster.wait_for_slots(6)
    assert set(changed_tasks(cluster.succeed("up")).values()) == {0}


def test_strangers_reach_nothing_but_ssh(cluster: Hosts) -> None:
    with strangers.stranger([1, 2]):
        assert strangers.reached(strangers.INSIDE, 1) == {22, 8443}
        assert strangers.reached(strangers.INSIDE, 2) == {22}
        assert strangers.reached(strangers.OUTSIDE, 1) == {22}
        for attack in strangers.ATTACKS:
            on_host(2, attack)
            print(f"{attack}: closed again after {strangers.closed_again(2):.1f} s")
        on_host(2, "systemctl kill --signal=STOP determined-firewall; nft flush ruleset")
        assert 40000 in strangers.reached(strangers.OUTSIDE, 2)
        checks = json.loads(cluster.run("doctor", "--json").stdout)["checks"]
        failed = {(check["host"], check["name"]) for check in checks if not check["ok"]}
        assert {("host2", "firewall rules"), ("host2", "closed to strangers (IPv4)")} <= failed
        rules = {host["host"]: host["firewall"] for host in cluster.status()["hosts"]}
        assert rules == {"host1": "in force", "host2": "missing", "host3": "in force"}
        assert changed_tasks(cluster.succeed("up"))["host2"] > 0
        assert strangers.reached(strangers.OUTSIDE, 2) == {22}
    # Without the rules by which Docker gives this host, itself a container, its name server.
    test_hosts.reboot("host2")
    cluster.wait_for_slots(6)
    assert set(changed_tasks(cluster.succeed("up")).values()) == {0}


needs_task_image = pytest.mark.skipif(bool(SMALL_IMAGE), reason="TEST_HOSTS_IMAGE cannot train")


@needs_task_image
def test_training_over_two_hosts(cluster: Hosts, packed: Path) -> None:
    started = time.monotonic()
    output, _ = (training := train()).communicate()
    assert training.returncode == 0, output
    print(f"train-distributed: {time.monotonic() - started:.0f} s")
    assert f"version {version(packed)}" in output
    assert cluster.status()["experiments"][0]["state"] == "COMPLETED"


@needs_task_image
def test_a_host_with_a_different_version_of_the_data_set_is_reported(cluster: Hosts) -> None:
    """The trial stops before its first batch."""
    output, _ = (training := train("data.version=another", "max_restarts=0")).communicate()
    assert training.returncode != 0
    message = " ".join(output.split())
    assert "the experiment needs another" in message
    assert re.search(r"host[123]", message)
    assert cluster.status()["experiments"][0]["state"] == "ERROR"


@pytest.mark.skipif(not PROXY, reason="TEST_HOSTS_PROXY=yes puts a proxy before the hosts")
def test_the_proxy_was_asked_for_packages_and_for_no_host(cluster: Hosts) -> None:
    asked = test_hosts.proxied(cluster.inventory.parent)
    assert any(url.endswith(".deb") for url in asked)
    subnet = test_hosts.SUBNET.removesuffix("0/24")
    assert [url for url in asked if subnet in url or "localhost" in url] == []


def test_a_fourth_host_touches_only_itself_and_the_master(cluster: Hosts, packed: Path) -> None:
    test_hosts.start(4, internet=INTERNET)
    cluster.agents["host4"] = {"ansible_host": "10.77.0.14"}
    cluster.write()
    units = (
        "systemctl show --property=ActiveEnterTimestamp determined-agent determined-firewall docker"
    )
    before = [on_host(number, units) for number in (2, 3)]
    recap = cluster.succeed("up", "--limit", "host4")
    site, members = recap.split("PLAY [Update the members of the cluster]")
    assert changed_tasks(site).pop("host4") > 0
    assert {"host2", "host3"}.isdisjoint(changed_tasks(site))
    # The list of members, and loading it unless the firewall's service was faster.
    assert {changed_tasks(members)[host] for host in ("host2", "host3")} <= {1, 2}
    assert [on_host(number, units) for number in (2, 3)] == before
    for number in (1, 2, 3):
        assert "10.77.0.14" in on_host(number, "nft list set inet determined members4")
    assert set(changed_tasks(cluster.succeed("up")).values()) == {0}
    assert sum(host["slots"] for host in cluster.status()["hosts"]) == 8
    synced = sync(cluster, packed)
    assert synced.pop("host4") > 0
    assert set(synced.values()) == {0}


def test_a_host_is_drained_and_removed(cluster: Hosts) -> None:
    cluster.succeed("drain", "--host", "host4")
    (row,) = [host for host in cluster.status()["hosts"] if host["host"] == "host4"]
    assert not row["enabled"]
    # Someone keeps its key.
    on_host(4, "cp -r /etc/determined/tls /var/lib/kept")
    assert registers(4, "/var/lib/kept/host")
    cluster.succeed("remove", "--host", "host4")
    assert_clean("host4")
    assert not registers(4, "/var/lib/kept/host")
    assert not (ROOT / f".secrets/{NAME}/hosts/host4.key").exists()
    assert registers(3, "/etc/determined/tls/host")
    for number in (1, 2, 3):
        assert "10.77.0.14" not in on_host(number, "nft list set inet determined members4")
    del cluster.agents["host4"]
    cluster.write()
    assert cluster.status()["unknown_agents"] == []
    test_hosts.remove("host4")


@needs_task_image
def test_a_host_dies_in_the_middle_of_training(cluster: Hosts) -> None:
    # Evaluated at its end only.
    training = train("hyperparameters.epochs=16", "min_validation_period.epochs=16")
    try:
        victim = busy_agent(cluster, training)
        subprocess.run(["docker", "kill", victim], check=True, capture_output=True)
        output, _ = training.communicate()
    finally:
        training.kill()
    assert training.returncode == 0, output
    test_hosts.start_again(victim)
    cluster.wait_for_slots(6)


def test_everything_returns_after_a_reboot(cluster: Hosts) -> None:
    for host in ("host1", "host2", "host3"):
        test_hosts.reboot(host)
    with strangers.stranger([1, 2, 3]):
        for number in (1, 2, 3):
            assert strangers.reached(strangers.OUTSIDE, number) == {22}
    cluster.wait_for_slots(6)
    assert set(changed_tasks(cluster.succeed("up")).values()) == {0}


def test_backup_and_restore(cluster: Hosts) -> None:
    before = [row["id"] for row in cluster.status()["experiments"]]
    printed = cluster.succeed("backup")
    found = re.search(r"([^\s'\"]+\.dump) contains the", printed)
    assert found
    cluster.succeed("restore", "--file", found[1])
    assert [row["id"] for row in cluster.status()["experiments"]] == before


def test_checkpoints_in_an_object_store(cluster: Hosts, packed: Path) -> None:
    """A cluster moves its storage there, and trials of two hosts write to it."""
    if reason := why_missing(object_stores.IMAGE):
        pytest.skip(reason)
    settings = cluster.settings
    keys = [ROOT / f".secrets/{NAME}/s3_{kind}_key" for kind in ("access", "secret")]
    with object_stores.object_store(test_hosts.NETWORK, test_hosts.address(90)) as store:
        settings["checkpoint_storage"] = "s3"
        settings["checkpoint_s3"] = {"bucket": store.bucket, "endpoint_url": store.url}
        cluster.write()
        try:
            for file, key in zip(keys, (store.access_key, store.secret_key), strict=True):
                file.write_text(key)
                file.chmod(0o600)
            if SMALL_IMAGE:
                # Without the client of a store: preflight and the master's settings only.
                refused = cluster.run("up")
                assert f"s3://{store.bucket}" in refused.stdout + refused.stderr
                return
            cluster.succeed("up")
            assert set(changed_tasks(cluster.succeed("up")).values()) == {0}
            doctor = json.loads(cluster.run("doctor", "--json").stdout)["checks"]
            stored = [check for check in doctor if check["name"] == "checkpoint storage"]
            assert [check["ok"] for check in stored] == [True] * 3
            assert not store.names()
            output, _ = (training := train()).communicate()
            assert training.returncode == 0, output
            assert any(name.endswith("state_dict.pth") for name in store.names())

            keys[1].write_text("wrong")
            refused = cluster.run("up")
            assert refused.returncode != 0
            assert "SignatureDoesNotMatch" in refused.stdout + refused.stderr
            assert store.access_key not in refused.stdout + refused.stderr
        finally:
            for file in keys:
                file.unlink(missing_ok=True)
            del settings["checkpoint_storage"], settings["checkpoint_s3"]
            cluster.write()
            cluster.succeed("up")


def test_upgrade_restarts_only_what_is_new(cluster: Hosts) -> None:
    recap = cluster.succeed("upgrade")
    changed = changed_tasks(recap)
    assert (changed["host2"], changed["host3"]) == (0, 0)


def test_upgrade_drains_and_restarts_one_host_after_the_other(cluster: Hosts) -> None:
    """To an agent's image that differs in a label."""
    dockerfile = f"FROM {read_versions()['AGENT_IMAGE']}\nLABEL test=newer\n"
    newer = "test-agent:newer"
    build = ["docker", "build", "--quiet", "--tag", newer, "-"]
    subprocess.run(build, input=dockerfile, text=True, check=True, capture_output=True)
    cluster.settings["agent_image"] = newer
    cluster.write()
    recap = cluster.succeed("upgrade")
    assert min(changed_tasks(recap).values()) > 0
    order = re.findall(
        r"TASK \[drain : Stop assigning trials to the host\].*?(host\d)", recap, re.DOTALL
    )
    assert order == ["host1", "host2", "host3"]
    identity = ["docker", "image", "inspect", "--format={{.Id}}", newer]
    wanted = subprocess.run(identity, capture_output=True, text=True, check=True).stdout
    running = ["inspect", "--format={{.Image}}", "determined-agent"]
    for host in order:
        found = ["docker", "exec", host, "docker", *running]
        assert subprocess.run(found, capture_output=True, text=True, check=True).stdout == wanted
    assert [host["enabled"] for host in cluster.status()["hosts"]] == [True] * 3


def test_down_leaves_clean_hosts_and_keeps_the_data(cluster: Hosts) -> None:
    cluster.succeed("down", "--yes")
    for host in ("host1", "host2", "host3"):
        assert_clean(host)
    kept = ["docker", "exec", "host1", "test", "-f", "/var/lib/determined/postgres/PG_VERSION"]
    assert subprocess.run(kept, check=False).returncode == 0


def test_a_new_cluster_takes_over_the_old_database(cluster: Hosts) -> None:
    # The password of the database is lost; that of its user admin is kept.
    (ROOT / f".secrets/{NAME}/database_password").unlink()
    # No more trials run: a small image instead of the task image saves copying 7 GB to all hosts.
    cluster.settings["task_image"] = cluster.settings["agent_image"]
    cluster.write()
    cluster.succeed("up")
    if not SMALL_IMAGE:
        assert cluster.status()["experiments"]
    cluster.succeed("down", "--yes", "--delete-data")
    gone = ["docker", "exec", "host1", "test", "!", "-e", "/var/lib/determined"]
    assert subprocess.run(gone, check=False).returncode == 0
