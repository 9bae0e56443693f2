"""The cluster's account that experiments are submitted with.

A trial's container holds a token of the user who submitted it, and whoever reads that token can do
in the cluster what this user can: so experiments never belong to an administrator. The account is
`determined`, which Determined creates itself, at first with the administrator's password.
"""

from determined.common import api
from determined.common.api import authentication, bindings, certs

from cluster.connection import MasterConnection, translate_errors

USER = "determined"
ADMINISTRATOR = "admin"


def ensure_user(administrator: MasterConnection, password: str) -> None:
    """Let `determined` log in with this password, as a user who is not an administrator.

    Raises:
        ClusterError: The master rejects the administrator, or does not answer.
    """
    with translate_errors(administrator):
        if _is_plain_user(administrator, password):
            return
    session = administrator.session()
    hashed = api.salt_and_hash(password)
    with translate_errors(administrator):
        try:
            user = bindings.get_GetUserByUsername(session, username=USER).user
        except api.errors.NotFoundException:
            new = bindings.v1User(active=True, admin=False, username=USER)
            request = bindings.v1PostUserRequest(user=new, password=hashed, isHashed=True)
            bindings.post_PostUser(session, body=request)
            return
        assert user.id is not None
        change = bindings.v1PatchUser(active=True, admin=False, password=hashed, isHashed=True)
        bindings.patch_PatchUser(session, body=change, userId=user.id)


def _is_plain_user(administrator: MasterConnection, password: str) -> bool:
    """Return whether the password is the user's, and the user is not an administrator."""
    master = administrator.master
    cert = certs.default_load(master, explicit_path=administrator.certificate)
    try:
        session = authentication.login(master, USER, password, cert=cert)
    except (api.errors.UnauthenticatedException, api.errors.ForbiddenException):
        return False
    return not bindings.get_GetMe(session).user.admin
