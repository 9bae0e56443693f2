"""The scan of `make lint` finds a secret that is added to a file."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# In two parts each, so that the scan does not find them in this file.
PRIVATE_KEY = "-----BEGIN EC PRIVATE" + " KEY-----\nMHcCAQEEIBkg\n-----END EC PRIVATE KEY-----\n"
AWS_KEY = "aws_access_key_id = AKIA" + "2E0A8F3B244C9986\n"
KEYWORD = "admin_pass" + "word: Gx7qLw2ZkP9vTn4cRb8yHd3m\n"


def _scan(*files: Path) -> subprocess.CompletedProcess[str]:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (hook,) = [hook for hook in config["repos"][0]["hooks"] if hook["id"] == "detect-secrets"]
    command = [*shlex.split(hook["entry"]), *map(str, files)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("id_ecdsa", PRIVATE_KEY, "Private Key"),
        ("config.py", AWS_KEY, "AWS Access Key"),
        ("hosts.yml", KEYWORD, "Secret Keyword"),
    ],
)
def test_a_secret_fails_the_scan(tmp_path: Path, name: str, content: str, kind: str) -> None:
    file = tmp_path / name
    file.write_text(f"# A comment\n{content}")
    outcome = _scan(file)
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert kind in outcome.stdout
    # It says where the secret is, and does not show it.
    assert f"{file}:2" in outcome.stdout
    assert content.rsplit(maxsplit=1)[-1] not in outcome.stdout


def test_references_to_secrets_pass_the_scan(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yml"
    reference = 'admin_password: "{{ vault_admin_password }}"\n'
    file.write_text(f"{reference}user_password: secret  # pragma: allowlist secret\n")
    outcome = _scan(file)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
