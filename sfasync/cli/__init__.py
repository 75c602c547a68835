"""The command line: arguments to engine calls."""
