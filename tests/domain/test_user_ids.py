import base64
import hashlib
import hmac
import re

from hypothesis import given
from hypothesis import strategies as st

from app.domain.user_ids import UserHash

SECRET = "a secret of some length"


def test_a_hash_is_hmac_sha256_cut_to_128_bits() -> None:
    full = hmac.new(SECRET.encode(), b"u1", hashlib.sha256).digest()
    assert base64.urlsafe_b64decode(UserHash(SECRET)("u1", "2026-11") + "==") == full[:16]


@given(st.text(st.characters(), min_size=1, max_size=128))
def test_every_id_has_a_hash_of_22_url_safe_characters(user_id: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", UserHash(SECRET)(user_id, "2026-11"))


def test_a_users_hash_changes_only_with_the_secret() -> None:
    hash_user = UserHash(SECRET)
    assert hash_user("u1", "2026-11") == hash_user("u1", "2026-12")
    assert hash_user("u1", "2026-11") != hash_user("u2", "2026-11")
    assert hash_user("u1", "2026-11") != UserHash("another secret of some")("u1", "2026-11")


def test_a_monthly_hash_is_the_same_within_a_month_and_changes_with_the_next() -> None:
    monthly = UserHash(SECRET, monthly=True)
    assert monthly("u1", "2026-11") == UserHash(SECRET, monthly=True)("u1", "2026-11")
    hashes = {monthly("u1", "2026-11"), monthly("u1", "2026-12"), UserHash(SECRET)("u1", "")}
    assert len(hashes) == 3
