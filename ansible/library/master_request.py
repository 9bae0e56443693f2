#!/usr/bin/python
"""Sends requests to the master's API, with a session that only this module knows."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: master_request
short_description: Send requests to Determined's master
description:
  - Logs in, sends the requests and logs out. Neither the password nor the session's token appears
    in Ansible's output, whatever its verbosity.
options:
  login:
    description: Address and login of the master, the setting administrator_login.
    type: dict
    required: true
    suboptions:
      url: {description: The master's address., type: str, required: true}
      authority: {description: The file of the certificate authority., type: str, required: true}
      user: {description: The user's name., type: str, required: true}
      password: {description: The user's password., type: str, required: true}
      password_file: {description: Where it is from, for messages., type: str, required: true}
  path:
    description: Paths below /api/v1/, requested one after the other.
    type: list
    elements: str
    required: true
  method:
    description: The requests' method.
    type: str
    default: GET
  body:
    description: The requests' content, sent as JSON.
    type: dict
  status:
    description: The statuses that are no errors; if 401 is one, neither is a refused login.
    type: list
    elements: int
    default: [200]
  secrets:
    description: Values in the body that must not appear in the output.
    type: list
    elements: str
    default: []
author: The project's authors
"""

REQUEST_SECONDS = 30
# For a moment after the database restarts, the master answers with an error.
LOGIN_SECONDS = 30
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


class RequestError(Exception):
    """A request failed; the message says how."""


class Master:
    """The API of one master, as one user."""

    def __init__(self, url: str, authority: str) -> None:
        self.url = url
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if url.startswith("https:"):
            context = ssl.create_default_context(cafile=authority)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)
        self._token = ""

    def send(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        """Return the status and content of an answer.

        Raises:
            RequestError: There is no answer.
        """
        url = f"{self.url}/api/v1/{path}"
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        # The address is the cluster's own setting.
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=REQUEST_SECONDS) as answer:
                return answer.status, _content(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _content(error.read())
        except OSError as error:
            raise RequestError(f"{url} does not answer: {error}") from error

    def log_in(self, user: str, password: str) -> int:
        """Log in, and wait for a master that has trouble; return the status.

        Raises:
            RequestError: It has trouble for too long.
        """
        deadline = time.monotonic() + LOGIN_SECONDS
        while True:
            problem = ""
            try:
                body = {"username": user, "password": password}
                status, content = self.send("auth/login", "POST", body)
                if status == HTTPStatus.OK:
                    self._token = content["token"]
                if status == HTTPStatus.OK or status in REFUSED:
                    return status
                problem = f"{self.url} answers with status {status} {_message(content)}"
            except RequestError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise RequestError(problem)
            time.sleep(2)

    def log_out(self) -> None:
        """End the session."""
        try:
            self.send("auth/logout", "POST", {})
        except RequestError:
            return


def _content(text: bytes) -> Any:
    try:
        return json.loads(text or b"{}")
    except ValueError:
        return {}


def _message(content: Any) -> str:
    """Return the text of an error that the master answered with."""
    if not isinstance(content, dict):
        return ""
    error = content.get("error")
    text = error.get("error") if isinstance(error, dict) else content.get("message")
    return str(text or "")


def perform(login: dict[str, str], requests: dict[str, Any], *, check: bool) -> dict[str, Any]:
    """Log in, send the requests and log out; return the module's result.

    Raises:
        RequestError: The login was refused, or a request failed.
    """
    allowed, method = requests["status"], requests["method"]
    try:
        master = Master(login["url"], login["authority"])
    except OSError as error:
        raise RequestError(
            f"{login['authority']} cannot be read ({error.strerror}): run make cluster-up"
        ) from error
    status = master.log_in(login["user"], login["password"])
    if status != HTTPStatus.OK:
        if HTTPStatus.UNAUTHORIZED in allowed:
            return {"changed": False, "status": int(HTTPStatus.UNAUTHORIZED), "json": {}}
        raise RequestError(
            f"the master at {login['url']} refuses the password in {login['password_file']}. Its "
            f"database belongs to an earlier cluster: write that cluster's password of the user "
            f"{login['user']} into the file"
        )
    try:
        if check and method != "GET":
            return {"changed": True, "status": allowed[0], "json": {}, "answers": []}
        answers = []
        for path in requests["path"]:
            status, content = master.send(path, method, requests["body"])
            if status not in allowed:
                raise RequestError(
                    f"{method} {login['url']}/api/v1/{path}: status {status} {_message(content)}"
                )
            answers.append(content)
    finally:
        master.log_out()
    changed = method != "GET" and status == HTTPStatus.OK
    return {"changed": changed, "status": status, "json": answers[-1], "answers": answers}


def main() -> None:
    """Run as an Ansible module."""
    text = {"type": "str", "required": True}
    login = dict.fromkeys(("url", "authority", "user", "password_file"), text)
    module = AnsibleModule(
        argument_spec={
            "login": {
                "type": "dict",
                "required": True,
                "options": {**login, "password": {**text, "no_log": True}},
            },
            "path": {"type": "list", "elements": "str", "required": True},
            "method": {"type": "str", "default": "GET"},
            "body": {"type": "dict"},
            "status": {"type": "list", "elements": "int", "default": [200]},
            "secrets": {"type": "list", "elements": "str", "default": [], "no_log": True},
        },
        supports_check_mode=True,
    )
    requests = {name: module.params[name] for name in ("path", "method", "body", "status")}
    try:
        result = perform(module.params["login"], requests, check=module.check_mode)
    except RequestError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
