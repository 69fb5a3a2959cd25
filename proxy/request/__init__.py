"""HTTP messages: strict parsing of heads and bodies, rewriting before they are sent, refs of a git push. Pure."""
