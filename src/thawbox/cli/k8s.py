"""`thawbox k8s`: the manifests of deploy/, from one settings file."""

from __future__ import annotations

from pathlib import Path

import click

from thawbox.cli.output import json_option, print_json


@click.group("k8s", short_help="Kubernetes manifests from one settings file.")
def k8s_command() -> None:
    """The manifests that put thawbox on a cluster: kustomize base and overlays, node pools.

    \b
      thawbox k8s settings > settings.yaml      # then edit it
      thawbox k8s render --settings settings.yaml --out deploy
      kubectl apply -k deploy/overlays/generic
    """


_SETTINGS = click.option(
    "--settings", "settings_file", default=None, type=click.Path(path_type=Path), metavar="FILE",
    help="Default: every setting's default.",
)  # fmt: skip


@k8s_command.command("render", short_help="Write deploy/.")
@_SETTINGS
@click.option("--out", default="deploy", show_default=True, type=click.Path(path_type=Path), help="Where to.")
@click.option("--check", is_flag=True, help="Write nothing; fail if what is there differs.")
@json_option
def render_command(settings_file: Path | None, out: Path, check: bool, as_json: bool) -> int | None:
    """Write every manifest below --out. The same settings give the same files, byte for byte.

    With --json: {"files"}; with --check: {"differ"}, and exit status 102 if any does.
    """
    from thawbox.cli.exit_status import USAGE
    from thawbox.cluster.manifests.render import differences, write
    from thawbox.cluster.manifests.settings import read_settings

    settings = read_settings(settings_file)
    if check:
        differ = differences(settings, out)
        if as_json:
            print_json({"differ": differ})
        else:
            click.echo("\n".join(differ) or "nothing differs")
        return USAGE if differ else None
    written = [str(path) for path in write(settings, out)]
    if as_json:
        print_json({"files": written})
    else:
        click.echo("\n".join(written))
    return None


@k8s_command.command("settings", short_help="Print every setting, with what it means.")
@_SETTINGS
@json_option
def settings_command(settings_file: Path | None, as_json: bool) -> None:
    """Print the settings as a YAML file to edit, each with its meaning.

    With --json: the settings as one object.
    """
    from dataclasses import asdict

    from thawbox.cluster.manifests.settings import read_settings, settings_page

    settings = read_settings(settings_file)
    if as_json:
        print_json(asdict(settings))
    else:
        click.echo(settings_page(settings), nl=False)
