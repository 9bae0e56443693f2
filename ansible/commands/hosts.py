"""Runs the playbooks for the make targets cluster-* and coco-*, and shows their results.

Every command takes an inventory and ends with a summary. The playbooks' output goes to stderr, so
that with `--json` stdout contains the document alone.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from playbooks import ROOT, CommandError, progress, require_host, require_inventory, run, run_report
from reports import show_checks, show_status

DEFAULT_INVENTORY = ROOT / "hosts.yml"

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Inventory = Annotated[
    Path,
    typer.Option(
        help="The hosts; ansible/inventories/single.yml: this machine", envvar="INVENTORY"
    ),
]
Limit = Annotated[str, typer.Option(help="Only these hosts (and the master's)", envvar="LIMIT")]
Agents = Annotated[str, typer.Option(help="Only these hosts", envvar="LIMIT")]
DataSet = Annotated[
    str, typer.Option(help="The name that coco-pack gave the data set", envvar="DATASET")
]
Host = Annotated[str, typer.Option(help="The host's name in the inventory", envvar="HOST")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON document")]
Extra = Annotated[
    list[str] | None,
    typer.Argument(help="After -- (make adds it): arguments of ansible-playbook, such as --check"),
]


@app.command()
def up(inventory: Inventory = DEFAULT_INVENTORY, limit: Limit = "", extra: Extra = None) -> None:
    """Create a cluster of the hosts, or update it to the inventory and versions."""
    status = run("site", inventory, limit=limit, extra=extra)
    if limit and status == 0:
        # The other hosts admit new ones.
        status = run("members", inventory, extra=extra)
    raise typer.Exit(status)


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
    report = run_report("status", inventory, limit, extra)
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
    report = run_report("doctor", inventory, limit, extra)
    failed = [check for check in report["checks"] if not check["ok"]]
    if as_json:
        print(json.dumps({"ok": not failed, "checks": report["checks"]}, indent=2))
    else:
        show_checks(report["checks"])
    raise typer.Exit(int(bool(failed)))


@app.command()
def drain(host: Host = "", inventory: Inventory = DEFAULT_INVENTORY, extra: Extra = None) -> None:
    """Let a host finish its trials and assign it no new ones."""
    require_inventory(inventory)
    require_host(inventory, host)
    raise typer.Exit(run("drain", inventory, variables={"host": host}, extra=extra))


@app.command()
def undrain(host: Host = "", inventory: Inventory = DEFAULT_INVENTORY, extra: Extra = None) -> None:
    """Let a drained host take trials again."""
    require_inventory(inventory)
    require_host(inventory, host)
    raise typer.Exit(run("undrain", inventory, variables={"host": host}, extra=extra))


@app.command()
def remove(host: Host = "", inventory: Inventory = DEFAULT_INVENTORY, extra: Extra = None) -> None:
    """Remove a host from the cluster once its trials have finished, and clean it."""
    require_inventory(inventory)
    require_host(inventory, host)
    status = run("remove", inventory, variables={"host": host}, extra=extra)
    if status == 0:
        progress.print(f"Now remove {host} from {inventory}", style="bold")
    raise typer.Exit(status)


@app.command()
def certificates(
    days: Annotated[
        int | None,
        typer.Option(
            help="Renew those that end within this many days; default: the setting "
            "certificates_renew_days, 60",
            envvar="DAYS",
            min=0,
        ),
    ] = None,
    new_authority: Annotated[
        bool,
        typer.Option(
            "--new-authority",
            help="Give all agents certificates of a new authority, so that none that was made "
            "earlier lets anyone register as an agent",
        ),
    ] = False,
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Limit = "",
    extra: Extra = None,
) -> None:
    """Renew the certificates of master and agents; trials go on."""
    if new_authority and limit:
        raise CommandError("a new authority is for all agents: leave out LIMIT=")
    variables: dict[str, object] = {"certificates_new_agents_authority": new_authority}
    if days is not None:
        variables["certificates_renew_days"] = days
    raise typer.Exit(run("certificates", inventory, limit=limit, variables=variables, extra=extra))


@app.command()
def down(
    inventory: Inventory = DEFAULT_INVENTORY,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    delete_data: Annotated[
        bool, typer.Option("--delete-data", help="Delete the database and checkpoints too")
    ] = False,
    extra: Extra = None,
) -> None:
    """Take the cluster down; the data sets stay, and database and checkpoints by default."""
    require_inventory(inventory)
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


@app.command("coco-sync")
def coco_sync(
    dataset: DataSet = "coco",
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Agents = "",
    bandwidth: Annotated[
        str,
        typer.Option(
            help="The most that a host sends or receives, such as 500Mbit; default: no limit",
            envvar="BANDWIDTH",
        ),
    ] = "",
    extra: Extra = None,
) -> None:
    """Copy a packed data set to all agents, and switch them to it."""
    raise typer.Exit(_run_coco(dataset, inventory, limit, extra, coco_bandwidth=bandwidth))


@app.command("coco-verify")
def coco_verify(
    dataset: DataSet = "coco",
    inventory: Inventory = DEFAULT_INVENTORY,
    limit: Agents = "",
    repair: Annotated[bool, typer.Option("--repair", help="Replace what is damaged")] = False,
    extra: Extra = None,
) -> None:
    """Read all of a data set on the agents, and compare it with its hashes."""
    variables = {"coco_verify": True, "coco_repair": repair}
    raise typer.Exit(_run_coco(dataset, inventory, limit, extra, **variables))


def _run_coco(
    dataset: str, inventory: Path, limit: str, extra: list[str] | None, **variables: object
) -> int:
    # The progress display writes to the terminal itself, since Ansible captures output.
    terminal = os.ttyname(sys.stdin.fileno()) if sys.stdin.isatty() else ""
    variables |= {"coco_dataset": dataset, "coco_terminal": terminal}
    # The master is not added to these hosts: it has no part in the transfer unless it is an agent.
    limited = ["--limit", limit] if limit else []
    return run("coco-sync", inventory, variables=variables, extra=[*limited, *(extra or [])])


def main() -> None:
    """Run the command line; a usage error is one line, not a traceback."""
    try:
        app()
    except CommandError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
