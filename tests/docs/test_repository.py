"""What is generated or locked says the same as what it was made from."""

from __future__ import annotations

import filecmp
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def test_generating_the_protobuf_modules_again_changes_nothing(tmp_path: Path) -> None:
    committed = ROOT / "src/thawbox/engines/proto"
    fresh = tmp_path / "proto"
    subprocess.run([ROOT / "scripts/generate_protos", fresh], check=True, capture_output=True)
    compared = filecmp.dircmp(committed, fresh, ignore=["__pycache__"])
    assert (compared.left_only, compared.right_only, compared.diff_files) == ([], [], [])


def _locked(name: str) -> dict[str, str]:
    text = (ROOT / "locks" / name).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", text, flags=re.MULTILINE))


def _wanted(group: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted: list[str] = list(project["project"]["dependencies"])
    if group != "runtime":
        wanted += project["project"]["optional-dependencies"]["cluster"]
    return wanted + project["dependency-groups"]["dev"] if group == "dev" else wanted


@pytest.mark.parametrize("group", ["runtime", "cluster", "dev"])
def test_every_dependency_is_locked_at_a_version_that_the_project_accepts(group: str) -> None:
    locked = _locked(f"{group}.txt")
    for line in _wanted(group):
        requirement = Requirement(line)
        version = locked.get(requirement.name)
        assert version is not None, f"{line} is not in locks/{group}.txt: run scripts/lock"
        assert requirement.specifier.contains(version), f"{line} is locked at {version}: run scripts/lock"


def test_all_locks_name_the_same_version_of_what_they_share() -> None:
    runtime, cluster, dev = (_locked(f"{name}.txt") for name in ("runtime", "cluster", "dev"))
    assert {name: cluster.get(name) for name in runtime} == runtime
    assert {name: dev.get(name) for name in cluster} == cluster


@pytest.mark.parametrize("lock", sorted((ROOT / "locks").glob("*.txt")), ids=lambda path: path.name)
def test_a_lock_names_no_address(lock: Path) -> None:
    assert "://" not in lock.read_text()


def test_the_reference_pages_say_what_the_code_says(tmp_path: Path) -> None:
    subprocess.run([ROOT / ".venv/bin/python", ROOT / "scripts/generate_docs", tmp_path], check=True)
    for page in tmp_path.iterdir():
        committed = ROOT / "docs" / page.name
        assert committed.read_text() == page.read_text(), f"run scripts/generate_docs: docs/{page.name} is out of date"


MARKDOWN = sorted(
    path for folder in (ROOT, ROOT / "docs", ROOT / "docs/decisions", ROOT / "native") for path in folder.glob("*.md")
)


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
