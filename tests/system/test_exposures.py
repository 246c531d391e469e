"""Secrets are found before they are frozen into a golden snapshot, and what is no secret is left in peace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from guests import interpreter, run
from thawbox.errors import InvalidRequest
from thawbox.model import Spec
from thawbox.node import Node
from thawbox.sandbox.exposures import find_exposures, scan_files

# Put together here, so that no scanner of this repository takes them for real ones.
TOKENS = {
    "an AWS access key": "AK" + "IAIOSFODNN7EXAMPLE",
    "a GitHub token": "gh" + "p_" + "a1B2" * 9,
    "a Slack token": "xo" + "xb-" + "123456789012-abcdefghijkl",
    "a Google API key": "AI" + "za" + "SyA-1234567" * 3 + "89",
    "an OpenAI or Anthropic key": "s" + "k-ant-" + "api03-abcdefghijklmnopqrstuvwxyz012345",
    "a JSON web token": "ey" + "JhbGciOiJIUzI1NiJ9.ey" + "JzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "a password in a URL": "postgres://agent:" + "hunter2" + "@db.internal/agent",
    "a private key": "-----BEGIN " + "RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 8,
}


@pytest.mark.parametrize("what", TOKENS)
def test_tokens_of_every_shape_are_found_in_files(tmp_path: Path, what: str) -> None:
    (tmp_path / "notes.txt").write_text(f"key: {TOKENS[what]}\n")
    assert [(one.where, one.what) for one in scan_files(tmp_path)] == [("/notes.txt", what)]


def test_files_that_are_no_secrets_are_left_in_peace(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("set API_KEY=... and connect to postgres://user:${PASSWORD}@host/db\n")
    (tmp_path / ".env.example").write_text("TOKEN=\n")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n" + "MIIEpAIBAAKCAQEA" * 8)
    (tmp_path / "key.py").write_text('MARK = "-----BEGIN ' + 'PRIVATE KEY-----"\n')
    (tmp_path / "random").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "link").symlink_to("/etc/shadow")
    assert list(scan_files(tmp_path)) == []


NAMES = (
    "SERVICE_TOKEN", "PGPASSWORD", "MYSQL_PWD", "DB_PASS", "SMTP_PASS_2", "OPENAI_KEY", "GITHUB_PAT",
    "AWS_ACCESS_KEY_ID", "SECRET_KEY_BASE", "JWT_SECRET", "ACCESSTOKEN", "authToken", "apiKey", "DBPassword",
    "npm_config__authToken",
)  # fmt: skip
HARMLESS = {
    "TOKENIZERS_PARALLELISM": "false", "SSH_AUTH_SOCK": "/run/agent",
    "GPG_KEY": "A035C8C19219BA821ECEA86B64E628F8D684696D", "SSH_PUBLIC_KEY": "ssh-ed25519 AAAA",
    "MAX_TOKENS": "1000000", "PROXY_BYPASS": "localhost,example.org", "GIT_AUTHOR_NAME": "somebody",
    "OLDPWD": "/workloads", "COMPAT": "version-2", "HOTKEY": "ctrl-alt-del", "KEYMAP": "de-latin1",
}  # fmt: skip


def test_a_running_sandbox_is_searched_and_no_value_is_shown(node: Node) -> None:
    env = {**dict.fromkeys(NAMES, "abcdef-123456"), **HARMLESS}
    sandbox = interpreter(node, "import subprocess", env=env)
    run(sandbox, "os.makedirs('/root/.aws'); open('/root/.aws/credentials', 'w').write('[default]')")
    run(sandbox, "subprocess.Popen(['sleep', '1000'], env={'DB_PASSWORD': 'correct horse'})")
    found = find_exposures(node.context, sandbox.record)
    (inherited,) = [one.where for one in found if "(sleep), DB_PASSWORD" in one.where]
    expected = {*(f"environment, {name}" for name in NAMES), "/root/.aws/credentials", inherited}
    assert {one.where for one in found} == expected
    assert "abcdef-123456" not in str(found)
    assert "correct horse" not in str(found)


def test_a_template_with_secrets_is_refused_or_warned_of_by_policy(
    open_node: Callable[..., Node],
) -> None:
    spec = Spec(("sleep", "1000"), env={"SERVICE_TOKEN": "abcdef-123456"})
    node = open_node()
    with pytest.raises(InvalidRequest, match="environment, SERVICE_TOKEN"):
        node.create_template("agent", spec)
    assert not node.snapshots()
    assert not node.sandboxes()
    warning = open_node(golden_secrets="warn")
    assert [one.where for one in warning.create_template("agent", spec).exposures] == ["environment, SERVICE_TOKEN"]
    clean = warning.create_template("clean", replace(spec, env={}))
    assert clean.exposures == ()
