"""Views of the journal for people: rows, timelines, causes and effects, `exeat top`, and reports."""
