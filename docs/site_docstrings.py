"""Griffe extension for three habits of this project's docstrings that Griffe's Google parser does not know.

- Doctests stand at the end without a heading: they become an ``Examples`` section.
- An entry of ``Args`` may describe several parameters, such as ``query, gallery:``: each gets its own entry.
- ``Args`` of a NamedTuple, whose constructor Griffe does not see, become ``Attributes``.
"""

import re
from typing import Any

from griffe import Class, Extension, Object

_GROUP = re.compile(r"(?m)^(?P<indent> +)(?P<names>\w+(?:, \w+)+):(?P<text> .*(?:\n(?P=indent) +\S.*)*)")
_DOCTEST = re.compile(r"(?ms)(?:\A|\n\n)(>>> .*?)(?=\n\n(?!>>> )|\Z)")


def rewrite(text: str) -> str:
    """Return a docstring in the form that Griffe's parser understands."""
    text = _GROUP.sub(_one_entry_each, text)
    return _DOCTEST.sub(lambda found: "\n\nExamples:\n    " + found[1].replace("\n", "\n    "), text)


def _one_entry_each(found: re.Match[str]) -> str:
    return "\n".join(f"{found['indent']}{name}:{found['text']}" for name in found["names"].split(", "))


class Docstrings(Extension):
    """Rewrite the docstring of each object that Griffe loads."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring in place."""
        if obj.docstring is not None:
            text = rewrite(obj.docstring.value)
            if isinstance(obj, Class) and "NamedTuple" in map(str, obj.bases):
                text = text.replace("Args:\n", "Attributes:\n")
            obj.docstring.value = text
