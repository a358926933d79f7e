"""The one error that a user's mistake raises, so that the command line can answer in a single line."""


class CourseError(ValueError):
    """Bad input: the message is one line that names the input, what is wrong with it and what to do."""
