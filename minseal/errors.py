"""The one error that is the user's to mend: the command line prints its line and exits with code 2."""


class UserError(ValueError):
    """Something handed to minseal is wrong: the message says what was expected, what came, and what to do."""
