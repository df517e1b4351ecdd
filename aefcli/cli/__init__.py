"""The command line: parse, call, print.

    app       what all commands share: the Typer app, common options, printing, errors and exit codes
    signals   Ctrl-C and SIGTERM: how a command comes to its end, and by when
    cubes     simulate, fetch, attach, verify, repair
    samples   samples
    models    text, train, embed
    scores    eval
    maps      map
    fields    export, validate
    show      info, plot
    recipes   recipe list, show, validate, diff

A command stands beside the helpers that it alone uses.
"""

# The order of these imports is the order of the commands in `aef --help`: that of a user's day.
from aefcli.cli import cubes, samples, models, scores, maps, fields, show, recipes  # isort: skip
from aefcli.cli.app import main

__all__ = ["cubes", "fields", "main", "maps", "models", "recipes", "samples", "scores", "show"]
