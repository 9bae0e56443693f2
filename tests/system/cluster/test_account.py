"""The permissions of the account whose token trials hold, on a real master."""

import pytest
from determined.common import api
from determined.common.api import bindings

from cluster.connection import load_connection
from tests.system.cluster.real_cluster import RealCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_experiments_belong_to_a_user_without_other_rights(cluster: RealCluster) -> None:
    session = cluster.session
    user = bindings.get_GetMe(session).user
    assert (user.username, user.admin) == ("determined", False)
    (agent,) = bindings.get_GetAgents(session).agents
    with pytest.raises(api.errors.ForbiddenException):
        bindings.post_DisableAgent(
            session, agentId=agent.id, body=bindings.v1DisableAgentRequest(agentId=agent.id)
        )
    with pytest.raises(api.errors.ForbiddenException):
        bindings.get_GetMasterConfig(session)
    new = bindings.v1User(active=True, admin=True, username="second")
    with pytest.raises(api.errors.ForbiddenException):
        bindings.post_PostUser(session, body=bindings.v1PostUserRequest(user=new, password="x"))
    assert user.id is not None
    with pytest.raises(api.errors.ForbiddenException):
        bindings.patch_PatchUser(session, userId=user.id, body=bindings.v1PatchUser(admin=True))


def test_another_start_keeps_the_password_and_the_sessions(cluster: RealCluster) -> None:
    before = load_connection(cluster.local.name)
    cluster.local.up(cluster.console, data=cluster.data, agents=1, slots=4, port=cluster.port)
    assert load_connection(cluster.local.name) == before
    assert bindings.get_GetMe(cluster.session).user.username == "determined"
