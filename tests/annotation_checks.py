"""The checker behind every annotation of the package while the tests run: beartype, told two things about this project.

pytest's `--jaxtyping-packages=outscore,annotation_checks.check` applies it. In production annotations cost nothing.
"""

from collections.abc import Iterator
from typing import Any, get_args, runtime_checkable

from beartype import BeartypeConf, beartype

# The numeric tower lets an int stand where a float is asked for, as mypy does.
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(target: Any) -> Any:
    """Make calls of `target` fail when an argument or the result is not what its annotation says."""
    for annotation in getattr(target, "__annotations__", {}).values():
        for protocol in _protocols(annotation):
            # Unless told so, a protocol refuses isinstance, and that is how beartype asks.
            runtime_checkable(protocol)
    return _checked(target)


def _protocols(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, list | tuple):  # the arguments of a Callable
        for item in annotation:
            yield from _protocols(item)
    elif getattr(annotation, "_is_protocol", False) and isinstance(annotation, type):
        yield annotation
    else:
        yield from _protocols(get_args(annotation))
