"""What happened, told once and in one model: events, the journal, metrics."""
