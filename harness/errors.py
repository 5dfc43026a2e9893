"""Errors that a person can act on: printed as they are, never as a traceback."""


class HarnessError(Exception):
    """The request or its input was wrong. The message says what, where, what was expected and what to do.

    The command line prints the message alone and leaves with exit code 2.
    """


class Lacking(HarnessError):
    """What was asked for makes sense but is not on this machine; the message says how to get it."""


class PartError(HarnessError):
    """A file of a run folder cannot be read. Names the file; the rest of the run is unharmed."""
