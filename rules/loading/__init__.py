"""Loading of rule files: from text to typed values, with every problem in its place."""
