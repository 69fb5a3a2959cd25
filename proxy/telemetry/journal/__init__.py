"""The journal: `writing` and `chain` make its lines, `keeper` looks after them, `reading` reads them back."""
