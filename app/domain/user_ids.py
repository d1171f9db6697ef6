"""User ids are kept as keyed hashes. Nobody can find the id of a hash without the key.

A plain hash is not enough, because anybody with a list of ids could hash them. A keyed hash is
pseudonymisation: it is still personal data for whoever has the key (Article 29 Working Party,
Opinion 05/2014 on anonymisation techniques, section 4).
"""

import base64
import hmac

DIGEST_BYTES = 16
"""128 bits: among 10^12 users, two have the same hash with a probability of about 10^-15."""

FIRST_MONTH = "2026-01"
"""The month of the first release. No event can belong to an earlier month."""


class UserHash:
    """Hashes user ids with HMAC-SHA256 (RFC 2104), truncated as its section 5 allows.

    With `monthly` the key is derived from the secret and the month. A user then has a different
    hash in each month, so nobody can follow the user from month to month.
    """

    def __init__(self, secret: str, *, monthly: bool = False) -> None:
        self._secret = secret.encode()
        self._monthly = monthly
        self._keyed: dict[str, hmac.HMAC] = {}

    def __call__(self, user_id: str, month: str) -> str:
        """The hash of a user's id, 22 letters, digits, "-" and "_", in a month (YYYY-MM)."""
        name = month if self._monthly else ""
        # Copying an object that has processed the key takes half the time of creating a new one.
        keyed = (self._keyed.get(name) or self._key(name)).copy()
        # An id is any text that JSON can hold, including lone surrogates.
        keyed.update(user_id.encode(errors="surrogatepass"))
        return base64.urlsafe_b64encode(keyed.digest()[:DIGEST_BYTES])[:-2].decode()

    def _key(self, month: str) -> hmac.HMAC:
        key = hmac.digest(self._secret, month.encode(), "sha256") if month else self._secret
        keyed = self._keyed[month] = hmac.new(key, digestmod="sha256")
        return keyed
