"""The images that the manifests name: what is in them is what the manifests start, and what the tests boot."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from golden import golden_spec
from thawbox.cluster.manifests.golden import examples, files
from thawbox.cluster.manifests.parts import bootstrap
from thawbox.cluster.manifests.settings import DeploySettings
from thawbox.model import Spec, check_spec
from thawbox.node import INSTALLED_PROGRAMS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "scripts" / "build-images"
OURS, AGENT = ROOT / "Containerfile", ROOT / "examples" / "agent" / "Containerfile"
SETTINGS = DeploySettings()
BOOTED = golden_spec(ROOT)
"""What test_golden_agent.py boots."""


def instructions(path: Path) -> list[tuple[str, str]]:
    """Each instruction of a Containerfile and its words."""
    lines = [one for one in path.read_text().splitlines() if not one.startswith("#")]
    whole = re.sub(r" *\\\n *", " ", "\n".join(lines)).splitlines()
    return [(word, rest) for word, _, rest in (one.partition(" ") for one in whole) if word]


def copies(path: Path) -> list[tuple[list[str], str]]:
    """What is copied out of this repository, and where to."""
    found = [rest.split() for word, rest in instructions(path) if word == "COPY" and not rest.startswith("--from=")]
    return [(words[:-1], words[-1]) for words in found]


def is_sent(path: str) -> bool:
    """Whether `.dockerignore` lets a builder see this path: the last rule that fits it counts."""
    sent = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#"):
            pattern, parts = rule.removeprefix("!"), path.split("/")
            above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
            if any(fnmatch.fnmatch(one, pattern) for one in (*above, *(f"**/{part}" for part in parts))):
                sent = rule.startswith("!")
    return sent


def test_the_template_that_is_rendered_is_the_golden_agent_that_is_booted_but_out_of_its_image() -> None:
    rendered = check_spec(msgspec.convert(examples(SETTINGS)[0]["spec"]["sandbox"], type=Spec))
    assert rendered.rootfs == "/var/lib/thawbox/images/agent-v1"
    assert rendered == replace(BOOTED, mounts=(), rootfs=rendered.rootfs, memory=rendered.memory)


def test_the_golden_image_has_everything_where_the_booted_golden_agent_has_it() -> None:
    said = dict(instructions(AGENT))
    assert tuple(json.loads(said["CMD"])) == BOOTED.command
    assert said["WORKDIR"] == BOOTED.workdir
    assert dict(one.split("=", 1) for one in said["ENV"].split()) == BOOTED.env
    last = [words for word, words in instructions(AGENT) if word in ("FROM", "COPY")]
    last = last[max(at for at, one in enumerate(last) if one.startswith("${")) + 1 :]
    assert {one.split()[-1] for one in last} == {mount.target for mount in BOOTED.mounts}


@pytest.mark.parametrize("path", [OURS, AGENT], ids=["thawbox", "agent"])
def test_all_that_an_image_is_made_of_is_in_the_repository_and_is_sent_to_the_builder(path: Path) -> None:
    for sources, _ in copies(path):
        for source in sources:
            assert (ROOT / source).exists(), source
            assert is_sent(source), source


@pytest.mark.parametrize("path", [
    ".venv/bin/python", ".git/config", "native/build/bin/criu", "native/init/build/x", "tls.key",
    "src/thawbox/__pycache__/x.pyc", ".cache/agent/matrix/vectors.npy",
])  # fmt: skip
def test_what_was_built_here_or_lies_about_is_not_sent(path: str) -> None:
    assert not is_sent(path)


def test_the_programs_that_bootstrap_installs_are_where_the_image_has_them() -> None:
    (to,) = (rest.split()[-1] for word, rest in instructions(OURS) if word == "COPY" and "native/build/bin" in rest)
    script = bootstrap(SETTINGS)["spec"]["template"]["spec"]["initContainers"][0]["command"][-1]
    named = set(re.findall(rf" ({INSTALLED_PROGRAMS}/[a-z-]+)", script))
    assert {Path(one).parent for one in named} == {Path(to)} == {INSTALLED_PROGRAMS}
    assert {Path(one).name for one in named} == {"criu", "thawbox-init", "thawbox-launch"}


def test_without_a_builder_it_is_said_what_is_missing(tmp_path: Path) -> None:
    for name in ("bash", "sed", "tr", "dirname"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    for environment, word in (({}, "neither podman nor buildah nor docker"), ({"BUILDER": "nothing"}, "no nothing")):
        done = subprocess.run(
            [BUILD], env={"PATH": str(tmp_path), **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert word in done.stderr


def test_the_images_that_are_built_are_those_that_the_manifests_name(tmp_path: Path) -> None:
    builder = tmp_path / "builder"
    builder.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n')
    builder.chmod(0o755)
    subprocess.run([BUILD, "--pull"], env={"PATH": "/usr/bin:/bin", "BUILDER": str(builder)}, check=True,
                   capture_output=True)  # fmt: skip
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"build --file Containerfile --tag {SETTINGS.image} --pull .",
        f"build --file examples/agent/Containerfile --tag {SETTINGS.golden_image} --pull .",
    ]


def test_an_images_files_are_copied_onto_a_node_whole_or_not_at_all_and_but_once(tmp_path: Path) -> None:
    image, images = tmp_path / "image", tmp_path / "images"
    (image / "etc").mkdir(parents=True)
    images.mkdir()
    for name in ("hosts", "hostname", "resolv.conf", "passwd"):
        (image / "etc" / name).write_text(name)
    (image / "opt").symlink_to("etc")
    (images / "agent-v1.new").mkdir()  # of a pod that was killed
    (images / "agent-v1.new" / "half").touch()
    script = files(SETTINGS)["spec"]["template"]["spec"]["initContainers"][0]["command"][-1]
    script = script.replace("/images/", f"{images}/").replace("cp -ax /.", f"cp -ax {image}/.")

    def copy() -> None:
        subprocess.run(["/bin/sh", "-c", script], check=True)

    copy()
    (there,) = images.iterdir()
    assert there.name == "agent-v1"
    assert {path.name: path.read_text() for path in (there / "etc").iterdir()} == {
        "hosts": "", "hostname": "", "resolv.conf": "", "passwd": "passwd",
    }  # fmt: skip
    assert (there / "opt").is_symlink()
    (image / "etc" / "passwd").write_text("changed")
    copy()
    assert (there / "etc" / "passwd").read_text() == "passwd"  # clones have it open
