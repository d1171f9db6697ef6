"""The errors of the store that its callers handle themselves."""

from app.errors import EventstreamError


class TransactionTooLarge(EventstreamError):
    """The events are too many for one transaction. Nothing was changed: count them in parts."""


class NewerDatabase(EventstreamError):
    """A newer release has prepared this database. Nothing was changed."""
