"""Numbers and names as people read them: what every command prints with."""

from bigconv.words import count, name, plural, printable, shape, size

__all__ = ["count", "name", "plural", "printable", "shape", "size"]
