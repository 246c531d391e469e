"""The golden agent: says when it may be frozen, finds what it knows, and comes back in the middle of its talk."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.matrix.embedding import embed
from app.matrix.files import MatrixError, read_manifest
from app.matrix.knowledge import Matrix, load_matrix
from corpus import FACTS, facts, place
from golden_agent import EXAMPLE, ROWS, ask, build, golden_spec, talk
from roads import FILES, TEMPLATE, clones_by
from thawbox.errors import HookFailed, StartFailed
from thawbox.model import Mount
from thawbox.node import Node


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("golden") / "matrix"
    build(directory, rows=ROWS)
    return directory


@pytest.fixture(scope="module")
def loaded(matrix: Path) -> Matrix:
    return load_matrix(matrix, progress=lambda _what, _part: None)


def test_the_matrix_is_the_same_bytes_wherever_it_is_made(matrix: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", rows=ROWS)
    assert read_manifest(tmp_path / "again").digest == read_manifest(matrix).digest


def test_search_finds_the_passage_that_answers(loaded: Matrix) -> None:
    asked = [fact for at in range(0, ROWS // FACTS, 5) for fact in facts(place(at))]
    found = [loaded.search(loaded.embed(fact.question), 1)[0].text for fact in asked]
    right = sum(text == fact.passage for text, fact in zip(found, asked, strict=True))
    assert right >= 0.95 * len(asked)


def test_the_index_finds_what_looking_at_every_vector_finds(loaded: Matrix, matrix: Path) -> None:
    vectors = np.load(matrix / "vectors.npy")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    questions = [fact.question for at in range(0, ROWS // FACTS, 25) for fact in facts(place(at))]
    same = 0
    for question in questions:
        vector = embed(question, loaded.rarity)
        (best,) = loaded.search(vector, 1)
        scores = vectors @ vector
        same += best.row == int(scores.argmax())
        assert best.score == pytest.approx(float(scores[best.row]), abs=1e-5)
    assert same >= 0.95 * len(questions)


def test_a_damaged_or_foreign_matrix_is_refused_by_name(matrix: Path, tmp_path: Path) -> None:
    def load(damaged: Path) -> None:
        load_matrix(damaged, progress=lambda _what, _part: None)

    for name in ("vectors.npy", "texts.bin"):
        shutil.copytree(matrix, tmp_path / name)
        with (tmp_path / name / name).open("r+b") as file:
            file.seek(10_000)
            file.write(b"damage")
        with pytest.raises(MatrixError, match=name):
            load(tmp_path / name)
    said = json.loads((matrix / "manifest.json").read_text())
    (tmp_path / "texts.bin" / "manifest.json").write_text(json.dumps({**said, "embedding": "other/1"}))
    with pytest.raises(MatrixError, match="other/1"):
        load(tmp_path / "texts.bin")
    with pytest.raises(MatrixError, match="build_matrix"):
        load(tmp_path / "nowhere")


def test_it_is_ready_only_when_all_is_loaded_and_its_talk_and_nonce_survive(node: Node, matrix: Path) -> None:
    sandbox = node.run(golden_spec(matrix, name="golden"))
    manifest = read_manifest(matrix)
    status, said = talk(sandbox, "GET", "/internal/checkpoint-ready")
    assert (status, said["missing"], said["matrix"]) == (200, [], {"digest": manifest.digest, "rows": ROWS})
    probe = manifest.probes[0]
    before = ask(sandbox, probe.question)
    assert before["answer"] == probe.answer
    snapshot = sandbox.checkpoint(when_ready=True, stop=True)

    back, _ = snapshot.restore()
    said = ask(back, "What did I ask you before?")
    assert probe.question in said["answer"]
    assert (said["nonce"], said["sandbox"], said["turn"]) == (before["nonce"], "golden", 2)
    for road in (FILES, TEMPLATE):
        (clone,) = clones_by(road, snapshot)
        said = ask(clone, manifest.probes[1].question)
        assert (said["answer"], said["nonce"]) == (manifest.probes[1].answer, before["nonce"])
        assert said["sandbox"] == clone.name
        state = talk(clone, "GET", "/state")[1]
        assert (state["clock"]["wakings"], state["identity"]["sandbox"], len(state["turns"])) == (1, clone.name, 2)
        assert ask(clone, "Hello?", conversation="other")["turn"] == 1


def test_while_it_loads_it_says_what_is_missing(node: Node, matrix: Path) -> None:
    pipe = matrix.parent / "dna.pipe"
    os.mkfifo(pipe)  # its first step waits for a writer: it cannot be loaded before we looked
    spec = golden_spec(matrix)
    waiting = replace(
        spec, env={**spec.env, "AGENT_DNA": "/opt/dna.pipe"}, ready="tcp:8000",
        mounts=(*spec.mounts, Mount(str(pipe), "/opt/dna.pipe", read_only=True)),
    )  # fmt: skip
    sandbox = node.run(waiting)
    status, said = talk(sandbox, "GET", "/internal/checkpoint-ready")
    assert (status, said["missing"]) == (503, ["dna: waiting", "matrix: waiting", "context cache: waiting"])
    assert talk(sandbox, "POST", "/ask", {"question": "Are you there?"})[0] == 503
    pipe.write_bytes((EXAMPLE / "dna" / "almanac.yaml").read_bytes())
    snapshot = sandbox.checkpoint(when_ready=True)
    assert talk(snapshot.clone(), "GET", "/internal/checkpoint-ready")[0] == 200


def test_an_agent_without_its_matrix_ends_and_says_why(node: Node, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StartFailed) as caught:
        node.run(golden_spec(tmp_path / "empty"))
    assert "manifest.json: No such file" in caught.value.log


def test_a_clone_over_another_matrix_is_never_handed_out(node: Node, matrix: Path, tmp_path: Path) -> None:
    moved = tmp_path / "matrix"
    shutil.copytree(matrix, moved)
    with node.run(golden_spec(moved)) as sandbox:
        snapshot = sandbox.checkpoint(when_ready=True)
    said = json.loads((moved / "manifest.json").read_text())
    said["files"]["texts.bin"]["sha256"] = "0" * 64
    (moved / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(HookFailed, match="this agent knows"):
        snapshot.clone()
    assert node.sandboxes() == []
