"""Makes readers of events and hashes of user ids from the settings."""

from app.domain.reader import EventReader
from app.domain.user_ids import UserHash
from app.settings import Settings


def reader_with(config: Settings) -> EventReader:
    """A reader of events with these settings."""
    return EventReader(
        config.timezone,
        excluded_users=config.excluded_users,
        hash_user=user_hash_with(config),
    )


def user_hash_with(config: Settings) -> UserHash | None:
    """The hash for user ids with these settings, or None if they are kept as they are sent."""
    if config.user_hash_secret is None:
        return None
    return UserHash(config.user_hash_secret, monthly=config.user_hash_rotation == "month")
