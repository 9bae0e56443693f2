"""Runs the playbooks for the make targets cluster-*, and shows their results.

Every command takes an inventory and ends with a summary. The playbooks' output goes to stderr, so
that with `--json` stdout contains the document alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PLAYBOOKS = ROOT / "ansible"
DEFAULT_INVENTORY = ROOT / "hosts.yml"
# Ansible's programs next to this interpreter, whatever is on the PATH.
BIN = Path(sys.executable).parent

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
console = Console(highlight=False)
progress = Console(stderr=True, highlight=False)

Inventory = Annotated[Path, typer.Option(help="The inventory", envvar="INVENTORY")]
Limit = Annotated[str, typer.Option(help="Only these hosts (and the master's)", envvar="LIMIT")]
Host = Annotated[str, typer.Option(help="The host's name in the inventory", envvar="HOST")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document")]
Extra = Annotated[list[str] | None, typer.Argument(help="More arguments of ansible-playbook")]


class CommandError(Exception):
    """The request cannot be carried out; the message says what to do."""


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(PLAYBOOKS / "ansible.cfg"),
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
    }


def _require_inventory(inventory: Path) -> None:
    if inventory.exists():
        return
    example = (PLAYBOOKS / "inventories/example.yml").relative_to(ROOT)
    raise CommandError(
        f"there is no inventory {inventory}. Copy {example} to hosts.yml and enter your hosts, or "
        "name another one: INVENTORY=ansible/inventories/single.yml is this machine alone"
    )


def _require_host(inventory: Path, host: str) -> None:
    listing = [str(BIN / "ansible-inventory"), "--inventory", str(inventory), "--list"]
    done = subprocess.run(listing, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"{inventory} is not an inventory:\n{done.stderr.strip()}")
    known = json.loads(done.stdout).get("agents", {}).get("hosts", [])
    if host not in known:
        given = f"{host!r} is not an agent in {inventory}" if host else "HOST= is missing"
        raise CommandError(f"{given}; its agents are: {', '.join(known)}")


def run(
    playbook: str,
    inventory: Path,
    *,
    limit: str = "",
    variables: dict[str, Any] | None = None,
    extra: list[str] | None = None,
) -> int:
    """Run a playbook with its output on stderr; return its exit status."""
    _require_inventory(inventory)
    command = [str(BIN / "ansible-playbook"), "--inventory", str(inventory)]
    # Always includes the master: every host needs its registry and API.
    command += ["--limit", f"{limit},master"] if limit else []
    for name, value in (variables or {}).items():
        command += ["--extra-vars", json.dumps({name: value})]
    command += [*(extra or []), str(PLAYBOOKS / f"{playbook}.yml")]
    started = time.monotonic()
    status = subprocess.run(command, env=_environment(), stdout=sys.stderr, check=False).returncode
    seconds = time.monotonic() - started
    outcome = "done" if status == 0 else "failed: the first error above says why"
    progress.print(f"cluster {playbook}: {outcome} ({seconds:.0f} s)", style="bold")
    return status


def _report(playbook: str, inventory: Path, limit: str, extra: list[str] | None) -> Any:
    """Run a playbook that writes a report; return the report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        variables = {"report_file": str(file)}
        run(playbook, inventory, limit=limit, variables=variables, extra=extra)
        if not file.exists():
            raise CommandError("no report was written: the first error above says why")
        return json.loads(file.read_text())


@app.command()
def up(inventory: Inventory = DEFAULT_INVENTORY, limit: Limit = "", extra: Extra = None) -> None:
    """Create a cluster of the hosts, or update it to the inventory and versions."""
    raise typer.Exit(run("site", inventory, limit=limit, extra=extra))


@app.command()
def upgrade(
    inventory: Inventory = DEFAULT_INVENTORY, limit: Limit = "", extra: Extra = None
) -> None:
    """Upgrade the cluster to this repository's versions, draining one host at a time."""
    raise typer.Exit(run("upgrade", inventory, limit=limit, extra=extra))


@app.command()
def status(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    as_json: Json = False,
    extra: Extra = None,
) -> None:
    """Show hosts, slots, versions, data, images and experiments."""
    report = _report("status", inventory, limit, extra)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        show_status(report)
    raise typer.Exit(int(not report["master"]["answers"]))


@app.command()
def doctor(
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    as_json: Json = False,
    extra: Extra = None,
) -> None:
    """Check everything that trials need; exit status 1 if something is wrong."""
    report = _report("doctor", inventory, limit, extra)
    failed = [check for check in report["checks"] if not check["ok"]]
    if as_json:
        print(json.dumps({"ok": not failed, "checks": report["checks"]}, indent=2))
    else:
        show_checks(report["checks"])
    raise typer.Exit(int(bool(failed)))


@app.command()
def drain(host: Host = "", inventory: Inventory = DEFAULT_INVENTORY, extra: Extra = None) -> None:
    """Let a host finish its trials and assign it no new ones."""
    _require_inventory(inventory)
    _require_host(inventory, host)
    raise typer.Exit(run("drain", inventory, variables={"host": host}, extra=extra))


@app.command()
def undrain(host: Host = "", inventory: Inventory = DEFAULT_INVENTORY, extra: Extra = None) -> None:
    """Let a drained host take trials again."""
    _require_inventory(inventory)
    _require_host(inventory, host)
    raise typer.Exit(run("undrain", inventory, variables={"host": host}, extra=extra))


@app.command()
def remove(host: Host = "", inventory: Inventory = DEFAULT_INVENTORY, extra: Extra = None) -> None:
    """Remove a host from the cluster once its trials have finished, and clean it."""
    _require_inventory(inventory)
    _require_host(inventory, host)
    status = run("remove", inventory, variables={"host": host}, extra=extra)
    if status == 0:
        progress.print(f"Now remove {host} from {inventory}", style="bold")
    raise typer.Exit(status)


@app.command()
def down(
    inventory: Inventory = DEFAULT_INVENTORY,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    delete_data: Annotated[
        bool, typer.Option("--delete-data", help="Delete database and checkpoints too")
    ] = False,
    extra: Extra = None,
) -> None:
    """Take the cluster down; data is kept unless --delete-data is given."""
    _require_inventory(inventory)
    what = "and DELETE its database and checkpoints" if delete_data else "and keep its data"
    if not yes:
        typer.confirm(f"Take down the cluster of {inventory}, end its trials, {what}?", abort=True)
    variables = {"decommission_delete_data": delete_data}
    raise typer.Exit(run("down", inventory, variables=variables, extra=extra))


@app.command()
def backup(inventory: Inventory = DEFAULT_INVENTORY, extra: Extra = None) -> None:
    """Write the master's database into backups/."""
    raise typer.Exit(run("backup", inventory, extra=extra))


@app.command()
def restore(
    file: Annotated[str, typer.Option(help="The file that a backup wrote", envvar="FILE")] = "",
    inventory: Inventory = DEFAULT_INVENTORY,
    extra: Extra = None,
) -> None:
    """Restore the master's database from a backup."""
    if not file or not Path(file).is_file():
        raise CommandError(f"FILE={file} is not a file; backups are in backups/")
    variables = {"database_file": str(Path(file).resolve())}
    raise typer.Exit(run("restore", inventory, variables=variables, extra=extra))


def show_status(report: dict[str, Any]) -> None:
    """Print a status for people."""
    master = report["master"]
    answer = f"version {master['version']}" if master["answers"] else f"[red]{master['error']}[/]"
    console.print(f"[bold]{report['cluster']}[/]  {master['url']}  {answer}")
    table = Table(box=None, pad_edge=False)
    for column in ("host", "address", "is", "slots", "GPUs", "agent", "data", "image"):
        table.add_column(column, overflow="fold")
    for host in report["hosts"]:
        version = str(host["data"]["version"] or "none")[:12]
        table.add_row(
            host["host"],
            host["address"],
            _condition(host),
            f"{host['slots_used']}/{host['slots']}" if "agent" in host["roles"] else "-",
            str(host["gpus"]),
            host["agent_version"] or "-",
            f"{host['data']['name'] or ''} {version}".strip(),
            (host["image"] or "missing").removeprefix("sha256:")[:12],
        )
    console.print(table)
    for name in report["unknown_agents"]:
        console.print(f"[yellow]the agent {name} is not in the inventory[/]")
    active = [row for row in report["experiments"] if row["active"]]
    console.print(f"task image {report['task_image']}")
    console.print(f"experiments: {len(active)} active of the last {len(report['experiments'])}")
    for row in active:
        share = f"{100 * row['progress']:.0f} %" if row["progress"] is not None else ""
        console.print(
            f"  {row['id']} {row['name']}: {row['state']} {share}, {row['trials']} trials"
        )
    slots = sum(host["slots"] for host in report["hosts"])
    used = sum(host["slots_used"] for host in report["hosts"])
    console.print(f"[bold]{len(report['hosts'])} hosts, {used} of {slots} slots in use[/]")


def _condition(host: dict[str, Any]) -> str:
    if not host["reachable"]:
        return "[red]unreachable[/]"
    broken = [
        unit.removesuffix(".service").removeprefix("determined-")
        for unit, state in host["units"].items()
        if state == "failed"
    ]
    if broken:
        return f"[red]failed: {', '.join(broken)}[/]"
    if "agent" not in host["roles"]:
        return "up"
    if not host["connected"]:
        return "[red]agent away[/]"
    if host["draining"]:
        return "[yellow]draining[/]"
    return "up" if host["enabled"] else "[yellow]drained[/]"


def show_checks(checks: list[dict[str, Any]]) -> None:
    """Print checks for people, those that failed last with their remedies."""
    for check in sorted(checks, key=lambda check: not check["ok"]):
        mark = "[green]ok[/]  " if check["ok"] else "[red]FAIL[/]"
        message = escape(str(check["message"]))
        line = f"{mark} {check['host']}: {check['name']}: {message}"
        console.print(line, soft_wrap=True)
        if not check["ok"]:
            console.print(f"     -> {escape(check['remedy'])}", soft_wrap=True)
    failed = sum(not check["ok"] for check in checks)
    summary = (
        f"{len(checks)} checks, {failed} failed" if failed else f"{len(checks)} checks, all ok"
    )
    console.print(f"[bold]{summary}[/]")


def main() -> None:
    """Run the command line; a usage error is one line, not a traceback."""
    try:
        app()
    except CommandError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
