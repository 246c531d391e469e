"""A DNA that cannot be used says which field is wrong, before anything is done with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.matrix.dna_loader import DnaError, load_dna
from app.settings import read_settings
from golden_agent import EXAMPLE

ALMANAC = EXAMPLE / "dna" / "almanac.yaml"


def test_the_dna_that_comes_with_the_example_is_read_and_named_by_its_bytes(tmp_path: Path) -> None:
    loaded = load_dna(ALMANAC)
    assert loaded.dna.identity.name == "Halden"
    (tmp_path / "copy").write_bytes(ALMANAC.read_bytes())
    assert load_dna(tmp_path / "copy").digest == loaded.digest
    (tmp_path / "copy").write_bytes(ALMANAC.read_bytes() + b"# changed\n")
    assert load_dna(tmp_path / "copy").digest != loaded.digest


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("dna/v1", "dna/v2", "another schema"),
        ("version: 1.2.0", "version: latest", "version: string should match"),
        ("  name: Halden\n", "", "identity.name: field required"),
        ("  role:", "  rank: first\n  role:", "identity.rank: extra inputs"),
        ("tool: compare", "tool: shell", "skills.1.tool: input should be 'look_up', 'compare' or 'recount'"),
        ("name: compare", "name: look-up", "several skills named look-up"),
        ("persona:", "persona: [", "no YAML"),
    ],
)
def test_each_fault_is_named_with_its_field(tmp_path: Path, before: str, after: str, said: str) -> None:
    text = ALMANAC.read_text()
    assert before in text
    path = tmp_path / "dna.yaml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(DnaError, match=r"dna\.yaml") as caught:
        load_dna(path)
    assert said in str(caught.value)


def test_what_is_no_dna_at_all_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DnaError, match="No such file"):
        load_dna(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(DnaError, match="a mapping"):
        load_dna(tmp_path / "list.yaml")


def test_settings_are_read_by_name_and_a_wrong_one_is_named() -> None:
    assert read_settings({"AGENT_PORT": "81", "AGENT_CACHE": "vertex"}).port == 81
    with pytest.raises(ValueError, match="AGENT_PORT='x'"):
        read_settings({"AGENT_PORT": "x"})
    with pytest.raises(ValueError, match="AGENT_CACHE='disk'"):
        read_settings({"AGENT_CACHE": "disk"})
