"""What tasks of a name usually do, learned from the journal, and what is far from that. It decides nothing."""
