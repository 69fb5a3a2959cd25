"""A page about a part of the journal, for a ticket: `gathered` reads, `drawing` draws, `page` writes HTML."""
