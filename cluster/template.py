"""Determined's template: settings of a cluster rather than of an experiment.

These are the task image and the checkpoint storage. Experiments are submitted with the template's
name; their own settings override the template's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from determined.common.api import bindings

from cluster.connection import MasterConnection, translate_errors


def local_template(image: str, checkpoints: Path) -> dict[str, Any]:
    """Return the template for the cluster on this machine."""
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
    """Create or replace the cluster's template on its master.

    Raises:
        ClusterError: The master rejects it.
    """
    session = connection.session()
    with translate_errors(connection):
        workspaces = bindings.get_GetWorkspaces(session, name="Uncategorized").workspaces
        bindings.put_PutTemplate(
            session,
            body=bindings.v1Template(
                name=connection.template, config=dict(content), workspaceId=workspaces[0].id
            ),
            template_name=connection.template,
        )
