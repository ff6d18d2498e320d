"""The errors that people are meant to read."""


class LabError(Exception):
    """Something went wrong that a person can mend: the text says what, where and what to do, and is all they see."""
