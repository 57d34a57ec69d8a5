"""Numbers and names as people read them: what every command prints with."""

from bigconv.words import count, plural, printable, shape, size

__all__ = ["count", "plural", "printable", "shape", "size"]
