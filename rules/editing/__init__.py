"""Edits rule files: writes a rule that allows what was asked about, or an exemption from the rule that asks.

`Wanted` says in a rule's words what was asked about, `places` where it goes in a file's text, and `written` puts it
there and holds the file as it would be against the one that is: nothing but what was meant may be decided otherwise.
Whoever asks for it writes the file.
"""

from rules.editing.writing import CannotWrite, Edited, Wanted, written

__all__ = ["CannotWrite", "Edited", "Wanted", "written"]
