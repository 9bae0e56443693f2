"""Shows what the playbooks status and doctor report, for people."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

console = Console(highlight=False)


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
    if host["firewall"] not in (None, "in force"):
        return f"[red]firewall {escape(host['firewall'])}[/]"
    return _agent_condition(host) if "agent" in host["roles"] else "up"


def _agent_condition(host: dict[str, Any]) -> str:
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
