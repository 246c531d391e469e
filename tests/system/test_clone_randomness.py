"""A hundred clones of one memory: what they draw first differs, whatever draws it."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy

from guests import evaluate, interpreter, run
from roads import on_both_roads
from thawbox.model import Mount
from thawbox.node import Node

pytestmark = on_both_roads

PACKAGES = Mount(str(Path(numpy.__file__).parents[1]), "/opt/packages", read_only=True)

DRAW = """
answer = {
    "random": random.random(),
    "numpy": float(numpy.random.random()),
    "openssl": ssl.RAND_bytes(16).hex(),
    "secrets": secrets.token_hex(16),
    "uuid1": str(uuid.uuid1())[9:],
    "uuid4": str(uuid.uuid4()),
    "urandom": open("/dev/urandom", "rb").read(16).hex(),
    "getrandom": os.getrandom(16).hex(),
    "tempfile": next(tempfile._get_candidate_names()),
    "forked": forked(),
}
"""
SETUP = f"""
import random, secrets, ssl, uuid, tempfile, threading
sys.path.insert(0, "/opt/packages")
import numpy, numpy.random
ask, told = os.pipe(), os.pipe()
guest.start()
if os.fork() == 0:
    while os.read(ask[0], 1):
        os.write(told[1], random.random().hex().encode())
def forked():
    os.write(ask[1], b"?")
    return os.read(told[0], 100).decode()
random.seed(7); numpy.random.seed(7)
{DRAW}
"""


def test_the_first_numbers_of_100_clones_all_differ(node: Node) -> None:
    snapshot = interpreter(node, SETUP, mounts=(PACKAGES,), ready_timeout=120).checkpoint()
    drawn: list[dict[str, Any]] = []

    def one(_: int) -> dict[str, Any]:
        with snapshot.clone() as clone:
            found: dict[str, Any] = run(clone, DRAW)
            return found

    with ThreadPoolExecutor(2) as threads:
        drawn = list(threads.map(one, range(100)))
    for source in drawn[0]:
        values = [first[source] for first in drawn]
        assert len(set(values)) == len(values), f"two clones drew the same from {source}"


def test_no_thread_of_a_clone_draws_a_number_that_another_clone_draws_too(node: Node) -> None:
    setup = """
import itertools, random, threading
drawn, began = [], []
def draw():
    while len(drawn) < 3_000_000:
        drawn.extend(itertools.starmap(random.random, ((),)))  # in one: else it may be drawn and not yet noted
        for _ in range(1000): pass
guest.before_checkpoint(lambda: began.append(len(drawn)))
threads = [threading.Thread(target=draw, daemon=True) for _ in range(3)]
def go():
    for thread in threads: thread.start()
"""
    sandbox = interpreter(node, setup)
    run(sandbox, "go()")
    snapshot = sandbox.checkpoint()
    sandbox.remove(force=True)
    lists = []
    for clone in snapshot.clones(4):
        # its threads tell nobody how far they are: looked at until they are there, however long that takes
        run(clone, "end = len(drawn) + 30_000\nwhile len(drawn) < end: time.sleep(0.01)")
        lists.append(evaluate(clone, "drawn[began[-1]:end]"))
        clone.remove(force=True)
    for first, second in itertools.combinations(lists, 2):
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))
        assert same + 30_000 <= min(len(first), len(second)), "they drew the same after the snapshot"
        assert not set(first[same:]) & set(second[same:])
