"""`thawbox completion`."""

from __future__ import annotations

import click


@click.command("completion", short_help="Print what makes a shell complete thawbox.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion for a shell: commands, options, and the names of sandboxes and snapshots.

    \b
      bash: eval "$(thawbox completion bash)"                 in ~/.bashrc
      zsh:  eval "$(thawbox completion zsh)"                  in ~/.zshrc
      fish: thawbox completion fish > ~/.config/fish/completions/thawbox.fish
    """
    from click.shell_completion import get_completion_class

    from thawbox.cli.app import thawbox

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows the three that the argument admits
    completion = kind(thawbox, {}, "thawbox", "_THAWBOX_COMPLETE")
    click.echo(completion.source_template % completion.source_vars())
