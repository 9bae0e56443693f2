"""Determined's template: what belongs to a cluster and not to an experiment.

The image that trials run in, and where checkpoints go. An experiment is submitted with the
template's name, and what its own file says goes before what the template says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from determined.common.api import bindings

from cluster.connection import MasterConnection, explained


def local_template(image: str, checkpoints: Path) -> dict[str, Any]:
    """The template of the cluster on this machine."""
    return {
        "environment": {"image": image},
        "checkpoint_storage": {
            "type": "shared_fs",
            "host_path": str(checkpoints),
            "save_experiment_best": 1,
            "save_trial_best": 1,
            "save_trial_latest": 1,
        },
    }


def set_template(connection: MasterConnection, content: Mapping[str, Any]) -> None:
    """Write the connection's template on its master, new or over the one there.

    Raises:
        ClusterError: The master refuses it.
    """
    session = connection.login()._session
    with explained(connection):
        workspaces = bindings.get_GetWorkspaces(session, name="Uncategorized").workspaces
        bindings.put_PutTemplate(
            session,
            body=bindings.v1Template(
                name=connection.template, config=dict(content), workspaceId=workspaces[0].id
            ),
            template_name=connection.template,
        )
