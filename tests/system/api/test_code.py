"""Code in an interpreter of the sandbox: what it keeps, what it answers, and what a snapshot does to it."""

from __future__ import annotations

import os
import threading

import pytest

from guests import PACKAGES
from service import wait_for
from thawbox.client import Client, Execution
from thawbox.client.sync.sandbox import Sandbox
from thawbox.errors import InvalidRequest, InvalidTransition, Unsupported
from thawbox.node import Node

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_what_code_made_stays_and_the_last_expression_is_the_text(box: Sandbox) -> None:
    assert box.run_code("x = 41").text is None
    assert box.run_code("x += 1\nx").text == "42"
    assert box.run_code("_").text == "42"
    assert box.run_code("'ä' * 3").text == "'äää'"
    assert box.run_code("def f(n):\n    return n and f(n - 1)\nf(3)").text == "0"
    assert box.run_code(
        "import asyncio\nawait asyncio.sleep(0)\n[i async for i in (lambda: (_ async for _ in ()))()]"
    ).error
    assert box.run_code("await asyncio.sleep(0, 7)").text == "7"
    assert box.run_code("__name__").text == "'__main__'"


def test_contexts_know_nothing_of_each_other_and_end(box: Sandbox) -> None:
    box.run_code("x = 1")
    assert box.run_code("x", context="other").error is not None
    assert box.run_code("x").text == "1"
    box.end_context()
    fresh = box.run_code("x")
    assert (fresh.error is not None, fresh.count) == (True, 1)
    box.end_context("never-was")
    with pytest.raises(InvalidRequest):
        box.run_code("1", context="../x")


def test_output_of_the_code_and_of_what_it_starts_is_told_apart_and_streamed(box: Sandbox) -> None:
    code = "import os, sys\nprint('out')\nprint('err', file=sys.stderr)\n_ = os.system('echo sub; echo bad >&2')"
    done = box.run_code(code)
    assert (done.stdout, done.stderr, done.error) == ("out\nsub\n", "err\nbad\n", None)
    heard: list[str] = []
    done = box.run_code("for i in range(3):\n    print(i)\n'end'", on_stdout=heard.append)
    assert ("".join(heard), done.stdout, done.text) == ("0\n1\n2\n", "0\n1\n2\n", "'end'")


def test_errors_come_with_the_users_own_lines(box: Sandbox) -> None:
    failed = box.run_code("def f():\n    return 1 / 0\nprint('before')\nf()")
    assert failed.error is not None
    assert (failed.error.name, failed.error.value, failed.stdout) == (
        "ZeroDivisionError",
        "division by zero",
        "before\n",
    )
    assert "return 1 / 0" in failed.error.traceback
    assert "thawbox" not in failed.error.traceback
    for code, name in (
        ("def f(:", "SyntaxError"),
        ("exit(3)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ):
        error = box.run_code(code).error
        assert error is not None
        assert error.name == name
    bad = "class E(Exception):\n    def __str__(self): raise ValueError\nraise E"
    assert box.run_code(bad).error is not None
    assert box.run_code("class R:\n    def __repr__(self): 1 / 0\nR()").error is not None
    assert box.run_code("1").text == "1"


def test_a_timeout_interrupts_and_kills_only_what_does_not_listen(box: Sandbox) -> None:
    box.run_code("kept = 1")
    slow = box.run_code("import time\ntime.sleep(1000)", timeout=0.3)
    assert slow.error is not None
    assert (slow.error.name, slow.timed_out) == ("KeyboardInterrupt", True)
    assert box.run_code("kept").text == "1"
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    killed = box.run_code(deaf, timeout=0.3)
    assert killed.error is not None
    assert (killed.error.name, killed.timed_out) == ("InterpreterKilled", True)
    assert box.run_code("1 + 1").text == "2", "a fresh one goes on"
    died = box.run_code("import os, signal\nprint('last')\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert died.error is not None
    assert (died.error.name, died.stdout) == ("InterpreterDied", "last\n")
    assert box.run_code("1 + 1").count == 1


def test_what_it_holds_is_in_snapshots_clones_and_restores(box: Sandbox, client: Client) -> None:
    box.run_code(
        "import secrets, random\nnonce = secrets.token_hex()\nopen('/tmp/nonce', 'w').write(nonce)\nrandom.seed(1)"
    )
    nonce = box.files.read_text("/tmp/nonce")
    snapshot = box.checkpoint()
    clones = snapshot.clones(2)
    drawn = set[str | None]()
    for clone in clones:
        assert clone.run_code("nonce").text == repr(nonce)
        drawn.add(clone.run_code("random.random()").text)
        clone.run_code("nonce = 'mine'")
    assert len(drawn) == 2, "two clones drew the same number"
    assert box.run_code("nonce").text == repr(nonce)
    box.kill()
    with snapshot.restore() as restored:
        assert restored.run_code("nonce").text == repr(nonce)
    for clone in clones:
        clone.kill()


def test_a_checkpoint_in_the_middle_of_a_run_disturbs_neither(box: Sandbox) -> None:
    heard: list[str] = []
    begun = threading.Event()
    done: list[Execution] = []

    def hear(text: str) -> None:
        heard.append(text)
        begun.set()

    counting = "while not os.path.exists('/tmp/enough'):\n    print(n)\n    n += 1\n    time.sleep(0.01)"
    code = f"import os, time\nn = 0\n{counting}\n'done'"
    thread = threading.Thread(target=lambda: done.append(box.run_code(code, on_stdout=hear)))
    thread.start()
    assert begun.wait(60)
    snapshot = box.checkpoint()
    box.files.write("/tmp/enough", "")
    thread.join(60)
    assert done[0].text == "'done'"
    assert "".join(heard) == "".join(f"{n}\n" for n in range(len("".join(heard).split())))
    with snapshot.clone() as clone:  # its memory is in the middle of the run, which goes on by itself
        clone.files.write("/tmp/enough", "")
        assert int(clone.run_code("n").text or 0) > 0


def test_a_caller_that_vanishes_interrupts_the_code(box: Sandbox, client: Client) -> None:
    import httpx

    box.run_code("n = 0")
    path = client._transport.place.socket
    endless = {"code": "import time\nn = 1\nwhile True: time.sleep(0.01)"}
    transport = httpx.HTTPTransport(uds=path)
    with (
        httpx.Client(transport=transport, base_url="http://x", timeout=0.5) as caller,
        pytest.raises(httpx.ReadTimeout),
    ):
        caller.post(f"/v1/sandboxes/{box.id}/code", json=endless)
    assert box.run_code("n", timeout=60).text == "1", "the next run comes to its turn"


def test_two_callers_of_one_context_take_turns(box: Sandbox) -> None:
    results: list[str | None] = []
    box.run_code("n = 0")
    threads = [threading.Thread(target=lambda: results.append(box.run_code("n += 1\nn").text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results, key=str) == [str(n) for n in range(1, 9)]


def test_a_sandbox_that_does_not_run_or_has_no_python_says_so(box: Sandbox, beside: Node) -> None:
    box.freeze()
    with pytest.raises(InvalidTransition):
        box.run_code("1")
    box.thaw()
    box.commands.run("for p in /usr/bin/python3 /usr/local/bin/python3; do rm -f $p; done")
    with pytest.raises(Unsupported, match="python3"):
        box.run_code("1", context="late")


def test_figures_come_as_images(client: Client) -> None:
    mounts = [{"source": str(PACKAGES), "target": "/packages", "read_only": True}]
    with client.run(("sleep", "1000"), mounts=mounts) as box:
        box.run_code("import sys; sys.path.append('/packages')")
        shown = box.run_code(
            "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nplt.figure()\nprint('two')"
        )
        assert (shown.error, shown.stderr) == (None, "")
        assert [(image.mime, image.data[:4]) for image in shown.images] == [("image/png", b"\x89PNG")] * 2
        last = box.run_code("from matplotlib.figure import Figure\nFigure()")
        assert (len(last.images), last.text) == (1, None)
        assert box.run_code("1").images == ()
        wait_for(lambda: box.run_code("plt.get_fignums()").text == "[]", "every figure was closed")
