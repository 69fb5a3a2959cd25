"""How rule files are written: from text to typed values, every problem in its place. What they mean is elsewhere."""
