"""Ways out: from a decision to a connected socket, at an address that was checked or through a company's own proxy."""
