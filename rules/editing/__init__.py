"""Edits rule files: adds a rule that allows an attempt, or an exemption from the rule that asks about it.

`AttemptToAllow` is the attempt, `insertion` finds where the rule goes in the file's text, and `add_rule` inserts it.
`add_rule` then compares the policies before and after: no other decision may change. The caller writes the file.
"""

from rules.editing.writing import AttemptToAllow, EditedFile, EditError, add_rule

__all__ = ["AttemptToAllow", "EditError", "EditedFile", "add_rule"]
