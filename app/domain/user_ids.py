"""User ids as they are kept: keyed hashes, from which nobody without the key finds the id again.

A plain hash would not do: whoever has a list of ids could hash these (Article 29 Working Party,
Opinion 05/2014 on anonymisation techniques, 4: a keyed hash is pseudonymisation, and stays
personal data for who has the key).
"""

import base64
import hmac

DIGEST_BYTES = 16
"""128 bits: of a million million users, two have the same hash with a probability of 1 in 10^15."""

FIRST_MONTH = "2026-01"
"""No event can be of a month before: it was before the first release."""


class UserHash:
    """Hashes user ids with HMAC-SHA256 (RFC 2104), truncated as its section 5 allows.

    `monthly` derives the key from the secret and the month: a user then has another hash each
    month, and can't be followed over months.
    """

    def __init__(self, secret: str, *, monthly: bool = False) -> None:
        self._secret = secret.encode()
        self._monthly = monthly
        self._keyed: dict[str, hmac.HMAC] = {}

    def __call__(self, user_id: str, month: str) -> str:
        """The hash of a user's id, 22 letters, digits, "-" and "_", in a month (YYYY-MM)."""
        name = month if self._monthly else ""
        # A copy of one that has taken in the key already is made in half the time of a new one.
        keyed = (self._keyed.get(name) or self._key(name)).copy()
        # An id is any text that JSON can hold, lone surrogates included.
        keyed.update(user_id.encode(errors="surrogatepass"))
        return base64.urlsafe_b64encode(keyed.digest()[:DIGEST_BYTES])[:-2].decode()

    def _key(self, month: str) -> hmac.HMAC:
        key = hmac.digest(self._secret, month.encode(), "sha256") if month else self._secret
        keyed = self._keyed[month] = hmac.new(key, digestmod="sha256")
        return keyed
