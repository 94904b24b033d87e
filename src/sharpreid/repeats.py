"""Jobs of a sweep that are run once more, of ``hydra/sweeper=repeating``."""

from collections.abc import Sequence

from sharpreid.hydra_files import parse_override


def key_of(override: str) -> str:
    """Return the key of an override, without its sign.

    >>> key_of("model.blocks=[1]"), key_of("+experiment=fig5")
    ('model.blocks', 'experiment')
    """
    return parse_override(override)[0]


def wanted_repeats(repeats: Sequence[Sequence[str]], arguments: Sequence[str]) -> list[list[str]]:
    """Return the repeats of which the command line sets no key.

    Args:
        repeats: the overrides of each repeat.
        arguments: the overrides of the command line.

    >>> wanted_repeats([["model.blocks=[]", "seed=1"]], ["logger=csv"])
    [['model.blocks=[]', 'seed=1']]
    >>> wanted_repeats([["model.blocks=[]", "seed=1"]], ["seed=0,1,2"])
    []
    """
    given = set(map(key_of, arguments))
    return [list(repeat) for repeat in repeats if given.isdisjoint(map(key_of, repeat))]
