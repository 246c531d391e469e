"""thawbox.guest on its own: importable without thawbox, harmless outside a sandbox, careful with secrets."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import thawbox
from thawbox.guest.environment import _Environment
from thawbox.guest.registry import Event, HookFailed, Registry, _Registered
from thawbox.guest.secrets import Secret, secrets

PATH = os.environ["PATH"]
FOLDER = Path(thawbox.__file__).parent / "guest"


@pytest.mark.parametrize("module", sorted(path.name for path in FOLDER.glob("*.py")))
def test_the_guest_imports_the_standard_library_and_itself_alone(module: str) -> None:
    tree = ast.parse((FOLDER / module).read_text())
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or (module == "web.py" and top == "starlette"), f"{module}: {name}"


def test_a_copy_of_the_folder_works_under_any_name_and_without_thawbox(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "anything", ignore=shutil.ignore_patterns("__pycache__"))
    program = """
import random, anything as guest
@guest.before_checkpoint
def before(): pass
@guest.after_restore(timeout=3)
async def after(event): pass
guest.ready()
print(sum(1 for line in open("/proc/net/unix") if "thawbox-guest" in line) > 0)
"""
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{program}"],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_secret_is_not_shown_and_holds_nothing_once_it_is_wiped() -> None:
    buffer = bytearray(b"sesame")
    secret = Secret(buffer)
    assert "sesame" not in repr(secret)
    assert (secret.reveal(), bytes(secret.view()), len(secret)) == ("sesame", b"sesame", 6)
    secret.wipe()
    assert bytes(buffer) == bytes(6)
    assert (secret.reveal(), len(secret)) == ("", 0)


def test_secrets_that_are_replaced_are_overwritten() -> None:
    old = bytearray(b"old")
    secrets.replace({"KEY": Secret(old)})
    secrets.replace({"KEY": Secret(bytearray(b"new"))})
    assert bytes(old) == bytes(3)
    assert secrets["KEY"].reveal() == "new"
    secrets.wipe()
    assert list(secrets) == []


def test_a_process_gets_back_the_environment_that_it_gave_up_and_no_other() -> None:
    environment = _Environment()
    held_by_the_program = bytes(bytearray(b"given"))
    environment.lay({"GUEST_A": held_by_the_program, "GUEST_B": b"given", "PATH": b"/given"})
    path = os.environ["PATH"]
    os.environ["GUEST_B"] = "set anew"
    environment.lay({"PATH": b"/given later"})
    assert (path, os.environ["PATH"], sorted(environment.held())) == ("/given", "/given later", ["GUEST_A", "PATH"])
    environment.give_up()
    assert [os.environ.get(name) for name in ("GUEST_A", "GUEST_B", "PATH")] == [None, "set anew", PATH]
    assert held_by_the_program == b"given"
    laid = environment.put_back({"GUEST_A": b"again", "GUEST_B": b"of another process"})
    assert (dict(laid), os.environ["GUEST_B"]) == ({"GUEST_A": "again"}, "set anew")
    environment.give_up()
    del os.environ["GUEST_B"]
    assert dict(environment.put_back({})) == {}
    assert "GUEST_A" not in os.environ


def test_hooks_run_in_their_order_and_take_the_event_only_if_they_want_it() -> None:
    ran: list[str] = []
    registry = Registry()
    registry.before = [_Registered(lambda: ran.append("first"), 5), _Registered(lambda: ran.append("second"), 5)]
    registry.restored = [_Registered(lambda: ran.append("bare"), 5), _Registered(lambda e: ran.append(e.what), 5)]
    registry.run_before()
    registry.run_after(Event("clone"))
    registry.run_after(Event("checkpoint"))
    assert ran == ["second", "first", "bare", "clone"]


def test_a_hook_that_raises_or_takes_too_long_is_named() -> None:
    def broken() -> None:
        raise ValueError("no")

    async def slow() -> None:
        import asyncio

        await asyncio.Event().wait()

    registry = Registry()
    registry.before = [_Registered(broken, 5)]
    with pytest.raises(HookFailed, match=r"broken raised ValueError: no"):
        registry.run_before()
    registry.before = [_Registered(slow, 0.05)]
    with pytest.raises(HookFailed, match=r"slow took more than 0\.05 s"):
        registry.run_before()
