"""Values that are equal to themselves alone, however much they say the same."""


class Itself:
    """In front of a NamedTuple: no two of them are one.

    What is remembered is filed under such values. Two findings of different plans may say the very same, and what
    follows from them is not: one of them may be about an address that is not public.
    """

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        """Whether it is this one."""
        return self is other

    def __ne__(self, other: object) -> bool:
        """Whether it is another one: a tuple has a way of its own to tell."""
        return self is not other
