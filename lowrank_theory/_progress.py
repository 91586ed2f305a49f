"""How long work says how far it is."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""`progress(name, done, total)`, called after every step of the work on `name`."""
