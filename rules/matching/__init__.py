"""Which rules cover an attempt, which of them wins, and what came nearest: compiled once, asked for every attempt."""
