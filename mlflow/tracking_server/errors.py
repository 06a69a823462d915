"""The one kind of error that is the operator's to mend."""


class OperatorError(Exception):
    """Says in one line what is wrong and what would be right. Never holds a secret."""
