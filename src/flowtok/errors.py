"""The errors a user can meet, all of one family.

The command line prints any of them as one line and exits with 2; nothing here knows what raised it.
"""


class FlowTokError(ValueError):
    """Something the user gave cannot be used; the message says what it was, what is allowed and what to do."""


class CheckpointError(FlowTokError):
    """A model folder or weight file is missing, damaged or does not fit the network it is loaded into."""


class DataError(FlowTokError):
    """A picture, caption file or data folder cannot be read or has nothing usable in it."""
