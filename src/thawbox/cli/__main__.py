"""`python -m thawbox.cli`: the same as the command `thawbox`."""

from thawbox.cli.app import main

main()
