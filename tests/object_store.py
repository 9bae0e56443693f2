"""An S3-compatible object store for tests: versitygw in a container."""

import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.exceptions

IMAGE = "versity/versitygw:v1.8.0"
PORT = 7070


@dataclass(frozen=True)
class ObjectStore:
    """A running store with one bucket."""

    url: str
    access_key: str
    secret_key: str
    bucket: str = "checkpoints"

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint_storage section of an experiment that uses this store."""
        return {
            "type": "s3",
            "bucket": self.bucket,
            "endpoint_url": self.url,
            "access_key": self.access_key,
            "secret_key": self.secret_key,
        }

    def names(self) -> list[str]:
        """The names of all objects in the bucket."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        )

    def wait(self, seconds: float = 30) -> None:
        """Wait until the store answers, and create the bucket."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                self._client().create_bucket(Bucket=self.bucket)
            except botocore.exceptions.BotoCoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
            else:
                return


@contextlib.contextmanager
def object_store(network: str, address: str = "") -> Iterator[ObjectStore]:
    """Run a store on a Docker network; remove it with its contents at exit.

    Args:
        network: Name of the network.
        address: The store's address in it; empty for any free one.
    """
    access, secret = secrets.token_hex(8), secrets.token_hex(16)
    name = f"test-object-store-{access}"
    command = ["docker", "run", "--detach", f"--name={name}", f"--network={network}"]
    command += [f"--ip={address}"] if address else []
    command += [f"--env=ROOT_ACCESS_KEY={access}", f"--env=ROOT_SECRET_KEY={secret}"]
    # A volume, because the store needs a file system with extended attributes.
    command += ["--volume=/objects", IMAGE, "posix", "/objects"]
    subprocess.run(command, check=True, capture_output=True)
    try:
        template = f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}'
        found = subprocess.run(
            ["docker", "inspect", f"--format={template}", name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        store = ObjectStore(f"http://{found}:{PORT}", access, secret)
        store.wait()
        yield store
    finally:
        remove = ["docker", "rm", "--force", "--volumes", name]
        subprocess.run(remove, capture_output=True, check=False)
