"""HTTP messages: strict reading of heads and bodies, how they are sent, and the refs of a push. Pure."""
