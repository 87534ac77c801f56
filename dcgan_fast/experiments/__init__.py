"""The DCGAN paper's experiments as commands: each turns a checkpoint into a picture for a slide and a JSON of figures.

What they compute are functions of their own: :mod:`dcgan_fast.latent`, :mod:`dcgan_fast.guided`,
:mod:`dcgan_fast.forgetting`, :mod:`dcgan_fast.memorisation`. ``faces`` makes the set that they are best seen on:
:mod:`dcgan_fast.faces`.
"""

from __future__ import annotations

from .common import AddCommand
from .faces_command import add_faces_command
from .forget_command import add_forget_command
from .guided_command import add_guided_command
from .latent_commands import add_latent_commands
from .nearest_command import add_nearest_command

__all__ = ["add_commands"]


def add_commands(add: AddCommand) -> None:
    """Add all of them to a command line: ``add(name, run, summary, text, example)`` gives a parser."""
    add_latent_commands(add)
    add_guided_command(add)
    add_forget_command(add)
    add_nearest_command(add)
    add_faces_command(add)
