"""The journal: `writer` appends, `ledger` signs, `query` and `bookmark` read, `retention` removes, `verify` checks."""
