"""Templates: a spec and its golden snapshot, made by booting the spec until it says that it is ready.

Rule: a golden snapshot is made only of a sandbox that was booted for it, so nothing of a caller can be in it.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import msgspec

from thawbox.errors import InvalidRequest, LockTimeout, SnapshotNotFound
from thawbox.host.files import locked, private_directory
from thawbox.model import SnapshotId, Spec, checked_name
from thawbox.sandbox.checkpointing import Mode
from thawbox.sandbox.context import Context
from thawbox.sandbox.exposures import Exposure, check_exposures
from thawbox.sandbox.handle import Sandbox
from thawbox.sandbox.starting import start

_KIND = "template"


@dataclass(frozen=True, slots=True)
class Template:
    """What clones are made from. `snapshot` changes with every rebuild and tells old clones from new ones.

    Times are seconds since the epoch; `bytes` is the size of the golden snapshot. `exposures` is what looks like a
    secret in it, where the setting says that this is a warning only.
    """

    name: str
    spec: Spec
    snapshot: SnapshotId
    created_at: float
    rebuilt_at: float
    bytes: int
    exposures: tuple[Exposure, ...] = ()


def wanted() -> None:
    """For whoever makes a template and does not change his mind."""


def create_template(context: Context, name: str, spec: Spec, *, check: Callable[[], None] = wanted) -> Template:
    """Boot `spec` until it is ready, keep it as a golden snapshot, and remove the sandbox it was made of.

    Without `spec.ready` it counts as ready when its program was started. The clones publish no ports.
    Raises InvalidRequest when the name is taken, as starting and checkpointing do, and what `check` raises, which is
    asked before anything stays; nothing is left then.
    """
    checked_name(name, "template name")
    with context.telemetry.step("template.create", template=name), _alone(context, name):
        if name in context.journal.entries(_KIND):
            raise InvalidRequest(
                f"there is a template {name!r} already", remediation="use `thawbox template rebuild`, or another name"
            )
        return _build(context, name, replace(spec, name="", publish=()), created_at=context.now(), check=check)


def rebuild_template(context: Context, name: str, *, check: Callable[[], None] = wanted) -> Template:
    """Boot the template's spec anew and let its clones be made from the result; the old snapshot goes.

    The old one stays in use, whole, when this fails, also by what `check` raises.
    """
    with context.telemetry.step("template.rebuild", template=name), _alone(context, name):
        before = find_template(context, name)
        built = _build(context, name, before.spec, created_at=before.created_at, check=check)
        if built.snapshot != before.snapshot:
            _drop_snapshot(context, before)
        return built


def remove_template(context: Context, name: str) -> None:
    """Forget a template and remove its golden snapshot, unless other snapshots were made upon that one."""
    with _alone(context, name):
        template = find_template(context, name)
        context.journal.remove_entry(_KIND, name)
        _drop_snapshot(context, template)


def find_template(context: Context, name: str) -> Template:
    """The template of this name; raises NotFound."""
    return msgspec.json.decode(context.journal.entry(_KIND, name), type=Template)


def all_templates(context: Context) -> list[Template]:
    """Every template of the node, by name."""
    return [msgspec.json.decode(content, type=Template) for content in context.journal.entries(_KIND).values()]


@contextlib.contextmanager
def _alone(context: Context, name: str) -> Generator[None]:
    """One change at a time to one template; a name that stands for none afterwards keeps no lock file."""
    lock = private_directory(context.home / "locks") / f"template-{checked_name(name, 'template name')}"
    with locked(lock, timeout=context.settings.lock_timeout, what=f"template {name}"):
        try:
            yield
        finally:
            if name not in context.journal.entries(_KIND):
                lock.unlink()


def _build(
    context: Context, name: str, spec: Spec, *, created_at: float, check: Callable[[], None]
) -> Template:  # fmt: skip
    booted = replace(spec, name=f"{name[:40].rstrip('-_.')}-golden-{secrets.token_hex(3)}")
    record, _ = start(context, booted)
    with ExitStack() as undo:
        sandbox = Sandbox(context, record)
        undo.callback(sandbox.remove, force=True)
        check()
        exposures = check_exposures(context, record, policy=context.settings.golden_secrets)
        made = sandbox.checkpoint(
            mode=Mode.FULL, stop=True, labels={"template": name}, pinned=True, when_ready=_says_when_ready(spec)
        )
        template = Template(name, spec, made.id, created_at, context.now(), made.stored.bytes, exposures)
        with ExitStack() as unwanted:
            unwanted.callback(_drop_snapshot, context, template)
            check()
            context.journal.write_entry(_KIND, name, msgspec.json.encode(template))
            unwanted.pop_all()
        return template


def _says_when_ready(spec: Spec) -> bool:
    """Whether the program's hooks tell when it is fully loaded."""
    return spec.ready == "guest" or spec.hooks.startswith(("http://", "cmd:"))


def _drop_snapshot(context: Context, template: Template) -> None:
    """Remove a golden snapshot that no template names; what was made upon it keeps it, as an ordinary snapshot."""
    with contextlib.suppress(SnapshotNotFound):
        context.store.pin(template.snapshot, pinned=False)
        try:
            context.store.remove(template.snapshot)
        except InvalidRequest:
            return
        except LockTimeout:  # a clone is being restored from it just now: the next gc takes it
            context.store.expire(template.snapshot, context.now())
