"""The account that experiments are submitted with, on a master that is played here."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from determined.common import api
from determined.common.api import authentication, bindings

from cluster import users
from cluster.connection import ROOT, MasterConnection, translate_errors
from cluster.errors import ClusterError
from tests.cluster.test_local_cluster import connection_to


@dataclass
class Master:
    """Its accounts: name -> password, whether an administrator, id."""

    accounts: dict[str, tuple[str, bool, int]]
    changes: list[Any] = field(default_factory=list)

    def login(self, master: str, name: str, password: str, cert: Any = None) -> Any:
        if name not in self.accounts or self.accounts[name][0] != password:
            raise api.errors.UnauthenticatedException
        return SimpleNamespace(name=name)

    def me(self, session: Any) -> Any:
        return SimpleNamespace(user=SimpleNamespace(admin=self.accounts[session.name][1]))

    def find(self, session: Any, *, username: str) -> Any:
        if username not in self.accounts:
            raise api.errors.NotFoundException("no such user")
        return SimpleNamespace(user=SimpleNamespace(id=self.accounts[username][2]))

    def patch(self, session: Any, *, body: bindings.v1PatchUser, userId: int) -> None:  # noqa: N803
        assert (session.name, body.isHashed) == ("admin", True)
        self.changes.append(("patch", userId, body.admin, body.active, body.password))

    def post(self, session: Any, *, body: bindings.v1PostUserRequest) -> None:
        assert (session.name, body.isHashed) == ("admin", True)
        assert body.user is not None
        self.changes.append(("post", body.user.username, body.user.admin, body.password))


def _ensure(monkeypatch: pytest.MonkeyPatch, **accounts: tuple[str, bool, int]) -> list[Any]:
    master = Master({"admin": ("secret", True, 1)} | accounts)
    monkeypatch.setattr(authentication, "login", master.login)
    monkeypatch.setattr(bindings, "get_GetMe", master.me)
    monkeypatch.setattr(bindings, "get_GetUserByUsername", master.find)
    monkeypatch.setattr(bindings, "patch_PatchUser", master.patch)
    monkeypatch.setattr(bindings, "post_PostUser", master.post)
    users.ensure_user(connection_to(8080), "new")
    return master.changes


HASHED = api.salt_and_hash("new")


@pytest.mark.parametrize("account", [("secret", False, 2), ("new", True, 2)])
def test_the_account_gets_its_password_and_loses_other_rights(
    monkeypatch: pytest.MonkeyPatch, account: tuple[str, bool, int]
) -> None:
    changes = _ensure(monkeypatch, determined=account)
    assert changes == [("patch", 2, False, True, HASHED)]


def test_a_missing_account_is_created(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ensure(monkeypatch) == [("post", "determined", False, HASHED)]


def test_an_account_that_is_right_keeps_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _ensure(monkeypatch, determined=("new", False, 2)) == []


def test_the_administrators_password_file_is_named() -> None:
    connection = MasterConnection(
        "here", "http://127.0.0.1:1", "admin", "x", "here", "/data", password_file=ROOT / "e"
    )
    with (
        pytest.raises(ClusterError, match=r"password in .*/e$"),
        translate_errors(connection),
    ):
        raise api.errors.UnauthenticatedException
