"""`thawbox workflow …`: steps in one sandbox, with snapshots between them, gone on with after any crash."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from thawbox.cli.names import opened
from thawbox.cli.output import json_option, print_json, print_table, timestamp

if TYPE_CHECKING:
    from thawbox.host.init_client import Output
    from thawbox.model import Spec
    from thawbox.node import Node
    from thawbox.workflow import Plan, Workflow


@click.group("workflow", short_help="Run steps with a snapshot after each.")
def workflow_command() -> None:
    """Run the steps of a TOML file in a sandbox, with a snapshot after each, and go on after any crash.

    docs/workflows.md says what stands in the file.
    """


_workflow_argument = click.argument("name", metavar="WORKFLOW")


@workflow_command.command("run", short_help="Carry out a workflow.")
@click.option("--resume", is_flag=True, help="Go on from the last completed step of a run that ended early.")
@json_option
@click.argument("file", type=click.Path(), metavar="FILE")
def run_command(*, file: str, resume: bool, as_json: bool) -> None:
    """Carry out the steps of FILE, in order, in a sandbox that has the workflow's name.

    A step is completed once its snapshot is durable. When a step fails, what came before it stays completed: mend it
    and go on with --resume. Commands print to stderr; the sandbox is left running.

    \b
      thawbox workflow run build.toml
      thawbox workflow run build.toml --resume

    With --json: {"workflow", "sandbox", "resumed_after", "completed": [...], "skipped": [...]}.
    """
    from thawbox.workflow import Workflow, run_plan

    plan = _plan_in(file)
    spec = _spec_of(plan)
    done: dict[str, list[str]] = {"completed": [], "skipped": []}

    def say(step: str, what: str) -> None:
        done.get(what, []).append(step)
        click.echo(f"{what:10} {step}", err=True)

    with opened() as node, Workflow(node.context, plan.name) as workflow:
        resumed_after = _stand_at_its_beginning(node, workflow, spec, resume=resume)
        run_plan(workflow, plan.steps, say=say, show=_show)
        answer: dict[str, Any] = {"workflow": plan.name, "sandbox": workflow.sandbox.name}
    answer |= {"resumed_after": resumed_after or None, **done}
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["sandbox"])


def _stand_at_its_beginning(node: Node, workflow: Workflow, spec: Spec, *, resume: bool) -> str:
    """Begin or resume; the step that was completed last, empty if none was."""
    from thawbox.errors import InvalidRequest

    if workflow.is_begun and not resume:
        raise InvalidRequest(
            f"workflow {workflow.name} was begun before",
            remediation=f"go on with --resume, or forget it with `thawbox workflow forget {workflow.name}`",
        )
    if workflow.is_begun:
        last = workflow.resume()
        click.echo(f"resumed after {last}" if last else "resumed at the beginning", err=True)
        return last
    if resume:
        click.echo("nothing to resume: beginning", err=True)
    sandbox = node.run(spec)
    try:
        workflow.begin(sandbox)
    except BaseException:
        sandbox.remove(force=True)
        raise
    return ""


def _plan_in(file: str) -> Plan:
    from pathlib import Path

    from thawbox.errors import InvalidRequest
    from thawbox.workflow import read_plan

    try:
        return read_plan(Path(file).read_text())
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file} is not text") from None


def _spec_of(plan: Plan) -> Spec:
    from thawbox.cli.spec_text import spec_from_fields

    fields = {"command": ["sleep", "infinity"], "name": plan.name, **plan.sandbox}
    return spec_from_fields(fields, what=f"[sandbox] of workflow {plan.name}")


def _show(output: Output) -> None:
    sys.stderr.buffer.write(output.content)
    sys.stderr.buffer.flush()


@workflow_command.command("show", short_help="Show how far a workflow got.")
@_workflow_argument
@json_option
def show_command(*, name: str, as_json: bool) -> None:
    """Show the completed steps of a workflow that was begun, with their snapshots.

    With --json: {"workflow", "sandbox" (its id), "begun_from", "steps": [{"step", "kind", "snapshot", "at"}]}.
    """
    from thawbox.workflow import Workflow

    with opened() as node, Workflow(node.context, name) as workflow:
        progress = workflow.progress
    if as_json:
        steps = [
            {"step": one.step, "kind": one.kind.value, "snapshot": one.snapshot, "at": timestamp(one.at)}
            for one in progress.steps
        ]
        print_json(
            {"workflow": name, "sandbox": progress.sandbox, "begun_from": progress.begun_from, "steps": steps}
        )  # fmt: skip
        return
    rows = [(one.step, one.kind.value, one.snapshot[:12], str(timestamp(one.at))) for one in progress.steps]
    print_table(("STEP", "KIND", "SNAPSHOT", "COMPLETED"), rows)


@workflow_command.command("forget", short_help="Forget how far a workflow got.")
@_workflow_argument
@json_option
def forget_command(*, name: str, as_json: bool) -> None:
    """Forget how far a workflow got, so that it can begin anew. Its sandbox and snapshots stay, but are no longer kept.

    With --json: {"workflow"}.
    """
    from thawbox.workflow import Workflow

    with opened() as node, Workflow(node.context, name) as workflow:
        workflow.forget()
    if as_json:
        print_json({"workflow": name})
    else:
        click.echo(name)
